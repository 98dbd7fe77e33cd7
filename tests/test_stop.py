"""Stopping: whatever ends the runner or a training, it is recorded, said, and nothing is left running."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path

from tests.faulty import QUICK, FaultyCase, stat_of
from tests.support import PATIENCE, RUNNER, RunnerCase, is_running, wait_for

WAIT = "note_pid()\nprint('ready')\nlive_on()"
DEAF = "deaf()\nnote_pid()\nprint('ready')\nlive_on()"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TERM = ("--stop_signal", "TERM")
FOREVER = 100_000  # seconds of grace: a test that waits for them never ends


class StopCase(RunnerCase):
    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self.end_children)

    def end_children(self) -> None:
        """End what a failed test has left, or a test on purpose."""
        for pid in self.pids(0):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def begin_anew(self) -> None:
        shutil.rmtree(self.dir / "experiments", ignore_errors=True)
        (self.dir / "pids").unlink(missing_ok=True)

    def assert_all_ended(self, count: int) -> None:
        """The processes that have noted their pid, so many of them, run no more, nor does any other of the test."""
        pids = self.pids(count)
        self.assertEqual(len(pids), count)
        wait_for(lambda: not any(map(is_running, pids)), f"the end of {pids}")
        self.assert_nothing_runs()

    def assert_counts(self, **expected: int) -> None:
        keys = ("completed", "failed", "errors", "timeouts", "interrupted", "pending", "running")
        summary = self.summary()
        self.assertEqual({key: summary[key] for key in keys if summary[key]}, expected)


class SignalTest(StopCase):
    """One signal to the runner."""

    def test_in_the_middle_it_ends_the_training_and_it_is_said_what_was_done_and_what_was_not(self) -> None:
        self.config("a_done", "print('step 5: train loss 1.0, val loss 2.0')")
        self.config("b_runs", WAIT)
        self.config("c_waits")
        for number in STOP_SIGNALS:
            with self.subTest(number=number):
                self.begin_anew()
                runner = self.start("--configs", "a_done.py", "b_runs.py", "c_waits.py", *TERM)
                self.wait_for_line("b_runs", b"ready\n")
                runner.send_signal(number)
                self.check_stopped(number, self.ended(runner, 128 + number))

    def check_stopped(self, number: signal.Signals, out: str) -> None:
        self.assert_all_ended(1)
        self.assertEqual(self.statuses(), {"a_done": "completed", "b_runs": "interrupted", "c_waits": "pending"})
        self.assert_counts(completed=1, interrupted=1, pending=1)
        self.assertEqual(self.summary()["state"], "interrupted")
        result = self.result("b_runs")
        self.assertEqual((result["status"], result["signal"]), ("interrupted", "SIGTERM"))
        self.assertIn(number.name, result["error"])
        self.assertFalse((self.batch() / "c_waits").exists(), "an experiment was started after the signal")
        for text in (out, self.master_log()):
            self.assertRegex(text, rf"{number.name}: stopping")
            again = "Ctrl+C again" if number is signal.SIGINT else "once more"
            self.assertRegex(
                text, rf"TERM sent to 1 training; KILL in 10 ?s \(--grace\); {re.escape(again)} to kill now\n"
            )
            self.assertRegex(text, r"a_done +completed[^\0]*b_runs +interrupted[^\0]*c_waits +pending")
            self.assertIn("1 completed, 1 interrupted, 1 pending", text)

    def test_as_soon_as_the_batch_directory_exists_it_leaves_a_summary(self) -> None:
        self.config("a", WAIT)
        self.config("b", WAIT)
        base = self.dir / "experiments"
        runner = self.start("--configs", "a.py", "b.py")
        deadline = time.monotonic() + PATIENCE
        while not list(base.glob("experiment_*")):
            self.assertLess(time.monotonic(), deadline, "no batch directory")
        runner.send_signal(signal.SIGHUP)
        self.ended(runner, 129)
        self.assert_nothing_runs()
        self.assertEqual(self.summary()["state"], "interrupted")
        self.assertEqual(self.statuses()["b"], "pending")
        self.assertIn(self.statuses()["a"], ("pending", "interrupted"))

    def test_between_two_short_experiments_it_leaves_a_true_summary(self) -> None:
        names = [f"run_{number}" for number in range(8)]
        for name in names:
            self.config(name, "print('step 1: train loss 1.0, val loss 1.0')")
        self.config(names[-1], WAIT)  # which no signal comes too late for
        runner = self.start("--configs", "run_*.py")
        self.wait_for_event(rf" run_{random.randrange(6)}: ")
        runner.send_signal(signal.SIGINT)
        self.ended(runner, 130)
        self.assert_nothing_runs()
        statuses = list(self.statuses().values())
        done, cut = statuses.count("completed"), statuses.count("interrupted")
        self.assertEqual(statuses, ["completed"] * done + ["interrupted"] * cut + ["pending"] * (8 - done - cut))
        self.assertLessEqual(cut, 1)
        self.assert_counts(**{status: statuses.count(status) for status in set(statuses)})
        for name in names[: done + cut]:
            self.assertEqual(self.result(name)["status"], self.statuses()[name])

    @unittest.skipUnless(Path("/proc/self/task").exists(), "a process's threads are found in /proc")
    def test_a_signal_that_the_kernel_gives_to_another_thread_of_the_runner_is_not_lost(self) -> None:
        tgkill = getattr(ctypes.CDLL(None), "tgkill", None)
        if not tgkill:
            self.skipTest("the C library has no tgkill")
        self.config("silent", WAIT)
        runner = self.start("--configs", "silent.py")
        self.wait_for_line("silent", b"ready\n")
        wait_for(lambda: self.statuses()["silent"] == "running", "the start in the summary")
        others = [thread for thread in self.threads(runner.pid) if thread != runner.pid]
        self.assertEqual(tgkill(runner.pid, (others or [runner.pid])[0], int(signal.SIGTERM)), 0)
        self.ended(runner, 143)
        self.assert_all_ended(1)

    @staticmethod
    def threads(pid: int) -> list[int]:
        """The threads of a process to which the kernel might give a TERM: those that don't block it."""
        found = []
        for each in Path(f"/proc/{pid}/task").iterdir():
            blocked = re.search(r"SigBlk:\s+(\w+)", (each / "status").read_text())
            if blocked and not int(blocked[1], 16) >> (signal.SIGTERM - 1) & 1:
                found.append(int(each.name))
        return found

    def test_a_training_that_ends_well_when_asked_to_is_interrupted_all_the_same(self) -> None:
        code = """
def save(*_):
    open(os.path.join(out_dir, "ckpt_7.pt"), "w").close()
    print("saved")
    sys.exit(0)

signal.signal(signal.SIGTERM, save)
note_pid()
live_on()
"""
        self.config("polite", code)
        runner = self.start("--configs", "polite.py", "--grace", FOREVER, *TERM)
        self.pids(1)
        runner.send_signal(signal.SIGINT)
        self.ended(runner, 130)
        self.assert_all_ended(1)
        result = self.result("polite")
        self.assertEqual((result["status"], result["return_code"]), ("interrupted", 0))
        self.assertEqual(os.path.basename(result["final_checkpoint"]), "ckpt_7.pt")
        self.assertEqual(self.log("polite"), b"saved\n")

    def test_all_that_run_are_asked_at_once_and_a_second_signal_ends_them_all(self) -> None:
        """None is killed before each has had its signal, and none waits for another's grace."""
        for number in range(6):
            code = "def note(*_):\n    open(f'asked_{os.path.basename(out_dir)}', 'w')\nsignal.signal(signal.SIGTERM, note)\n"
            self.config(f"run_{number}", code + "note_pid()\nlive_on()")
        runner = self.start("--configs", "run_*.py", "--jobs", 5, "--grace", FOREVER, *TERM)
        pids = self.pids(5)
        runner.send_signal(signal.SIGTERM)
        wait_for(lambda: len(list(self.dir.glob("asked_*"))) == 5, "the stop signal at each of five")
        self.assertTrue(all(map(is_running, pids)))
        runner.send_signal(signal.SIGINT)
        self.ended(runner, 143)
        self.assert_all_ended(5)
        self.assert_counts(interrupted=5, pending=1)
        self.assertEqual({self.result(f"run_{number}")["signal"] for number in range(5)}, {"SIGKILL"})


