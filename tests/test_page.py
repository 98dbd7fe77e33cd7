"""report.html: whole without JavaScript, drawn by it, and nothing that comes from files is ever executed."""

from __future__ import annotations

import html.parser
import json
import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path
from typing import Any, Optional

import run_experiments as runner
from tests.support import CHILD_TOOLS, RunnerCase, wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&\"'\x1b[2J"


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

    def browse(self, script: str = "") -> str:
        """The page's DOM as Chromium has it once it is loaded and `script` has run in it; nothing may be complained of."""
        if not CHROMIUM:
            self.skipTest("Chromium is missing")
        page = self.dir / "page.html"
        policy = (
            "<script>document.addEventListener('securitypolicyviolation', () => document.title = 'violation')</script>"
        )
        text = self.report().replace("<head>", "<head>" + policy, 1)
        page.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
        flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --enable-logging=stderr"
        flags += (
            " --disable-component-update --disable-sync --dump-dom --virtual-time-budget=2000 --window-size=1200,900"
        )
        with tempfile.TemporaryDirectory() as data:
            command = [CHROMIUM, *flags.split(), f"--user-data-dir={data}", f"file://{page}"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        self.assertEqual(re.findall(r".*CONSOLE.*", done.stderr), [])
        self.assertNotIn("<title>owned", done.stdout)
        self.assertNotIn("<title>violation", done.stdout)
        return done.stdout

    def test_the_table_is_whole_without_javascript(self) -> None:
        self.config("good", "print('step 5: train loss 1.0, val loss 2.0')")
        self.config("bad", "raise ValueError('CUDA out of memory')")
        self.run_runner("--configs", "good.py", "bad.py", expect=1)
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

    def test_it_asks_nothing_of_the_network_and_executes_nothing_that_comes_from_files(self) -> None:
        self.config("odd", f"print('step 5: train loss 1.0, val loss 2.0')\nraise ValueError({HOSTILE!r})")
        self.run_runner("--configs", "odd.py", "--tag", HOSTILE, expect=1)
        summary = self.batch() / "experiment_summary.json"
        changed = self.json(summary)
        changed["results"]["odd"].update(settings={HOSTILE: HOSTILE}, hint=HOSTILE, stderr_tail=f"</pre>{HOSTILE}")
        changed.update(
            command=[HOSTILE], hostname=HOSTILE, git={"commit": HOSTILE}, sweep={"</script>" + HOSTILE: ["1"]}
        )
        changed["results"]["odd"]["overrides"]["</script>" + HOSTILE] = 1
        summary.write_text(json.dumps(changed))
        self.run_runner("--report", expect=0)
        page = self.report()
        self.assertEqual(Rows(page).tags.count("script"), 2)
        self.assertNotIn("img", Rows(page).tags)
        self.assertNotIn("\x1b", page)
        self.assertEqual([link for link in Rows(page).links if not link.startswith(("./odd/", "data:"))], [])
        self.assertEqual([url for url in re.findall(r"https?://[^\s\"']*", page) if "w3.org" not in url], [])
        self.browse()

    def test_a_browser_draws_the_curves_sorts_by_a_click_and_has_a_log_scale(self) -> None:
        for number in range(12):
            code = "".join(
                f"print('step {s}: train loss 3.0, val loss {4 / (1 + s * (number + 1)):.4f}')\n" for s in range(5)
            )
            self.config(f"run_{number}", code)
        self.config("run_12", "print('step 0: train loss 4.0, val loss 4.0\\nstep 1: train loss 4.0, val loss nan')")
        self.run_runner("--configs", "run_*.py", "--jobs", 4, expect=0)
        dom = self.browse()
        plot = dom[dom.index('<section id="curves"') : dom.index('<section id="sweep"')]
        self.assertEqual(len(re.findall(r'<path class="curve[^"]*" d="M', plot)), 13 + 1)  # a cross for nan
        self.assertEqual(len(re.findall("<tbody", dom)), 13)
        self.assertNotIn("<title>Uncaught", dom)
        script = "[...document.querySelectorAll('thead button')].find(b => b.textContent === 'Best val loss').click()"
        order = [row[0] for row in Rows(self.browse(script)).rows[1:] if row[0].startswith("run_")]
        self.assertEqual(order[:3], ["run_11", "run_10", "run_9"])
        logged = self.browse("document.getElementById('log').click()")
        self.assertNotEqual(re.findall(r' d="(M[^"]*)"', logged), re.findall(r' d="(M[^"]*)"', dom))

    def test_a_sweep_of_one_setting_has_its_own_plot(self) -> None:
        self.config("one", "rate = float(overrides['rate'])\nprint(f'step 5: train loss 1.0, val loss {1 + rate}')")
        self.run_runner("--configs", "one.py", "--sweep", "rate=0.001,0.01,0.1,1", expect=0)
        data = re.search(r'(?s)<script type="application/json" id="data">(.*?)</script>', self.report())
        assert data
        sweep = json.loads(data[1])["sweep"]
        self.assertEqual((sweep["key"], sweep["log"], len(sweep["points"])), ("rate", True, 4))
        dom = self.browse()
        self.assertIn("Best validation loss by rate", dom)
        self.assertEqual(
            dom[dom.index('<section id="sweep"') :].count("<circle"), 4 + 1 + 1
        )  # the best, and the hover mark

    def test_it_reloads_itself_only_while_the_batch_runs(self) -> None:
        self.config("one", CHILD_TOOLS + "print('ready')\nawait_file('go')")
        process = self.start("--configs", "one.py")
        self.wait_for_line("one", b"ready\n")
        wait_for(lambda: (self.batch() / "report.html").exists(), "the page")
        self.assertIn('"state":"running","reload":10', self.report())
        self.assertIn("The curves begin with the first evaluation", self.browse())
        self.go("go")
        process.communicate(timeout=60)
        self.assertIn('"state":"finished","reload":null', self.report())

    def test_report_makes_it_anew_for_any_batch_and_prints_its_path(self) -> None:
        self.config("one", "print('step 5: train loss 1.0, val loss 2.0')")
        self.run_runner("--configs", "one.py", expect=0)
        page = self.batch() / "report.html"
        page.unlink()
        done = self.run_runner("--report", self.batch(), expect=0)
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
        self.run_runner("--report", expect=0)
        self.assertIn("the best 100 of 150 are drawn", (folder / "report.html").read_text())


if __name__ == "__main__":
    unittest.main()
