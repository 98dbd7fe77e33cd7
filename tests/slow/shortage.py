"""What runs short: processes, threads, descriptors, room on the disk. It is waited for, or it is said what it cost."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
from typing import Any

from tests.faulty import FaultyCase
from tests.support import CHILD_TOOLS, wait_for
from tests.test_faults import limit
from tests.test_resume import ResumeCase

REFUSE = """
def refused():
    if exists("short"):
        note("refused")
        return True
"""
NO_PROCESS = (
    REFUSE
    + """
def launch(process, command, *_):
    if "train_run.py" in " ".join(map(str, command)) and refused():
        fail(errno.EAGAIN)

before("_execute_child", launch, subprocess.Popen)
"""
)  # faults while the file `short` is there
NO_THREAD = (
    REFUSE
    + """
def start(*_):
    if refused():
        raise RuntimeError("can't start new thread")

before("start", start, threading.Thread)
"""
)
LITTLE_ROOM = (
    REFUSE
    + """
def room(place, call=os.statvfs):
    disk = list(call(place))
    disk[4] = (MEGABYTES << 20 if refused() else 100 << 30) // disk[1]
    return os.statvfs_result(disk)

os.statvfs = room
"""
)
WAITS = r"(?i)\bwait"  # what the master log says of it


class ShortCase(FaultyCase):
    def await_waiting(self) -> None:
        """Wait until the master log tells that something is waited for, and nothing of an error."""
        wait_for(lambda: re.search(f"{WAITS}|error", self.master_log()), "the runner to say that it waits")
        self.assertNotIn("error", self.master_log())


class WaitingCase(ShortCase):
    """`holder` runs all the time; when `first` ends, `b` and `c` can't be launched for a while."""

    def start_short(self, faults: str, *args: Any, first: str = "") -> subprocess.Popen[str]:
        self.config("holder", CHILD_TOOLS + "await_file('go')")
        self.config("first", f"{first}\nopen('short', 'w').close()")
        self.config("b", "print('b')")
        self.config("c", "print('c')")
        return self.start_faulty(faults, "--configs", "holder.py", "first.py", "b.py", "c.py", "--jobs", 2, *args)

    def passes(self, runner: subprocess.Popen[str], at_the_end_of_holder: bool = False) -> None:
        """The shortage lasts until the end of `holder`, or a little longer."""
        self.await_file("refused")
        self.await_waiting()
        refused = self.lines("refused")
        if at_the_end_of_holder:
            (self.dir / "short").unlink()
            self.go("go")
        else:
            self.go("go")
            wait_for(lambda: self.lines("refused") > refused, "another try")
            (self.dir / "short").unlink()
        said = self.said(runner, 0)
        names = ["holder", "first", "b", "c"]
        self.assertEqual(self.statuses(), dict.fromkeys(names, "completed"))
        for name in "bc":
            self.assertEqual((self.result(name)["attempts"], self.result(name)["attempt_history"]), (1, []))
            self.assertEqual(self.log(name), f"{name}\n".encode())
            self.assertFalse((self.batch() / name / "attempt_1").exists())
        for text in (said, self.master_log()):
            self.assertEqual(len([line for line in text.splitlines() if re.search(WAITS, line)]), 1, text)
            self.assertNotRegex(text, "[bc]: (error|failed)")