class StubbornTest(StopCase):
    """What doesn't end when it is asked to."""

    def test_whatever_ignores_term_is_killed_after_the_grace(self) -> None:
        family = "fork_off(lambda: ({}note_pid(), live_on()))\n"
        codes = {
            "deaf": DEAF,
            "suspended": "note_pid()\nos.kill(os.getpid(), signal.SIGSTOP)",
            "family": f"deaf()\n{2 * family.format('')}note_pid()\nlive_on()",
            "workers_in_a_session_of_their_own": f"deaf()\n{family.format('os.setsid(), ')}note_pid()\nlive_on()",
            "only_its_children": f"{family.format('deaf(), ')}note_pid()\nlive_on()",
        }
        for name, code in codes.items():
            self.config(name, code)
        runner = self.start("--configs", *(f"{name}.py" for name in codes), "--jobs", 5, "--grace", 0.5, *TERM)
        wait_for(lambda: any(map(self.is_stopped, self.pids(9))), "the suspended training")
        runner.send_signal(signal.SIGINT)
        out = self.ended(runner, 130)
        self.assert_all_ended(9)
        self.assert_counts(interrupted=5)
        for name in codes:
            self.assertEqual(self.result(name)["signal"], "SIGTERM" if name == "only_its_children" else "SIGKILL")
            self.assertRegex(out, rf"{name}: did not end on SIGTERM, killed")

    @staticmethod
    def is_stopped(pid: int) -> bool:
        return stat_of(pid)[:1] == ["T"] or not os.path.exists("/proc/self/stat")

    @unittest.skipUnless(shutil.which("timeout"), "needs timeout")
    def test_timeout_of_coreutils_leaves_a_training_its_grace(self) -> None:
        code = "signal.signal(signal.SIGTERM, lambda *_: (open('asked', 'w').close(), await_file('go'), sys.exit(7)))\n"
        self.config("saves", code + "note_pid()\nlive_on()")
        runner = subprocess.Popen(
            ["timeout", "9999", sys.executable, str(RUNNER), "--configs", "saves.py", "--grace", str(FOREVER), *TERM],
            cwd=self.dir,
            stdout=subprocess.DEVNULL,
        )
        self.addCleanup(runner.wait)
        self.addCleanup(runner.terminate)
        self.pids(1)
        runner.send_signal(signal.SIGTERM)  # which it does when it gets TERM, as when the time is over
        wait_for((self.dir / "asked").exists, "the stop signal at the training")
        self.go("go")
        wait_for(lambda: self.summary()["state"] == "interrupted", "the end of the batch")
        self.assertEqual((self.result("saves")["status"], self.result("saves")["return_code"]), ("interrupted", 7))


