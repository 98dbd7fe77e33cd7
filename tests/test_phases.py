"""The phases of a process and the steps of its end, by a clock that the test holds and a group that only it knows."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import tempfile
import unittest
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Optional

from run_experiments import Exit, Group, Launch, Phase, Process, StopRules

INT, TERM, KILL, USR1 = signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1
LEADER, WORKER = 2_000_000_001, 2_000_000_002  # no process has such a pid


class FakeGroup(Group):
    """A group whose processes end when the test, or a signal that they die of, says so."""

    def __init__(self, *others: int, dies_of: Sequence[int] = (), leader_dies_of: Sequence[int] = ()) -> None:
        self.leader = LEADER
        self.exit: Optional[Exit] = None
        self.strays: dict[int, str] = {}
        self.alive = [LEADER, *others]
        self.dies_of, self.leader_dies_of = dies_of, leader_dies_of
        self.got: list[int] = []
        self.is_saving = False

    def writes_to(self, paths: Collection[str]) -> str:
        return next(iter(paths)) if self.is_saving else ""

    def poll(self) -> Optional[Exit]:
        return self.exit

    def members(self) -> list[int]:
        return list(self.alive)

    def signal(self, number: int) -> None:
        self.got.append(number)
        if number in self.dies_of:
            self.end(-number)
            self.alive = []
        elif number in self.leader_dies_of:
            self.end(-number)

    def kill(self) -> None:
        self.signal(KILL)

    def remember_strays(self) -> None:
        pass  # it has none

    def end(self, code: int = 0) -> None:
        """The leader ends; the others live on."""
        self.exit = self.exit or Exit(code, 0.0, 0)
        self.alive = [pid for pid in self.alive if pid != LEADER]


class FakeLaunch(Launch):
    """Streams that are quiet since when the test says so."""

    def __init__(self, now: float) -> None:
        self.quiet, self.is_draining = now, False

    def quiet_since(self) -> float:
        return self.quiet

    def drain(self) -> None:
        self.is_draining = True


class PhaseCase(unittest.TestCase):
    def begin(
        self,
        group: FakeGroup,
        rules: Optional[StopRules] = None,
        now: float = 100.0,
        timeout: Optional[float] = None,
        stall: Optional[float] = None,
    ) -> Process:
        self.group = group
        self.streams = FakeLaunch(now)
        rules = rules or StopRules("INT", grace=10.0)
        return Process(group, self.streams, replace(rules, timeout=timeout, stall=stall), now)

    def end_streams(self, process: Process) -> None:
        for name in ("stdout", "stderr"):
            process.on_end(name, is_at_end=True)

    def at(
        self, process: Process, now: float, phase: Optional[Phase] = None, got: Optional[Sequence[int]] = None
    ) -> None:
        """At this time, it is in this phase, and its group has got these signals."""
        process.step(now)
        if phase:
            self.assertIs(process.phase, phase)
        if got is not None:
            self.assertEqual(self.group.got, got, now)


class OwnEndTest(PhaseCase):
    def test_a_leader_that_exits_alone_goes_through_draining_to_over_once_both_streams_are_at_their_end(self) -> None:
        process = self.begin(FakeGroup())
        self.at(process, 101.0, Phase.RUNNING)
        self.assertEqual(process.deadline, math.inf)
        self.group.end(3)
        self.at(process, 102.0, Phase.DRAINING)
        self.assertTrue(self.streams.is_draining)
        self.assertEqual((process.ended_at, process.deadline), (102.0, math.inf))
        process.on_end("stdout", is_at_end=True)
        self.at(process, 5000.0, Phase.DRAINING)  # however slow the disk is
        process.on_end("stderr", is_at_end=True)
        self.at(process, 5001.0, Phase.OVER)
        self.assertEqual((process.remarks, process.warnings, process.reason, self.group.got), ([], [], "", []))

    def test_what_lives_on_after_its_leader_has_two_seconds_and_is_then_killed_and_named(self) -> None:
        process = self.begin(FakeGroup(os.getpid()))
        self.group.end()
        self.at(process, 102.0, Phase.LINGERING)
        self.assertEqual(process.deadline, 104.0)
        self.at(process, 103.9, Phase.LINGERING, [])
        self.at(process, 104.0, Phase.LINGERING, [KILL])
        self.assertRegex(process.warnings[0], rf"^killed what it left behind: pid {os.getpid()} \(\S+")
        self.assertEqual(process.remarks, process.warnings)
        self.group.alive = []
        self.at(process, 104.1, Phase.DRAINING)
        self.end_streams(process)
        self.at(process, 104.2, Phase.OVER)
        self.assertEqual((process.ended_at, process.is_stuck), (102.0, False))

    def test_what_ends_within_its_two_seconds_is_neither_killed_nor_named(self) -> None:
        process = self.begin(FakeGroup(WORKER))
        self.group.end()
        self.at(process, 102.0, Phase.LINGERING)
        self.group.alive = []
        self.at(process, 103.0, Phase.DRAINING)
        self.assertEqual((self.group.got, process.remarks), ([], []))

    def test_a_rest_that_kill_does_not_end_is_given_up_after_ten_seconds(self) -> None:
        process = self.begin(FakeGroup(WORKER))
        self.group.end()
        process.step(102.0)
        process.step(104.0)
        self.at(process, 113.9, Phase.LINGERING)
        self.at(process, 114.0, Phase.OVER)
        self.assertTrue(process.is_stuck)
        self.assertEqual(process.reason, "can't be killed: pid 2000000002")
        self.assertEqual(self.group.got, [KILL])

    def test_a_stream_that_a_stranger_holds_is_said_once_and_is_no_fault_of_the_log(self) -> None:
        process = self.begin(FakeGroup())
        self.group.end()
        process.step(101.0)
        for name in ("stdout", "stderr"):
            process.on_end(name, is_at_end=False)
        self.at(process, 102.0, Phase.OVER)
        self.assertEqual(process.remarks, ["a process outside its group still holds its output, left alone"])
        self.assertEqual((process.failed_logs, process.warnings), ({}, []))

    def test_a_log_that_fails_is_kept_by_its_first_error_and_ends_nothing(self) -> None:
        process = self.begin(FakeGroup())
        for text in ("No space left on device", "Input/output error"):
            process.on_log_failure("stdout.log", text)
        self.at(process, 101.0, Phase.RUNNING)
        self.assertEqual(process.failed_logs, {"stdout.log": "No space left on device"})
        self.assertEqual(process.warnings, ["stdout.log is incomplete: No space left on device"])


class StopTest(PhaseCase):
    def stopped(self, group: FakeGroup, rules: Optional[StopRules] = None) -> Process:
        process = self.begin(group, rules)
        process.stop("stopped by SIGINT", 200.0)
        return process

    def test_the_signal_leaves_with_the_stop_and_term_and_kill_follow_after_grace_and_a_second(self) -> None:
        process = self.stopped(FakeGroup())
        self.assertIs(process.phase, Phase.STOPPING)
        self.assertEqual((self.group.got, process.deadline), ([INT], 210.0))
        for now, got in (
            (209.9, [INT]),
            (210.0, [INT, TERM]),
            (210.9, [INT, TERM]),
            (211.0, [INT, TERM, KILL]),
            (220.9, [INT, TERM, KILL]),
        ):
            self.at(process, now, Phase.STOPPING, got)
        self.assertEqual(process.remarks, ["did not end on SIGINT, gets SIGTERM", "did not end on SIGTERM, killed"])
        self.assertEqual((process.reason, process.is_stuck), ("stopped by SIGINT", False))

    def test_term_as_the_stop_signal_is_followed_by_kill_at_once_after_the_grace(self) -> None:
        process = self.stopped(FakeGroup(), StopRules("TERM", grace=4.0))
        self.at(process, 203.9, Phase.STOPPING)
        self.at(process, 204.0, Phase.STOPPING, [TERM, KILL])

    def test_without_any_grace_kill_still_leaves_a_launcher_two_tenths_of_a_second(self) -> None:
        process = self.stopped(FakeGroup(), StopRules("TERM", grace=0.0))
        self.at(process, 200.1, Phase.STOPPING, [TERM])
        self.at(process, 200.2, got=[TERM, KILL])

    def test_what_kill_does_not_end_is_given_up_ten_seconds_later_with_its_pid(self) -> None:
        process = self.stopped(FakeGroup())
        for now in (210.0, 211.0, 220.9):
            self.at(process, now, Phase.STOPPING)
        self.at(process, 221.0, Phase.OVER)
        self.assertTrue(process.is_stuck)
        self.assertEqual(process.reason, "can't be killed: pid 2000000001")
        self.assertEqual(process.next_look(), math.inf)
        self.assertTrue(self.streams.is_draining)

    def test_a_training_that_ends_on_the_signal_gets_no_other(self) -> None:
        process = self.stopped(FakeGroup(WORKER, dies_of=[INT]))
        self.at(process, 200.5, Phase.DRAINING)
        self.end_streams(process)
        self.at(process, 200.6, Phase.OVER)
        self.assertEqual((self.group.got, process.ended_at, process.remarks), ([INT], 200.5, []))
        assert process.group.exit
        self.assertEqual(process.group.exit.return_code, -2)

    def test_the_trainer_under_a_wrapper_that_died_of_the_signal_keeps_the_whole_grace(self) -> None:
        process = self.stopped(FakeGroup(WORKER, leader_dies_of=[INT]))
        self.at(process, 200.1, Phase.LINGERING)
        self.assertEqual(process.deadline, 210.0)
        self.at(process, 209.9, Phase.LINGERING, [INT])
        self.group.alive = []
        self.at(process, 209.95, Phase.DRAINING)
        self.assertEqual((self.group.got, process.ended_at), ([INT], 209.95))  # by then all of it has ended

    def test_a_trainer_under_a_dead_wrapper_gets_term_and_kill_in_its_turn_and_is_given_up(self) -> None:
        process = self.stopped(FakeGroup(WORKER, leader_dies_of=[INT]))
        for now, got in ((200.1, [INT]), (210.0, [INT, TERM]), (211.0, [INT, TERM, KILL]), (220.9, [INT, TERM, KILL])):
            self.at(process, now, Phase.LINGERING, got)
        self.at(process, 221.0, Phase.OVER)
        self.assertEqual(process.reason, "can't be killed: pid 2000000002")

    def test_a_stop_of_a_training_that_has_just_ended_does_nothing(self) -> None:
        process = self.begin(FakeGroup())
        self.group.end()
        process.stop("stopped by SIGINT", 200.0)
        self.assertIsNone(process.ending)
        self.assertEqual((process.reason, self.group.got), ("", []))
        self.at(process, 200.0, Phase.DRAINING)

    def test_a_stop_while_the_rest_lingers_or_a_stream_is_read_does_nothing(self) -> None:
        process = self.begin(FakeGroup(WORKER))
        self.group.end()
        self.at(process, 102.0, Phase.LINGERING)
        process.stop("stopped by SIGINT", 102.5)
        self.assertEqual((process.deadline, self.group.got, process.ending), (104.0, [], None))

    def test_a_hurried_stop_kills_at_once_but_never_within_two_tenths_of_the_signal(self) -> None:
        process = self.stopped(FakeGroup())
        process.hurry(200.1)
        self.assertAlmostEqual(process.deadline, 200.2)
        self.at(process, 200.21, got=[INT, TERM])
        process.hurry(200.22)
        self.at(process, 200.42, got=[INT, TERM, KILL])
        process.hurry(200.5)
        self.at(process, 210.4, Phase.STOPPING)  # no hurry shortens what KILL takes
        self.at(process, 210.5, Phase.OVER)

    def test_a_hurried_rest_is_killed_and_a_hurried_disk_has_ten_seconds(self) -> None:
        process = self.begin(FakeGroup(WORKER))
        self.group.end()
        process.step(102.0)
        process.hurry(102.5)
        self.at(process, 102.5, got=[KILL])
        self.group.alive = []
        self.at(process, 102.6, Phase.DRAINING)
        process.on_end("stderr", is_at_end=True)
        self.at(process, 112.5, Phase.DRAINING)
        self.at(process, 112.6, Phase.OVER)
        self.assertEqual(process.failed_logs, {"stdout.log": "the disk did not take all of it in time"})


class CheckpointTest(PhaseCase):
    """A stop while a checkpoint is being written: real files, changed between looks."""

    def setUp(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="run_experiments_test_"))
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)

    def stopped(self, grace: float = 10.0, pattern: str = "ckpt*.pt", **group: Sequence[int]) -> Process:
        rules = StopRules("INT", grace, folder=str(self.dir), checkpoints=pattern)
        process = self.begin(FakeGroup(**group), rules)
        process.stop("stopped by SIGINT", 200.0)
        return process

    def grow(self, name: str = "ckpt_5.pt") -> None:
        with open(self.dir / name, "ab") as file:
            file.write(b"weights")

    def test_where_a_checkpoint_stands_still_the_signal_leaves_at_the_second_look(self) -> None:
        self.grow()
        process = self.stopped()
        self.assertEqual((self.group.got, process.deadline), ([], 200.25))
        self.at(process, 200.2, Phase.STOPPING, [])
        process.step(200.25)
        self.assertEqual((self.group.got, process.deadline, process.remarks), ([INT], 210.25, []))

    def test_the_signal_is_held_back_while_a_checkpoint_grows_and_that_is_said_once(self) -> None:
        self.grow()
        process = self.stopped()
        for look in range(1, 9):
            self.grow()
            self.at(process, 200.0 + 0.25 * look, got=[])
        self.assertEqual(process.remarks, ["waiting for ckpt_5.pt to be written (at most 20s)"])
        process.step(202.25)  # it has not grown
        self.assertEqual((self.group.got, process.deadline), ([INT], 212.25))

    def test_its_temporary_forms_count_as_well(self) -> None:
        for name in ("ckpt_5.pt.tmp", ".ckpt_5.pt.Xy12", "tmp_ckpt.pt", "ckpt_5.part"):
            with self.subTest(name=name):
                self.grow(name)
                process = self.stopped()
                self.grow(name)
                self.at(process, 200.25, got=[])
                self.at(process, 200.5, got=[INT])
                (self.dir / name).unlink()

    def test_what_no_pattern_of_checkpoints_matches_is_not_waited_for(self) -> None:
        self.grow("samples.txt")
        self.stopped()
        self.assertEqual(self.group.got, [INT])

    def test_a_checkpoint_that_grows_for_ever_holds_the_signal_back_for_twice_the_grace_at_most(self) -> None:
        self.grow()
        process = self.stopped(grace=1.0)
        for look in range(1, 8):
            self.grow()
            self.at(process, 200.0 + 0.25 * look, got=[])
        for now, got in ((202.0, [INT]), (203.0, [INT, TERM]), (204.0, [INT, TERM, KILL])):
            self.grow()
            self.at(process, now, got=got)

    def test_a_file_that_is_held_open_is_waited_for_as_long_as_a_save_may_pause(self) -> None:
        self.grow()
        process = self.stopped(grace=100.0)
        self.group.is_saving = True
        self.at(process, 200.25, got=[])
        self.assertEqual(process.remarks, ["waiting for ckpt_5.pt to be written (at most 3m20s)"])
        self.at(process, 202.9, got=[])
        self.at(process, 203.2, got=[INT])

    def test_kill_is_put_off_while_the_last_checkpoint_is_being_written(self) -> None:
        process = self.stopped(grace=4.0)
        self.assertEqual(self.group.got, [INT])
        self.grow()  # it begins to save when it is asked to end
        process.step(204.0)
        self.grow()
        self.at(process, 204.25, got=[INT])
        self.assertEqual(process.remarks, ["waiting for ckpt_5.pt to be written (at most 4s)"])
        self.at(process, 204.5, got=[INT, TERM])
        for look in range(4):
            self.grow()
            self.at(process, 205.5 + 0.25 * look, got=[INT, TERM])
        self.at(process, 206.5, got=[INT, TERM, KILL])

    def test_a_hurried_stop_waits_for_no_checkpoint(self) -> None:
        self.grow()
        process = self.stopped()
        self.grow()
        process.step(200.25)
        process.hurry(200.3)
        self.at(process, 200.3, got=[INT])
        for now in (200.5, 200.6):
            self.grow()
            self.at(process, now, got=[INT, TERM])
        self.grow()
        self.at(process, 201.5, got=[INT, TERM, KILL])

    def test_a_timeout_and_a_stall_wait_as_a_stop_does(self) -> None:
        for limit in ("timeout", "stall"):
            with self.subTest(limit):
                self.grow()
                rules = StopRules("INT", 10.0, folder=str(self.dir), checkpoints="ckpt*.pt")
                process = self.begin(FakeGroup(), rules, **{limit: 90.0})
                self.at(process, 190.0, Phase.STOPPING, [])
                self.grow()
                self.at(process, 190.25, Phase.STOPPING, [])
                self.at(process, 190.5, Phase.STOPPING, [INT])
                self.assertIn(limit, process.reason)

    def test_a_training_that_ends_while_its_stop_waits_needs_no_signal(self) -> None:
        self.grow()
        process = self.stopped()
        self.group.end()
        self.at(process, 200.1, Phase.DRAINING, [])


class LimitTest(PhaseCase):
    def test_a_timeout_stops_with_its_reason(self) -> None:
        process = self.begin(FakeGroup(), timeout=90.0)
        self.assertEqual(process.deadline, 190.0)
        self.at(process, 189.9, Phase.RUNNING)
        self.at(process, 190.0, Phase.STOPPING)
        self.assertEqual((process.reason, self.group.got), ("not done after 1m30s (--timeout)", [INT]))

    def test_output_moves_the_deadline_of_a_stall(self) -> None:
        process = self.begin(FakeGroup(), stall=30.0)
        self.streams.quiet = 120.0
        self.at(process, 130.0, Phase.RUNNING)
        self.assertEqual(process.deadline, 150.0)
        self.at(process, 150.0, Phase.STOPPING)
        self.assertEqual(process.reason, "stalled: no output for 30s (--stall)")

    def test_a_stream_that_a_slow_disk_holds_up_is_no_silence(self) -> None:
        process = self.begin(FakeGroup(), stall=30.0)
        self.streams.quiet = math.inf
        self.at(process, 500.0, Phase.RUNNING)
        self.assertEqual(process.deadline, 530.0)
        self.streams.quiet = 520.0
        self.at(process, 530.0, Phase.RUNNING)
        self.at(process, 550.0, Phase.STOPPING)

    def test_a_training_that_ends_at_its_deadline_has_ended_by_itself(self) -> None:
        process = self.begin(FakeGroup(), timeout=90.0)
        self.group.end()
        self.at(process, 190.0, Phase.DRAINING)
        self.assertEqual((process.reason, process.ending), ("", None))

    def test_suspended_time_is_no_time(self) -> None:
        process = self.begin(FakeGroup(), timeout=90.0, stall=30.0)
        process.suspend(3600.0, 3705.0)
        self.at(process, 3730.0, Phase.RUNNING)
        self.assertEqual(process.deadline, 3735.0)  # silence counts anew
        self.streams.quiet = 3785.0
        self.at(process, 3735.0, Phase.RUNNING)
        self.at(process, 3789.9, Phase.RUNNING)
        self.at(process, 3790.0, Phase.STOPPING)
        self.assertEqual(process.reason, "not done after 1m30s (--timeout)")

    def test_a_suspension_moves_the_grace_of_a_stop_and_the_time_of_the_rest(self) -> None:
        process = self.begin(FakeGroup(WORKER, leader_dies_of=[INT]))
        process.stop("stopped by SIGINT", 200.0)
        process.suspend(1000.0, 1200.0)
        self.at(process, 1209.9, Phase.LINGERING, [INT])
        self.at(process, 1210.0, got=[INT, TERM])
        another = self.begin(FakeGroup(WORKER))
        self.group.end()
        another.step(102.0)
        another.suspend(500.0, 602.0)
        self.at(another, 603.9, Phase.LINGERING)
        self.assertEqual(self.group.got, [])

    def test_the_time_in_srun_s_queue_does_not_count(self) -> None:
        process = self.begin(FakeGroup(), timeout=90.0, stall=30.0)
        process.set_queued(True, 101.0)
        self.assertEqual(process.deadline, math.inf)
        self.at(process, 9000.0, Phase.RUNNING)
        process.set_queued(False, 9000.0)
        self.assertEqual(process.deadline, 9030.0)
        self.streams.quiet = 9080.0
        self.at(process, 9089.9, Phase.RUNNING)
        self.at(process, 9090.0, Phase.STOPPING)
        self.assertEqual(process.reason, "not done after 1m30s (--timeout)")


@unittest.skipUnless(Path("/proc/self/status").exists(), "what a process catches stands in /proc")
class SignalTest(unittest.TestCase):
    """Which signal `--stop_signal auto` sends first: this process handles TERM as the test has it, `cat` doesn't."""

    def setUp(self) -> None:
        cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        self.addCleanup(cat.communicate)
        self.cat = cat.pid
        self.addCleanup(signal.signal, TERM, signal.getsignal(TERM))
        self.handle_term(True)

    def handle_term(self, handles: bool) -> None:
        signal.signal(TERM, (lambda *_: None) if handles else signal.SIG_DFL)

    def chosen(self, leader: int, *others: int, launcher: str = "", name: str = "auto") -> int:
        group = FakeGroup()
        group.leader, group.alive = leader, [leader, *others]
        return StopRules(name, launcher=tuple(launcher.split())).choose(group)

    def test_without_a_launcher_it_is_term_where_the_leader_handles_it(self) -> None:
        self.assertEqual(self.chosen(os.getpid(), self.cat), TERM)
        self.assertEqual(self.chosen(self.cat, os.getpid()), INT)
        self.handle_term(False)
        self.assertEqual(self.chosen(os.getpid()), INT)

    def test_behind_a_launcher_it_is_term_where_another_than_the_leader_handles_it(self) -> None:
        self.assertEqual(self.chosen(os.getpid(), self.cat, launcher="torchrun --standalone"), INT)
        self.assertEqual(self.chosen(self.cat, os.getpid(), launcher="nice"), TERM)
        self.assertEqual(self.chosen(os.getpid(), launcher="nice"), TERM)  # it becomes the trainer

    def test_launchers_that_swallow_int_get_term(self) -> None:
        for launcher in ("srun", "/usr/bin/srun -n1", "docker run -it image", "podman run image"):
            self.assertEqual(self.chosen(self.cat, launcher=launcher), TERM, launcher)

    def test_srun_that_hands_int_on_gets_int_whatever_its_helper_process_handles(self) -> None:
        for launcher in ("srun -X", "srun --disable-status -n1"):
            self.assertEqual(self.chosen(self.cat, launcher=launcher), INT, launcher)
            self.assertEqual(self.chosen(self.cat, os.getpid(), launcher=launcher), INT, launcher)

    def test_a_process_that_has_gone_or_that_nobody_knows_gets_int(self) -> None:
        self.assertEqual(self.chosen(LEADER), INT)

    def test_a_signal_that_was_named_is_sent_whatever_is_handled(self) -> None:
        for name, number in (("INT", INT), ("USR1", USR1), ("TERM", TERM)):
            self.assertEqual(self.chosen(os.getpid(), name=name, launcher="docker run"), number)
