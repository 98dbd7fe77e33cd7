"""report.html in a real browser that is watched: what it draws, what it asks for, what it complains of."""

from __future__ import annotations

import fcntl
import json
import math
import tempfile
import unittest
from pathlib import Path
from typing import Any, Optional

from tests.slow._chromium import CHROMIUM, Browser
from tests.support import Forked, wait_for

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
    """A batch as it lies on disk, and its page as --report writes it."""

    def __init__(self, folder: Path, state: str = "finished", sweep: Optional[dict[str, Any]] = None) -> None:
        self.folder = folder
        self.summary: dict[str, Any] = {"state": state, "sweep": sweep or {}, "command": ["run", "--configs", "*.py"]}
        self.summary.update(start_time="2024-01-28T14:30:22.000+00:00", duration_seconds=90.0, hostname="here")
        self.results: dict[str, Any] = {}

    def add(self, name: str, *losses: float, status: str = "completed", **values: Any) -> None:
        """An experiment with one evaluation every 10 steps."""
        log = self.folder / name / "stdout.log"
        log.parent.mkdir(parents=True)
        lines = [f"step {10 * at}: train loss {loss + 0.1}, val loss {loss}\n" for at, loss in enumerate(losses)]
        log.write_text("".join(lines))
        metrics: dict[str, Any] = {}
        if losses:
            metrics = {"step": 10 * len(losses) - 10, "val_loss": in_json(losses[-1])}
            best = [(loss, 10 * at) for at, loss in enumerate(losses) if math.isfinite(loss)]
            metrics["best_val_loss"], metrics["best_step"] = min(best, default=(None, None))
        values = {"duration_seconds": 60.0, "attempts": int(status != "pending"), "max_iters": 100, **values}
        self.results[name] = {"config_name": name, "status": status, "metrics": metrics, **values}

    def page(self) -> Path:
        (self.folder / "experiment_summary.json").write_text(json.dumps({**self.summary, "results": self.results}))
        done = Forked(self.folder, "--report", ".").ended()
        assert done.returncode == 0, done.stderr
        return self.folder / "report.html"


