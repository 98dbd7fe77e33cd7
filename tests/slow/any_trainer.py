"""Trainers of any make behind --command, and the first ten minutes: what is chosen, warned of, suggested and shown."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any, NamedTuple

from tests.support import RUNNER, TESTS, RunnerCase, wait_for

TRAINERS = TESTS / "trainers"


class Trainer(NamedTuple):
    """How a trainer is run, and what is to come out of it."""

    script: str
    arguments: str  # of --command
    options: list[str]
    config: tuple[str, str]  # the config's file name and text; none where the name is empty
    results: dict[str, tuple[int, float, float]]  # name -> (last step, last train loss, best val loss)
    commands: dict[str, str]  # name -> what its command ends with


DASHES = Trainer(
    script="dashes.py",
    arguments="--save {dir}/model.pt {overrides}",
    options=["--continue_with", "--resume {checkpoint}", "--checkpoints", "model.pt"]
    + ["--batch-size", "2", "--sweep", "learning-rate=1e-2,0.2"],
    config=("", ""),
    results={"run__learning-rate_1e-2": (5, 0.11, 0.61), "run__learning-rate_0.2": (5, 0.3, 0.8)},
    commands={
        "run__learning-rate_1e-2": "model.pt --batch-size=2 --learning-rate=1e-2",
        "run__learning-rate_0.2": "model.pt --batch-size=2 --learning-rate=0.2",
    },
)
SUBCOMMANDS = Trainer(
    script="subcommands.py",
    arguments="pretrain pythia-14m --config {config} --out_dir {dir} {overrides}",
    options=["--continue_with", "--resume {checkpoint}", "--checkpoints", "step-*/", "--train.min_lr=1"],
    config=("tiny.toml", "# a comment\nmax_steps = 6\n"),
    results={"tiny": (6, 5 / 6, 2.0)},
    commands={"tiny": "--train.min_lr=1"},
)
DOTTED = Trainer(
    script="dotted.py",
    arguments="{dir} {config} {overrides}",
    options=["--continue_with", "--checkpoint={checkpoint}", "--checkpoints", "model_*.pt"]
    + ["--trainer.max_iters", "4", "--sweep", "optimizer.lr=1e-3,1e-4"],
    config=("base.yaml", "trainer:\n  max_iters: 100\noptimizer:\n  # a comment\n  lr: 0.1\n"),
    results={"base__optimizer.lr_1e-3": (4, 0.501, 0.751), "base__optimizer.lr_1e-4": (4, 0.5001, 0.7501)},
    commands={
        "base__optimizer.lr_1e-3": "base.yaml --trainer.max_iters=4 --optimizer.lr=1e-3",
        "base__optimizer.lr_1e-4": "base.yaml --trainer.max_iters=4 --optimizer.lr=1e-4",
    },
)
HYDRA = Trainer(
    script="hydra_like.py",
    arguments="run.dir={dir} {overrides:hydra}",
    options=["--continue_with", "resume_from={checkpoint}", "--checkpoints", "state_step*.pt"]
    + ["--optimizer.lr=0", "--sweep", "steps,model.depth=4:2,5:10"],
    config=("", ""),
    results={"run__steps_4__model.depth_2": (4, 0.0, 0.5), "run__steps_5__model.depth_10": (5, 0.0, 2.0)},
    commands={
        "run__steps_4__model.depth_2": " optimizer.lr=0 steps=4 model.depth=2",
        "run__steps_5__model.depth_10": " optimizer.lr=0 steps=5 model.depth=10",
    },
)
JSON_LINES = Trainer(
    script="json_lines.py",
    arguments="{config} --workdir {dir} {overrides}",
    options=["--continue_with=--restore", "--checkpoints", "last*.json", "--sweep", "layers=[1,2],[4]"],
    config=("small.json", '{"lr": 0.5, "layers": [1], "steps": 4}'),
    results={"small__layers__1_2_": (4, 1.25, 2.25), "small__layers__4_": (4, 1.5, 2.5)},
    commands={"small__layers__1_2_": "'--layers=[1,2]'", "small__layers__4_": "'--layers=[4]'"},
)
BARS = Trainer(
    script="bars.py",
    arguments="fit --config {config} --trainer.default_root_dir {dir} {overrides}",
    options=["--continue_with", "--ckpt_path {checkpoint}", "--checkpoints", "checkpoints/epoch=*"]
    + ["--model.lr", "0.25"],
    config=("cli.yaml", "# lightning\n"),
    results={"cli": (4, 0.35, 0.65)},
    commands={"cli": "--model.lr=0.25"},
)


class AnyTrainerTest(RunnerCase):
    """Six makes: run, interrupted in step 3, continued from a checkpoint, completed; each with its losses read."""

    def command_of(self, trainer: Trainer) -> list[str]:
        words = ["--command", f"{sys.executable} {TRAINERS / trainer.script} {trainer.arguments}"]
        name, text = trainer.config
        if name:
            (self.dir / name).write_text(text)
            words += ["--configs", name]
        return [*words, *trainer.options]

    def check(self, trainer: Trainer) -> None:
        command = self.command_of(trainer)
        planned = self.planned(*command)
        self.assertEqual(planned.keys(), trainer.results.keys())
        for name, ending in trainer.commands.items():
            self.assertTrue(shlex.join(planned[name]).endswith(ending), shlex.join(planned[name]))
        runner = self.start(*command, "--jobs", len(planned))
        for name in planned:
            self.wait_for_event(f"{name}: started")
            self.wait_for_third_step(name)
        runner.send_signal(signal.SIGINT)
        self.ended(runner, 130)
        self.assertEqual(self.statuses(), dict.fromkeys(planned, "interrupted"))
        self.go("go")
        done = self.forked("--resume")
        for name, (step, train, best) in trainer.results.items():
            result = self.result(name)
            metrics = result["metrics"]
            self.assertEqual(
                (result["status"], result["attempts"], metrics["step"]), ("completed", 2, step), done.stdout
            )
            self.assertAlmostEqual(metrics["best_val_loss"], best, places=3)
            if train:
                self.assertAlmostEqual(metrics["train_loss"], train, places=3)
            self.assertRegex(self.log(name, "combined").decode(), r"\[RUNNER\] attempt 2 continues from \S+\n")

    def wait_for_third_step(self, name: str) -> None:
        """Until two steps are done: a trainer then waits in its third one (a Lightning counts from 0)."""

        def looks() -> bool:
            said = self.log(name, "stdout") + self.log(name, "stderr")
            return re.search(rb"(?i)(epoch 0?2\b|iter\"?:? 2\b|step:?\"?:? ?2\b)", said) is not None

        wait_for(looks, f"two steps of {name}")

    def test_argparse_with_dashes(self) -> None:
        self.check(DASHES)

    def test_argparse_with_subcommands_and_a_toml_file(self) -> None:
        self.check(SUBCOMMANDS)

    def test_a_yaml_file_and_dotted_keys(self) -> None:
        self.check(DOTTED)

    def test_a_json_file_and_json_lines(self) -> None:
        self.check(JSON_LINES)

    def test_key_value_as_hydra_has_it(self) -> None:
        self.check(HYDRA)

    def test_progress_bars_on_stderr_and_checkpoints_in_directories(self) -> None:
        self.check(BARS)

    def test_without_continue_with_it_starts_over(self) -> None:
        self.forked(*self.command_of(HYDRA._replace(options=["--steps=2", "--optimizer.lrr=1"])), expect=1)
        self.assertIn("Could not override 'optimizer.lrr'", self.log("run", "stderr").decode())
        self.assertIn("# run: starts over: no --continue_with\n", self.forked("--resume", "--dry_run").stdout)

    def test_a_config_that_is_no_python_keeps_its_ending_and_the_trainer_gets_the_original(self) -> None:
        self.forked(*self.command_of(SUBCOMMANDS._replace(options=["--train.max_steps=1"])))
        folder = self.batch() / "tiny"
        self.assertEqual((folder / "config_used.toml").read_text(), SUBCOMMANDS.config[1])
        self.assertEqual((self.batch() / "plan" / "tiny.toml").read_text(), SUBCOMMANDS.config[1])
        metadata = self.json(folder / "experiment_metadata.json")
        self.assertIn("tiny.toml", metadata["command"])
        self.assertNotIn("plan", " ".join(metadata["command"]))


class TemplateTest(RunnerCase):
    def test_doubled_braces_and_quotes_reach_the_training_as_one_word_each(self) -> None:
        command = f"""{sys.executable} -c 'import sys; print(sys.argv[1:])' '{{{{x}}}} y' "$HOME" {{name}} {{slot}}"""
        self.forked("--command", command)
        self.assertEqual(self.log("run"), b"['{x} y', '$HOME', 'run', '0']\n")

    def test_a_device_is_filled_in_and_no_option(self) -> None:
        command = f"{sys.executable} -c 'import sys; print(sys.argv[1:])' --gpu={{device}} {{overrides}}"
        self.forked("--command", command, "--devices", "cuda:3", "--use_amp", "true")
        self.assertEqual(self.log("run"), b"['--gpu=cuda:3', '--use_amp=true']\n")


class MetricsTest(RunnerCase):
    def test_patterns_of_the_users_are_read_from_both_streams_in_place_of_the_built_in_ones(self) -> None:
        code = "print('step 1: train loss 9.0, val loss 9.0')\nprint('it=7 of 10 nll=0.5', file=sys.stderr)\n"
        self.config("a", code + "print('dev nll 0.75')\nprint('it=8 of 10 nll=0.25', file=sys.stderr)")
        patterns = [r"it=(?P<step>\d+) of (?P<total>\d+) nll=(?P<train_loss>\S+)", r"dev nll (?P<val_loss>\S+)"]
        self.forked("--configs", "a.py", *(word for each in patterns for word in ("--metrics", each)))
        metrics = self.result("a")["metrics"]
        self.assertEqual((metrics["step"], metrics["train_loss"], metrics["val_loss"]), (8, 0.25, 0.75))

    def drawn(self) -> Any:
        """The points of the only curve of the page."""
        page = (self.batch() / "report.html").read_text()
        match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
        assert match
        curves = json.loads(match[1])["curves"]
        return curves[0]["val"] if curves else None

    def test_the_page_draws_what_the_patterns_read_on_stderr_too(self) -> None:
        self.config("a", "for n in range(3):\n    print(f'it={n} nll={n + 0.5}', file=sys.stderr)")
        self.forked("--configs", "a.py", "--metrics", r"it=(?P<step>\d+) nll=(?P<val_loss>\S+)")
        self.assertEqual(self.drawn(), [[0, 0.5], [1, 1.5], [2, 2.5]])

    def test_status_of_a_live_batch_reads_what_the_patterns_read_and_nothing_else(self) -> None:
        code = "print('dev nll 0.75')\nprint('step 1: train loss 9.0, val loss 9.0')\nprint('ready', flush=True)\n"
        self.config("a", code + "await_file('go')")
        runner = self.start("--configs", "a.py", "--metrics", "dev nll (?P<val_loss>.*)")
        self.wait_for_line("a", b"ready\n")
        wait_for(lambda: self.summary()["results"]["a"]["metrics"]["val_loss"], "a loss in the summary")
        [row] = json.loads(self.forked("--status", "--json").stdout)["experiments"]
        self.go("go")
        self.ended(runner, 0)
        self.assertEqual((row["step"], row["val_loss"]), (None, 0.75))

    def test_status_shows_the_last_line_of_a_trainer_without_steps_on_either_stream(self) -> None:
        self.config("a", "print('loading data', flush=True)\nprint('shard 3 of 7', flush=True)\nawait_file('go')")
        self.config("b", "print('busy as a bee', file=sys.stderr, flush=True)\nawait_file('go')")
        runner = self.start("--configs", "a.py", "b.py", "--jobs", 2)
        self.wait_for_line("a", b"shard 3 of 7\n")
        self.wait_for_line("b", b"busy as a bee\n", "stderr")
        self.wait_for_event("b: started")
        said = self.forked("--status").stdout
        self.go("go")
        self.ended(runner, 0)
        self.assertIn("    prints: shard 3 of 7\n", said)
        self.assertIn("    prints: busy as a bee\n", said)


class FirstLooksTest(RunnerCase):
    """What stands on a screen of 80 columns."""

    def setUp(self) -> None:
        super().setUp()
        before = os.environ.get("COLUMNS")
        os.environ["COLUMNS"] = "80"
        self.addCleanup(lambda: os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before))

    def long_batch(self) -> str:
        settings = "n_layer = 4\nlearning_rate = 1e-3\nstages = [{'mask': 0.1, 'steps': 100}]\nmax_iters = 1000\n"
        body = "print(f'step 1000: train loss 10.5, val loss {10 + n_layer}.25')\n"
        body += "if n_layer == 3:\n    raise SystemExit('ValueError: ' + 'far too long ' * 12)"
        self.strict_trainer(settings, body)
        for mask in ("0.1", "0.2"):
            stem = f"shakes_{mask[-1]}_char_diffusion_with_masks_" + "of_a_long_name_" * 3
            self.config(stem, f"stages = [{{'mask': {mask}, 'steps': 100}}, {{'mask': 0.9, 'steps': 1000}}]\n")
        return self.forked("--configs", "shake*.py", "--sweep", "n_layer=2,3", expect=1).stdout

    def table_in(self, said: str) -> list[str]:
        """The rows of a table, without its title."""
        lines = said.splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith("experiment "))
        return [line for line in lines[start : start + 12] if line.startswith(("experiment ", "shakes_"))]

    def test_each_row_of_a_table_is_one_line_with_names_cut_in_the_middle_and_errors_below(self) -> None:
        for said in (self.long_batch(), self.forked("--status").stdout):
            rows = self.table_in(said)
            self.assertEqual(len(rows), 5, rows)
            self.assertLessEqual(max(map(len, rows)), 80, rows)
            names = [row.split()[0] for row in rows[1:]]
            self.assertEqual(len(set(names)), 4, rows)
            self.assertTrue(all(".." in name for name in names), rows)
            self.assertIn("    error: exit code 1", said)
            self.assertNotRegex("\n".join(rows), r"\d{4}-\d\d-\d\d")

    def test_what_differs_of_long_values_is_shown_and_the_same_columns_are_not(self) -> None:
        os.environ["COLUMNS"] = "200"
        said = self.long_batch()
        self.assertEqual(said.splitlines()[-1], f"experiments/{self.batch().name}/report.html")
        rows = self.table_in(said)
        self.assertRegex(rows[0], r"n_layer +stages")
        self.assertNotIn("learning_rate", rows[0])
        self.assertTrue(all("0.9" not in row for row in rows), rows)
        self.assertIn("0.1", rows[1])

    def test_status_of_the_base_directory_is_that_of_the_newest_batch_in_it(self) -> None:
        self.config("old", "print('x')")
        self.config("new", "sys.exit(3)")
        self.forked("--configs", "old.py")
        self.forked("--configs", "new.py", expect=1)
        said = self.forked("--status", "experiments").stdout
        self.assertRegex(said, rf"^experiments/{self.batch().name}: finished, 1 failed; ")
        self.assertIn("\nnew ", said)
        self.assertNotIn("old", said)


def python_3_8() -> str:
    """The path of a Python 3.8, empty where there is none."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = sorted(root.glob("versions/3.8*/bin/python3.8"))
    candidates = [*map(str, found), shutil.which("python3.8") or ""]
    for path in filter(None, candidates):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            subprocess.run([path, "-c", ""], check=True, capture_output=True)
            return path
    return ""


OLD_PYTHON = python_3_8()


class OldPythonTest(RunnerCase):
    @unittest.skipUnless(OLD_PYTHON, "no Python 3.8 here")
    def test_python_3_8_gets_one_line_that_says_what_is_needed(self) -> None:
        done: Any = subprocess.run([OLD_PYTHON, str(RUNNER), "--version"], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (2, ""), done.stderr)
        self.assertRegex(done.stderr, r"^error: .*3\.9.*\n$")
