"""Configs are frozen when the runner starts: what is planned is what runs, and a resume says which edits it takes up."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.support import CHILD_TOOLS, RunnerCase, wait_for

SETTINGS = "init_from = 'scratch'\nmax_iters = 10\nrate = 0.1"
BODY = "print(f'began {init_from} {rate}', flush=True)\nexec(open('body.py').read())"
HOLDS = CHILD_TOOLS + "if rate == 0.1:\n    print('ready', flush=True)\n    await_file('go')\n"  # the first one is held
SAVES = CHILD_TOOLS + "open(out_dir + '/ckpt_5.pt', 'w').write('5')\nprint('saved', flush=True)\n"


class FrozenCase(RunnerCase):
    """A trainer with nanoGPT's configurator; its body is the tests'."""

    def setUp(self) -> None:
        super().setUp()
        self.strict_trainer(SETTINGS, BODY)
        self.body("")

    def body(self, code: str) -> None:
        (self.dir / "body.py").write_text(code)

    def rate(self, path: str, value: Any, comment: str = "") -> Path:
        """A config that sets the rate."""
        return self.config(path, f"{comment}rate = {value}\n")

    def held(self, *args: Any) -> subprocess.Popen[str]:
        """A runner whose first experiment, of rate 0.1, runs until `release`."""
        self.body(HOLDS)
        process = self.start(*args)
        self.wait_for_line("a", b"ready\n")
        return process

    def release(self, process: subprocess.Popen[str], expect: int = 0) -> str:
        self.go("go")
        return self.ended(process, expect)

    def began(self, name: str) -> list[str]:
        """How each attempt began, as it told."""
        return [line for line in self.log(name).decode().splitlines() if line.startswith("began")]

    def plan_bytes(self) -> bytes:
        return (self.batch() / "plan" / "plan.json").read_bytes()

    def planned_lines(self) -> dict[str, dict[str, Any]]:
        plan = self.json(self.batch() / "plan" / "plan.json")
        return {each["name"]: each for each in plan["experiments"]}


class RunTest(FrozenCase):
    def test_a_pending_config_that_is_edited_runs_as_it_was_planned(self) -> None:
        self.rate("a", 0.1)
        self.rate("b", 0.2)
        self.rate("configs/c", 0.3)
        runner = self.held("--configs", "a.py", "b.py", "configs/c.py")
        self.rate("b", 0.9)
        shutil.rmtree(self.dir / "configs")
        self.release(runner)
        self.assertEqual((self.began("b"), self.began("c")), (["began scratch 0.2"], ["began scratch 0.3"]))
        used = (self.batch() / "b" / "config_used.py").read_bytes()
        self.assertEqual(used, b"rate = 0.2\n")
        metadata = self.json(self.batch() / "b" / "experiment_metadata.json")
        self.assertEqual(metadata["config_sha256"], hashlib.sha256(used).hexdigest())
        self.assertEqual(self.result("b")["settings"], {"rate": 0.2})
        self.assertEqual(self.result("b")["warnings"], ["printed no step"])  # an edited config is no edited code

    def test_a_config_that_is_edited_while_the_trainer_imports_is_read_as_it_was_planned(self) -> None:
        self.strict_trainer(f"{CHILD_TOOLS}\nopen('imports', 'w').close()\nawait_file('go')\n{SETTINGS}", BODY)
        self.rate("a", 0.111)
        runner = self.start("--configs", "a.py")
        wait_for((self.dir / "imports").exists, "the imports")
        self.rate("a", 0.999)
        self.release(runner)
        self.assertEqual(self.began("a"), ["began scratch 0.111"])
        self.assertEqual((self.batch() / "a" / "config_used.py").read_text(), "rate = 0.111\n")

    def test_the_trainer_gets_the_one_copy_in_plan_under_the_config_s_own_name(self) -> None:
        self.rate("configs/a", 0.2)
        self.forked("--configs", "configs/a.py", "--sweep", "rate=0.3,0.4")
        self.assertEqual(sorted(os.listdir(self.batch() / "plan")), ["a.py", "plan.json"])
        planned = self.planned_lines()
        self.assertEqual([line["sweep"] for line in planned.values()], [{"rate": "0.3"}, {"rate": "0.4"}])
        for name in planned:
            command = self.json(self.batch() / name / "experiment_metadata.json")["command"]
            self.assertEqual(Path(command[2]), Path("experiments") / self.batch().name / "plan" / "a.py")

    def test_two_configs_of_one_name_are_both_kept_and_each_runs_its_own(self) -> None:
        self.rate("big/model", 0.2)
        self.rate("small/model", 0.3)
        self.forked("--configs", "big/model.py", "small/model.py")
        lines = self.planned_lines()
        copies = {line["config_path"]: line["frozen"] for line in lines.values()}
        self.assertEqual(copies, {"big/model.py": "model.py", "small/model.py": "2/model.py"})
        logs = {line["config_path"]: self.began(name) for name, line in lines.items()}
        self.assertEqual(logs, {"big/model.py": ["began scratch 0.2"], "small/model.py": ["began scratch 0.3"]})

    def test_the_plan_is_there_before_the_first_launch_and_is_never_written_again_by_the_batch(self) -> None:
        self.rate("a", 0.1)
        self.rate("b", 0.2)
        runner = self.held("--configs", "a.py", "b.py", "--rate", "0.1")
        path = self.batch() / "plan" / "plan.json"
        before = path.stat()
        lines = self.planned_lines()
        self.assertEqual(
            {name: line["overrides"] for name, line in lines.items()}, dict.fromkeys("ab", {"rate": "0.1"})
        )
        self.release(runner)
        after = path.stat()
        self.assertEqual((before.st_ino, before.st_mtime_ns), (after.st_ino, after.st_mtime_ns))

    def test_a_config_that_asks_where_it_lies_is_handed_on_itself_and_an_edit_is_a_warning(self) -> None:
        self.rate("a", 0.1)
        self.config("b", "import os\nhere = os.path.dirname(__file__)\nrate = 0.2\n")
        self.body(HOLDS + "print('step 10: train loss 2.0, val loss 2.0')")
        runner = self.start("--configs", "a.py", "b.py")
        self.wait_for_line("a", b"ready\n")
        self.config("b", "import os\nhere = os.path.dirname(__file__)\nrate = 0.9\n")
        self.release(runner)
        self.assertEqual(self.json(self.batch() / "b" / "experiment_metadata.json")["command"][2], "b.py")
        self.assertEqual(self.result("a")["warnings"], [])
        self.assertIn("b.py was edited since the batch began, and may have been read so", self.result("b")["warnings"])

    def test_a_script_without_a_configurator_gets_the_original_and_an_edit_is_a_warning(self) -> None:
        (self.dir / "train_run.py").write_text(
            CHILD_TOOLS + "print('ready', flush=True)\nawait_file('go')\nprint('step 3: train loss 2.0, val loss 2.0')"
        )
        self.config("a", "rate = 0.2")
        runner = self.start("--configs", "a.py")
        self.wait_for_line("a", b"ready\n")
        self.config("a", "rate = 0.9")
        self.release(runner)
        self.assertEqual(self.json(self.batch() / "a" / "experiment_metadata.json")["command"][2], "a.py")
        self.assertEqual(
            self.result("a")["warnings"], ["a.py was edited since the batch began, and may have been read so"]
        )


class ResumeTest(FrozenCase):
    """`a` is completed, `stopped` interrupted with a checkpoint, `later` never started."""

    def interrupted(self, *args: Any) -> None:
        for name, rate in (("done", 0.2), ("stopped", 0.3), ("later", 0.4)):
            self.rate(name, rate)
        self.body(f"{SAVES}if rate == 0.3:\n    os.kill(os.getppid(), signal.SIGINT)\n    live_on()")
        configs = ("--configs", "done.py", "stopped.py", "later.py")
        self.forked("--stop_signal", "TERM", *configs, *args, expect=130)
        self.body("")

    def failed(self, saves: bool = True) -> None:
        self.rate("a", 0.2)
        self.body((SAVES if saves else "") + "raise SystemExit(3)")
        self.forked("--configs", "a.py", expect=1)
        self.body("")

    def test_each_edit_is_said_and_taken_up_only_by_what_never_started(self) -> None:
        self.interrupted()
        for name in ("done", "stopped", "later"):
            self.rate(name, 0.9)
        dry = self.forked("--resume", "--dry_run").stdout
        self.assertIn("# done: completed, left alone\n", dry)
        kept = "stopped: warning: stopped.py was edited; what was interrupted goes on with experiments/"
        for out in (dry, self.forked("--resume").stdout):
            self.assertIn("done: completed, but its config has changed since: done.py", out)
            self.assertIn(kept, out)
            self.assertIn("stopped: continues from ckpt_5.pt", out)
            self.assertIn("later: takes up the edited later.py", out)
        began = [self.began(name)[-1] for name in ("done", "stopped", "later")]
        self.assertEqual(began, ["began scratch 0.2", "began resume 0.3", "began scratch 0.9"])
        self.assertEqual((self.result("done")["attempts"], self.result("later")["settings"]), (1, {"rate": 0.9}))
        self.assertEqual((self.batch() / "stopped" / "config_used.py").read_text(), "rate = 0.3\n")
        used = (self.batch() / "later" / "config_used.py").read_bytes()
        self.assertEqual(used, b"rate = 0.9\n")
        self.assertEqual(self.planned_lines()["later"]["config_sha256"], hashlib.sha256(used).hexdigest())

    def test_what_failed_takes_up_the_edit_which_is_frozen_in_its_turn_and_continues_from_its_checkpoint(self) -> None:
        self.failed()
        self.rate("a", 0.9)
        self.body("raise SystemExit(3)")
        dry = self.forked("--resume", "--dry_run").stdout
        [command] = self.planned("--resume").values()
        for out in (dry, self.forked("--resume", expect=1).stdout):
            self.assertIn("a: takes up the edited a.py", out)
            self.assertIn("a: continues from ckpt_5.pt", out)
        self.assertEqual(self.json(self.batch() / "a" / "experiment_metadata.json")["command"], command)
        self.assertEqual((self.dir / command[2]).read_text(), "rate = 0.9\n")
        self.body("")
        self.assertNotIn("edited", self.forked("--resume").stdout)
        self.assertEqual(self.began("a"), ["began scratch 0.2", "began resume 0.9", "began resume 0.9"])
        copies = sorted(path.read_text() for path in (self.batch() / "plan").rglob("a.py"))
        self.assertEqual(copies, ["rate = 0.2\n", "rate = 0.9\n"])

    def test_what_failed_without_a_checkpoint_takes_up_the_edit_and_starts_over(self) -> None:
        self.failed(saves=False)
        self.rate("a", 0.9)
        self.assertIn("a: starts over: no checkpoint", self.forked("--resume").stdout)
        self.assertEqual(self.began("a"), ["began scratch 0.9"])

    def test_comments_and_layout_are_no_edit(self) -> None:
        self.interrupted()
        for name, rate in (("done", 0.2), ("stopped", 0.3), ("later", 0.4)):
            self.rate(name, f"( {rate} )", "# tuned by hand\n\n")
        out = self.forked("--resume").stdout
        for word in ("edited", "changed"):
            self.assertNotIn(word, out)
        self.assertEqual(set(self.statuses().values()), {"completed"})

    def test_a_batch_that_was_copied_elsewhere_goes_on_with_nothing_but_the_trainer(self) -> None:
        self.interrupted()
        there = self.dir / "elsewhere"
        shutil.copytree(self.batch(), there / "copy", symlinks=True)
        for name in ("train_run.py", "configurator.py", "body.py"):
            shutil.move(self.dir / name, there / name)
        for path in self.dir.glob("*.py"):
            path.unlink()
        summary = there / "copy" / "experiment_summary.json"
        summary.write_text(summary.read_text().replace(str(self.dir), "/no/such/place"))
        done = self.run_runner("--resume", "copy", cwd=there)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertTrue((there / "copy" / "later" / "stdout.log").read_text().endswith("began scratch 0.4\n"))
        self.assertTrue((there / "copy" / "stopped" / "stdout.log").read_text().endswith("began resume 0.3\n"))
        self.assertTrue((there / "copy" / "report.html").exists())

    def test_with_the_summary_lost_the_plan_has_all_that_was_pending_and_only_a_resume_writes_it_anew(self) -> None:
        self.interrupted("--max_iters", "7")
        before = self.plan_bytes()
        (self.batch() / "experiment_summary.json").unlink()
        for mode in (["--status"], ["--report"], ["--resume", "--dry_run", "--max_iters", "8"]):
            self.assertIn("report" if mode == ["--report"] else "later", self.forked(*mode).stdout)
            self.assertEqual(self.plan_bytes(), before, mode)
        self.forked("--resume", "--max_iters", "8")
        self.assertEqual(self.statuses(), {"done": "completed", "stopped": "completed", "later": "completed"})
        self.assertEqual(self.result("later")["overrides"], {"max_iters": 8})
        overrides = {name: line["overrides"]["max_iters"] for name, line in self.planned_lines().items()}
        self.assertEqual(overrides, {"done": "7", "stopped": "8", "later": "8"})
