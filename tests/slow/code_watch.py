"""The code is watched: which commit and patch each launch had, and a warning where the code has changed meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import unittest
from pathlib import Path
from typing import Any

from tests.support import RunnerCase, wait_for

HELD = "print('ready', flush=True)\nawait_file('go')"
FAKE_GIT = """#!/bin/sh
echo "$*" >> "{place}/asked"
while [ -e "{place}/slow" ]; do sleep 0.02; done
exec {git} "$@"
"""


class CodeCase(RunnerCase):
    """The trainer and its model.py beside it; `one` is held until the test has changed what it wants to."""

    def setUp(self) -> None:
        super().setUp()
        (self.dir / "model.py").write_text("layers = 2\n")
        self.config("configs/one", HELD)
        self.config("configs/two")
        self.environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}

    def begin(self) -> subprocess.Popen[str]:
        """A batch whose first experiment runs, and of whose code all is known."""
        runner = self.start("--configs", "configs/one.py", "configs/two.py", env=self.environment)
        self.wait_for_line("one", b"ready\n")
        wait_for(lambda: self.metadata("one")["git"] or "git" in self.summary(), "git's answer")
        return runner

    def finish(self, runner: subprocess.Popen[str]) -> str:
        self.go("go")
        return self.ended(runner, 0)

    def metadata(self, name: str) -> dict[str, Any]:
        return self.json(self.batch() / name / "experiment_metadata.json")

    def warnings(self) -> dict[str, list[str]]:
        return {name: result["warnings"] for name, result in self.summary()["results"].items()}

    def assert_unchanged(self) -> None:
        self.assertEqual(self.warnings(), {"one": [], "two": []})


class NoRepositoryTest(CodeCase):
    def test_an_edited_script_is_a_warning_and_a_directory_deeper_down_is_none(self) -> None:
        (self.dir / "deeper").mkdir()
        (self.dir / "deeper" / "model.py").write_text("layers = 2\n")
        (self.dir / "same.py").write_text("layers = 2\n")
        runner = self.begin()
        (self.dir / "same.py").write_text("layers = 2\n")
        for name in ("train_run.py", "model.py", "deeper/model.py"):
            with open(self.dir / name, "a") as file:
                file.write("# changed\n")
        self.finish(runner)
        text = "code has changed since the batch began: model.py, train_run.py"
        self.assertEqual(self.warnings(), {"one": [], "two": [text]})
        self.assertEqual((self.summary()["git"], self.metadata("two")["git"]), (None, None))
        self.assertFalse((self.batch() / "uncommitted.patch").exists())


@unittest.skipUnless(shutil.which("git"), "there is no git")
class RepositoryTest(CodeCase):
    def setUp(self) -> None:
        super().setUp()
        (self.dir / ".gitignore").write_text("experiments/\npids\ngo\nslow\nasked\nbin/\nscratch_*.py\n__pycache__/\n")
        self.git("init", "-q", "-b", "trunk")
        self.commit()

    def git(self, *words: str) -> str:
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", *name, *words], cwd=self.dir, env=self.environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def commit(self) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "work")
        return self.git("rev-parse", "HEAD")

    def fake_git(self) -> None:
        """A git in PATH that notes each call, and waits as long as there is a file `slow`."""
        (self.dir / "bin").mkdir()
        fake = self.dir / "bin" / "git"
        fake.write_text(FAKE_GIT.format(place=self.dir, git=shutil.which("git")))
        fake.chmod(0o755)
        self.environment["PATH"] = f"{self.dir / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def asked(self) -> int:
        return len((self.dir / "asked").read_text().splitlines())

    def restored(self, patch: Path, commit: str) -> Path:
        """The code as a commit and a patch say it was, in a directory of its own."""
        place = self.dir / "bin" / "restored"
        self.git("worktree", "add", "-q", "--detach", str(place), commit)
        subprocess.run(["git", "apply", str(patch)], cwd=place, env=self.environment, check=True)
        return place

    def test_the_patch_restores_tracked_changes_binary_ones_too_and_new_python_files(self) -> None:
        (self.dir / "vocabulary.bin").write_bytes(bytes(range(256)))
        head = self.commit()
        (self.dir / "model.py").write_text("layers = 3\n")
        (self.dir / "vocabulary.bin").write_bytes(bytes(range(255, -1, -1)))
        (self.dir / "new.py").write_text("fresh = True\n")
        (self.dir / "scratch_notes.py").write_text("ignored = True\n")
        (self.dir / "notes.txt").write_text("no code")
        self.finish(self.begin())
        self.assertEqual(self.summary()["git"], {"commit": head, "branch": "trunk", "dirty": True})
        place = self.restored(self.batch() / "uncommitted.patch", head)
        self.assertEqual((place / "model.py").read_text(), "layers = 3\n")
        self.assertEqual((place / "vocabulary.bin").read_bytes(), bytes(range(255, -1, -1)))
        self.assertEqual((place / "new.py").read_text(), "fresh = True\n")
        self.assertFalse((place / "scratch_notes.py").exists() or (place / "notes.txt").exists())
        self.assert_unchanged()

    def test_an_edit_between_two_launches_marks_the_second_and_its_patch_is_kept_with_it(self) -> None:
        head = self.git("rev-parse", "HEAD")
        runner = self.begin()
        (self.dir / "model.py").write_text("layers = 3\n")
        self.finish(runner)
        text = "code has changed since the batch began: model.py"
        self.assertEqual(self.warnings(), {"one": [], "two": [text]})
        dirty = [self.metadata(name)["git"]["dirty"] for name in ("one", "two")]
        self.assertEqual(dirty, [False, True])
        self.assertFalse((self.batch() / "uncommitted.patch").exists())
        place = self.restored(self.batch() / "two" / "uncommitted.patch", head)
        self.assertEqual((place / "model.py").read_text(), "layers = 3\n")
        told = json.loads(self.forked("--status", "--json").stdout)
        self.assertEqual([each["warnings"] for each in told["experiments"]], [[], [text]])
        self.assertIn(text, self.forked("--status").stdout)
        self.assertTrue(text in (self.batch() / "report.html").read_text())
        self.assertIn(f"two: warning: {text}", self.master_log())

    def test_a_commit_between_two_launches_is_that_of_the_second(self) -> None:
        before = self.git("rev-parse", "HEAD")
        runner = self.begin()
        (self.dir / "model.py").write_text("layers = 3\n")
        after = self.commit()
        self.finish(runner)
        self.assertEqual([self.metadata(name)["git"]["commit"] for name in ("one", "two")], [before, after])
        self.assertEqual(self.summary()["git"]["commit"], before)
        self.assertEqual(self.warnings()["two"], ["code has changed since the batch began: model.py"])
        self.assertFalse((self.batch() / "two" / "uncommitted.patch").exists())

    def test_a_new_python_file_and_one_that_is_gone_are_changes(self) -> None:
        runner = self.begin()
        (self.dir / "layers.py").write_text("fresh = True\n")
        (self.dir / "model.py").unlink()
        self.finish(runner)
        text = "code has changed since the batch began: layers.py, model.py"
        self.assertEqual(self.warnings(), {"one": [], "two": [text]})

    def test_what_is_touched_ignored_or_no_python_is_no_change(self) -> None:
        (self.dir / "scratch_notes.py").write_text("1\n")
        runner = self.begin()
        os.utime(self.dir / "model.py")
        (self.dir / "scratch_notes.py").write_text("2\n")
        (self.dir / "scratch_more.py").write_text("3\n")
        (self.dir / "README.md").write_text("text")
        self.finish(runner)
        self.assert_unchanged()
        self.assertFalse((self.batch() / "two" / "uncommitted.patch").exists())

    def test_git_is_asked_once_more_where_something_has_changed(self) -> None:
        self.config("configs/three")
        self.fake_git()
        runner = self.start("--configs", "configs/*.py", env=self.environment)
        self.wait_for_line("one", b"ready\n")
        wait_for(lambda: self.metadata("one")["git"], "git's answer")
        once = self.asked()
        (self.dir / "model.py").write_text("layers = 3\n")
        self.finish(runner)
        self.assertEqual(self.asked(), 2 * once)
        self.assertEqual([len(each) for each in self.warnings().values()], [0, 1, 1])

    def test_a_slow_git_delays_no_start_and_its_answer_is_kept_all_the_same(self) -> None:
        self.fake_git()
        self.go("slow")
        runner = self.start("--configs", "configs/one.py", "configs/two.py", env=self.environment)
        self.wait_for_line("one", b"ready\n")
        self.go("go")
        self.wait_for_event("two: completed")
        self.assertNotIn("git", self.summary())
        self.assertIsNone(self.metadata("two")["git"])
        os.unlink(self.dir / "slow")
        self.ended(runner, 0)
        head = {"commit": self.git("rev-parse", "HEAD"), "branch": "trunk", "dirty": False}
        self.assertEqual([self.metadata(name)["git"] for name in ("one", "two")], [head, head])
        self.assert_unchanged()

    def test_a_late_answer_blames_no_training_from_before_an_edit_and_is_not_kept_as_that_of_a_retry(self) -> None:
        self.config("configs/two", "raise SystemExit(1)")
        self.commit()
        self.fake_git()
        self.go("slow")
        runner = self.start("--configs", "configs/one.py", "configs/two.py", "--retries", 1, env=self.environment)
        self.wait_for_line("one", b"ready\n")
        wait_for((self.dir / "asked").exists, "a question to git")
        (self.dir / "model.py").write_text("layers = 3\n")
        self.go("go")
        self.wait_for_event("two: starts over")
        os.unlink(self.dir / "slow")
        self.ended(runner, 1)
        self.assertEqual(self.warnings(), {"one": [], "two": ["code has changed since the batch began: model.py"]})
        self.assertEqual(self.metadata("two")["attempt"], 2)
        self.assertEqual(self.master_log().count("two: warning: code has changed"), 1)

    def test_a_repository_without_any_commit_has_none_and_the_batch_runs(self) -> None:
        shutil.rmtree(self.dir / ".git")
        self.git("init", "-q", "-b", "trunk")
        self.finish(self.begin())
        self.assertIsNone(self.metadata("two")["git"]["commit"])
        self.assert_unchanged()

    def test_from_a_directory_below_the_repository_s_root_all_of_it_is_watched(self) -> None:
        below = self.dir / "runs"
        below.mkdir()
        shutil.move(self.dir / "train_run.py", below)
        shutil.move(self.dir / "configs", below)
        (self.dir / ".gitignore").write_text("experiments/\ngo\n")
        self.commit()
        root, self.dir = self.dir, below
        try:
            runner = self.begin()
            (root / "model.py").write_text("layers = 3\n")
            (root / "layers.py").write_text("fresh = True\n")
            (below / "new.py").write_text("fresh = True\n")
            self.finish(runner)
            text = "code has changed since the batch began: ../layers.py, ../model.py, new.py"
            self.assertEqual(self.warnings()["two"], [text])
            patch = (self.batch() / "two" / "uncommitted.patch").read_text()
            for name in ("model.py", "layers.py", "runs/new.py"):
                self.assertIn(f"\n+++ b/{name}\n", patch)
        finally:
            self.dir = root
