"""report.html as text: what stands in the table, what is folded, what the script gets. What a browser makes of it:
tests/slow."""

from __future__ import annotations

import html.parser
import json
import math
import re
import unittest
from typing import Any, Optional

import run_experiments as runner
from tests.support import RunnerCase

HOSTILE = "</script><script>window.owned=1</script><img src=x onerror='window.owned=1'>\"&\x1b[2J"
FILES = [("stdout", "./one/stdout.log"), ("stderr", "./one/stderr.log")]


def row(name: str, best_val_loss: Any = 2.0, **values: Any) -> dict[str, Any]:
    """An experiment as rows_of and make_page tell it."""
    known: dict[str, Any] = {
        "name": name,
        "status": "completed",
        "progress": "100/100",
        "train_loss": None,
        "val_loss": best_val_loss,
        "best_val_loss": best_val_loss,
        "best_step": None,
        "attempts": 1,
        "best": False,
        "error": None,
        "hint": None,
        "stderr_tail": "",
        "warnings": [],
        "settings": {},
        "sweep": {},
        "config_path": "config/one.py",
        "total_seconds": 90.0,
        "eta_seconds": None,
        "files": FILES,
        "curve": {},
    }
    return {**known, **values}


def group(name: str, best_mean: Optional[float] = None, best_std: Optional[float] = None) -> dict[str, Any]:
    values = {"completed": 2, "total": 3, "best_mean": best_mean, "best_std": best_std}
    return {"name": name, "settings": {"rate": 0.1}, **values, "last_mean": best_mean, "last_std": best_std}


def page(rows: list[dict[str, Any]], groups: Any = (), **head: Any) -> str:
    values = {"title": "batch", "state": "finished", "counts": {"completed": len(rows)}, **head}
    return runner.render_page(runner.PageHead(**values), rows, groups)


class Tables(html.parser.HTMLParser):
    """The texts of each table's cells, row by row; end tags of cells and rows may be missing."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, Optional[str]]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href") and value]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("tr", "table")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.tables[-1][-1][-1] += data.strip("\n")


def data_of(text: str) -> dict[str, Any]:
    """What the page's script gets."""
    found = re.search(r'(?s)<script type="application/json" id="data">(.*?)</script>', text)
    assert found
    data = json.loads(found[1])
    assert isinstance(data, dict)
    return data


