"""The real wandb, offline: two attempts are one run, a batch is a group, and a stop loses nothing that was logged."""

from __future__ import annotations

import importlib.util
import os
import signal
import unittest
from pathlib import Path

from tests.support import RunnerCase

# What it logs is found in its file as plain text; the first attempt waits for the stop.
CODE = """
wandb_log = True
init_from = "scratch"
import wandb
attempt = 2 if overrides.get("init_from") == "resume" else 1
run = wandb.init(project="tests", name=f"attempt {attempt}", settings=wandb.Settings(console="off"))
run.log({f"logged_in_attempt_{attempt}": 1.5}, step=attempt)
print("run", run.id, run.group, flush=True)
if attempt == 1:
    open(os.path.join(out_dir, "ckpt.pt"), "w").close()
    print("ready", flush=True)
    live_on()
run.finish()
"""


@unittest.skipUnless(importlib.util.find_spec("wandb"), "no wandb here: python3 -m pip install wandb")
class WandbTest(RunnerCase):
    def setUp(self) -> None:
        super().setUp()
        kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("WANDB_")}
        self.addCleanup(os.environ.update, kept)
        self.environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(self.dir)}

    def files(self) -> list[Path]:
        return sorted(self.dir.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)

    def test_an_interrupted_run_and_its_continuation_are_one_run_of_the_batchs_group_and_whole(self) -> None:
        self.config("one", CODE)
        runner = self.start("--configs", "one.py", "--grace", "60", env=self.environment)
        self.wait_for_line("one", b"ready\n")
        runner.send_signal(signal.SIGINT)
        self.ended(runner, 130)
        self.run_runner("--resume", env=self.environment, expect=0)
        metadata = self.json(self.batch() / "one" / "experiment_metadata.json")
        run_id = metadata["environment_set"]["WANDB_RUN_ID"]
        told = [line for line in self.log("one").decode().splitlines() if line.startswith("run ")]
        self.assertEqual(told, [f"run {run_id} {self.batch().name}"] * 2)
        first, second = self.files()
        self.assertEqual([path.name for path in (first, second)], [f"run-{run_id}.wandb"] * 2)
        for number, path in enumerate((first, second), 1):
            data = path.read_bytes()
            self.assertIn(f"logged_in_attempt_{number}".encode(), data)
            self.assertIn(self.batch().name.encode(), data)