class StopSignalTest(StopCase):
    """What a training gets first, and then."""

    def test_a_trainer_deaf_to_the_stop_signal_gets_term_before_kill(self) -> None:
        """`srun -X` passes INT on and dies of TERM in order, but leaves the task alive when it is killed."""
        code = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        code += "signal.signal(signal.SIGTERM, lambda *_: (print('got TERM'), sys.exit(3)))\n"
        self.config("a", code + "print('ready')\nlive_on()")
        runner = self.start("--configs", "a.py", "--stop_signal", "INT", "--grace", 0)
        self.wait_for_line("a", b"ready\n")
        runner.send_signal(signal.SIGINT)
        self.ended(runner, 130)
        self.assertEqual(self.log("a"), b"ready\ngot TERM\n")
        self.assertEqual((self.result("a")["status"], self.result("a")["return_code"]), ("interrupted", 3))

    def test_the_stop_signal_reaches_a_training_also_where_the_runner_was_started_to_ignore_it(self) -> None:
        """As a script's background jobs are started: `run_experiments.py … &` has SIGINT ignored."""
        self.config("a", "try:\n    print('ready')\n    live_on()\nexcept KeyboardInterrupt:\n    print('bye')\n")
        ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
        runner = self.start("--configs", "a.py", "--stop_signal", "INT", preexec_fn=ignore)
        self.wait_for_line("a", b"ready\n")
        runner.send_signal(signal.SIGINT)  # stays ignored
        runner.send_signal(signal.SIGTERM)
        self.ended(runner, 143)
        self.assertEqual(self.log("a"), b"ready\nbye\n")


