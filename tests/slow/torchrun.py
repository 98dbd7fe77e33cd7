"""torchrun as the launcher; skipped where there is no torch. TORCH_PYTHON names a Python that has it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import unittest

from tests.support import RunnerCase, is_running, wait_for

TORCH = os.environ.get("TORCH_PYTHON", sys.executable)
TORCHRUN = f"{shlex.quote(TORCH)} -m torch.distributed.run --standalone --nproc_per_node=2"


@unittest.skipIf(subprocess.run([TORCH, "-c", "import torch"], capture_output=True).returncode, "no torch")
class TorchrunTest(RunnerCase):
    def test_torchrun_with_two_processes_trains_and_fails_as_one(self) -> None:
        script = "import os, sys, torch, torch.distributed as dist\ndist.init_process_group('gloo')\n"
        script += "name = os.path.basename(sys.argv[1])\n"
        script += "if name == 'one.py' and dist.get_rank() == 1: raise KeyError('only rank 1')\n"
        script += "total = torch.ones(1)\ndist.all_reduce(total)\nrank = dist.get_rank()\n"
        script += "if rank == 0: print(f'step 1: train loss {total.item():.4f}, val loss 1.0000')\n"
        script += "dist.barrier()\ndist.destroy_process_group()\n"
        script += "if name == 'bad.py' and rank == 1: raise ValueError('rank 1 has had enough')\n"
        (self.dir / "train_run.py").write_text(script)
        self.config("good")
        self.config("bad")
        self.config("one")
        self.run_runner("--configs", "good.py", "bad.py", "one.py", "--jobs", 3, "--launcher", TORCHRUN, expect=1)
        self.assertEqual(self.result("good")["metrics"]["train_loss"], 2.0)
        self.assertEqual((self.result("good")["status"], self.result("bad")["status"]), ("completed", "failed"))
        self.assertIn("ValueError: rank 1 has had enough", self.result("bad")["error"])
        self.assertEqual(self.result("one")["error"], "exit code 1: KeyError: 'only rank 1'")  # not rank 0's lost peer
        self.assert_nothing_runs()

    def test_workers_clean_up_at_a_stop(self) -> None:
        code = "try:\n    note_pid()\n    live_on()\nfinally:\n    open(f'saved_{os.environ[\"RANK\"]}', 'w').close()"
        self.config("one", code)
        runner = self.start("--configs", "one.py", "--launcher", TORCHRUN, "--grace", 60)
        self.pids(2)
        runner.send_signal(signal.SIGINT)
        self.ended(runner, 130)
        self.assertEqual({path.name for path in self.dir.glob("saved_*")}, {"saved_0", "saved_1"})
        self.assert_nothing_runs()

    def test_stopping_torchrun_leaves_no_worker(self) -> None:
        self.config("one", "signal.signal(15, signal.SIG_IGN)\nnote_pid()\nlive_on()")
        runner = self.start("--configs", "one.py", "--launcher", TORCHRUN, "--grace", 1)
        pids = self.pids(2)
        runner.send_signal(signal.SIGINT)
        self.ended(runner, 130)
        wait_for(lambda: not any(map(is_running, pids)), "the end of both workers")
