"""Stops that need tools (uv, a real Slurm), or seconds."""

from __future__ import annotations

import shutil
import signal
import sys
import unittest

from tests.slow.slurm import SlurmCase
from tests.slow.stops import CLEANS_UP, FOREVER, HANDLES_TERM, IN_PLACE, ON_TERM, StoppingCase
from tests.support import wait_for

DEAF_TO_BOTH = """
deaf(signal.SIGINT)
deaf(signal.SIGTERM)
wait_to_be_ended()
"""
HANGS = """
deaf(signal.SIGINT)
deaf(signal.SIGTERM)
with open(path, "wb") as file:
    file.write(b"block ")
    file.flush()
    wait_to_be_ended()
"""


class SlowSaveTest(StoppingCase):
    def test_what_a_handler_saves_may_take_longer_than_the_grace(self) -> None:
        self.training("one", ON_TERM)
        runner = self.start_ready("one", args=["--grace", "3"])
        runner.send_signal(signal.SIGTERM)
        self.wait_for_event("waiting for ckpt.pt to be written")
        self.go("seen")
        self.ended(runner, 143)
        self.assert_whole("one/ckpt.pt")
        self.assertEqual((self.result("one")["return_code"], self.result("one")["status"]), (0, "interrupted"))

    def test_a_save_that_hangs_is_not_waited_for_for_ever_and_who_handles_neither_signal_is_killed(self) -> None:
        self.training("hangs", HANGS)
        self.training("deaf", DEAF_TO_BOTH)
        self.interrupt(self.start_ready("hangs", "deaf", args=["--grace", "0.3"]))
        for name in ("hangs", "deaf"):
            self.assertEqual((self.result(name)["status"], self.result(name)["signal"]), ("interrupted", "SIGKILL"))
            self.assertIn(f"{name}: did not end on SIGINT, gets SIGTERM\n", self.master_log())
            self.assertIn(f"{name}: did not end on SIGTERM, killed\n", self.master_log())

    def test_a_killed_runners_guardian_waits_as_a_stop_does(self) -> None:
        # It prints no more once it saves: the pipe has no reader then.
        code = "print('saving', flush=True)\nprint = lambda *_, **__: None\nawait_file('killed')\n" + IN_PLACE
        self.training("one", code)
        runner = self.start_ready("one", args=["--grace", FOREVER], line=b"saving\n")
        checkpoint = self.batch() / "one" / "ckpt.pt"
        self.go("killed")
        wait_for(checkpoint.exists, "the beginning of a save")
        runner.kill()
        runner.wait()
        before = checkpoint.stat().st_size
        wait_for(lambda: checkpoint.stat().st_size > before + 300, "half a second of a save")
        self.go("seen")
        self.assert_nothing_runs()
        self.assert_whole("one/ckpt.pt")


@unittest.skipUnless(shutil.which("uv"), "no uv here")
class UvTest(StoppingCase):
    """uv catches INT and TERM, and hands them on."""

    def test_as_a_launcher_and_in_a_command_each_training_gets_what_it_cleans_up_on(self) -> None:
        for name, code in {"cleans_up": CLEANS_UP, "handles_term": HANDLES_TERM}.items():
            self.training(name, code)
        uv = f"uv run --no-project --offline --python {sys.executable}"
        for options in (["--launcher", uv], ["--command", f"{uv} train_run.py {{config}} --out_dir={{dir}}"]):
            with self.subTest(options=options):
                self.interrupt(self.start_ready("cleans_up", "handles_term", args=["--grace", FOREVER, *options]))
                saved = self.saved("cleans_up"), self.saved("handles_term")
                self.assertEqual(saved, ("KeyboardInterrupt", "TERM"))
                shutil.rmtree(self.dir / "experiments")


class SrunTest(SlurmCase, StoppingCase):
    def test_with_srun_x_a_training_cleans_up_and_without_it_the_task_is_ended_at_once(self) -> None:
        self.training("cleans_up", CLEANS_UP)
        template = f"srun -n1 {sys.executable} train_run.py {{config}} --out_dir={{dir}}"
        for options, saved in (
            (["--launcher", f"srun -X -n1 {sys.executable}"], "KeyboardInterrupt"),
            (["--launcher", f"srun -n1 {sys.executable}"], ""),
            (["--command", template], ""),
        ):
            with self.subTest(options=options):
                self.interrupt(self.start_ready("cleans_up", args=["--grace", 60, *options]))
                self.assert_nothing_left()
                self.assertEqual(self.saved("cleans_up"), saved)
                if not saved:
                    self.assertIn("TERM sent to 1 training", self.master_log())
                shutil.rmtree(self.dir / "experiments")
