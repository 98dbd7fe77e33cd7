"""The README: no option, no key and no test is missing from it. That its commands work as written: tests/slow."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable

import run_experiments as runner
from tests.support import ROOT, RUNNER, TESTS, RunnerCase

README = (ROOT / "README.md").read_text(encoding="utf-8")
THIS_RUN = "python3 -m unittest"


def blocks(language: str) -> list[str]:
    """The code blocks of a language, in their order."""
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", README)


def named() -> set[str]:
    """The words that stand in inline code."""
    text = re.sub(r"(?ms)^```.*?^```$", "", README)
    return {word for code in re.findall(r"`([^`\n]+)`", text) for word in re.findall(r"(?:--)?\w+", code)}


class CompleteTest(RunnerCase):
    def test_the_first_screen_has_the_two_commands(self) -> None:
        first = README.splitlines()[:45]
        self.assertTrue([line for line in first if line.startswith("python3 run_experiments.py --configs ")])
        self.assertIn(THIS_RUN, first)
        self.assertTrue([line for line in first if "experiment_summary.json" in line])

    def test_commands_that_are_not_run_are_valid_shell(self) -> None:
        for block in blocks("sh"):
            with self.subTest(block=block):
                done = subprocess.run(["bash", "-n", "-c", block], capture_output=True, text=True)
                self.assertEqual((done.returncode, done.stderr), (0, ""))

    def assert_all_named(self, words: Iterable[str]) -> None:
        self.assertEqual(set(words) - named(), set(), "not in README.md")

    def test_every_option_is_named_and_no_other(self) -> None:
        done = subprocess.run([sys.executable, str(RUNNER), "--help"], capture_output=True, text=True, check=True)
        options = set(re.findall(r"--\w+", done.stdout))
        self.assertIn("--configs", options)
        self.assert_all_named(options)
        rows = re.findall(r"(?m)^\| (`--[^|]*) \|", README[README.index("\n## Options") : README.index("\n## Files")])
        given = {option for row in rows for option in re.findall(r"`(--\w+)", row)}
        self.assertEqual(given - options, {"--any_setting"})

    def test_every_status_and_every_exit_code_is_named(self) -> None:
        statuses = "pending running completed failed timeout interrupted error".split()
        self.assert_all_named([*statuses, "errors", "timeouts"])
        codes = README[README.index("\nExit codes: ") :].split("\n\n")[0]
        for code in ("0", "1", "2", "75", "128+N"):
            self.assertIn(f"`{code}` ", codes)

    def test_every_key_of_a_result_is_named(self) -> None:
        self.assert_all_named(item.name for item in dataclasses.fields(runner.Result))
        self.assert_all_named(item.name for item in dataclasses.fields(runner.Metrics))

    def test_every_key_of_real_files_is_named(self) -> None:
        for each in ("train_run.py", "configurator.py"):
            shutil.copy(TESTS / each, self.dir)
        self.config("easy", "max_iters = 2\neval_iters = 1\n")
        self.forked("--configs", "easy.py", "--device", "cuda", expect=1)
        self.forked("--resume", "--device", "cpu")
        shown = json.loads(self.forked("--status", "--json").stdout)
        several = json.loads(self.forked("--status", "experiments/latest", "experiments/latest/", "--json").stdout)
        planned, summary, result = self.json(self.batch() / "plan" / "plan.json"), self.summary(), self.result("easy")
        metadata = self.json(self.batch() / "easy" / "experiment_metadata.json")
        self.assertEqual((result["status"], result["attempts"]), ("completed", 2))
        records = (summary, *summary["resumes"], result, *result["attempt_history"], metadata, shown, several)
        for value in (*records, planned, planned["experiments"][0], shown["experiments"][0]):
            self.assert_all_named(value)

    def test_every_key_of_what_only_some_batches_have_is_named(self) -> None:
        self.assert_all_named(runner.seed_group([runner.Result()]))
        self.assert_all_named(
            ["stopped_because", "shard", "index", "count", "plan_digest", "groups", "batches", "notes"]
        )

    def test_it_is_no_longer_than_can_be_read(self) -> None:
        self.assertLessEqual(len(README.splitlines()), 420)

    def test_what_it_refers_to_exists(self) -> None:
        links = set(re.findall(r"\]\(([^)#:]+)\)", README))
        self.assertEqual([each for each in sorted(links) if not (ROOT / each).exists()], [])
        anchors = {
            re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"(?m)^#+ (.*)", README)
        }
        self.assertLessEqual(set(re.findall(r"\]\(#([^)]*)\)", README)), anchors)

    def test_each_row_of_the_table_of_faults_names_tests_that_exist(self) -> None:
        """By module: `test_stop` is tests/test_stop.py, `slow/fuzz` is tests/slow/fuzz.py."""
        rows = re.findall(r"(?m)^\|[^|]*\|[^|]*\| *(`[^|]*`) *\|$", README[README.index("\n## Promises") :])
        self.assertGreater(len(rows), 15)
        self.assertLessEqual(len(rows), 30)
        for row in rows:
            names = re.findall(r"`([^`]*)`", row)
            self.assertTrue(names, row)
            for name in names:
                with self.subTest(name):
                    self.assertRegex(name, r"\A(test_\w+|slow/[a-z]\w*)\Z")
                    self.assertTrue((ROOT / "tests" / f"{name}.py").is_file(), f"no tests/{name}.py")
