"""What must not get lost: logs, checkpoints, the plan, pages, other trainings, whatever goes wrong with one of them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import unittest

from tests.faulty import DEAF, HIDE_PROC, QUICK, FaultyCase, stat_of
from tests.support import CHILD_TOOLS, RUNNER, wait_for
from tests.test_resume import ResumeCase

BROKEN_CLOSE = """
def close(file):
    path = path_of(file)
    if path.endswith(("/stdout/stdout.log", "/stderr/stderr.log", "/combined/combined.log")):
        real_close(file)
        note("closed", path)
        fail(errno.EDQUOT)

before("close", close)
"""  # a fault, as NFS has it: only the close tells that the quota is used up
ATTEMPT = """
tries = open(f"{out_dir}_tries", "a+")
tries.write(".")
tries.seek(0)
number = len(tries.read())
tries.close()
"""  # what a training's code may begin with: `number` is that of its attempt


class CloseTest(FaultyCase):
    def test_an_error_at_the_close_of_a_log_is_recorded_and_disturbs_no_other_training(self) -> None:
        names = ["stdout", "stderr", "combined"]
        for name in names:
            self.config(name, "import sys\nprint('out')\nprint('err', file=sys.stderr)")
        self.config("other", CHILD_TOOLS + "print('ready')\nawait_file('go')\nprint('more')")
        self.config("later", "print('later')")
        configs = [f"{name}.py" for name in ("other", *names, "later")]
        runner = self.start_faulty(BROKEN_CLOSE, "--configs", *configs, "--jobs", 2)
        wait_for(lambda: self.lines("closed") == 3 or runner.poll() is not None, "the three logs to be closed")
        self.go("go")
        said = self.said(runner)
        self.assertIn(runner.returncode, (0, 1), said)
        self.assertEqual(self.statuses(), dict.fromkeys(("other", *names, "later"), "completed"))
        for name in names:
            with self.subTest(name):
                result = self.result(name)
                self.assertEqual((result["status"], result["log_complete"]), ("completed", False))
                self.assertRegex("\n".join(result["warnings"]), rf"{name}\.log")
        self.assertEqual(self.log("other"), b"ready\nmore\n")
        self.assertEqual((self.result("other")["warnings"], self.result("other")["log_complete"]), ([], True))
        self.assertIn(self.summary()["state"], ("finished", "interrupted"))


class AttemptTest(FaultyCase, ResumeCase):
    """Attempts that continue."""

    def run_attempts(self, first: str, second: str, faults: str = "", retries: int = 1, expect: int = 0) -> None:
        """Experiment `a`, whose first attempt leaves two checkpoints before it runs this code; `b` is another one."""
        self.config("a")
        self.config("b")
        save = "for step in 1, 2: open(f'{out_dir}/ckpt_{step}.pt', 'w').write(str(step))"
        code = f"if out_dir.endswith('b'): sys.exit()\nif number == 1:\n    {save}\n    {first}\nif number == 2:\n    {second}\n"
        self.body(CHILD_TOOLS + ATTEMPT + code)
        self.said(self.start_faulty(faults, "--configs", "a.py", "b.py", "--retries", retries), expect)

    def test_an_error_at_the_renaming_of_a_checkpoint_is_recorded_and_the_batch_goes_on(self) -> None:
        faults = """
def rename(source, target, **_):
    if ".set_aside" in target:
        note("renamed")
        fail(errno.EDQUOT)

before("rename replace", rename)
"""
        self.run_attempts("sys.exit(1)", "raise EOFError('Ran out of input')", faults, expect=1)
        self.assertTrue((self.dir / "renamed").exists())
        self.assertEqual(self.statuses(), {"a": "failed", "b": "completed"})
        self.assertIn("EOFError", self.result("a")["error"])
        self.assertRegex(self.master_log(), "a: .*[Qq]uota")
        self.assertEqual(self.summary()["state"], "finished")

    def test_an_attempt_that_fails_at_once_for_a_passing_reason_keeps_its_newest_checkpoint(self) -> None:
        self.run_attempts("sys.exit(1)", "raise ConnectionError('the network is unreachable')", retries=2)
        self.assertEqual(list(self.batch().rglob("*.set_aside")), [])
        self.assertEqual((self.batch() / "a" / "ckpt_2.pt").read_text(), "2")
        self.assertEqual((self.result("a")["status"], self.result("a")["attempts"]), ("completed", 3))
        self.assertNotRegex(self.master_log(), "set aside")

    def test_an_attempt_is_not_blamed_for_what_the_one_before_wrote_to_stderr(self) -> None:
        self.run_attempts("raise RuntimeError('CUDA out of memory')", "sys.exit(3)", expect=1)
        self.assertIn(b"CUDA out of memory", self.log("a", "stderr"), "the log is no longer that of both")
        result = self.result("a")
        self.assertEqual((result["attempts"], result["return_code"]), (2, 3))
        self.assertEqual((result["error"], result["hint"], result["stderr_tail"]), ("exit code 3", None, ""))
        self.assertIn("CUDA out of memory", result["attempt_history"][0]["error"])


class WriterTest(FaultyCase):
    HELD_PAGE = """
