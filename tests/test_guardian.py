"""The guardian: a process of the runner's that ends the trainings when the runner itself was killed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any

import run_experiments
from tests.faulty import DEAF, HIDE_PROC, QUICK, FaultyCase, children, stat_of
from tests.support import CHILD_TOOLS, PATIENCE, RUNNER, is_running, wait_for
from tests.terminal import Terminal
from tests.test_lost import UNSHARE, can_be_pid_1

TREE = DEAF + (
    "fork_off(lambda: (fork_off(lambda: (os.setsid(), deaf())), deaf()))\nprint('ready', flush=True)\ndeaf()\n"
)  # three processes that ignore what asks them to end, one of them in a session of its own
KILL_SELF = """
def launched(call):
    def launch(process, command, *args):
        call(process, command, *args)
        if "train_run.py" in " ".join(map(str, command)):
            while not exists("pids"):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
    return launch

subprocess.Popen._execute_child = launched(subprocess.Popen._execute_child)
"""  # a fault: the runner is killed when a training was started, before it can tell anyone

STRAY = """
def stray():
    os.setsid()
    note_pid()
    await_file("go")
    fork_off(lambda: (note_pid(), live_on()))
    live_on()

fork_off(lambda: (fork_off(stray), await_file("go")))
live_on()
"""  # it has a session of its own; its parent dies, then it starts a process


class GroupTest(FaultyCase):
    @unittest.skipUnless(os.path.exists("/proc/self/stat"), "there is no /proc")
    def test_what_a_stray_starts_once_its_parent_has_died_is_killed_with_it(self) -> None:
        leader = subprocess.Popen([sys.executable, "-c", CHILD_TOOLS + STRAY], cwd=self.dir, start_new_session=True)
        group = run_experiments.Group(leader.pid)
        [stray] = self.pids(1)
        group.remember_strays()
        parent = stat_of(stray)[1]
        self.go("go")
        self.pids(2)
        wait_for(lambda: stat_of(stray)[1] != parent, "the end of the stray's parent")
        group.kill()
        leader.wait(PATIENCE)
        self.assert_nothing_runs()


class GuardianCase(FaultyCase):
    def guardian(self, runner: subprocess.Popen[Any]) -> int:
        """The fork of the runner that is in a session of its own."""

        def command(pid: int) -> bytes:
            return Path(f"/proc/{pid}/cmdline").read_bytes()

        def forks() -> list[int]:
            found = [pid for pid in children(runner.pid) if command(pid) == command(runner.pid)]
            return [pid for pid in found if stat_of(pid)[3:4] == [str(pid)]]

        found = wait_for(forks, "the guardian")
        self.assertEqual(len(found), 1)
        return int(found[0])

    def kill(self, runner: subprocess.Popen[Any]) -> None:
        runner.kill()
        self.assertEqual(runner.wait(PATIENCE), -signal.SIGKILL)


class KilledRunnerTest(GuardianCase):
    def test_when_the_runner_is_killed_the_whole_tree_of_a_training_that_ignores_the_stop_signal_is_ended(self) -> None:
        self.config("a", TREE)
        runner = self.start("--configs", "a.py", "--grace", 0.5)
        pids = self.pids(3)
        self.kill(runner)
        self.await_file("asked")
        self.assert_ended(pids)

    def test_however_int_term_and_kill_race_all_trees_are_ended(self) -> None:
        self.config("a", TREE)
        self.config("b", TREE)
        orders = [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT, signal.SIGTERM], [signal.SIGTERM] * 2]
        runners = []
        for number, _ in enumerate(orders):
            args = ("--jobs", 2, "--grace", 0.2, "--base_out_dir", f"out_{number}")
            runners.append(self.start("--configs", "a.py", "b.py", *args))
        pids = self.pids(6 * len(orders))
        for runner, order in zip(runners, orders):
            for each in order:
                runner.send_signal(each)
            runner.kill()
            runner.communicate()
        self.assert_ended(pids)

    def test_the_guardian_asks_with_the_stop_signal_and_leaves_the_training_its_grace(self) -> None:
        code = """
def save(*_):
    open("asked", "w").close()
    await_file("go")
    open(out_dir + "/ckpt_7.pt", "w").close()
    sys.exit()