class WaitingTest(WaitingCase):
    def test_what_can_not_be_launched_for_lack_of_processes_is_launched_later_and_not_an_error(self) -> None:
        self.passes(self.start_short(NO_PROCESS))

    def test_room_is_twice_the_largest_checkpoint_of_the_batch(self) -> None:
        big = "import os\nwith open(out_dir + '/ckpt_1.pt', 'wb') as file: os.truncate(file.fileno(), 200 << 20)"
        self.passes(self.start_short(LITTLE_ROOM.replace("MEGABYTES", "390"), first=big), at_the_end_of_holder=True)

    def test_a_stop_while_nothing_can_be_launched_leaves_the_rest_pending(self) -> None:
        runner = self.start_short(NO_PROCESS)
        self.await_file("refused")
        self.go("go")
        self.wait_for_event("holder: completed")
        self.await_waiting()
        runner.send_signal(signal.SIGTERM)
        self.said(runner, 143)
        self.assertEqual([self.statuses()[name] for name in "bc"], ["pending"] * 2)
        for name in "bc":
            self.assertEqual(self.summary()["results"][name]["attempts"], 0)

    def test_with_more_jobs_than_there_are_descriptors_for_all_experiments_complete_in_turn(self) -> None:
        names = [f"run_{number}" for number in range(15)]
        for name in names:
            self.config(name, CHILD_TOOLS + "print('ready')\nawait_file('go')")
        few = limit(resource.RLIMIT_NOFILE, 48)
        runner = self.start("--configs", "run_*.py", "--jobs", 15, preexec_fn=few)
        self.wait_for_line("run_0", b"ready\n")
        self.await_waiting()
        self.go("go")
        self.said(runner, 0)
        self.assertEqual(self.statuses(), dict.fromkeys(names, "completed"))
        for name in names:
            self.assertEqual((self.log(name), self.result(name)["attempts"]), (b"ready\n", 1))
            self.assertIs(self.result(name)["log_complete"], True)


class RetryTest(ShortCase, ResumeCase):
    def test_a_retry_that_can_not_be_launched_for_a_while_leaves_the_attempt_before_as_it_is(self) -> None:
        self.config("continues")
        self.config("starts_over")
        self.body(
            "with open(f'{out_dir}_tries', 'a') as tries:\n    again = tries.tell() or not tries.write('.')\n"
            "if not again:\n    open(out_dir + '/ckpt_5.pt' if 'continues' in out_dir else 'short', 'w').close()\n"
            "    sys.exit(1)\n"
        )
        args = ("--configs", "continues.py", "starts_over.py", "--retries", 1)
        runner = self.start_faulty(NO_PROCESS, *args)
        self.await_file("refused")
        self.await_waiting()
        (self.dir / "short").unlink()
        self.said(runner, 0)
        for name in ("continues", "starts_over"):
            result = self.result(name)
            self.assertEqual(
                (result["status"], result["attempts"], len(result["attempt_history"])), ("completed", 2, 1)
            )
        self.assertEqual(self.log("continues", "combined").count(b"attempt 2 continues"), 1)
        began = re.findall(rb"(?m)^began .*$", self.log("continues"))
        self.assertEqual(began, [b"began scratch 8", b"began resume 8"])
        [earlier] = self.batch().glob("starts_over/attempt_*")
        self.assertEqual(earlier.name, "attempt_1")
        for folder in (earlier, earlier.parent):
            began = re.findall(rb"(?m)^began .*$", (folder / "stdout.log").read_bytes())
            self.assertEqual(began, [b"began scratch 8"])


class SaidTest(FaultyCase):
    def test_experiments_that_could_not_be_launched_count_for_max_failures(self) -> None:
        names = [f"run_{number}" for number in range(6)]
        for name in names:
            self.config(name, "max_iters = = 5\n")
        runner = self.start("--configs", "run_*.py", "--max_failures", 2)
        out = self.said(runner, 1)
        self.assertEqual(list(self.statuses().values()), ["failed"] * 2 + ["pending"] * 4)
        self.assertRegex(out, "--max_failures")

    def test_what_stopped_a_batch_is_told_with_quiet_too_and_by_status(self) -> None:
        for name in "abc":
            self.config(name, "raise SystemExit(3)")
        faults = """
def replace(source, target, **_):
    if target.endswith("/a/experiment_result.json"):
        fail(errno.EROFS)

before("replace rename", replace)
"""
        cases = {"too many failures": ("", "--max_failures"), "the disk": (faults, "Read-only file system")}
        for number, (what, (fault, why)) in enumerate(cases.items()):
            with self.subTest(what):
                base = ("--base_out_dir", f"out_{number}")
                args = ("--configs", "a.py", "b.py", "c.py", "--quiet", "--max_failures", 2, *base)
                self.assertIn(why, self.said(self.start_faulty(fault, *args), 1))
                self.assertIn(why, self.run_runner("--status", *base, expect=0).stdout)