class TableTest(unittest.TestCase):
    def table(self, *rows: dict[str, Any], **head: Any) -> list[list[str]]:
        return Tables(page(list(rows), **head)).tables[-1]

    def test_what_a_sweep_has_set_stands_next_to_the_name(self) -> None:
        rows = [row(f"{n}", settings={"layers": n, "rate": n / 10}, sweep={"rate": n / 10}) for n in (1, 2)]
        self.assertEqual(self.table(*rows)[0][:3], ["Experiment", "rate", "Status"])
        self.assertEqual(self.table(*rows)[0][-2:], ["layers", "Files"])
        self.assertEqual(self.table(*rows)[1][:2], ["1", "0.1"])

    def test_a_column_of_which_nothing_is_known_is_left_out(self) -> None:
        titles = self.table(row("a"))[0]
        self.assertNotIn("Train loss", titles)
        self.assertNotIn("At step", titles)
        self.assertIn("Val loss", titles)

    def test_an_unknown_setting_is_a_question_mark_and_one_that_is_not_set_is_nothing(self) -> None:
        rows = self.table(row("a", settings={"n": 1}), row("b", settings={"n": None}), row("c"))
        place = rows[0].index("n")
        self.assertEqual([each[place] for each in rows[1:]], ["1", "?", ""])

    def test_warnings_stand_under_a_row_and_mark_it(self) -> None:
        text = page([row("a", warnings=["ended at step 6 of 100", "code has changed"]), row("b")])
        table = Tables(text).tables[-1]
        self.assertEqual([len(each) for each in table], [len(table[0]), len(table[0]), 1, len(table[0])])
        self.assertIn("⚠", table[1][1])
        self.assertNotIn("⚠", table[3][1])
        self.assertIn("ended at step 6 of 100", table[2][0])
        self.assertEqual(text.count('<p class="warn">'), 2)

    def test_an_error_stands_before_the_warnings_and_folds_hint_and_stderr(self) -> None:
        failed = row("a", error="exit code 1", hint="try less", stderr_tail="Traceback\n\tof it", warnings=["late"])
        text = page([failed])
        note = Tables(text).tables[-1][2][0]
        self.assertLess(note.index("exit code 1"), note.index("late"))
        self.assertIn("<pre>Traceback\n        of it</pre></details>", text)
        self.assertIn(
            '<p class="bad">exit code 2\n  of two lines</p>', page([row("a", error="exit code 2\n  of two lines")])
        )

    def test_stderr_of_an_experiment_without_an_error_is_not_shown(self) -> None:
        self.assertNotIn("progress bar", page([row("a", stderr_tail="progress bar", hint="none")]))

    def test_an_error_that_says_no_more_than_the_status_is_left_out(self) -> None:
        told = {"stopped by SIGINT": 0, "its runner died": 1}
        for error, lines in told.items():
            stopped = row("a", status="interrupted", error=error)
            self.assertEqual(len(Tables(page([stopped])).tables[-1]), 2 + lines, error)

    def test_the_duration_is_that_of_all_attempts(self) -> None:
        table = self.table(row("a", attempts=3, duration_seconds=5.0, total_seconds=3700.0))
        self.assertEqual(table[1][table[0].index("Duration")], "1h1m")
        self.assertIn("3 attempts", table[1][1])

    def test_only_a_running_batch_has_an_eta(self) -> None:
        running = row("a", status="running", eta_seconds=60.0)
        self.assertIn("ETA", self.table(running, state="running")[0])
        self.assertIn("<dt>ETA</dt><dd>1m</dd>", page([running], state="running", facts={"ETA": "1m"}))
        self.assertNotIn("ETA", page([row("a")], facts={"ETA": ""}))

    def test_long_values_are_folded_to_the_part_in_which_they_differ(self) -> None:
        blocks = [[{"kind": "attention", "heads": 8, "width": width}] for width in (64, 128)]
        text = page([row(str(each), settings={"blocks": each}) for each in blocks])
        self.assertEqual(
            re.findall("<details><summary>(.*?)</summary>", text),
            ["8, &#x27;width&#x27;: 64}]…", "8, &#x27;width&#x27;: 128}]…"],
        )
        self.assertIn("{&#x27;kind&#x27;: &#x27;attention&#x27;, &#x27;heads&#x27;: 8, &#x27;width&#x27;: 64}]<", text)
        alone = page([row("a", settings={"blocks": blocks[0]}), row("b")])
        self.assertIn("<summary>[{&#x27;kind&#x27;:", alone)

    def test_columns_of_numbers_sort_as_numbers(self) -> None:
        settings = [{"rate": 1e-05, "kind": "a", "flag": True}, {"rate": None, "kind": 2, "flag": False}]
        text = page([row(str(each), settings=each) for each in settings])
        self.assertEqual(
            re.findall(r'class="(\w)">(rate|kind|flag)<', text), [("n", "rate"), ("s", "kind"), ("s", "flag")]
        )

    def test_names_may_wrap_behind_an_underscore(self) -> None:
        self.assertIn("easy_<wbr>first__<wbr>lr_<wbr>0.1", page([row("easy_first__lr_0.1")]))

    def test_losses_of_every_size_can_be_read(self) -> None:
        told: dict[Any, str] = {
            2.0: "2.0000",
            0.00012345678: "0.0001235",
            123456.789: "1.235e+05",
            0: "0",
            "nan": "nan",
            None: "",
        }
        for loss, text in told.items():
            self.assertEqual(runner.show_loss(loss, ""), text)

    def test_of_very_many_experiments_each_has_its_first_link_and_the_page_stays_small(self) -> None:
        name = "easy_first__learning_rate_0.0003__dropout_0.1"
        files = [(each, f"./7/experiment_20240128_143022/{name}/{each}.log") for each in ("all", "stdout", "stderr")]
        settings = {"learning_rate": 0.0003, "dropout": 0.1}
        text = page([row(f"{name}_{number}", files=files, settings=settings) for number in range(10_000)])
        self.assertLess(len(text), 5_000_000)
        self.assertEqual(text.count(">stdout<"), 0)
        self.assertIn("show all 10,000", text)
        self.assertNotIn("show all", page([row("a")]))