def replace(source, target, **_):
    if target.endswith("report.html") and exists("hold"):
        hold("open")

before("replace rename", replace)
"""  # a fault: the page is written, and its renaming is slow

    def check_page(self) -> None:
        self.assertRegex((self.batch() / "report.html").read_text(), r"(?s)\A<!DOCTYPE html>.*</html>\s*\Z")
        self.assertEqual([path.name for path in self.batch().iterdir() if path.name.startswith(".")], [])

    def test_a_page_that_is_asked_for_beside_a_running_batch_does_not_disturb_it(self) -> None:
        self.config("a", CHILD_TOOLS + "print('step 1: train loss 1.0, val loss 1.0')\nawait_file('go')")
        self.addCleanup(self.go, "open")
        runner = self.start_faulty(self.HELD_PAGE, "--configs", "a.py")
        self.wait_for_event("a: step 1")
        self.go("hold")
        self.go("go")
        self.await_file("open_held")
        self.run_runner("--report", expect=0)
        self.go("open")
        self.said(runner, 0)
        self.assertNotIn("can't write", self.master_log())
        self.check_page()

    def test_what_was_printed_before_the_runner_died_without_a_word_of_the_attempt_is_kept(self) -> None:
        self.config("a", "print('said')")
        self.forked("--configs", "a.py")
        path = self.batch() / "experiment_summary.json"
        summary = self.json(path)
        summary["state"] = "running"
        summary["results"]["a"].update(status="pending", attempts=0)
        path.write_text(json.dumps(summary))
        for name in ("experiment_metadata.json", "experiment_result.json", "config_used.py"):
            (self.batch() / "a" / name).unlink()
        self.forked("--resume")
        self.assertEqual(self.log("a"), b"said\n")
        self.assertEqual((self.batch() / "a" / "attempt_0" / "stdout.log").read_bytes(), b"said\n")

    def test_why_a_training_can_not_be_started_is_told_though_what_it_leaves_can_not_be_cleared_away(self) -> None:
        faults = """
def unlink(path, *_, **__):
    if "stdout.log" in path:
        note("kept")
        fail(errno.EIO)

