"""The wall clock may jump: durations and deadlines stay right."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
import time

from tests.support import PATIENCE, RUNNER, RunnerCase


class ClockTest(RunnerCase):
    CLOCK = r"""
import datetime, sys, time

real, jumps = time.time, iter({jumps!r})
offset = 0.0
def wall():
    global offset
    offset += next(jumps, 0.0)
    return real() + offset
class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(wall(), tz)
time.time = wall
datetime.datetime = Clock
sys.path.insert(0, {folder!r})
import run_experiments
sys.argv[0] = "run_experiments.py"
sys.exit(run_experiments.main())
"""

    def run_with_jumps(self, jumps: list[float], *args: str) -> float:
        """Run a batch while its wall clock jumps at each look; returns the seconds that it truly took."""
        (self.dir / "clock.py").write_text(self.CLOCK.format(folder=str(RUNNER.parent), jumps=jumps))
        began = time.monotonic()
        command = [sys.executable, "clock.py", *args]
        done = subprocess.run(command, cwd=self.dir, capture_output=True, text=True, timeout=4 * PATIENCE)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        self.assertNotIn("Traceback", done.stdout)
        return time.monotonic() - began

    def test_durations_and_deadlines_are_right_while_the_clock_is_set_back_and_forth(self) -> None:
        for name in ("one", "two"):
            self.config(name, "for n in range(50):\n    print(f'step {n}: train loss 2.0, val loss 2.0', flush=True)")
        for jumps in ([-3600.0] * 10_000, [86400.0, -172800.0] * 5000, [7 * 86400.0] * 1000):
            with self.subTest(jump=jumps[0]):
                shutil.rmtree(self.dir / "experiments", ignore_errors=True)
                limits = ["--timeout", "1h", "--stall", "1h"]
                took = self.run_with_jumps(jumps, "--configs", "one.py", "two.py", *limits)
                summary = self.summary()
                self.assertEqual(summary["completed"], 2)
                durations = [each["duration_seconds"] for each in summary["results"].values()]
                self.assertGreater(min(durations), 0)
                self.assertLess(sum(durations), took)
                self.assertTrue(0 < summary["duration_seconds"] < took, summary["duration_seconds"])
                for line in self.log("one", "combined").splitlines():
                    self.assertRegex(line, rb"\A\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \[STDOUT\] ")

    def test_a_batch_that_seems_to_come_from_the_future_is_shown(self) -> None:
        self.config("easy", "pass")
        self.run_with_jumps([10 * 365 * 86400.0], "--configs", "easy.py")
        path = self.batch() / "experiment_summary.json"
        summary = self.json(path)
        summary["state"] = "running"
        summary["results"]["easy"].update(status="running", max_iters=100)
        (self.batch() / "easy" / "experiment_result.json").unlink()
        path.write_text(json.dumps(summary))
        with open(self.batch() / "runner.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # as if its runner lived
            shown = self.run_runner("--status", expect=0).stdout
        self.assertIn("1 running; 0s", shown)
