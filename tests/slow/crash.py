"""The hard one: the runner, sometimes its training too, is killed again and again, and nothing is lost.

    CRASH_SEED=7 python3 -m unittest tests.slow.crash

CRASH_SEEDS=100 takes as many seeds of its own; each is printed, and picks the same moments again.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys

from tests.support import TESTS, RunnerCase

COUNT = int(os.environ.get("CRASH_SEEDS") or 2)
GIVEN = os.environ.get("CRASH_SEED")
SEEDS = [int(GIVEN)] if GIVEN else random.SystemRandom().sample(range(10**6), COUNT)
SETTINGS = "--device cpu --max_iters 60 --eval_interval 10 --eval_iters 2 --grace 3".split()


class CrashTest(RunnerCase):
    def setUp(self) -> None:
        super().setUp()
        for name in ("train_run.py", "configurator.py"):
            shutil.copy(TESTS / name, self.dir)
        for number in range(5):
            self.config(f"run_{number}", f"seed = {number}\nn_layer = {1 + number % 3}\n")

    def test_a_batch_that_is_killed_again_and_again_is_finished_with_nothing_lost(self) -> None:
        whole = self.final_losses("unbroken")
        for seed in SEEDS:
            print(f"\n  CRASH_SEED={seed}", end=" ", file=sys.stderr, flush=True)
            with self.subTest(seed=seed):
                shutil.rmtree(self.dir / "experiments", ignore_errors=True)
                self.kept: dict[tuple[str, str], list[bytes]] = {}
                self.kill_until_finished(random.Random(seed))
                for name, loss in whole.items():
                    self.assertAlmostEqual(self.result(name)["metrics"]["val_loss"], loss, delta=0.25)
                    self.check_attempts(name)

    def final_losses(self, base: str) -> dict[str, float]:
        self.run_runner("--configs", "run_*.py", *SETTINGS, "--base_out_dir", base, expect=0)
        results = self.json(self.dir / base / "latest" / "experiment_summary.json")["results"]
        return {name: result["metrics"]["val_loss"] for name, result in results.items()}

    def kill_until_finished(self, chance: random.Random) -> None:
        args = ["--configs", "run_*.py", *SETTINGS]
        longest, kills = 1.6, 0
        for _ in range(60):
            runner = self.start(*args, start_new_session=True)  # until a moment that is the test's random input
            try:
                runner.communicate(timeout=chance.uniform(longest / 8, longest))
            except subprocess.TimeoutExpired:
                if chance.random() < 0.5:
                    self.kill_training(runner.pid)
                runner.kill()
                runner.communicate()
                kills += 1
            else:
                self.assertEqual(runner.returncode, 0)
                if kills:
                    break
                longest /= 2  # it was through before the first kill
                shutil.rmtree(self.dir / "experiments")
                continue
            self.check_files()
            if list((self.dir / "experiments").glob("experiment_*/experiment_summary.json")):
                args = ["--resume"]
        else:
            self.run_runner("--resume", expect=0)
        self.check_files()
        summary = self.summary()
        self.assertEqual((summary["completed"], summary["state"]), (5, "finished"))

    @staticmethod
    def kill_training(runner: int) -> None:
        """KILL the process that the runner has started, in the middle of whatever it does."""
        done = subprocess.run(["pgrep", "-P", str(runner), "-f", "train_run.py"], capture_output=True, text=True)
        for pid in done.stdout.split():
            subprocess.run(["kill", "-KILL", pid], capture_output=True)

    def check_files(self) -> None:
        """Every JSON file parses; what a log or a checkpoint held before is there yet, wherever it is by now."""
        kept: dict[tuple[str, str], list[bytes]] = {}
        for path in (self.dir / "experiments").glob("experiment_*/**/*"):
            if path.suffix == ".json" and not path.name.startswith("."):
                self.json(path)
            elif path.name.startswith("ckpt") or path.suffix == ".log":
                experiment = path.relative_to(self.dir / "experiments").parts[1]
                plain = re.sub(r"\.set_aside_*$", "", path.name)
                kept.setdefault((experiment, plain), []).append(path.read_bytes())
        for key, blobs in self.kept.items():
            for blob in blobs:
                self.assertTrue(any(each.startswith(blob) for each in kept.get(key, [])), f"bytes of {key} are gone")
        self.kept = kept

    def check_attempts(self, name: str) -> None:
        """Each attempt's output is there in order, and a continued one begins at its checkpoint's iteration."""
        result = self.result(name)
        history = [(each["attempt"], each["status"] == "completed") for each in result["attempt_history"]]
        self.assertEqual(history, [(attempt, False) for attempt in range(1, result["attempts"])])
        combined = self.log(name, "combined").decode()
        attempts = re.split(r"(?m)^.*\[RUNNER\] attempt \d+ continues from ", combined)
        for attempt in attempts[1:]:
            iteration = int(re.match(r"ckpt_unmasking_(\d+)\.pt", attempt)[1])  # type: ignore[index]
            steps = [int(step) for step in re.findall(r"\] step (\d+): train loss", attempt)]
            if steps:
                self.assertEqual(steps[0], iteration)
                self.assertEqual(steps, sorted(steps))
        said = rb"step \d+: train loss [\d.]+, val loss [\d.]+"
        whole = iter(re.findall(said, self.log(name)))
        for line in re.findall(said, self.log(name, "combined")):
            self.assertIn(line, whole, "combined.log has the lines in another order")
