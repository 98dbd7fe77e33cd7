"""The stand-in trainer: that it learns, resumes, and fails on what a nanoGPT-style trainer fails on."""

import ast
import math
import os
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


def run_trainer(cwd: Path, *args: str, modules: str = "") -> "subprocess.CompletedProcess[str]":
    """`modules`: a directory of modules that the trainer can import."""
    # Without site-packages (-S), so that whether the machine has a wandb makes no difference.
    return subprocess.run(
        [sys.executable, "-S", str(TRAINER), *args],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": modules},
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

    def test_log_lines_and_checkpoints(self) -> None:
        self.assertEqual([m[0] for m in EVALUATION.findall(self.output)], ["0", "100", "200", "300"])
        self.assertEqual([int(m[0]) for m in ITERATION.findall(self.output)], list(range(0, 300, 10)))
        self.assertIn(", mfu -100.00%\n", self.output)
        names = sorted(path.name for path in self.unbroken.iterdir())
        self.assertEqual(names, [f"ckpt_unmasking_{n}.pt" for n in (100, 200, 300)])

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

    def test_a_finished_training_resumes_to_one_evaluation(self) -> None:
        self.resume_from(300)
        output = self.train(*self.settings, "--init_from=resume")
        self.assertEqual(EVALUATION.findall(output), EVALUATION.findall(self.output)[3:])
        self.assertEqual(ITERATION.findall(output), [])

    def test_a_truncated_checkpoint_fails(self) -> None:
        whole = (self.unbroken / "ckpt_unmasking_200.pt").read_bytes()
        self.resume_from(100)
        for size in (0, 1, len(whole) // 2, len(whole) - 1):
            with self.subTest(size=size):
                (self.dir / "out" / "ckpt_unmasking_200.pt").write_bytes(whole[:size])
                error = self.fail_to_train(*self.settings, "--init_from=resume")
                self.assertRegex(error, r"^(EOFError|_pickle\.UnpicklingError): ")

    def test_a_checkpoint_of_another_text_fails(self) -> None:
        self.resume_from(100)
        self.write("data/tiny/input.txt", "to be or not to be\n" * 100)
        error = self.fail_to_train("--init_from=resume", "--dataset=tiny")
        self.assertTrue(error.startswith("RuntimeError: Error(s) in loading state_dict"), error)

    def test_resume_without_a_checkpoint_fails(self) -> None:
        error = self.fail_to_train("--init_from=resume")
        self.assertTrue(error.startswith("FileNotFoundError: no ckpt_unmasking_*.pt"), error)


class Configurator(TrainerTest):
    def test_what_it_accepts(self) -> None:
        stage = "{'type': 'random', 'max_masked_ratio': 0.5, 'val_loss_stale_count': 1}"
        self.write("config.py", "batch_size = 3\nwandb_project = 'from the config'\n")
        cases = [
            (["--batch_size=4"], "batch_size = 4"),
            (["--learning_rate=1.0"], "learning_rate = 1.0"),
            (["--learning_rate=1e-3"], "learning_rate = 0.001"),
            (["--compile=True"], "compile = True"),
            (["--wandb_project=two words"], "wandb_project = two words"),
            (["--wandb_project='2024'"], "wandb_project = 2024"),
            (["--wandb_project="], "wandb_project = "),
            ([f"--unmasking_stages=[{stage}]"], f"unmasking_stages = [{stage}]"),
            (["config.py", "--batch_size=4"], "batch_size = 4"),
        ]
        for args, overriding in cases:
            with self.subTest(args=args):
                output = self.train(*QUICK, *args)
                self.assertIn(f"\nOverriding: {overriding}\n", output)

    def test_the_last_one_counts(self) -> None:
        self.write("config.py", "batch_size = 3\n")
        cases = [(["config.py", "--batch_size=4"], 4 * 32), (["--batch_size=4", "config.py"], 3 * 32)]
        for args, tokens in cases:
            with self.subTest(args=args):
                output = self.train(*QUICK, *args)
                self.assertIn("Overriding config with config.py:\nbatch_size = 3\n", output)
                self.assertIn(f"\ntokens per iteration will be: {tokens}\n", output)

    def test_what_it_dies_of(self) -> None:
        self.write("broken.py", "batch_size = = 3\n")
        self.write("a=b.py", "batch_size = 3\n")
        self.write("raises.py", "batch_size = 1 // 0\n")
        (self.dir / "directory").mkdir()
        cases = [
            (["--learning_rate=1"], r"AssertionError"),
            (["--batch_size=2.0"], r"AssertionError"),
            (["--batch_size=two"], r"AssertionError"),
            (["--batch_size="], r"AssertionError"),
            (["--compile=false"], r"AssertionError"),
            (["--compile=1"], r"AssertionError"),
            (["--wandb_project=2024"], r"AssertionError"),
            (["--wandb_project=None"], r"AssertionError"),
            (["--unmasking_stages={}"], r"AssertionError"),
            (["--compile"], r"AssertionError"),
            (["--batch_size", "2"], r"AssertionError"),
            (["-batch_size=2"], r"AssertionError"),
            (["a=b.py"], r"AssertionError"),
            (["--wandb_project=a=b"], r"ValueError: too many values to unpack.*"),
            (["--bacth_size=2"], r"ValueError: Unknown config key: bacth_size"),
            (["--=2"], r"ValueError: Unknown config key: "),
            (["nowhere.py"], r"FileNotFoundError: .*'nowhere\.py'"),
            (["directory"], r"IsADirectoryError: .*"),
            (["broken.py"], r"SyntaxError: .*"),
            (["raises.py"], r"ZeroDivisionError: .*"),
        ]
        for args, error in cases:
            with self.subTest(args=args):
                self.assertRegex(self.fail_to_train(*QUICK, *args), f"^{error}$")
                self.assertFalse((self.dir / "out").exists())


class Settings(TrainerTest):
    def test_devices_fail_as_in_torch(self) -> None:
        cases = [
            ("cuda", "RuntimeError: Found no NVIDIA driver on your system."),
            ("cuda:1", "RuntimeError: Found no NVIDIA driver on your system."),
            ("mps", "RuntimeError: PyTorch is not linked with support for mps devices"),
            ("gpu", "RuntimeError: Expected one of cpu, cuda, "),
        ]
        for device, error in cases:
            with self.subTest(device=device):
                message = self.fail_to_train(*QUICK, f"--device={device}")
                self.assertTrue(message.startswith(error), message)

    def test_other_values_that_fail(self) -> None:
        cases = [
            ("--training_type=diffusion", "unknown training_type: 'diffusion'"),
            ("--init_from=gpt2", "unknown init_from: 'gpt2'"),
            ("--unmasking_stages=[{'type': 'easy'}]", "unknown type of an unmasking stage"),
            ("--unmasking_stages=[]", "IndexError"),
            ("--dtype=float64", "AssertionError"),
            ("--n_head=3", "AssertionError"),
        ]
        for arg, error in cases:
            with self.subTest(arg=arg):
                message = self.fail_to_train(*QUICK, arg)
                self.assertTrue(message.startswith(error), message)

    def test_settings_have_an_effect(self) -> None:
        base = ["--max_iters=8", "--eval_interval=8", "--eval_iters=2", "--batch_size=2", "--warmup_iters=2"]
        plain = EVALUATION.findall(self.train(*base))
        self.assertEqual(EVALUATION.findall(self.train(*base)), plain)
        for arg in (
            "--n_layer=1",
            "--dropout=0.5",
            "--learning_rate=0.05",
            "--weight_decay=0.5",
            "--beta1=0.5",
            "--beta2=0.5",
            "--grad_clip=0.01",
            "--decay_lr=False",
            "--warmup_iters=4",
            "--lr_decay_iters=8",
            "--block_size=16",
            "--gradient_accumulation_steps=2",
            "--use_paragraph_boundaries=True",
            "--seed=1",
        ):
            with self.subTest(arg=arg):
                self.assertNotEqual(EVALUATION.findall(self.train(*base, arg))[-1], plain[-1])

    def test_eval_only(self) -> None:
        output = self.train("--eval_only=True", "--eval_iters=1")
        self.assertEqual([m[0] for m in EVALUATION.findall(output)], ["0"])
        self.assertEqual(ITERATION.findall(output), [])
        self.assertEqual(self.checkpoints(), [])

    def test_the_end_is_evaluated_and_saved(self) -> None:
        output = self.train("--max_iters=5", "--eval_interval=3", "--eval_iters=1", "--out_dir=out")
        self.assertEqual([m[0] for m in EVALUATION.findall(output)], ["0", "3", "5"])
        self.assertEqual(self.checkpoints(), ["ckpt_unmasking_3.pt", "ckpt_unmasking_5.pt"])

    def test_stages_change_when_the_loss_is_stale(self) -> None:
        # A learning rate beyond all measure: the loss is nan from the first update on, and never improves.
        config = self.write(
            "stages.py",
            "unmasking_stages = [\n"
            "    {'type': 'sticky', 'target_masked_ratio': 0.3, 'p1_probability': 0.1,\n"
            "     'p2_probability': 0.5, 'val_loss_stale_count': 2},\n"
            "    {'type': 'random', 'max_masked_ratio': 0.5, 'val_loss_stale_count': 1},\n"
            "    {'type': 'random', 'max_masked_ratio': 0.9, 'val_loss_stale_count': 1},\n"
            "]\n",
        )
        hopeless = ["--learning_rate=1e308", "--eval_interval=1", "--eval_iters=3", "--log_interval=100"]
        output = self.train(config, *hopeless, "--max_iters=5", "--always_save_checkpoint=False")
        told = re.findall(r"^step (\d)|^unmasking stage (\d) of 3: ", output, re.MULTILINE)
        order = ["stage 1", "0", "1", "2", "stage 2", "3", "stage 3", "4", "5"]
        self.assertEqual([step or f"stage {stage}" for step, stage in told], order)
        self.assertEqual({val for _, _, val in EVALUATION.findall(output)[1:]}, {"nan"})
        self.assertEqual(self.checkpoints(), [])

    def test_a_text_of_ones_own(self) -> None:
        self.write("data/tiny/input.txt", "to be or not to be\n\n" * 100)
        output = self.train(*QUICK, "--dataset=tiny", "--use_paragraph_boundaries=True")
        self.assertIn("\nvocabulary: 8 characters, loss of a uniform guess 2.0794\n", output)

    def test_wandb(self) -> None:
        error = self.fail_to_train(*QUICK, "--wandb_log=True")
        self.assertEqual(error, "ModuleNotFoundError: No module named 'wandb'")
        self.write(
            "modules/wandb.py",
            "def init(project, name, config): print('init', project, name, config['max_iters'])\n"
            "def log(metrics): print('log', *metrics)\n",
        )
        args = [*QUICK, "--wandb_log=True", "--wandb_run_name=test"]
        done = run_trainer(self.dir, *args, modules=str(self.dir / "modules"))
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("\ninit unmasking test 2\n", done.stdout)
        self.assertEqual(done.stdout.count("\nlog iter train/loss val/loss\n"), 2)


class Configs(TrainerTest):
    def test_the_three_curricula_run(self) -> None:
        names = [path.stem for path in CONFIGS]
        self.assertEqual(names, ["easy_first", "moderate_first", "super_hard_first"])
        for path in CONFIGS:
            with self.subTest(config=path.stem):
                output = self.train(str(path), *QUICK)
                self.assertEqual([m[0] for m in EVALUATION.findall(output)], ["0", "2"])

    def test_they_set_only_what_the_trainer_declares(self) -> None:
        declared = assigned_literals(TRAINER)
        for path in CONFIGS:
            with self.subTest(config=path.stem):
                found = assigned_literals(path)
                self.assertNotIn("out_dir", found)
                for key, value in found.items():
                    self.assertIs(type(value), type(declared[key]), key)


def assigned_literals(path: Path) -> dict[str, object]:
    """The `name = literal` lines of a script, as the runner reads them."""
    found: dict[str, object] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue  # computed, so no setting
    return found
