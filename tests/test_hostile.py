"""Names, values, output and a batch's JSON can hold anything: they are shown as text, and no name leaves the batch."""

from __future__ import annotations

import json
import os
import re
import shutil

from tests.support import ESCAPES, UNSHOWN, RunnerCase

MARKUP = "</script><script>alert(1)</script><!--]]>&quot;<img src=x onerror=alert(1)>"


class HostileCase(RunnerCase):
    def assert_plain(self, *texts: str) -> None:
        """A terminal shows these as they are."""
        for text in texts:
            self.assertIsNone(UNSHOWN.search(text), repr(text[:2000]))

    def check_views(self) -> None:
        """Every way to look at the batch shows plain text, and the page runs nothing of it."""
        views = [self.forked(*words).stdout for words in (["--status"], ["--status", "--json"], ["--report"])]
        page = (self.batch() / "report.html").read_text(encoding="utf-8")
        self.assert_plain(*views, self.master_log(), page.replace("\t", ""))
        self.assertNotIn("<script>alert", page)
        self.assertNotIn("<img", page)


class NameTest(HostileCase):
    def test_odd_names_of_configs_run_as_they_are_in_directories_with_harmless_names(self) -> None:
        names = ["with space", "quo'te", 'dou"ble', "new\nline", "ta\tb", "größe", "日本", "a;touch pwned"]
        names += ["$(touch pwned)", "star*[1]?", "%s{0}{name}", "back\\slash", "..", "...", "#", "-rf", "--out_dir"]
        names += ["CON", "attempt_1", "master_log.txt", "runner.lock", "report.html", "latest", "plan", f"a{ESCAPES}"]
        names += ["5²3", "٣", "x" * 240, "x" * 249 + "y", "ü" * 123]
        names += ["<script>alert(1)<\\script>", "`touch pwned`", "é\u0301\u202e", os.fsdecode(b"bytes\xff\xfe\xc3(")]
        for name in names:
            self.config(
                f"configs/{name}", "import os, sys\nsys.stdout.buffer.write(os.fsencode(config))\nos.stat(out_dir)"
            )
        paths = [f"configs/{name}.py" for name in names]
        done = self.run_runner("--configs", *paths, "--jobs", 2, expect=0, encoding="utf-8", errors="surrogateescape")
        results = self.summary()["results"]
        self.assertEqual([result["config_path"] for result in results.values()], paths)
        for name, path in zip(results, paths):
            with self.subTest(path):
                self.assertRegex(name, r"\A[A-Za-z0-9_][A-Za-z0-9._-]{0,199}\Z")
                self.assertEqual(os.path.basename(os.fsdecode(self.log(name))), os.path.basename(path))
        self.assertFalse((self.dir / "pwned").exists())
        self.assert_plain(done.stdout, done.stderr)
        self.assertIn("new\\nline.py'", done.stdout)
        for line in self.master_log().splitlines():
            self.assertRegex(line, r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "an event of more than one line")
        self.check_views()


class TextTest(HostileCase):
    def test_escapes_and_markup_in_what_a_training_prints_reach_no_terminal_and_no_page(self) -> None:
        code = f"odd = {ESCAPES + MARKUP!r}\n"
        code += """
print(f"step 1{odd}: train loss 2.0, val loss 2.0")
print(f"{odd}step 2: train loss 2.0, val loss 2.0{odd}")
print(f"step 3: train loss 2.0{odd}, val loss 2.0\\r{odd}step 4: train loss 1.5, val loss 1.5")
sys.stderr.write(f"warning {odd}\\n")
raise ValueError(f"gone wrong: {odd}\\nstep 9: train loss 0.1, val loss 0.1")
"""
        self.config("paint", code)
        for follow in ([], ["--follow"]):
            with self.subTest(follow=follow):
                done = self.run_runner("--configs", "paint.py", "--tag", ESCAPES + MARKUP, *follow, expect=1)
                self.assert_plain(done.stdout, done.stderr)
                self.assertIn("gone wrong", self.master_log())
                self.assertEqual(self.result("paint")["metrics"]["best_step"], 9)
                self.assertIn(ESCAPES.encode(), self.log("paint"))
                self.check_views()

    def test_numbers_that_are_too_large_are_no_obstacle(self) -> None:
        lines = [
            f"step {'9' * 4999}: train loss 1.0, val loss 1.0",
            f"step 1: train loss {'9' * 5000}, val loss 1e{'9' * 4000}",
            "step 2: train loss 1e999, val loss -1e999",
            f"iter {'9' * 15}: loss {'1' * 400}",
            "iter 999999999999999: loss nan",
            "step -5: train loss -nan, val loss +inf",
            "step 7: train loss 1e, val loss 1e+",
        ]
        self.config("huge", "\n".join(f"print({line!r})" for line in lines))
        done = self.run_runner("--configs", "huge.py", expect=0)
        self.assertEqual(done.stderr, "")
        self.summary(), self.result("huge")  # strict JSON
        self.check_views()

    def test_texts_in_a_batchs_json_are_shown_as_text(self) -> None:
        self.config("odd")
        self.run_runner("--configs", "odd.py", "--n_layer", "2", expect=0)
        path, odd = self.batch() / "experiment_summary.json", ESCAPES + MARKUP
        summary = self.json(path)
        summary.update(command=[odd, "\ud800"], hostname=odd, git={"commit": odd}, sweep={odd: ["1"]})
        told = {key: odd for key in ("error", "hint", "stderr_tail", "device")}
        summary["results"]["odd"].update(told, settings={odd: odd, "__proto__": odd}, overrides={odd: 1})
        (self.batch() / "odd" / "experiment_result.json").write_text(json.dumps(summary["results"]["odd"]))
        path.write_text(json.dumps(summary))
        self.check_views()


class PathTest(HostileCase):
    def test_a_name_in_the_summary_that_leads_out_of_the_batch_is_refused_and_nothing_is_touched(self) -> None:
        self.config("a", "import sys\nsys.exit(1)")
        self.run_runner("--configs", "a.py", expect=1)
        path = self.batch() / "experiment_summary.json"
        summary = self.json(path)
        shutil.rmtree(self.batch() / "plan", ignore_errors=True)  # a batch of version 1.0.0, which has no plan/
        canary = self.dir / "experiments" / "canary"
        canary.mkdir()
        (canary / "stdout.log").write_text("of the canary")
        names = ["..", "", "../canary", "a/../../canary", str(canary), "a\0b", "\ud800", "x" * 300, "-rf", ESCAPES]
        for name in (*names, "runner.lock"):
            with self.subTest(name=name):
                path.write_text(json.dumps({**summary, "results": {name: summary["results"]["a"]}}))
                for option in ("--resume", "--status", "--report"):
                    done = self.forked(option, self.batch(), expect=2)
                    self.assertRegex(done.stderr, re.compile(r"\Aerror: [^\n]*experiment_summary\.json[^\n]*\n\Z"))
                    self.assert_plain(done.stderr.replace("\n", ""))
        self.assertEqual([each.name for each in canary.iterdir()], ["stdout.log"])
        self.assertEqual((canary / "stdout.log").read_text(), "of the canary")
