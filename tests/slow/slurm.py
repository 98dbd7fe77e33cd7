"""Slurm as the launcher, on a real one-node cluster; skipped where it can't be had."""

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

from tests.slow._cluster import Cluster
from tests.support import PATIENCE, RUNNER, TESTS, RunnerCase, is_running, wait_for

PYTHON = sys.executable


@unittest.skipIf(Cluster.unavailable(), f"no Slurm: {Cluster.unavailable()}")
class SlurmCase(RunnerCase):
    cluster: Cluster

    @classmethod
    def setUpClass(cls) -> None:
        cls.cluster = Cluster.start(cpus=2, kill_wait=5)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.cluster.stop()

    def start(self, *args: Any, **options: Any) -> subprocess.Popen[str]:
        return super().start(*args, **{"env": {**os.environ, **self.cluster.env}, **options})

    def srun(self, *configs: str, **options: Any) -> subprocess.Popen[str]:
        """The runner with a job for each of these configs."""
        srun = options.pop("srun", "srun -n1")
        args = options.pop("args", [])
        names = [f"{name}.py" for name in configs]
        return self.start("--configs", *names, "--launcher", f"{srun} --job-name={{name}} {PYTHON}", *args, **options)

    def assert_nothing_left(self) -> None:
        self.cluster.wait_empty(PATIENCE)
        self.assertEqual((self.cluster.queue(), self.cluster.tasks()), ("", []))


