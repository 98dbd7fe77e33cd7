"""A Slurm array whose elements run a shard each, on a real one-node cluster: cancelled, requeued, its slurmd killed."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import socket
import unittest
from pathlib import Path
from typing import Any

from tests.slow._cluster import Cluster
from tests.support import PATIENCE, RUNNER, RunnerCase, is_running, wait_for

# As in README.md, section Slurm.
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=night
#SBATCH --array=1-4
#SBATCH --requeue
#SBATCH --open-mode=append

shards=4  # as many as the array has elements, also where only some of them are submitted again
out=experiments/$SLURM_JOB_NAME/$SLURM_ARRAY_TASK_ID
if [ -e "$out/latest/plan/plan.json" ]; then
    exec python3 run_experiments.py --base_out_dir "$out" --resume
fi
exec python3 run_experiments.py --base_out_dir "$out" --shard "$SLURM_ARRAY_TASK_ID/$shards" \\
    --configs "config/*.py" --sweep seed=1,2,3,4
"""
CODE = """
init_from = "scratch"
note_pid()
print("ready", flush=True)
open(os.path.join(out_dir, "ckpt.pt"), "w").close()
await_file("go")
loss = 1 + int(overrides["seed"]) / 10
print(f"step 10: train loss {loss}, val loss {loss}")
"""


@unittest.skipIf(Cluster.unavailable(), f"no Slurm: {Cluster.unavailable()}")
class ArrayTest(RunnerCase):
    def setUp(self) -> None:
        super().setUp()
        self.cluster = Cluster.start(cpus=4, kill_wait=5)
        self.addCleanup(self.cluster.stop)
        shutil.copy(RUNNER, self.dir)
        for name in ("a", "b", "c"):
            self.config(f"config/{name}", CODE)
        (self.dir / "array.sh").write_text(SCRIPT)

    def submit(self, *options: str) -> str:
        """Returns the job's number."""
        command = ("sbatch", "--parsable", f"--chdir={self.dir}", *options, str(self.dir / "array.sh"))
        return self.cluster.client(*command).strip()

    def folder(self, element: int) -> Path:
        return self.dir / "experiments" / "night" / str(element) / "latest"

    def summary_of(self, element: int) -> dict[str, Any]:
        return self.json(self.folder(element) / "experiment_summary.json")

    def has_printed(self, element: int, times: int = 1) -> bool:
        """Whether the first experiment of an element has begun so many attempts."""
        if not (self.folder(element) / "experiment_summary.json").exists():
            return False
        first = next(iter(self.summary_of(element)["results"]))
        log = self.folder(element) / first / "stdout.log"
        return bool(log.exists() and log.read_bytes().count(b"ready\n") == times)

    def is_over(self, element: int) -> bool:
        return str(self.summary_of(element)["state"]) in ("finished", "interrupted")

    def restart_slurmd(self) -> None:
        daemon = self.cluster.pids["slurmd"]
        os.kill(daemon, signal.SIGKILL)
        wait_for(lambda: not is_running(daemon), "the end of slurmd")
        conf, host = self.cluster.env["SLURM_CONF"], socket.gethostname().partition(".")[0]
        command = ["slurmd", "-D", "-N", host, "-f", conf]
        self.cluster._start_daemon(command, lambda: "UP" in self.cluster.client("scontrol", "show", "partition"))

    def test_cancelled_requeued_and_without_its_slurmd_all_are_finished_in_the_end_and_in_one_table(self) -> None:
        job = self.submit()
        for element in (1, 2, 3, 4):
            wait_for(functools.partial(self.has_printed, element), f"the first training of element {element}")
        self.cluster.client("scancel", f"{job}_2")
        wait_for(lambda: self.is_over(2), "the end of the cancelled element")
        self.cluster.client("scontrol", "requeue", f"{job}_3")
        wait_for(lambda: self.is_over(3), "the end of the requeued element's first run")
        # What a slurmd would still have to tell is lost with it for minutes.
        wait_for(lambda: " CG " not in self.cluster.queue(), "both jobs to be gone")
        self.restart_slurmd()
        wait_for(lambda: self.has_printed(3, times=2), "the requeued element to go on")
        said = self.forked("--status", "experiments/night/*").stdout
        self.assertEqual(len(re.findall(r"(?m)^[abc]__seed_\d +", said)), 12, said)
        self.assertNotIn("missing", said)
        self.go("go")
        again = self.submit("--array=2")
        self.assertNotEqual(again, job)
        self.cluster.wait_empty(4 * PATIENCE)
        self.check_end()

    def check_end(self) -> None:
        told = json.loads(self.forked("--status", "experiments/night/*/latest", "--json").stdout)
        output = "".join(path.read_text() for path in sorted(self.dir.glob("slurm-*.out")))
        self.assertEqual((told["state"], told["completed"], told["notes"]), ("finished", 12, []), output)
        names = sorted(each["name"] for each in told["experiments"])
        self.assertEqual(names, [f"{name}__seed_{seed}" for name in "abc" for seed in (1, 2, 3, 4)])
        attempts = sorted(each["attempts"] for each in told["experiments"])
        self.assertEqual(attempts, [1] * 10 + [2] * 2)
        for element in (1, 2, 3, 4):
            place = self.folder(element).resolve().parent
            batches = [path for path in place.iterdir() if path.is_dir() and not path.is_symlink()]
            self.assertEqual(len(batches), 1, f"element {element} began anew")
        combined = [path.read_text() for path in self.folder(3).glob("*/combined.log")]
        self.assertTrue(any("[RUNNER] attempt 2 continues from ckpt.pt" in text for text in combined))
        self.assertEqual(self.forked("--report", "experiments/night/*").stdout, "experiments/night/report.html\n")
        self.assert_nothing_runs()
