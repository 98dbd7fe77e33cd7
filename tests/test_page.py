"""report.html: whole without JavaScript, and asking nothing of the network. What a browser makes of it: tests/slow."""

from __future__ import annotations

import html.parser
import json
import os
import re
import tempfile
import unittest
from pathlib import Path
from typing import Any, Optional

import run_experiments as runner
from tests.support import RunnerCase, wait_for


class CurveTest(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.path = os.path.join(scratch.name, "stdout.log")

    def curve(self, *parts: str) -> runner.Curve:
        """What a curve holds after it was updated with each part."""
        curve = runner.Curve()
        for part in parts:
            with open(self.path, "a", newline="") as file:
                file.write(part)
            curve.update(self.path)
        return curve

    def test_parts_give_the_same_as_the_whole(self) -> None:
        text = "".join(
            f"iter {i}: loss {9 - i / 100}, time 1ms\r\nstep {i}: train loss 2.5, val loss {8 - i / 50}\n"
            for i in range(99)
        )
        whole = self.curve(text).drawn()
        os.unlink(self.path)
        parts = self.curve(*(text[at : at + 37] for at in range(0, len(text), 37))).drawn()
        self.assertEqual(parts, whole)
        self.assertEqual((len(whole["val"]), whole["val"][-1]), (99, [98, 6.04]))

    def test_nan_and_inf_are_kept_and_source_code_is_none(self) -> None:
        curve = self.curve("step {iter_num}: train loss {losses}, val loss {x}\nstep 1: train loss nan, val loss inf\n")
        self.assertEqual(curve.drawn()["val"], [[1, "inf"]])

    def test_steps_that_are_done_again_replace_what_was_said_of_them(self) -> None:
        lines = [
            f"step {step}: train loss 1.0, val loss {loss}\n" for step, loss in ((1, 5), (2, 4), (3, 3), (2, 2), (3, 1))
        ]
        self.assertEqual(self.curve(*lines).drawn()["val"], [[1, 5.0], [2, 2.0], [3, 1.0]])

    def test_a_long_series_is_thinned_and_keeps_its_minimum(self) -> None:
        text = "".join(
            f"step {i}: train loss 2.0, val loss {0.5 if i == 7777 else 2 + i % 10}\n" for i in range(20_000)
        )
        val = self.curve(text).drawn()["val"]
        self.assertLess(len(val), 1300)
        self.assertIn([7777, 0.5], val)

    def test_a_log_that_was_replaced_is_read_anew(self) -> None:
        curve = self.curve("step 1: train loss 1.0, val loss 9.0\n" * 3)
        Path(self.path).write_text("step 5: train loss 1.0, val loss 2.0\n")
        curve.update(self.path)
        self.assertEqual(curve.drawn()["val"], [[5, 2.0]])
        os.unlink(self.path)
        curve.update(self.path)
        self.assertEqual(curve.drawn()["val"], [])


class Rows(html.parser.HTMLParser):
    """The cells of the page's table, without JavaScript."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, Optional[str]]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href") and value]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


class ReportTest(RunnerCase):
    def report(self) -> str:
        return (self.batch() / "report.html").read_text(encoding="utf-8")

    def test_the_table_is_whole_without_javascript(self) -> None:
        self.config("good", "print('step 5: train loss 1.0, val loss 2.0')")
        self.config("bad", "raise ValueError('CUDA out of memory')")
        self.forked("--configs", "good.py", "bad.py", expect=1)
        rows = Rows(self.report()).rows
        self.assertEqual(rows[0][:3], ["Experiment", "Status", "Progress"])
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
        links = [link for link in Rows(self.report()).links if not link.startswith(("./good/", "./bad/", "data:"))]
        self.assertEqual(links, [])
        self.assertEqual([url for url in re.findall(r"https?://[^\s\"']*", self.report()) if "w3.org" not in url], [])

    def test_a_sweep_of_one_setting_has_its_own_plot(self) -> None:
        self.config("one", "rate = float(overrides['rate'])\nprint(f'step 5: train loss 1.0, val loss {1 + rate}')")
        self.forked("--configs", "one.py", "--sweep", "rate=0.001,0.01,0.1,1")
        data = re.search(r'(?s)<script type="application/json" id="data">(.*?)</script>', self.report())
        assert data
        sweep = json.loads(data[1])["sweep"]
        self.assertEqual((sweep["key"], sweep["log"], len(sweep["points"])), ("rate", True, 4))

    def test_it_reloads_itself_only_while_the_batch_runs(self) -> None:
        self.config("one", "print('ready')\nawait_file('go')")
        process = self.start("--configs", "one.py")
        self.wait_for_line("one", b"ready\n")
        wait_for(lambda: (self.batch() / "report.html").exists(), "the page")
        self.assertIn('"state":"running","reload":10', self.report())
        self.go("go")
        process.communicate(timeout=60)
        self.assertIn('"state":"finished","reload":null', self.report())

    def test_report_makes_it_anew_for_any_batch_and_prints_its_path(self) -> None:
        self.config("one", "print('step 5: train loss 1.0, val loss 2.0')")
        self.forked("--configs", "one.py")
        page = self.batch() / "report.html"
        page.unlink()
        done = self.forked("--report", self.batch())
        self.assertEqual(done.stdout, f"{page}\n")
        self.assertIn("one", Rows(self.report()).rows[1][0])

    def test_many_experiments_are_drawn_as_the_best_hundred(self) -> None:
        results: dict[str, Any] = {}
        for number in range(150):
            results[f"run_{number}"] = {
                "status": "completed",
                "attempts": 1,
                "metrics": {"best_val_loss": 1.0 + number},
            }
        folder = self.dir / "experiments" / "experiment_20240128_143022"
        folder.mkdir(parents=True)
        (folder / "experiment_summary.json").write_text(json.dumps({"state": "finished", "results": results}))
        self.forked("--report")
        self.assertIn("the best 100 of 150 are drawn", (folder / "report.html").read_text())
