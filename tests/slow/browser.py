"""report.html in a real browser that is watched: what it draws, what it asks for, what it complains of."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path
from typing import Any

import run_experiments as runner
from tests.slow._chromium import CHROMIUM, Browser
from tests.support import wait_for

OWNED = "window.owned=1"
HOSTILE = (
    f"<script>{OWNED}</script>",
    f'</script><script>{OWNED}</script><img src="https://example.com/x" onerror="{OWNED}">',
    f"</pre></td></table><svg onload={OWNED}>",
    f'" onmouseover="{OWNED}" x=\'',
    f"${{{OWNED}}}`<!--DATA--><!--<script>",
    "nul\0esc\x1b[31m\x07\u202e\u2028 \udcff",
    "__proto__",
)


class Case:
    """A page over experiments that are told here; nothing is trained and no log is read."""

    def __init__(self, folder: Path, state: str = "finished", **head: Any) -> None:
        self.path = folder / "report.html"
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"Command": "run --configs '*.py'"}
        self.head: dict[str, Any] = {"title": folder.name, "state": state, "facts": facts, **head}
        self.rows: list[dict[str, Any]] = []
        self.groups: list[dict[str, Any]] = []

    def add(self, name: str, *losses: Any, **values: Any) -> None:
        """An experiment with one evaluation every 10 steps."""
        finite = [loss for loss in losses if not isinstance(loss, str)]
        known: dict[str, Any] = {
            **{"name": name, "status": "completed", "progress": "", "train_loss": None, "best_step": None},
            **{"val_loss": losses[-1] if losses else None, "best_val_loss": min(finite, default=None)},
            **{"attempts": 1, "best": False, "error": None, "hint": None, "stderr_tail": "", "warnings": []},
            **{"settings": {}, "sweep": {}, "config_path": "one.py", "total_seconds": 60.0, "eta_seconds": None},
            **{"files": [("stdout", f"./{name}/stdout.log"), ("config", f"./{name}/config_used.py")]},
        }
        val = [[10 * at, loss] for at, loss in enumerate(losses)]
        train = [[step, loss if isinstance(loss, str) else loss + 0.1] for step, loss in val]
        self.rows.append({**known, "curve": {"val": val, "train": train}, **values})

    def page(self) -> Path:
        counts = {"completed": len(self.rows)}
        head = runner.PageHead(counts=counts, **self.head)
        text = runner.render_page(head, self.rows, self.groups)
        self.path.write_bytes(text.encode(errors="backslashreplace"))
        return self.path


@unittest.skipUnless(CHROMIUM, "Chromium is missing")
class PageTest(unittest.TestCase):
    browser: Browser

    @classmethod
    def setUpClass(cls) -> None:
        cls.browser = Browser()
        cls.addClassCleanup(cls.browser.close)

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.dir = Path(scratch.name)

    def case(self, **head: Any) -> Case:
        return Case(self.dir / "experiment_20240128_143022", **head)

    def open(self, page: Path, **options: Any) -> None:
        """Load a page, and check that it asks for nothing beyond itself and that nothing is complained of."""
        self.browser.open(page, **options)
        self.assert_quiet(page)

    def assert_quiet(self, page: Path) -> None:
        self.browser.run("1")  # by now what came before has been told
        self.assertEqual(self.browser.complaints, [])
        self.assertEqual({url for url in self.browser.requests if not url.startswith("data:")}, {page.as_uri()})

    def column(self, number: int) -> list[str]:
        return self.browser.texts(f"#experiments tbody tr:first-child > :nth-child({number})")

    def click_title(self, title: str) -> int:
        """Click a column's title; returns which column it is."""
        titles = self.browser.texts("#experiments thead th")
        number = titles.index(title) + 1
        self.browser.click(f"#experiments thead th:nth-child({number}) button")
        return number

    def wait_for_js(self, condition: str) -> None:
        wait_for(lambda: self.browser.run(condition), condition)

    def test_every_size_of_batch_is_drawn_whole_in_light_dark_and_on_a_phone(self) -> None:
        for count in (1, 3, 12, 100):
            case = Case(self.dir / str(count))
            for number in range(count):
                losses = (4.0, 3.0 - number / 100, 2.0 + number / 100)
                best = count > 1 and number == 0
                case.add(f"run_{number}", *losses, settings={"seed": number}, best=best)
            page = case.page()
            for options in ({"width": 1200}, {"width": 1200, "dark": True}, {"width": 390}):
                with self.subTest(count=count, **options):
                    self.open(page, **options)
                    self.assertEqual(
                        (self.browser.count("tbody"), self.browser.count("#curves svg > g")), (count, count)
                    )
                    self.assertEqual(self.browser.count("#curves svg > g > path.curve[d^=M]"), count)
                    self.assertEqual(self.browser.count(".legend button"), count)
                    self.assertEqual(self.browser.count("path.best"), 2 if count > 1 else 0)  # in plot and legend
                    self.assertEqual(self.browser.run("document.documentElement.scrollWidth"), options["width"])
                    colours = (
                        "new Set([...document.querySelectorAll('#curves svg > g > path')].map(p => p.style.stroke))"
                    )
                    self.assertEqual(self.browser.run(f"{colours}.size"), count)
                    background = self.browser.run("getComputedStyle(document.body).backgroundColor")
                    self.assertEqual(background != "rgb(255, 255, 255)", "dark" in options)

    def test_none_finished_and_all_failed(self) -> None:
        case = Case(self.dir / "none", state="running")
        case.add("a", status="running")
        case.add("b", status="pending")
        self.open(case.page())
        self.assertIn("so there are no curves", self.browser.texts("#curves .plot")[0])
        self.assertEqual(self.column(2), ["running", "pending"])
        case = Case(self.dir / "failed")
        for name in "abc":
            case.add(name, status="failed", error="exit code 1", hint="try less", stderr_tail="Traceback\n  of it")
        self.open(case.page())
        self.assertIn("so there are no curves", self.browser.texts("#curves .plot")[0])
        self.assertEqual((self.browser.count("tbody"), self.browser.count("svg")), (3, 0))
        self.assertFalse(self.browser.run("document.querySelector('pre').checkVisibility()"))
        self.browser.click("summary")
        self.wait_for_js("document.querySelector('pre').checkVisibility()")
        self.assertEqual(self.browser.texts("pre")[0], "Traceback\n  of it")

    def test_where_a_curve_turns_nan_or_inf_it_ends_with_a_mark(self) -> None:
        case = self.case()
        case.add("fine", 4.0, 3.0, 2.0)
        case.add("gone_nan", 4.0, 3.5, "nan", "nan")
        case.add("gone_inf", 4.0, 3.7, "inf")
        case.add("at_once", "nan")
        self.open(case.page())
        paths = "[...document.querySelectorAll('#curves svg > g > path')]"
        marks = self.browser.run(f"{paths}.map(path => path.getAttribute('d').split('l8 8').length - 1)")
        self.assertEqual(sorted(marks), [0, 1, 1, 1])
        self.assertEqual(self.browser.count("#curves path[d*=NaN], #curves path[d*=Infinity]"), 0)
        self.browser.click("#log")
        self.assertEqual(self.browser.count("#curves path[d*=NaN], #curves path[d*=Infinity]"), 0)

    def test_a_click_sorts_up_then_down_then_as_in_the_batch(self) -> None:
        case = self.case()
        times, losses, rates = (59.5, 3700.0, 90000.0, 600.0), (2.5, 1.5, 10.5, 0.5), (1e-05, 0.1, 2.0, 0.003)
        for name, time, loss, rate in zip(("run_10", "run_9", "run_2", "run_1"), times, losses, rates):
            case.add(name, 20.0, loss, total_seconds=time, settings={"rate": rate})
        case.add("none", status="pending", total_seconds=None)
        page = case.page()
        self.open(page)
        whole = self.column(1)
        self.assertEqual(whole, ["run_10", "run_9", "run_2", "run_1", "none"])
        for title, order in {
            "Best (★: of all)": ["run_1", "run_9", "run_10", "run_2"],
            "Duration": ["run_10", "run_1", "run_9", "run_2"],
            "rate": ["run_10", "run_1", "run_9", "run_2"],
        }.items():
            with self.subTest(title):
                self.click_title(title)
                self.assertEqual(self.column(1), [*order, "none"])
                self.click_title(title)
                self.assertEqual(self.column(1), [*order[::-1], "none"])
                self.assertEqual(self.browser.texts("[aria-sort=descending]"), [title])
                self.click_title(title)
                self.assertEqual(self.column(1), whole)
        self.click_title("Experiment")
        self.assertEqual(self.column(1), ["none", "run_1", "run_2", "run_9", "run_10"])
        self.browser.open(page)
        self.assertEqual(self.column(1)[0], "none")  # what the reader chose outlives a reload
        self.browser.run("sessionStorage.clear()")
        self.assert_quiet(page)

    def test_the_log_switch_the_training_loss_the_legend_and_the_pointer(self) -> None:
        case = self.case()
        case.add("a", 100.0, 10.0, 1.0, best=True)
        case.add("b", 90.0, 9.0, 2.0)
        page = case.page()
        self.open(page)
        heights = "(p => p.map((y, i) => i && y - p[i - 1]).slice(1))(document.querySelector('#curves path.best').getAttribute('d').match(/[\\d.]+(?=[ML]|$)/g).map(Number))"  # noqa: E501
        first, second = self.browser.run(heights)
        self.assertGreater(first, 5 * second)
        self.browser.click("#log")
        first, second = self.browser.run(heights)
        self.assertAlmostEqual(first, second, delta=1)
        self.browser.click("#train")
        self.assertEqual(self.browser.count("#curves path.faint"), 2)
        self.browser.click(".legend button:nth-of-type(2)")
        self.assertEqual((self.browser.count("#curves path.faint"), self.browser.count("#curves svg > g")), (1, 2))
        self.browser.click("#train")
        self.assertEqual(self.browser.count(".legend [aria-pressed=false]"), 1)
        self.browser.point_at("#curves svg", across=0.98, down=0.5)
        self.wait_for_js("!document.querySelector('#curves .tip').hidden")
        self.assertEqual(self.browser.texts("#curves .tip"), ["a\nstep 20: 1"])
        self.browser.run("sessionStorage.clear()")
        self.assert_quiet(page)

    def test_a_sweep_over_orders_of_magnitude_is_drawn_on_a_log_axis_with_a_line_for_each_config(self) -> None:
        case = self.case()
        for number, value in enumerate((1e-05, 1e-04, 1e-03, 1e-02)):
            swept = {"settings": {"rate": value}, "sweep": {"rate": value}}
            for config in ("easy.py", "hard.py"):
                case.add(f"{config}_{number}", 4.0, 2.0 + abs(number - 2), config_path=config, **swept)
        case.add("failed", status="failed", error="no", sweep={"rate": 1.0}, config_path="easy.py")
        self.open(case.page())
        self.assertEqual(self.browser.texts("#sweep h2"), ["Best validation loss by rate"])
        places = self.browser.run(
            "[...document.querySelectorAll('#sweep svg > g circle')].map(c => +c.getAttribute('cx'))"
        )
        places = sorted(set(places))
        self.assertEqual(len(places), 4)
        gaps = [right - left for left, right in zip(places, places[1:])]
        self.assertLess(max(gaps) - min(gaps), 0.01 * gaps[0])
        self.assertLessEqual({"1e-5", "0.01"}, set(self.browser.texts("#sweep text")))
        self.assertEqual(self.browser.texts("#sweep .legend span"), ["easy.py", "hard.py"])
        self.assertEqual(self.browser.count("#sweep svg > g > path.faint[d*=L]"), 2)  # a line for each
        self.browser.point_at("#sweep svg", across=0.98, down=0.1)
        self.wait_for_js("!document.querySelector('#sweep .tip').hidden")
        self.assertIn(self.browser.texts("#sweep .tip")[0], ("easy.py_3\nrate 0.01: 3", "hard.py_3\nrate 0.01: 3"))

    def test_texts_from_files_are_shown_as_text_and_execute_nothing(self) -> None:
        batches = [{"name": text, "href": "./x", "state": text, "started": text, "command": text} for text in HOSTILE]
        facts = {"Host": HOSTILE[0], "Commit": HOSTILE[1]}
        case = self.case(facts=facts, batches=batches, warnings=list(HOSTILE))
        for number, text in enumerate(HOSTILE):
            settings = {text: text, HOSTILE[0]: number}
            told = {"error": text, "hint": text, "stderr_tail": "\n".join(HOSTILE), "warnings": [text]}
            swept = {"sweep": {HOSTILE[0]: number}, "config_path": text}
            case.add(f"run_{number}", 4.0, 2.0, status="failed", settings=settings, **swept, **told)
        page = case.page()
        self.open(page)
        self.assertEqual(self.column(1), [f"run_{number}" for number in range(len(HOSTILE))])
        self.assertIn(HOSTILE[0], self.browser.texts("dd"))
        self.assertIn(HOSTILE[3], self.browser.texts("summary"))
        self.assertEqual((self.browser.run("document.scripts.length"), self.browser.count("img, iframe")), (2, 0))
        self.assertEqual(self.browser.run("document.querySelector('#sweep h2').textContent.includes('<script>')"), True)
        for selector in ("summary", "#log", ".legend button", "#experiments thead th:nth-child(2) button"):
            self.browser.click(selector)
        self.browser.point_at("#curves svg", across=0.9)
        self.assertIsNone(self.browser.run("window.owned"))
        links = self.browser.run("[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))")
        self.assertEqual([link for link in links if not link.startswith(("./run_", "./x"))], [])
        self.browser.run("sessionStorage.clear()")
        self.assert_quiet(page)

    def test_without_javascript_the_table_is_whole(self) -> None:
        case = self.case()
        case.add("a", 4.0, 3.0)
        case.add("b", status="failed", error="exit code 1")
        self.open(case.page(), scripts=False)
        self.assertEqual(self.column(1), ["a", "b"])
        self.assertIn("3.0000", self.column(4))
        self.assertEqual(self.browser.texts(".note"), ["exit code 1"])
        self.assertTrue(self.browser.run("document.querySelector('noscript p').checkVisibility()"))
        self.assertEqual(self.browser.count("thead button, svg"), 0)
        self.assertFalse(self.browser.run("document.querySelector('label').checkVisibility()"))

    def test_the_page_of_a_running_batch_shows_what_is_new_by_itself_until_the_end(self) -> None:
        case = self.case(state="running", reload_seconds=0.2)
        case.add("a", 4.0, status="running")
        page = case.page()
        self.open(page)
        self.assertEqual(self.column(1), ["a"])
        case.add("b", 3.0, status="failed", error="exit code 1", hint="try less")
        case.page()
        self.wait_for_js("document.querySelectorAll('tbody').length === 2")
        # Not while somebody reads the error: the mark that the test leaves is gone after a reload
        self.browser.run("window.marked = document.querySelector('details').open = true")
        self.browser.run("new Promise(done => setTimeout(done, 1000))")
        self.assertTrue(self.browser.run("window.marked"))
        case.head.update(state="finished", reload_seconds=None)
        case.page()
        self.browser.run("document.querySelector('details').open = false")
        self.wait_for_js("document.querySelector('.counts')?.textContent.includes('finished')")
        self.assertIsNone(self.browser.run("data.reload"))

    def test_it_prints_on_white_without_switches_and_links(self) -> None:
        case = self.case()
        case.add("a", 4.0, 3.0)
        self.open(case.page(), dark=True, media="print")
        self.assertEqual(self.browser.run("getComputedStyle(document.body).backgroundColor"), "rgb(255, 255, 255)")
        for selector in ("label", "#experiments .f", "#experiments td.f"):
            self.assertFalse(self.browser.run(f"document.querySelector('{selector}').checkVisibility()"), selector)

    def test_ten_settings_fit_a_window_of_1280_pixels(self) -> None:
        case = self.case(state="running")
        keys = (
            "learning_rate batch_size n_layer n_head n_embd dropout weight_decay warmup_iters gradient_clip optimizer"
        )
        values = (0.0003, 128, 12, 12, 768, 0.25, 0.01, 2000, 1.0, "adamw")
        facts = {"progress": "5000/5000", "train_loss": 2.0, "best_step": 4500, "attempts": 2, "eta_seconds": 4200.0}
        for number in range(3):
            files = [(each, "./x") for each in ("stdout", "stderr", "combined", "config", "metadata", "result")]
            name = f"easy_first__learning_rate_0.0003__dropout_0.{number}"
            swept = {"sweep": {"dropout": 0.25}, "warnings": ["the code has changed since the batch began"]}
            settings = {key: value if number else "" for key, value in zip(keys.split(), values)}
            case.add(name, 4.0, 2.0, settings=settings, files=files, total_seconds=45_300.0, **swept, **facts)
        self.open(case.page(), width=1280)
        self.assertEqual(self.browser.texts("#experiments thead th")[:3], ["Experiment", "dropout", "Status"])
        for width in ("scrollWidth", "clientWidth"):
            self.assertEqual(self.browser.run(f"document.querySelector('#experiments .scroll').{width}"), 1280)

    def test_beyond_500_experiments_the_others_are_shown_when_asked_for(self) -> None:
        case = self.case()
        for number in range(502):
            case.add(f"run_{number}", settings={"number": number})
        visible = "[...document.querySelectorAll('tbody')].filter(each => each.checkVisibility()).length"
        self.open(case.page())
        self.assertEqual(self.browser.run(visible), 500)
        self.click_title("number")
        self.click_title("number")
        self.assertEqual((self.column(1)[0], self.browser.run(visible)), ("run_501", 500))
        self.browser.click("#all")
        self.assertEqual(self.browser.run(visible), 502)
        self.browser.run("sessionStorage.clear()")

    def test_folded_values_open_and_seed_groups_have_a_table_of_their_own(self) -> None:
        case = self.case()
        for width in (64, 128):
            case.add(f"run_{width}", 4.0, settings={"blocks": [{"kind": "attention", "heads": 8, "width": width}]})
        values = {"completed": 3, "total": 3, "best_mean": 2.0, "best_std": 0.5, "last_mean": 2.5, "last_std": 0.25}
        case.groups.append({"name": "run", "settings": {"rate": 0.1}, **values})
        self.open(case.page())
        self.assertEqual(self.browser.texts("#experiments summary"), ["8, 'width': 64}]…", "8, 'width': 128}]…"])
        self.browser.click("#experiments summary")
        self.wait_for_js("document.querySelector('#experiments details').open")
        self.assertEqual(
            self.browser.texts("#groups tbody tr > *"), ["run", "3 of 3", "2.0000 ± 0.5000", "2.5000 ± 0.2500"]
        )