def in_json(loss: float) -> Any:
    return loss if math.isfinite(loss) else str(loss)


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
        return self.browser.texts(f"tbody tr:first-child > :nth-child({number})")

    def click_title(self, title: str) -> int:
        """Click a column's title; returns which column it is."""
        titles = self.browser.texts("thead th")
        number = titles.index(title) + 1
        self.browser.click(f"thead th:nth-child({number}) button")
        return number

    def hold(self, case: Case) -> None:
        """Hold the batch's lock, as if its runner lived."""
        lock = open(case.folder / "runner.lock", "w")  # noqa: SIM115
        self.addCleanup(lock.close)
        fcntl.flock(lock, fcntl.LOCK_EX)

    @staticmethod
    def hasty(page: Path) -> Path:
        """Let a page read itself anew five times a second."""
        page.write_text(page.read_text().replace('"reload":10', '"reload":0.2'))
        return page

    def wait_for_js(self, condition: str) -> None:
        wait_for(lambda: self.browser.run(condition), condition)

    def test_every_size_of_batch_is_drawn_whole_in_light_dark_and_on_a_phone(self) -> None:
        for count in (1, 3, 12, 100):
            case = Case(self.dir / str(count))
            for number in range(count):
                case.add(f"run_{number}", 4.0, 3.0 - number / 100, 2.0 + number / 100, settings={"seed": number})
            page = case.page()
            for options in ({"width": 1200}, {"width": 1200, "dark": True}, {"width": 390}):
                with self.subTest(count=count, **options):
                    self.open(page, **options)
                    self.assertEqual((self.browser.count("tbody"), self.browser.count("#curves g > g")), (count, count))
                    self.assertEqual(self.browser.count("#curves g > g > path.curve:first-of-type[d^=M]"), count)
                    self.assertEqual(self.browser.count(".legend button"), count)
                    self.assertEqual(self.browser.count("path.best"), 2 if count > 1 else 0)  # in plot and legend
                    self.assertEqual(self.browser.run("document.documentElement.scrollWidth"), options["width"])
                    colours = "new Set([...document.querySelectorAll('#curves path.curve')].map(p => p.style.stroke + p.style.strokeDasharray))"  # noqa: E501
                    self.assertGreaterEqual(self.browser.run(f"{colours}.size"), min(count, 10))
                    background = self.browser.run("getComputedStyle(document.body).backgroundColor")
                    self.assertEqual(background != "rgb(255, 255, 255)", "dark" in options)

    def test_none_finished_and_all_failed(self) -> None:
        case = Case(self.dir / "none", state="running")
        case.add("a", status="running")
        case.add("b", status="pending")
        self.hold(case)
        self.open(case.page())
        self.assertIn("The curves begin with the first evaluation", self.browser.texts("#curves .plot")[0])
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
        case.add("gone_nan", 4.0, 3.5, math.nan, math.nan)
        case.add("gone_inf", 4.0, 3.7, math.inf)
        case.add("at_once", math.nan)
        self.open(case.page())
        marks = self.browser.run(
            "[...document.querySelectorAll('#curves g > g')].map(g => (g.lastChild.getAttribute('d').match(/M/g) || []).length)"
        )
        self.assertEqual(sorted(marks), [0, 1, 1, 1])
        self.assertEqual(self.browser.count("#curves path[d*=NaN], #curves path[d*=Infinity]"), 0)
        self.browser.click("#log")
        self.assertEqual(self.browser.count("#curves path[d*=NaN], #curves path[d*=Infinity]"), 0)

    def test_a_click_sorts_up_then_down_then_as_in_the_batch(self) -> None:
        case = self.case()
        times, losses, rates = (59.5, 3700.0, 90000.0, 600.0), (2.5, 1.5, 10.5, 0.5), (1e-05, 0.1, 2.0, 0.003)
        for name, time, loss, rate in zip(("run_10", "run_9", "run_2", "run_1"), times, losses, rates):
            case.add(name, 20.0, loss, duration_seconds=time, settings={"rate": rate})
        case.add("none", status="pending", duration_seconds=None)
        page = case.page()
        self.open(page)
        whole = self.column(1)
        self.assertEqual(whole, ["run_10", "run_9", "run_2", "run_1", "none"])
        for title, order in {
            "Best val loss": ["run_1", "run_9", "run_10", "run_2"],
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
        case.add("a", 100.0, 10.0, 1.0)
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
        self.assertEqual((self.browser.count("#curves path.faint"), self.browser.count("#curves g > g")), (1, 2))
        self.browser.click("#train")
        self.assertEqual(self.browser.count(".legend [aria-pressed=false]"), 1)
        self.browser.point_at("#curves svg", across=0.98, down=0.5)
        self.wait_for_js("!document.querySelector('#curves .tip').hidden")
        self.assertEqual(self.browser.texts("#curves .tip"), ["a\nstep 20: 1"])
        self.browser.run("sessionStorage.clear()")
        self.assert_quiet(page)

    def test_a_sweep_over_orders_of_magnitude_is_drawn_on_a_log_axis(self) -> None:
        values = (1e-05, 1e-04, 1e-03, 1e-02)
        case = self.case(sweep={"rate": [str(value) for value in values]})
        for number, value in enumerate(values):
            case.add(f"run_{number}", 4.0, 2.0 + abs(number - 2), overrides={"rate": value}, settings={"rate": value})
        case.add("run_failed", status="failed", error="no", overrides={"rate": 1.0})
        self.open(case.page())
        self.assertEqual(self.browser.texts("#sweep h2"), ["Best validation loss by rate"])
        places = self.browser.run("[...document.querySelectorAll('#sweep g g circle')].map(c => +c.getAttribute('cx'))")
        places = sorted(set(places))
        self.assertEqual(len(places), 4)
        gaps = [right - left for left, right in zip(places, places[1:])]
        self.assertLess(max(gaps) - min(gaps), 0.01 * gaps[0])
        self.assertLessEqual({"1e-5", "0.01"}, set(self.browser.texts("#sweep text")))

    def test_texts_from_files_are_shown_as_text_and_execute_nothing(self) -> None:
        case = self.case(sweep={HOSTILE[0]: ["1"]})
        case.summary.update(hostname=HOSTILE[0], git={"commit": HOSTILE[1]}, command=list(HOSTILE))
        for number, text in enumerate(HOSTILE):
            settings = {text: text, HOSTILE[0]: number}
            told = {"error": text, "hint": text, "stderr_tail": "\n".join(HOSTILE), "device": text}
            case.add(f"run_{number}", 4.0, 2.0, status="failed", settings=settings, overrides=settings, **told)
        page = case.page()
        self.open(page)
        self.assertEqual(self.column(1), [f"run_{number}" for number in range(len(HOSTILE))])
        self.assertIn(HOSTILE[0], self.browser.texts("dd"))
        self.assertIn(HOSTILE[3], self.browser.texts("summary"))
        self.assertEqual((self.browser.run("document.scripts.length"), self.browser.count("img, iframe")), (2, 0))
        self.assertEqual(self.browser.run("document.querySelector('#sweep h2').textContent.includes('<script>')"), True)
        for selector in ("summary", "#log", ".legend button", "thead th:nth-child(2) button"):
            self.browser.click(selector)
        self.browser.point_at("#curves svg", across=0.9)
        self.assertIsNone(self.browser.run("window.owned"))
        links = self.browser.run("[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))")
        self.assertEqual([link for link in links if not link.startswith("./run_")], [])
        self.browser.run("sessionStorage.clear()")
        self.assert_quiet(page)

    def test_without_javascript_the_table_is_whole(self) -> None:
        case = self.case()
        case.add("a", 4.0, 3.0)
        case.add("b", status="failed", error="exit code 1")
        self.open(case.page(), scripts=False)
        self.assertEqual(self.column(1), ["a", "b"])
        self.assertIn("3.0000", self.column(5))
        self.assertEqual(self.browser.texts(".why"), ["exit code 1"])
        self.assertTrue(self.browser.run("document.querySelector('noscript p').checkVisibility()"))
        self.assertEqual(self.browser.count("thead button, svg, label:not([hidden])"), 0)

    def test_the_page_of_a_running_batch_shows_what_is_new_by_itself_until_the_end(self) -> None:
        case = self.case(state="running")
        case.add("a", 4.0, status="running")
        self.hold(case)
        page = self.hasty(case.page())
        self.open(page)
        self.assertEqual(self.column(1), ["a"])
        case.add("b", 3.0)
        self.hasty(case.page())
        self.wait_for_js("document.querySelectorAll('tbody').length === 2")
        case.summary["state"] = "finished"
        case.page()
        self.wait_for_js("document.querySelector('.counts')?.textContent.includes('finished')")
        self.assertIsNone(self.browser.run("data.reload"))