signal.signal(signal.SIGUSR1, save)
note_pid()
live_on()
"""
        self.config("a", CHILD_TOOLS + code)
        runner = self.start("--configs", "a.py", "--grace", 1000, "--stop_signal", "USR1")
        pids = self.pids(1)
        self.kill(runner)
        self.await_file("asked")
        self.go("go")
        self.assert_ended(pids)
        self.assertTrue((self.batch() / "a" / "ckpt_7.pt").exists())

    def test_a_training_that_was_launched_but_not_yet_told_of_is_ended(self) -> None:
        self.config("a", TREE)
        runner = self.start_faulty(KILL_SELF, "--configs", "a.py", "--grace", 0.2)
        self.assertEqual(runner.wait(PATIENCE), -signal.SIGKILL)
        self.assert_ended(self.pids(1))

    def test_resume_waits_for_what_the_guardian_is_about_to_end(self) -> None:
        self.config("a", "import os\nif os.path.exists('second'): raise SystemExit\n" + TREE)
        runner = self.start("--configs", "a.py", "--grace", 0.5)
        pids = self.pids(3)
        self.kill(runner)
        self.go("second")
        self.run_runner("--resume", expect=0)
        self.assert_ended(pids)
        self.assertEqual(self.statuses(), {"a": "completed"})

    def test_without_proc_and_other_programs_the_training_and_its_group_are_ended(self) -> None:
        self.config("a", DEAF + "fork_off(deaf)\ndeaf()")
        environment = {**os.environ, "PATH": str(self.dir)}
        runner = self.start_faulty(HIDE_PROC + QUICK, "--configs", "a.py", "--grace", 0.2, env=environment)
        pids = self.pids(2)
        self.kill(runner)
        self.assert_ended(pids)

    @unittest.skipUnless(can_be_pid_1(), "needs unshare and the right to have a pid namespace")
    def test_in_a_pid_namespace_of_its_own_the_tree_is_ended(self) -> None:
        code = (
            DEAF
            + (
                "def note_pid():\n    with open('inside', 'a') as file: file.write('.\\n')\n"  # its pids mean nothing out here
                "def kill_runner(pid):\n    while open('inside').read().count('.') < 2: time.sleep(0.01)\n    os.kill(pid, 9)\n"
                "open('inside', 'w').close()\nfork_off(kill_runner, os.getppid())\n"
                "fork_off(lambda: (os.setsid(), deaf()))\ndeaf()\n"
            )
        )
        self.config("a", code)
        command = [sys.executable, str(RUNNER), "--configs", "a.py", "--grace", "0.5"]
        script = 'place=$1; shift; (cd "$place" && "$@"); until [ -e "$place/checked" ]; do sleep 0.05; done'
        self.addCleanup(self.go, "checked")
        pipe = subprocess.PIPE
        outer = subprocess.Popen(
            [*UNSHARE, "sh", "-c", script, "sh", str(self.dir), *command], cwd="/", stdout=pipe, stderr=pipe, text=True
        )
        self.runners.append(outer)
        wait_for(lambda: self.lines("inside") == 2, "two processes of the training")
        self.await_file("asked")
        self.assert_nothing_runs()
        self.go("checked")
        outer.communicate(timeout=PATIENCE)

    def test_with_the_terminal_closed_and_the_runner_killed_the_tree_is_ended(self) -> None:
        self.config("a", TREE)
        command = [sys.executable, str(RUNNER), "--configs", "a.py", "--grace", "0.2"]
        terminal = Terminal(command, self.dir)
        self.addCleanup(terminal.process.wait)
        self.addCleanup(terminal.process.kill)
        pids = self.pids(3)
        terminal.close()
        self.kill(terminal.process)
        self.assert_ended(pids)


class GuardianTest(GuardianCase):
    def test_it_holds_no_file_of_the_runner_and_signals_do_not_end_it(self) -> None:
        self.config("a", TREE)
        runner = self.start("--configs", "a.py", "--grace", 0.2)
        pids = self.pids(3)
        guardian = self.guardian(runner)
        descriptors = Path(f"/proc/{guardian}/fd")
        wait_for(lambda: not {"0", "1", "2"} & set(os.listdir(descriptors)), "the guardian to close what it was given")
        held = [os.readlink(each) for each in descriptors.iterdir()]
        self.assertEqual([each for each in held if not each.startswith(("pipe:", "socket:"))], [])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(guardian, number)
        self.kill(runner)
        self.assert_ended(pids)
        wait_for(lambda: not is_running(guardian), "the end of the guardian, whose work is done")

    def test_when_the_guardian_is_killed_that_is_said_once_and_the_batch_goes_on(self) -> None:
        for name in "abc":
            self.config(name, CHILD_TOOLS + f"note_pid()\nawait_file('go')\nprint('{name}')")
        runner = self.start("--configs", "a.py", "b.py", "c.py")
        self.pids(1)
        os.kill(self.guardian(runner), signal.SIGKILL)
        self.go("go")
        out = self.said(runner, 0)
        for text in (out, self.master_log()):
            self.assertEqual(len([line for line in text.splitlines() if re.search("guardian", line)]), 1, text)
        self.assertEqual(self.statuses(), dict.fromkeys("abc", "completed"))
        self.assert_nothing_runs()

    def test_a_runner_that_is_stopped_and_one_that_ends_by_itself_leave_no_guardian(self) -> None:
        self.config("a", CHILD_TOOLS + "print('ready', flush=True)\nawait_file('go')")
        for code in (143, 0):
            runner = self.start("--configs", "a.py")
            self.wait_for_line("a", b"ready\n")
            guardian = self.guardian(runner)
            runner.terminate() if code else self.go("go")
            self.assertNotIn("guardian", self.said(runner, code))
            self.assert_ended([guardian])
            shutil.rmtree(self.dir / "experiments")