class HeadTest(unittest.TestCase):
    def test_one_timeout_and_two_timeouts(self) -> None:
        text = page([row("a")], counts={"completed": 0, "timeouts": 1, "errors": 2})
        self.assertIn('<span class="dot timeouts">1 timeout</span><span class="dot errors">2 errors</span>', text)
        self.assertNotIn("0 completed", text)

    def test_what_is_not_known_is_not_told(self) -> None:
        text = page([row("a")])
        self.assertNotIn("None", text.split("<script>")[0])
        self.assertNotIn("Commit", text)
        self.assertIn("Commit", page([row("a")], facts={"Commit": "abc"}))

    def test_several_batches_are_listed_with_links_and_what_is_missing_is_said(self) -> None:
        batches = [
            {
                "name": f"job/{number}",
                "href": f"./{number}/report.html",
                "state": "finished",
                "started": "today",
                "command": "run --shard 1/3",
            }
            for number in (1, 2)
        ]
        text = page([row("a")], batches=batches, warnings=["shard 3 of 3 is missing"])
        self.assertEqual(Tables(text).tables[0][2], ["job/2", "finished", "today", "run --shard 1/3"])
        self.assertIn("./2/report.html", Tables(text).links)
        self.assertIn('<p class="warn">⚠\ufe0e shard 3 of 3 is missing</p>', text)

    def test_it_reloads_only_while_the_batch_runs(self) -> None:
        running, finished = (page([row("a")], reload_seconds=seconds) for seconds in (10.0, None))
        self.assertEqual(data_of(running)["reload"], 10)
        self.assertIsNone(data_of(finished)["reload"])


class GroupTest(unittest.TestCase):
    def test_groups_stand_above_the_experiments(self) -> None:
        text = page([row("a")], groups=[group("low", 2.0, 0.5), group("high", 2.5, 0.25), group("none")])
        table = Tables(text).tables[0]
        self.assertEqual(table[0], ["Group", "Completed", "Best val loss", "Last val loss"])
        self.assertEqual([each[0] for each in table[1:]], ["low", "high", "none"])
        self.assertEqual(table[1][1:], ["2 of 3", "2.0000 ± 0.5000", "2.0000 ± 0.5000"])
        self.assertEqual(table[2][2], "2.5000 ± 0.2500")
        self.assertEqual(table[3][2], "")
        self.assertLess(text.index("Over seeds"), text.index("<h2>Experiments"))
        self.assertNotIn("Over seeds", page([row("a")]))


class SweepTest(unittest.TestCase):
    def chart(self, *sweeps: tuple[dict[str, Any], Any, str]) -> Any:
        rows = [row(str(n), loss, sweep=each, config_path=path) for n, (each, loss, path) in enumerate(sweeps)]
        return runner.sweep_chart(rows)

    def test_each_config_has_a_line_of_its_own(self) -> None:
        rates = (0.1, 0.001, 0.01)
        chart = self.chart(*[({"rate": rate}, rate, path) for path in ("a.py", "b.py") for rate in rates])
        self.assertEqual((chart["key"], chart["log"], chart["values"]), ("rate", True, [0.001, 0.01, 0.1]))
        self.assertEqual([line["name"] for line in chart["lines"]], ["a.py", "b.py"])
        self.assertEqual([point[0] for point in chart["lines"][0]["points"]], [0.001, 0.01, 0.1])

    def test_seeds_give_a_mean_and_nan_has_no_part_in_it(self) -> None:
        losses = {1: 2.0, 2: 3.0, 3: "nan"}
        chart = self.chart(*[({"seed": seed, "rate": 1}, loss, "a.py") for seed, loss in losses.items()])
        self.assertEqual(chart["lines"][0]["mean"], [[1, 2.5]])
        self.assertEqual(len(chart["lines"][0]["points"]), 3)

    def test_pairs_are_drawn_along_their_first_setting_and_a_product_is_not(self) -> None:
        self.assertEqual(self.chart(({"a": 1, "b": 5}, 1, "c"), ({"a": 2, "b": 5}, 1, "c"))["key"], "a")
        self.assertIsNone(self.chart(({"a": 1, "b": 5}, 1, "c"), ({"a": 1, "b": 6}, 1, "c")))

    def test_nothing_is_drawn_of_texts_booleans_seeds_or_unknown_losses(self) -> None:
        for sweep in ({"kind": "adam"}, {"flag": True}, {"seed": 1}, {"rate": math.nan}, {"rate": 10**400}, {}):
            with self.subTest(sweep):
                self.assertIsNone(self.chart((sweep, 1.0, "a.py")))
        self.assertIsNone(self.chart(({"rate": 1}, None, "a.py")))

    def test_a_log_axis_only_where_values_are_spaced_so(self) -> None:
        for values, expected in (([1, 10, 100], True), ([1, 50, 100], False), ([0, 1, 100], False), ([1, 100], False)):
            self.assertEqual(runner.is_log_spaced(values), expected, values)


