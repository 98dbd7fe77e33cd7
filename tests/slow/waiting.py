"""What takes its time to see: a machine that is suspended, a stall, a training that nothing ends, shortages.

python3 -m unittest tests.slow.waiting
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from tests.faulty import FaultyCase, stat_of
from tests.slow.shortage import LITTLE_ROOM, NO_THREAD, WaitingCase
from tests.slow.slowness import TICKS, slow_write
from tests.support import CHILD_TOOLS, wait_for

LATE_READERS = """
late = set()

def read(*_):
    if exists("resumed") and threading.get_ident() not in late:
        late.add(threading.get_ident())
        time.sleep(0.2)

before("readv", read)
"""  # a fault: after a suspension, the runner's loop runs before its readers do


class SuspensionTest(FaultyCase):
    def log_of(self, name: str) -> Path:
        return self.dir / name / "latest" / name / "stdout.log"

    def test_the_time_in_which_the_runner_or_all_is_suspended_counts_neither_as_stall_nor_for_the_timeout(self) -> None:
        limits = {"runner": ("--stall", 2), "both": ("--stall", 2), "timeout": ("--timeout", 3.2)}
        runners: dict[str, subprocess.Popen[str]] = {}
        for name, limit in limits.items():
            self.config(name, CHILD_TOOLS + "note_pid()\nprint(os.getpid())\n" + TICKS)
            runners[name] = self.start_faulty(LATE_READERS, "--configs", f"{name}.py", *limit, "--base_out_dir", name)
        for name in limits:
            self.await_growth(name, runners[name], 0)
        trainings = [int(self.log_of(name).read_text().split("\n")[0]) for name in ("both", "timeout")]
        stopped = [each.pid for each in runners.values()], trainings
        for pid in (*stopped[0], *stopped[1]):
            os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: all(stat_of(pid)[0] == "T" for pids in stopped for pid in pids), "all to be suspended")
        time.sleep(3)  # this is the suspension, longer than each limit
        sizes = {name: self.log_of(name).stat().st_size for name in limits}
        self.go("resumed")
        for pids in stopped:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            time.sleep(0.4)  # the trainings go on that much later, shorter than each limit
        for name, runner in runners.items():
            self.await_growth(name, runner, sizes[name])
        self.go("go")
        for name, runner in runners.items():
            with self.subTest(name):
                self.assertRegex(self.said(runner, 0), rf" {name}: completed")

    def await_growth(self, name: str, runner: subprocess.Popen[str], size: int) -> None:
        """Wait for the training to print more, unless its runner ends before."""
        log = self.log_of(name)
        wait_for(lambda: log.exists() and log.stat().st_size > size or runner.poll() is not None, f"{name} to print")


class StallTest(FaultyCase):
    def test_a_log_write_that_is_slower_than_the_stall_limit_is_no_stall_of_a_training_that_prints(self) -> None:
        self.config("a", CHILD_TOOLS + "note_pid()\n" + TICKS)
        runner = self.start_faulty(slow_write("a/stdout.log", seconds=1.6), "--configs", "a.py", "--stall", 1)
        wait_for(lambda: self.log("a").count(b"tick") > 35 or runner.poll() is not None, "what was printed meanwhile")
        self.go("go")
        self.said(runner, 0)
        self.assertEqual(self.statuses(), {"a": "completed"})


class UnkillableTest(FaultyCase):
    FAULTS = """
run_experiments.GIVE_UP = 0.5

def swallow(call):
    def send(pid, number):
        if number and exists("stuck") and str(abs(pid)) == open("stuck").read():
            return note("swallowed", number)
        return call(pid, number)
    return send

os.kill, os.killpg = swallow(os.kill), swallow(os.killpg)
"""  # the training that notes its pid in `stuck` gets no signal that the runner sends

    def start_stuck(self, *args: object) -> subprocess.Popen[str]:
        stuck = "note_pid()\nopen('.stuck', 'w').write(str(os.getpid()))\nos.rename('.stuck', 'stuck')\nlive_on()"
        self.config("stuck", CHILD_TOOLS + stuck)
        return self.start_faulty(self.FAULTS, "--configs", "stuck.py", *args, "--grace", 0.2)

    def test_a_training_that_kill_can_not_end_has_failed_and_the_others_go_on_without_its_slot(self) -> None:
        self.config("b", CHILD_TOOLS + "print('ready')\n" + TICKS)
        self.config("c")
        self.config("d")
        runner = self.start_stuck("b.py", "c.py", "d.py", "--devices", "x,y", "--stall", 2)
        self.wait_for_event("stuck: .*can't be killed")
        self.go("go")
        self.said(runner, 1)
        self.assertRegex(self.result("stuck")["error"], rf"can't be killed: pid {self.pids(1)[0]}\b")
        self.assertEqual(self.statuses(), {"stuck": "failed", "b": "completed", "c": "completed", "d": "completed"})
        self.assertEqual([self.result(name)["device"] for name in "bcd"], ["y"] * 3)

    def test_a_stop_ends_though_kill_can_not_end_the_training(self) -> None:
        runner = self.start_stuck()
        self.await_file("stuck")
        runner.send_signal(signal.SIGINT)
        self.said(runner, 130)
        self.assertRegex(self.result("stuck")["error"], "can't be killed")


class ShortageTest(WaitingCase):
    def test_what_can_not_be_launched_for_lack_of_threads_is_launched_later_and_not_an_error(self) -> None:
        self.passes(self.start_short(NO_THREAD))

    def test_a_disk_with_too_little_room_is_waited_for(self) -> None:
        self.passes(self.start_short(LITTLE_ROOM.replace("MEGABYTES", "99")))
