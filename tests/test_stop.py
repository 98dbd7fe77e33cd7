"""Stopping: whatever ends the runner or a training, it is recorded, said, and nothing is left running."""

from __future__ import annotations

import contextlib
import ctypes
import math
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
from typing import Any
from unittest import mock

import run_experiments
from tests.support import CHILD_TOOLS, PATIENCE, RUNNER, RunnerCase, is_running, wait_for

WAIT = CHILD_TOOLS + "note_pid()\nprint('ready')\nlive_on()"
DEAF = CHILD_TOOLS + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nnote_pid()\nprint('ready')\nlive_on()"
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

    def statuses(self) -> dict[str, str]:
        return {name: result["status"] for name, result in self.summary()["results"].items()}

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

    def stop_in_the_middle(self, number: int) -> None:
        self.config("a_done", "print('step 5: train loss 1.0, val loss 2.0')")
        self.config("b_runs", WAIT)
        self.config("c_waits")
        runner = self.start("--configs", "a_done.py", "b_runs.py", "c_waits.py")
        self.wait_for_line("b_runs", b"ready\n")
        runner.send_signal(number)
        name = signal.Signals(number).name
        out = self.ended(runner, 128 + number)
        self.assert_all_ended(1)
        self.assertEqual(self.statuses(), {"a_done": "completed", "b_runs": "interrupted", "c_waits": "pending"})
        self.assert_counts(completed=1, interrupted=1, pending=1)
        self.assertEqual(self.summary()["state"], "interrupted")
        result = self.result("b_runs")
        self.assertEqual((result["status"], result["signal"]), ("interrupted", "SIGTERM"))
        self.assertIn(name, result["error"])
        self.assertFalse((self.batch() / "c_waits").exists(), "an experiment was started after the signal")
        for text in (out, self.master_log()):
            self.assertRegex(text, rf"{name}: stopping")
            self.assertRegex(text, r"a_done +completed")
            self.assertRegex(text, r"b_runs +interrupted")
            self.assertRegex(text, r"c_waits +pending")
            self.assertIn("1 completed, 1 interrupted, 1 pending", text)

    def test_int_ends_the_training_and_says_what_was_done_and_what_was_not(self) -> None:
        self.stop_in_the_middle(signal.SIGINT)

    def test_term_ends_the_training_and_says_what_was_done_and_what_was_not(self) -> None:
        self.stop_in_the_middle(signal.SIGTERM)

    def test_hup_ends_the_training_and_says_what_was_done_and_what_was_not(self) -> None:
        self.stop_in_the_middle(signal.SIGHUP)

    def stop_at_the_start(self, number: int) -> None:
        self.config("a", WAIT)
        self.config("b", WAIT)
        runner = self.start("--configs", "a.py", "b.py")
        deadline = time.monotonic() + PATIENCE
        base = self.dir / "experiments"
        while not (base.is_dir() and any(name.startswith("experiment_") for name in os.listdir(base))):
            self.assertLess(time.monotonic(), deadline, "no batch directory")
        runner.send_signal(number)
        self.ended(runner, 128 + number)
        self.assert_nothing_runs()
        self.assertEqual(self.summary()["state"], "interrupted")
        self.assertEqual(self.statuses()["b"], "pending")
        self.assertIn(self.statuses()["a"], ("pending", "interrupted"))

    def test_int_as_soon_as_the_batch_directory_exists_leaves_a_summary(self) -> None:
        self.stop_at_the_start(signal.SIGINT)

    def test_term_as_soon_as_the_batch_directory_exists_leaves_a_summary(self) -> None:
        self.stop_at_the_start(signal.SIGTERM)

    def test_hup_as_soon_as_the_batch_directory_exists_leaves_a_summary(self) -> None:
        self.stop_at_the_start(signal.SIGHUP)

    def test_a_signal_at_any_moment_of_a_batch_of_short_experiments_leaves_a_true_summary(self) -> None:
        for _ in range(3):
            seed = random.randrange(1 << 32)
            with self.subTest(seed=seed):
                self.stop_between(random.Random(seed))

    def stop_between(self, chance: random.Random) -> None:
        shutil.rmtree(self.dir / "experiments", ignore_errors=True)
        names = [f"run_{number}" for number in range(20)]
        for name in names:
            self.config(name, "print('step 1: train loss 1.0, val loss 1.0')")
        number = chance.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        runner = self.start("--configs", "run_*.py")
        self.wait_for_event(rf" run_{chance.randrange(12)}: ")
        time.sleep(chance.random() * 0.05)  # the moment is the test's chance; nothing depends on it
        runner.send_signal(number)
        self.ended(runner, 128 + number)
        self.assert_nothing_runs()
        statuses = list(self.statuses().values())
        done = statuses.count("completed")
        order = ["completed"] * done + ["interrupted"] * statuses.count("interrupted")
        self.assertEqual(statuses, order + ["pending"] * (len(names) - len(order)))
        self.assertLessEqual(statuses.count("interrupted"), 1)
        self.assert_counts(**{status: statuses.count(status) for status in set(statuses)})
        for name in names[: len(order)]:
            self.assertEqual(self.result(name)["status"], self.statuses()[name])

    def test_a_signal_that_comes_as_the_runner_falls_asleep_is_not_lost(self) -> None:
        self.config("last", CHILD_TOOLS + "note_pid()\nprint('step 1: train loss 1.0, val loss 1.0')\nlive_on()")
        for _ in range(4):
            shutil.rmtree(self.dir / "experiments", ignore_errors=True)
            runner = self.start("--configs", "last.py")
            self.wait_for_event("last: step 1")
            runner.send_signal(signal.SIGTERM)
            self.ended(runner, 143)

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
        self.assertTrue(others, "no other thread takes signals")
        self.assertEqual(tgkill(runner.pid, others[0], int(signal.SIGTERM)), 0)
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

    def test_all_slots_are_ended(self) -> None:
        for name in "abcd":
            self.config(name, WAIT)
        runner = self.start("--configs", "a.py", "b.py", "c.py", "d.py", "--jobs", 3)
        self.pids(3)
        runner.send_signal(signal.SIGTERM)
        self.ended(runner, 143)
        self.assert_all_ended(3)
        self.assert_counts(interrupted=3, pending=1)

    def test_a_training_that_ends_well_when_asked_to_is_interrupted_all_the_same(self) -> None:
        self.config(
            "polite",
            CHILD_TOOLS
            + """
def save(*_):
    open(os.path.join(out_dir, "ckpt_7.pt"), "w").close()
    print("saved")
    sys.exit(0)

signal.signal(signal.SIGTERM, save)
note_pid()
live_on()
""",
        )
        runner = self.start("--configs", "polite.py", "--grace", FOREVER)
        self.pids(1)
        runner.send_signal(signal.SIGINT)
        self.ended(runner, 130)
        self.assert_all_ended(1)
        result = self.result("polite")
        self.assertEqual((result["status"], result["return_code"]), ("interrupted", 0))
        self.assertEqual(os.path.basename(result["final_checkpoint"]), "ckpt_7.pt")
        self.assertEqual(self.log("polite"), b"saved\n")