class DataTest(unittest.TestCase):
    def test_curves_without_a_point_are_left_out_and_the_best_is_marked(self) -> None:
        curves = {
            "a": {"val": [[1, 2.0], [2, "nan"]], "train": []},
            "b": {"val": [], "train": [[1, 3.0]]},
            "c": {"val": [], "train": []},
        }
        text = page([row(name, best=name == "b", curve=curve) for name, curve in curves.items()])
        told = [(curve["name"], curve["best"]) for curve in data_of(text)["curves"]]
        self.assertEqual(told, [("a", False), ("b", True)])
        self.assertEqual(data_of(text)["curves"][0]["val"][1], [2, "nan"])
        self.assertNotIn("so there are no curves", text)
        self.assertIn("so there are no curves", page([row("a")]))

    def test_of_many_experiments_it_says_how_many_are_drawn(self) -> None:
        rows = [row(f"run_{number}") for number in range(150)]
        self.assertEqual(data_of(page(rows))["note"], "the best 100 of 150 are drawn")
        self.assertEqual(data_of(page(rows[:100]))["note"], "")

    def test_a_link_leads_to_a_file_whatever_the_directories_are_called(self) -> None:
        self.assertIn('href="./50%25 %23 %3F/a.log"', page([row("a", files=[("log", "./50% # ?/a.log")])]))

    def test_texts_are_escaped_wherever_they_come_from(self) -> None:
        told = {key: HOSTILE for key in ("name", "status", "progress", "error", "hint", "stderr_tail", "config_path")}
        hostile = row(**told, settings={HOSTILE: HOSTILE * 2}, sweep={HOSTILE: 1}, warnings=[HOSTILE])
        hostile["files"] = [(HOSTILE, "./x")]
        batches = [{"name": HOSTILE, "href": "./x", "state": HOSTILE, "started": HOSTILE, "command": HOSTILE}]
        facts = {key: HOSTILE for key in ("Host", "Commit", "Started", "Updated", "Command")}
        hostile["curve"] = {"val": [[1, 2.0]], "train": []}
        groups = [{**group(HOSTILE, 1.0), "settings": {HOSTILE: HOSTILE}}]
        head = {"title": HOSTILE, "state": HOSTILE, "facts": facts, "batches": batches, "warnings": [HOSTILE]}
        text = page([hostile], groups, **head)
        found = Tables(text)
        self.assertEqual((found.tags.count("script"), found.tags.count("img")), (2, 0))
        self.assertEqual({link for link in found.links if link != "data:,"}, {"./x"})
        self.assertNotIn("\x1b", text)
        self.assertEqual(data_of(text)["curves"][0]["name"], HOSTILE)

    def test_it_asks_nothing_of_the_network(self) -> None:
        urls = re.findall(r"https?://[^\s\"']*", page([row("a")]))
        self.assertEqual([url for url in urls if "w3.org" not in url], [])
        self.assertIn("default-src 'none'", page([row("a")]))


class ReportTest(RunnerCase):
    def report(self) -> str:
        return (self.batch() / "report.html").read_text(encoding="utf-8")

    def test_the_table_is_whole_without_javascript(self) -> None:
        self.config("good", "print('step 5: train loss 1.0, val loss 2.0')")
        self.config("bad", "raise ValueError('CUDA out of memory')")
        self.forked("--configs", "good.py", "bad.py", expect=1)
        rows = Tables(self.report()).tables[-1]
        self.assertEqual(rows[0][:3], ["Experiment", "Status", "Step"])
        self.assertEqual([row[:2] for row in rows[1:3]], [["good", "completed"], ["bad", "failed"]])
        self.assertIn("2.0000", rows[1])
        why = rows[3][0]
        for part in (
            "exit code 1: ValueError: CUDA out of memory",
            "smaller --batch_size",
            "Traceback (most recent call last)",
        ):
            self.assertIn(part, why)
        for link in re.findall(r'<a href="\./([^"]+)"', self.report()):
            self.assertTrue((self.batch() / link).exists() or link.startswith("bad/"), link)
        links = [link for link in Tables(self.report()).links if not link.startswith(("./good/", "./bad/", "data:"))]
        self.assertEqual(links, [])

    def test_report_makes_it_anew_for_any_batch_and_prints_its_path(self) -> None:
        self.config("one", "print('step 5: train loss 1.0, val loss 2.0')")
        self.forked("--configs", "one.py")
        page = self.batch() / "report.html"
        page.unlink()
        done = self.forked("--report", self.batch())
        self.assertEqual(done.stdout, f"{page.relative_to(self.dir.resolve())}\n")
        self.assertIn("one", Tables(self.report()).tables[-1][1][0])