class LeftBehindTest(StopCase, FaultyCase):
    """What outlives a training that has ended by itself."""

    def test_when_the_leader_alone_is_killed_its_children_are_ended_and_named(self) -> None:
        """As the kernel's out-of-memory killer, or somebody's kill -9, may do it."""
        self.config("one", "fork_off(lambda: (deaf(), note_pid(), live_on()))\nawait_file('pids')\nlive_on()")
        runner = self.start_faulty(QUICK, "--configs", "one.py")
        [child] = self.pids(1)
        self.wait_for_event("one: started")
        os.kill(int(wait_for(lambda: self.metadata_pid("one"), "the leader's pid")), signal.SIGKILL)
        self.said(runner, 1)
        result = self.result("one")
        self.assertEqual(
            (result["status"], result["signal"], result["error"]), ("failed", "SIGKILL", "killed by SIGKILL")
        )
        self.assertRegex(
            "".join(result["warnings"]), rf"killed what it left behind: pid {child} \(.*train_run\.py one\.py"
        )
        self.assertFalse(is_running(child))

    def test_a_worker_alone_that_is_killed_is_the_trainings_own_affair(self) -> None:
        """As where a memory limit's killer takes a worker only: the training tells of it and ends, or goes on."""
        worker = (
            "pid = os.fork()\nif not pid:\n    os.kill(os.getpid(), signal.SIGKILL)\ncode = os.waitpid(pid, 0)[1]\n"
        )
        self.config("ends", worker + "raise RuntimeError(f'worker is killed by signal {code}')")
        self.config("goes_on", worker + "print('on')")
        self.forked("--configs", "ends.py", "goes_on.py", expect=1)
        self.assertEqual(self.statuses(), {"ends": "failed", "goes_on": "completed"})
        self.assertEqual(self.result("ends")["error"], "exit code 1: RuntimeError: worker is killed by signal 9")
        self.assertEqual(self.log("goes_on"), b"on\n")

    def test_what_stays_in_the_group_is_killed_and_a_daemon_that_holds_the_output_is_not_waited_for(self) -> None:
        flood = "def flood():\n    while True:\n        os.write(1, b'flood\\n' * 1000)\n        os.write(2, b'flood\\n' * 1000)\n"
        stay = "def stay():\n    deaf()\n    {}\n    note_pid()\n"
        begin = (
            "    open(f'{{out_dir}}/there', 'w').close()\n    {}()\nfork_off(stay)\nawait_file(f'{{out_dir}}/there')\n"
        )
        for name, how, what in (
            ("orphan", "pass", "live_on"),
            ("orphan_floods", "pass", "flood"),
            ("daemon", "os.setsid()", "live_on"),
            ("daemon_floods", "os.setsid()", "flood"),
        ):
            code = flood + stay.format(how) + begin.format(what)
            self.config(name, code + ("print('the last line')" if what == "live_on" else "os._exit(3)"))
        out = self.said(self.start_faulty(QUICK, "--configs", "orphan*.py", "daemon*.py", "--jobs", 4), 1)
        self.assertEqual(list(self.statuses().values()), ["completed", "failed", "completed", "failed"])
        for name in ("orphan", "daemon"):
            self.assertEqual(self.log(name), b"the last line\n")
            self.assertIn(b"[STDOUT] the last line\n", self.log(name, "combined"))
            self.assertEqual(self.result(f"{name}_floods")["return_code"], 3)
            for stream in ("stdout", "stderr"):
                self.assertRegex(self.log(f"{name}_floods", stream)[:6000], rb"\A(flood\n)*\Z")
        for text in (out, self.master_log()):
            for name in ("orphan", "orphan_floods"):
                self.assertRegex(text, rf"{name}: killed what it left behind: pid \d+")
            self.assertRegex(text, "daemon: .*outside its group.*left alone")
            self.assertRegex(text, "daemon_floods: .*outside its group")
        wait_for(lambda: sum(map(is_running, self.pids(4))) == 1, "the end of all but the quiet daemon")

    def test_a_signal_while_the_rest_of_the_group_lingers_leaves_nothing(self) -> None:
        self.config("leaves", "fork_off(lambda: (note_pid(), live_on()))\nawait_file('pids')")
        self.config("next", WAIT)
        runner = self.start("--configs", "leaves.py", "next.py")
        wait_for(lambda: self.leader_has_gone("leaves"), "the end of the training")
        runner.send_signal(signal.SIGINT)
        runner.send_signal(signal.SIGTERM)
        runner.communicate(timeout=PATIENCE)
        self.assertIn(runner.returncode, (130, 143))
        self.assert_all_ended(1)
        self.assertEqual(self.statuses(), {"leaves": "completed", "next": "pending"})

    @unittest.skipUnless(hasattr(signal, "SIGSTOP") and sys.platform == "linux", "zombies are told by /proc")
    def test_a_training_that_dies_of_the_stop_signal_beside_the_runner_is_interrupted(self) -> None:
        """As `scancel` and a service manager do it: they signal every process."""
        code = "fork_off(lambda: (deaf(), note_pid(), live_on()))\n"
        self.config("both", code + "await_file('pids')\nprint('ready')\nlive_on()")
        runner = self.start_faulty(QUICK, "--configs", "both.py", *TERM)
        self.wait_for_line("both", b"ready\n")
        wait_for(lambda: self.metadata_pid("both"), "the training's pid")
        runner.send_signal(signal.SIGSTOP)
        os.kill(self.metadata_pid("both"), signal.SIGTERM)
        wait_for(lambda: self.leader_has_gone("both"), "the end of the training")
        runner.send_signal(signal.SIGTERM)
        runner.send_signal(signal.SIGCONT)
        self.ended(runner, 143)
        self.assert_all_ended(1)
        result = self.result("both")
        self.assertEqual((result["status"], result["signal"]), ("interrupted", "SIGTERM"))
        self.assertEqual(result["error"], "stopped by SIGTERM")

    def metadata_pid(self, name: str) -> int:
        return int(self.json(self.batch() / name / "experiment_metadata.json")["pid"] or 0)

    def leader_has_gone(self, name: str) -> bool:
        self.pids(1)  # before that there may be no metadata
        pid = self.metadata_pid(name)
        return pid > 0 and not is_running(pid)


class IgnoredTest(StopCase):
    """A signal that is ignored when the runner starts stays ignored."""

    def test_a_runner_that_was_started_with_hup_ignored_stays_when_the_terminal_goes(self) -> None:
        self.config("short", "note_pid()\nawait_file('go')")
        ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
        runner = self.start("--configs", "short.py", preexec_fn=ignore)
        self.pids(1)
        runner.send_signal(signal.SIGHUP)
        self.go("go")
        self.ended(runner, 0)
        self.assertEqual(self.statuses(), {"short": "completed"})