class StubbornTest(StopCase):
    """What doesn't end when it is asked to."""

    def test_whatever_ignores_term_is_killed_after_the_grace(self) -> None:
        self.config("deaf", DEAF)
        self.config("suspended", CHILD_TOOLS + "note_pid()\nos.kill(os.getpid(), signal.SIGSTOP)")
        self.config(
            "family",
            CHILD_TOOLS
            + """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
fork_off(lambda: (note_pid(), live_on()))
fork_off(lambda: (note_pid(), live_on()))
note_pid()
live_on()
""",
        )
        self.config(
            "workers_in_a_session_of_their_own",
            CHILD_TOOLS
            + """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
fork_off(lambda: (os.setsid(), note_pid(), live_on()))
note_pid()
live_on()
""",
        )
        runner = self.start(
            "--configs", "deaf.py", "suspended.py", "family.py", "workers*.py", "--jobs", 4, "--grace", 0.5
        )
        suspended = "/proc/{}/stat"
        wait_for(lambda: any(self.is_stopped(suspended.format(pid)) for pid in self.pids(7)), "the suspended training")
        runner.send_signal(signal.SIGINT)
        out = self.ended(runner, 130)
        self.assert_all_ended(7)
        self.assert_counts(interrupted=4)
        for name in ("deaf", "suspended", "family", "workers_in_a_session_of_their_own"):
            self.assertEqual(self.result(name)["signal"], "SIGKILL")
            self.assertRegex(out, rf"{name}: did not end on SIGTERM, killed")

    @staticmethod
    def is_stopped(stat: str) -> bool:
        if not os.path.exists("/proc/self/stat"):
            return True
        with contextlib.suppress(OSError):
            return Path(stat).read_text().rpartition(")")[2].split()[0] == "T"
        return False

    def test_grandchildren_that_ignore_term_are_ended_though_the_training_itself_obeys(self) -> None:
        self.config(
            "family",
            CHILD_TOOLS
            + """
def deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note_pid()
    live_on()

fork_off(deaf)
fork_off(deaf)
note_pid()
live_on()
""",
        )
        runner = self.start("--configs", "family.py", "--grace", 0.5)
        self.pids(3)
        runner.send_signal(signal.SIGTERM)
        out = self.ended(runner, 143)
        self.assert_all_ended(3)
        self.assertEqual(self.result("family")["status"], "interrupted")
        self.assertIn("family: killed what it left behind", out)

    def test_a_second_signal_kills_at_once(self) -> None:
        self.config("deaf", DEAF)
        runner = self.start("--configs", "deaf.py", "--grace", FOREVER)
        self.wait_for_line("deaf", b"ready\n")
        runner.send_signal(signal.SIGHUP)
        self.wait_for_event("SIGHUP: stopping")
        self.assertTrue(is_running(self.pids(1)[0]))
        runner.send_signal(signal.SIGINT)
        self.ended(runner, 129)
        self.assert_all_ended(1)
        self.assertEqual(self.result("deaf")["status"], "interrupted")
        self.assertEqual(self.result("deaf")["signal"], "SIGKILL")

    def test_two_signals_in_one_instant_kill_as_well(self) -> None:
        self.config("deaf", DEAF)
        runner = self.start("--configs", "deaf.py", "--grace", FOREVER)
        self.wait_for_line("deaf", b"ready\n")
        runner.send_signal(signal.SIGTERM)
        runner.send_signal(signal.SIGINT)
        _, err = runner.communicate(timeout=PATIENCE)
        self.assertIn(runner.returncode, (130, 143), err)
        self.assert_all_ended(1)
        self.assertEqual(self.statuses(), {"deaf": "interrupted"})

    def test_the_same_signal_again_at_once_is_the_echo_of_the_first_and_not_a_second_one(self) -> None:
        """`timeout` sends TERM to the runner and then to its whole group; a terminal's Ctrl+C may come twice as well."""
        for number, later, hurried in (
            (signal.SIGTERM, 0.0, 0),
            (signal.SIGTERM, run_experiments.ECHO - 0.01, 0),
            (signal.SIGTERM, run_experiments.ECHO + 0.01, 1),
            (signal.SIGINT, 0.0, 1),
        ):
            with self.subTest(number=number, later=later), mock.patch("run_experiments.time.monotonic") as clock:
                batch, training = run_experiments.Batch.__new__(run_experiments.Batch), mock.Mock()
                batch.stopped_by, batch.signalled, batch.ignored = None, (0, -math.inf), []
                batch.running, batch.say = [training], mock.Mock()  # type: ignore[method-assign]
                for clock.return_value, each in ((100.0, signal.SIGTERM), (100.0 + later, number)):
                    batch.on_signal(each)
                training.stop.assert_called_once_with("interrupted", "stopped by SIGTERM")
                self.assertEqual(training.hurry.call_count, hurried)

    @unittest.skipUnless(shutil.which("timeout"), "needs timeout")
    def test_timeout_of_coreutils_leaves_a_training_its_grace(self) -> None:
        code = "signal.signal(signal.SIGTERM, lambda *_: (open('asked', 'w').close(), await_file('go'), sys.exit(7)))\n"
        self.config("saves", CHILD_TOOLS + code + "note_pid()\nlive_on()")
        runner = subprocess.Popen(
            ["timeout", "9999", sys.executable, str(RUNNER), "--configs", "saves.py", "--grace", str(FOREVER)],
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


class LeftBehindTest(StopCase):
    """What outlives a training that has ended by itself."""

    def test_a_process_left_in_the_group_is_ended_and_a_daemon_that_holds_the_output_does_not_hang_the_batch(
        self,
    ) -> None:
        self.config(
            "leaves",
            CHILD_TOOLS + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nfork_off(lambda: (note_pid(), live_on()))",
        )
        self.config(
            "daemon",
            CHILD_TOOLS
            + """
def daemon():
    os.setsid()
    fork_off(lambda: (open("daemon_pid", "w").write(str(os.getpid())), note_pid(), live_on()))

fork_off(daemon)
await_file("daemon_pid")
print("the last line")
""",
        )
        self.config("next")
        done = self.run_runner("--configs", "leaves.py", "daemon.py", "next.py", "--jobs", 2, expect=0)
        self.assertEqual(self.statuses(), dict.fromkeys(("leaves", "daemon", "next"), "completed"))
        daemon = int((self.dir / "daemon_pid").read_text())
        (left,) = {*self.pids(2)} - {daemon}
        wait_for(lambda: not is_running(left), "the end of what was left")
        self.assertEqual(self.log("daemon"), b"the last line\n")
        self.assertIn(b"[STDOUT] the last line\n", self.log("daemon", "combined"))
        for text in (done.stdout, self.master_log()):
            self.assertRegex(text, rf"leaves: killed what it left behind: pid {left}\b")
            self.assertRegex(text, "daemon: .*outside its group.*left alone")

    def test_a_signal_while_the_rest_of_the_group_lingers_leaves_nothing(self) -> None:
        self.config("leaves", CHILD_TOOLS + "fork_off(lambda: (note_pid(), live_on()))\nawait_file('pids')")
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
        code = "fork_off(lambda: (signal.signal(signal.SIGTERM, signal.SIG_IGN), note_pid(), live_on()))\n"
        self.config("both", CHILD_TOOLS + code + "await_file('pids')\nprint('ready')\nlive_on()")
        runner = self.start("--configs", "both.py")
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

    @unittest.skipUnless(
        sys.platform == "linux" and shutil.which("setpriv"), "needs util-linux's setpriv (and so does the promise)"
    )
    def test_a_runner_that_is_killed_leaves_no_training_behind(self) -> None:
        self.config("silent", WAIT)
        self.config("next")
        runner = self.start("--configs", "silent.py", "next.py")
        self.wait_for_line("silent", b"ready\n")
        runner.kill()
        self.ended(runner, -signal.SIGKILL)
        self.assert_all_ended(1)
        self.assertEqual(self.summary()["total_experiments"], 2)
        self.assertEqual(self.statuses()["next"], "pending")


class IgnoredTest(StopCase):
    """A signal that is ignored when the runner starts stays ignored."""

    def start_by(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        self.config("short", CHILD_TOOLS + "note_pid()\nawait_file('go')")
        command = [*words, sys.executable, str(RUNNER), "--configs", "short.py"]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": self.dir, **options}
        runner = subprocess.Popen(command, **options)
        self.runners.append(runner)
        self.pids(1)
        return runner

    def shell(self, ignored: str) -> list[str]:
        return ["sh", "-c", f'trap "" {ignored}; exec "$@"', "sh"]

    def test_a_runner_that_was_started_with_hup_ignored_stays_when_the_terminal_goes(self) -> None:
        runner = self.start_by(*self.shell("HUP"))
        runner.send_signal(signal.SIGHUP)
        self.go("go")
        self.ended(runner, 0)
        self.assertEqual(self.statuses(), {"short": "completed"})

    @unittest.skipUnless(shutil.which("nohup"), "needs nohup")
    def test_nohup_is_respected(self) -> None:
        runner = self.start_by("nohup", stdin=subprocess.DEVNULL)
        runner.send_signal(signal.SIGHUP)
        self.go("go")
        self.ended(runner, 0)
        self.assertEqual(self.statuses(), {"short": "completed"})

    def test_ctrl_c_that_is_ignored_in_a_script_s_background_stays_ignored_and_term_still_works(self) -> None:
        runner = self.start_by(*self.shell("INT"))
        runner.send_signal(signal.SIGINT)
        runner.send_signal(signal.SIGTERM)
        out = self.ended(runner, 143)
        self.assert_all_ended(1)
        self.assertEqual(self.statuses(), {"short": "interrupted"})
        self.assertIsNone(re.search("SIGINT", out))