before("unlink", unlink)
"""
        launcher = self.dir / "launcher"
        launcher.write_text('#!/bin/sh\nexec python3 "$@"\n')
        launcher.chmod(0o755)
        self.config("a", "import os; os.unlink('launcher')")
        self.config("b")
        self.ended(self.start_faulty(faults, "--configs", "a.py", "b.py", "--launcher", "./launcher"), 1)
        self.assertTrue((self.dir / "kept").exists())
        self.assertRegex(self.result("b")["error"], "FileNotFoundError.*launcher")

    def test_a_directory_in_the_place_of_latest_is_said_and_nothing_is_left_beside_it(self) -> None:
        self.config("a")
        (self.dir / "experiments" / "latest" / "kept").mkdir(parents=True)
        out = self.said(self.start("--configs", "a.py"), 0)
        names = {path.name for path in (self.dir / "experiments").iterdir()}
        self.assertEqual({name for name in names if not name.startswith("experiment_")}, {"latest"})
        [batch] = self.dir.glob("experiments/experiment_*")
        self.assertTrue((self.dir / "experiments" / "latest" / "kept").is_dir())
        for text in (out, (batch / "master_log.txt").read_text()):
            self.assertRegex(text, r"\blatest\b")

    def test_an_out_dir_that_the_trainer_removes_and_makes_anew_is_whole_again_at_the_end(self) -> None:
        code = CHILD_TOOLS + (
            "import shutil\nprint('before')\nprint('early', file=sys.stderr)\nawait_file('go')\nshutil.rmtree(out_dir)\n"
            "os.mkdir(out_dir)\nopen(out_dir + '/ckpt_1.pt', 'w').close()\nprint('after')\nprint('late', file=sys.stderr)\n"
        )
        config = self.config("a", code)
        runner = self.start("--configs", "a.py")
        self.wait_for_line("a", b"before\n")
        self.wait_for_line("a", b"early\n", "combined")
        wait_for(lambda: self.json(self.batch() / "a" / "experiment_metadata.json").get("pid"), "the whole metadata")
        metadata = self.json(self.batch() / "a" / "experiment_metadata.json")
        self.go("go")
        self.said(runner, 0)
        self.assertEqual(self.log("a"), b"before\nafter\n")
        self.assertEqual(self.log("a", "stderr"), b"early\nlate\n")
        lines = re.findall(rb"\[(\w+)\] (\w+)\n", self.log("a", "combined"))
        self.assertEqual(sorted(lines), sorted([(b"STDOUT", b"before"), (b"STDERR", b"early"), *lines[2:]]))
        self.assertEqual({line for _, line in lines[2:]}, {b"after", b"late"})
        self.assertEqual((self.batch() / "a" / "config_used.py").read_bytes(), config.read_bytes())
        self.assertEqual(self.json(self.batch() / "a" / "experiment_metadata.json"), metadata)
        self.assertTrue((self.batch() / "a" / "ckpt_1.pt").exists())
        result = self.result("a")
        self.assertIs(result["log_complete"], True)
        self.assertRegex("\n".join(result["warnings"]), r"stdout\.log")
        self.assertRegex(self.master_log(), r"a: .*stdout\.log")


class WithoutProcTest(FaultyCase):
    """A Linux on which /proc isn't mounted."""

    def test_without_proc_a_training_that_ignores_the_stop_signal_is_killed(self) -> None:
        self.config("a", DEAF + "print('ready')\ndeaf()")
        runner = self.start_faulty(HIDE_PROC + QUICK, "--configs", "a.py", "--grace", 0.3)
        pids = self.pids(1)
        runner.send_signal(signal.SIGTERM)
        self.said(runner, 143)
        self.assert_ended(pids)
        self.assertEqual(self.statuses(), {"a": "interrupted"})

    def test_without_proc_what_a_training_leaves_in_its_group_does_not_end_the_batch(self) -> None:
        self.config("a", CHILD_TOOLS + "note_pid()\nfork_off(await_file, 'go')")
        self.config("b", CHILD_TOOLS + "await_file('go')\nprint('b')")
        runner = self.start_faulty(HIDE_PROC + QUICK, "--configs", "a.py", "b.py", "--jobs", 2)
        [pid] = self.pids(1)
        wait_for(lambda: not stat_of(pid), "the end of the leader")
        self.go("go")
        self.said(runner, 0)
        self.assertEqual(self.statuses(), {"a": "completed", "b": "completed"})
        self.assertEqual(self.log("b"), b"b\n")


UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def can_be_pid_1() -> bool:
    with_one = subprocess.run([*UNSHARE, "true"], capture_output=True) if shutil.which("unshare") else None
    return with_one is not None and with_one.returncode == 0


@unittest.skipUnless(can_be_pid_1(), "needs unshare and the right to have a pid namespace")
class Pid1Test(FaultyCase):
    def test_as_pid_1_the_runner_leaves_no_orphan_as_a_zombie(self) -> None:
        orphan = "fork_off(fork_off, await_file, 'orphaned')"
        self.config("a", CHILD_TOOLS + f"for _ in range(30): {orphan}\nopen('orphaned', 'w').close()")
        self.config(
            "b",
            CHILD_TOOLS
            + """
def state(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]
    except OSError:
        return ""

await_file("orphaned")
print("pid 1 is", open("/proc/1/cmdline").read().split(chr(0))[1])
while not os.path.exists("go"):
    print("zombies", sum(state(each) == "Z" for each in os.listdir("/proc") if each.isdigit()))
    time.sleep(0.1)
""",
        )
        self.addCleanup(self.go, "go")
        command = [*UNSHARE, sys.executable, str(RUNNER), "--configs", "a.py", "b.py"]
        pipe = subprocess.PIPE
        runner = subprocess.Popen(command, cwd=self.dir, stdout=pipe, stderr=pipe, text=True)
        self.runners.append(runner)
        self.wait_for_line("b", b"run_experiments.py\n")
        self.wait_for_line("b", b"zombies 0\n")
        self.go("go")
        self.said(runner, 0)