class JobsTest(SlurmCase):
    def test_bytes_and_exit_codes_come_through_and_a_signal_is_told_as_such(self) -> None:
        self.config("good", "import os\nos.write(1, bytes(range(256)) * 999)\nos.write(2, b'to stderr\\n')")
        self.config("three", "import sys\nsys.exit(3)")
        self.config("killed", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
        runner = self.srun("good", "three", "killed", args=["--jobs", 2])
        out, err = runner.communicate(timeout=60)
        self.assertEqual((runner.returncode, err), (1, ""), out)
        self.assertEqual(self.log("good"), bytes(range(256)) * 999)
        self.assertEqual(self.log("good", "stderr"), b"to stderr\n")
        self.assertEqual((self.result("three")["return_code"], self.result("three")["error"]), (3, "exit code 3"))
        self.assertEqual(self.result("killed")["error"], "exit code 137 (SIGKILL)")
        self.assertIn("out-of-memory", self.result("killed")["hint"])
        self.assert_nothing_left()

    def stop(self, number: int, **options: Any) -> int:
        """Stop the runner in the middle of a job, and see nothing left; returns the runner's exit code."""
        self.config("one", "note_pid()\nprint('ready', flush=True)\nlive_on()")
        runner = self.srun("one", **options)
        self.wait_for_line("one", b"ready\n")
        [task] = self.pids(1)
        runner.send_signal(number)
        runner.communicate(timeout=60)
        wait_for(lambda: not is_running(task), "the end of the task")
        self.assert_nothing_left()
        return runner.returncode

    def test_stopping_the_runner_ends_the_task_and_empties_the_queue(self) -> None:
        self.assertEqual(self.stop(signal.SIGTERM), 143)
        self.assertEqual(self.result("one")["status"], "interrupted")

    def test_a_killed_runner_leaves_no_task_and_no_job(self) -> None:
        self.assertEqual(self.stop(signal.SIGKILL), -9)

    def test_with_disable_status_and_int_a_trainer_cleans_up_and_its_exit_code_comes_through(self) -> None:
        code = "import time, sys\ntry:\n    print('ready', flush=True)\n    time.sleep(600)\n"
        code += "except KeyboardInterrupt:\n    print('cleaned up', flush=True)\n    sys.exit(5)"
        self.config("one", code)
        runner = self.srun("one", srun="srun -X -n1", args=["--stop_signal", "INT"])
        self.wait_for_line("one", b"ready\n")
        runner.send_signal(signal.SIGINT)
        runner.communicate(timeout=60)
        self.assertIn(b"cleaned up", self.log("one"))
        result = self.result("one")
        self.assertEqual((result["status"], result["return_code"]), ("interrupted", 5))
        self.assert_nothing_left()

    def test_two_ctrl_c_in_a_row_leave_no_task_and_no_job(self) -> None:
        code = "for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, signal.SIG_IGN)\n"
        self.config("one", code + "print('ready', flush=True)\nlive_on()")
        runner = self.srun("one")
        self.wait_for_line("one", b"ready\n")
        runner.send_signal(signal.SIGINT)
        runner.send_signal(signal.SIGTERM)
        runner.communicate(timeout=60)
        self.assert_nothing_left()

    def test_a_waiting_job_is_not_taken_for_a_stalled_one(self) -> None:
        self.config("first", "print('ready', flush=True)\nawait_file('go')")
        self.config("second", "print('here')")
        runner = self.srun("first", srun="srun -n2")
        self.wait_for_line("first", b"ready\n")
        waiting = self.srun(
            "second", srun="srun -n2", args=["--stall", "2", "--timeout", "2", "--base_out_dir", "other"]
        )
        log = self.dir / "other" / "latest" / "second" / "stderr.log"
        wait_for(lambda: log.exists() and b"queued and waiting" in log.read_bytes(), "a job in the queue")
        began = os.times().elapsed
        wait_for(lambda: os.times().elapsed > began + 4, "twice the limit")  # what is tested is that nothing happens
        self.assertIsNone(waiting.poll())
        self.go("go")
        self.assertEqual(runner.wait(60), 0)
        out, _ = waiting.communicate(timeout=60)
        self.assertEqual(waiting.returncode, 0, out)
        self.assert_nothing_left()

    def test_more_experiments_than_cpus_all_run(self) -> None:
        for number in range(6):
            self.config(f"run_{number}", f"print({number})")
        runner = self.srun(*(f"run_{number}" for number in range(6)), args=["--jobs", 6])
        out, err = runner.communicate(timeout=120)
        self.assertEqual(runner.returncode, 0, out)
        self.assertEqual([self.log(f"run_{number}") for number in range(6)], [f"{n}\n".encode() for n in range(6)])
        self.assert_nothing_left()


class BatchScriptTest(SlurmCase):
    """The README's batch script, as it stands there but for the number of shards."""

    EXPERIMENTS, SHARDS = 12, 4

    def script(self) -> str:
        readme = (TESTS.parent / "README.md").read_text(encoding="utf-8")
        match = re.search(r"(?s)```sh\n(#!/bin/bash\n#SBATCH.*?)```", readme)
        assert match, "README.md holds no batch script"
        script = match[1].replace("--array=1-64%8", f"--array=1-{self.SHARDS}").replace("shards=64", "shards=4")
        self.assertNotIn("64", script)
        return script

    def submit(self) -> str:
        command = ("sbatch", "--parsable", "--output=%A_%a.out", f"--chdir={self.dir}", str(self.dir / "job.sh"))
        return self.cluster.client(*command).strip()

    def shard_of(self, number: int) -> Path:
        return self.dir / "experiments" / "night" / str(number) / "latest"

    def output(self, number: int, log: str = "stdout") -> bytes:
        """What the first experiment of a shard has printed."""
        path = self.shard_of(number) / f"run_{number - 1}" / f"{log}.log"
        return path.read_bytes() if path.exists() else b""

    def stored(self, number: int) -> Any:
        return self.json(self.shard_of(number) / "experiment_summary.json")

    def test_an_array_survives_a_requeue_a_cancelled_element_and_the_loss_of_slurmd(self) -> None:
        for name in ("train_run.py", "configurator.py"):
            shutil.copy(TESTS / name, self.dir)
        shutil.copy(RUNNER, self.dir)
        (self.dir / "config").mkdir()
        for number in range(self.EXPERIMENTS):
            settings = f"seed = {number}\nmax_iters = 400\neval_interval = 10\neval_iters = 2\n"
            self.config(f"config/run_{number}", settings)
        (self.dir / "job.sh").write_text(self.script())
        job = self.submit()
        for number in (1, 2):  # the cluster has room for two
            wait_for(lambda number=number: b"step 20:" in self.output(number), "the first evaluations")  # type: ignore[misc]
        self.cluster.client("scancel", f"{job}_2")
        self.cluster.client("scontrol", "requeue", f"{job}_1")
        wait_for(lambda: self.stored(2)["state"] == "interrupted", "the end of the cancelled element")
        wait_for(lambda: b"[RUNNER] attempt 2 continues" in self.output(1, "combined"), "the second attempt")
        self.cluster.restart_node()
        self.cluster.wait_empty(6 * PATIENCE)
        done = [self.stored(number)["completed"] for number in range(1, self.SHARDS + 1)]
        self.assertEqual([done[0], *done[2:]], [3, 3, 3])
        self.assertLess(done[1], 3)
        self.submit()  # what is finished ends at once, what was cancelled goes on
        self.cluster.wait_empty(6 * PATIENCE)
        self.assertEqual([self.stored(number)["completed"] for number in range(1, self.SHARDS + 1)], [3] * self.SHARDS)
        batches = list((self.dir / "experiments" / "night").glob("*/experiment_*"))
        self.assertEqual(len(batches), self.SHARDS, "a batch was begun anew")
        shown = self.run_runner("--status", "experiments/night/*/latest", expect=0).stdout
        for number in range(self.EXPERIMENTS):
            self.assertRegex(shown, rf"(?m)^run_{number} +completed +400/400")
        self.assertNotIn("missing", shown)
