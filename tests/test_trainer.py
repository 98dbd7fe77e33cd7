"""The stand-in trainer: that it learns, resumes, and fails on what a nanoGPT-style trainer fails on."""

import math
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

TRAINER = Path(__file__).resolve().with_name("train_run.py")
CONFIGS = sorted((TRAINER.parent.parent / "config" / "shkspr_char_diff").glob("*.py"))
QUICK = ["--max_iters=2", "--eval_interval=2", "--eval_iters=1", "--batch_size=2"]
EVALUATION = re.compile(r"^step (\d+): train loss (\S+), val loss (\S+)$", re.MULTILINE)
ITERATION = re.compile(r"^iter (\d+): loss (\S+), time \d+\.\d\dms, mfu -?\d+\.\d\d%$", re.MULTILINE)
UNIFORM = re.compile(r"^vocabulary: (\d+) characters, loss of a uniform guess (\S+)$", re.MULTILINE)
STAGE = re.compile(r"^unmasking stage (\d) of", re.MULTILINE)


class TrainerTest(unittest.TestCase):
    """Each test has a directory of its own, which is the trainer's working directory."""

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.dir = Path(scratch.name)

    def write(self, name: str, text: str) -> str:
        path = self.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return name

    def train(self, *args: str) -> str:
        """Run to the end; returns stdout."""
        done = run_trainer(self.dir, *args)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    def fail_to_train(self, *args: str) -> str:
        """Run into an error; returns the last line of stderr, where Python names it."""
        done = run_trainer(self.dir, *args)
        self.assertEqual(done.returncode, 1, done.stdout)
        return done.stderr.splitlines()[-1]

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.dir / "out").iterdir())


def run_trainer(cwd: Path, *args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-S", str(TRAINER), *args],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
    )


class Training(TrainerTest):
    """What one training of 300 iterations shows, and what a resumed one makes of its checkpoints."""

    settings = ["--max_iters=300", "--eval_interval=100"]
    scratch: "tempfile.TemporaryDirectory[str]"
    unbroken: Path
    output: str

    @classmethod
    def setUpClass(cls) -> None:
        cls.scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.scratch.cleanup)
        done = run_trainer(Path(cls.scratch.name), *cls.settings)
        if done.returncode != 0:
            raise AssertionError(done.stderr)
        cls.unbroken, cls.output = Path(cls.scratch.name) / "out", done.stdout

    def test_it_learns(self) -> None:
        ((characters, uniform),) = UNIFORM.findall(self.output)
        self.assertAlmostEqual(float(uniform), math.log(int(characters)), places=3)
        (_, *at_first), *_, (_, *at_last) = EVALUATION.findall(self.output)
        for first, last in zip(at_first, at_last):
            self.assertAlmostEqual(float(first), float(uniform), places=3)
            self.assertLess(float(last), float(uniform) - 1.2)

    def resume_from(self, *iterations: int) -> None:
        (self.dir / "out").mkdir()
        for iteration in iterations:
            shutil.copy(self.unbroken / f"ckpt_unmasking_{iteration}.pt", self.dir / "out")

    def test_a_resumed_training_ends_as_the_unbroken_one(self) -> None:
        self.resume_from(100, 200)
        self.write("out/ckpt_unmasking_30.pt", "a name that sorts last, but not the newest")
        self.write("out/ckpt_unmasking_999.pt.tmp", "no checkpoint")
        output = self.train(*self.settings, "--init_from=resume")
        self.assertEqual(EVALUATION.findall(output), EVALUATION.findall(self.output)[2:])
        self.assertEqual(ITERATION.findall(output), ITERATION.findall(self.output)[20:])
        self.assertEqual(STAGE.findall(output)[-1], STAGE.findall(self.output)[-1])
        self.assertIn("ckpt_unmasking_300.pt", self.checkpoints())


class Configs(TrainerTest):
    def test_the_three_curricula_run(self) -> None:
        names = [path.stem for path in CONFIGS]
        self.assertEqual(names, ["easy_first", "moderate_first", "super_hard_first"])
        for path in CONFIGS:
            with self.subTest(config=path.stem):
                output = self.train(str(path), *QUICK)
                self.assertEqual([m[0] for m in EVALUATION.findall(output)], ["0", "2"])
