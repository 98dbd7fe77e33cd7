"""Stops that need tools (uv, torchrun, a real Slurm), or seconds."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import unittest
from typing import Any

from tests.slow._cluster import Cluster
from tests.slow.stops import CLEANS_UP, FOREVER, HANDLES_TERM, IN_PLACE, ON_TERM, StoppingCase
from tests.support import PATIENCE, wait_for

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

    def test_a_save_that_hangs_is_not_waited_for_and_who_handles_neither_signal_is_killed(self) -> None:
        self.training("hangs", HANGS)
        self.training("deaf", DEAF_TO_BOTH)
        self.interrupt(self.start_ready("hangs", "deaf", args=["--grace", "0.3"]))
        for name in ("hangs", "deaf"):
            self.assertEqual((self.result(name)["status"], self.result(name)["signal"]), ("interrupted", "SIGKILL"))
            self.assertIn(f"{name}: did not end on SIGINT, gets SIGTERM\n", self.master_log())
            self.assertIn(f"{name}: did not end on SIGTERM, killed\n", self.master_log())
        self.assertNotIn("waiting for", self.master_log())

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

    def check(self, options: list[str], expected: dict[str, str]) -> None:
        for name, code in {"cleans_up": CLEANS_UP, "handles_term": HANDLES_TERM}.items():
            self.training(name, code)
        self.interrupt(self.start_ready("cleans_up", "handles_term", args=["--grace", FOREVER, *options]))
        self.assertEqual({name: self.saved(name) for name in expected}, expected)

    def test_as_a_launcher_each_training_gets_what_it_cleans_up_on(self) -> None:
        launcher = f"uv run --no-project --offline --python {sys.executable}"
        self.check(["--launcher", launcher], {"cleans_up": "KeyboardInterrupt", "handles_term": "TERM"})

    def test_in_a_command_each_training_gets_what_it_cleans_up_on(self) -> None:
        words = f"uv run --no-project --offline --python {sys.executable} train_run.py {{config}} --out_dir={{dir}}"
        self.check(["--command", words], {"cleans_up": "KeyboardInterrupt", "handles_term": "TERM"})


@unittest.skipUnless(importlib.util.find_spec("torch"), "no torch here")
class TorchrunTest(StoppingCase):
    def test_workers_clean_up_at_a_stop(self) -> None:
        self.training("cleans_up", CLEANS_UP)
        launcher = f"{sys.executable} -m torch.distributed.run --standalone --nproc_per_node=2"
        self.interrupt(self.start_ready("cleans_up", args=["--grace", "30", "--launcher", launcher]))
        self.assertEqual(self.saved("cleans_up"), "KeyboardInterrupt")


@unittest.skipIf(Cluster.unavailable(), f"no Slurm: {Cluster.unavailable()}")
class SrunTest(StoppingCase):
    cluster: Cluster

    @classmethod
    def setUpClass(cls) -> None:
        cls.cluster = Cluster.start(cpus=2, kill_wait=5)
        cls.addClassCleanup(cls.cluster.stop)

    def start(self, *args: Any, **options: Any) -> subprocess.Popen[str]:
        return super().start(*args, **{"env": {**os.environ, **self.cluster.env}, **options})

    def check(self, option: str, srun: str, rest: str, saved: str) -> None:
        self.training("cleans_up", CLEANS_UP)
        self.interrupt(self.start_ready("cleans_up", args=["--grace", 60, option, f"{srun} {sys.executable}{rest}"]))
        self.cluster.wait_empty(PATIENCE)
        self.assertEqual(self.cluster.tasks(), [])
        self.assertEqual(self.saved("cleans_up"), saved)

    def test_with_srun_x_the_training_cleans_up(self) -> None:
        self.check("--launcher", "srun -X -n1", "", "KeyboardInterrupt")

    def test_without_it_the_task_is_ended_at_once_and_nothing_is_left(self) -> None:
        self.check("--launcher", "srun -n1", "", "")
        self.assertIn("TERM sent to 1 training", self.master_log())

    def test_srun_in_a_command_is_ended_as_srun_as_a_launcher_is(self) -> None:
        self.check("--command", "srun -n1", " train_run.py {config} --out_dir={dir}", "")
        self.assertIn("TERM sent to 1 training", self.master_log())
