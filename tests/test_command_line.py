"""The command line: what is refused, what reaches the trainer, what is only shown. Real processes throughout."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import unittest
from collections.abc import Sequence
from typing import Any

import run_experiments as runner
from tests.support import TESTS, Forked, RunnerCase

# A trainer that leaves what it was given and what became of it, as strict as the real ones.
STRICT = """
import json, os, sys
out_dir = 'out'
init_from = 'scratch'
batch_size = 12
block_size = 64
n_layer = 6
seed = 1
learning_rate = 6e-4
min_lr = 6e-5
max_iters = 100
decay_lr = True
compile = False
wandb_log = False
wandb_project = 'owt'
device = 'cuda'
stages = [{'type': 'random'}]
dtype = 'bfloat16' if len(sys.argv) > 100 else 'float16'
config_keys = [k for k, v in globals().items() if not k.startswith('_') and isinstance(v, (int, float, str, list))]
exec(open('configurator.py').read())
with open(os.path.join(out_dir, 'seen.json'), 'w') as file:
    json.dump({'argv': sys.argv[1:], 'settings': {k: globals()[k] for k in config_keys}}, file)
"""
RECORD = "import json, os, sys\njson.dump(sys.argv[1:], open(os.path.join(out_dir, 'argv.json'), 'w'))\n"

ABBREVIATED = ("--max_iter", "--batch", "--retrie", "--base_out", "--train", "--job", "--time", "--dev")

# arguments -> what the one line on stderr says, beside others
USAGE_ERRORS: list[tuple[Sequence[str], Sequence[str]]] = [
    ([], ["--configs"]),
    (["--configs"], ["--configs"]),
    (["--configs", "missing.py"], ["missing.py"]),
    (["--configs", "a.py", "esay.py"], ["esay.py", "easy.py"]),
    (["--configs", "nothing*.py"], ["nothing*.py"]),
    (["--configs", "config"], ["config"]),
    (["--configs", "train_run.py"], ["train_run.py"]),
    (["--configs", "lr=1.py"], ["lr=1.py", "="]),
    (["--configs", "a.py", "--batch_size", "abc"], ["--batch_size", "abc"]),
    (["--configs", "a.py", "--batch_size", "1.5"], ["--batch_size", "1.5"]),
    (["--configs", "a.py", "--batch_size="], ["--batch_size"]),
    (["--configs", "a.py", "--batch_size"], ["--batch_size"]),
    (["--configs", "a.py", "--batch_size", "--quiet"], ["--batch_size"]),
    (["--configs", "a.py", "--max_iters", "many"], ["--max_iters", "many"]),
    (["--configs", "a.py", "--learning_rate", "fast"], ["--learning_rate", "fast"]),
    (["--configs", "a.py", "--learning_rate", "nan"], ["--learning_rate", "nan"]),
    (["--configs", "a.py", "--wandb_enabled", "maybe"], ["--wandb_enabled", "maybe"]),
    (["--configs", "a.py", "--wandb_enabled", "2"], ["--wandb_enabled", "2"]),
    (["--configs", "a.py", "--compile", "on"], ["--compile", "on"]),
    (["--configs", "a.py", "--device", "gpu"], ["gpu", "cuda"]),
    (["--configs", "a.py", "--bacth_size", "4"], ["bacth_size", "did you mean 'batch_size'"]),
    (["--configs", "a.py", "--n_layers", "4"], ["n_layers", "'n_layer'"]),
    (["--configs", "a.py", "--time_out", "4"], ["time_out", "'timeout'"]),
    (["--configs", "a.py", "--dry-run"], ["--dry-run", "'dry_run'"]),
    (["--configs", "a.py", "--n_layer", "x"], ["--n_layer", "'x'"]),
    (["--configs", "a.py", "--n_layer", "two\nlines"], ["--n_layer"]),
    (["--configs", "a.py", "--n_layer"], ["--n_layer"]),
    (["--configs", "a.py", "--decay_lr", "maybe"], ["--decay_lr", "maybe"]),
    (["--configs", "a.py", "--stages", "5"], ["--stages", "list"]),
    (["--configs", "a.py", "--n-layer", "4"], ["--n-layer"]),
    (["--configs", "a.py", "--2fast", "4"], ["--2fast"]),
    (["--configs", "a.py", "--a.b=4"], ["--a.b"]),
    (["--configs", "a.py", "--=4"], ["--"]),
    (["--configs", "a.py", "-x"], ["-x"]),
    (["--configs", "a.py", "--quiet", "stray"], ["stray"]),
    (["--configs", "a.py", "--quiet=1"], ["--quiet"]),
    (["--configs", "a.py", "--out_dir", "x"], ["--out_dir", "--base_out_dir"]),
    (["--configs", "a.py", "--sweep", "out_dir=x,y"], ["out_dir"]),
    (["--configs", "a.py", "--train_script", "tarin.py"], ["tarin.py", "--train_script"]),
    (["--configs", "a.py", "--train_script", "config"], ["config"]),
    (["--configs", "a.py", "--train_script", "broken.py"], ["broken.py", "line 2"]),
    (["--configs", "a.py", "--train_script"], ["--train_script"]),
    (["--configs", "a.py", "--base_out_dir", "x=y"], ["x=y", "="]),
    (["--configs", "a.py", "--base_out_dir", "a.py/x"], ["a.py/x"]),
    (["--configs", "a.py", "--base_out_dir", "a.py"], ["a.py"]),
    (["--configs", "a.py", "--grace", "long"], ["--grace", "long"]),
    (["--configs", "a.py", "--grace", "-1"], ["--grace", "-1"]),
    (["--configs", "a.py", "--grace", "nan"], ["--grace", "nan"]),
    (["--configs", "a.py", "--timeout", "soon"], ["--timeout", "soon"]),
    (["--configs", "a.py", "--timeout", "0"], ["--timeout"]),
    (["--configs", "a.py", "--stall", "1x"], ["--stall", "1x"]),
    (["--configs", "a.py", "--retries", "-1"], ["--retries", "-1"]),
    (["--configs", "a.py", "--retries", "some"], ["--retries", "some"]),
    (["--configs", "a.py", "--max_failures", "0"], ["--max_failures", "0"]),
    (["--configs", "a.py", "--jobs", "0"], ["--jobs", "0"]),
    (["--configs", "a.py", "--jobs", "many"], ["--jobs", "many"]),
    (["--configs", "a.py", "--devices", ""], ["--devices"]),
    (["--configs", "a.py", "--devices", "cuda:0,,cuda:1"], ["--devices"]),
    (["--configs", "a.py", "--devices", "cuda:0,gpu"], ["gpu", "cuda"]),
    (["--configs", "a.py", "--devices", "cuda:0,cuda:1", "--device", "cpu"], ["--device", "--devices"]),
    (["--configs", "a.py", "--devices", "cuda:0", "--sweep", "device=cpu,cuda"], ["device", "--devices"]),
    (["--configs", "a.py", "--devices", "cuda:0,cuda:1", "--jobs", "3"], ["--jobs", "--devices"]),
    (["--configs", "a.py", "--devices", "cuda:0,cuda:0"], ["--devices", "cuda:0"]),
    (["--configs", "a.py", "--devices", "auto"], ["nvidia-smi"]),
    (["--configs", "a.py", "--sweep"], ["--sweep"]),
    (["--configs", "a.py", "--sweep", "seed"], ["--sweep", "seed"]),
    (["--configs", "a.py", "--sweep", "seed="], ["--sweep", "seed="]),
    (["--configs", "a.py", "--sweep", "seed=1,,2"], ["--sweep", "seed=1,,2"]),
    (["--configs", "a.py", "--sweep", "=1,2"], ["--sweep", "=1,2"]),
    (["--configs", "a.py", "--sweep", "a-b=1,2"], ["--sweep", "a-b=1,2"]),
    (["--configs", "a.py", "--sweep", "seed=1,x"], ["--seed", "'x'"]),
    (["--configs", "a.py", "--sweep", "sede=1,2"], ["sede", "'seed'"]),
    (["--configs", "a.py", "--sweep", "seed=1,2", "--seed", "3"], ["--seed", "--sweep"]),
    (["--configs", "a.py", "--sweep", "seed=1,2", "--sweep", "seed=3"], ["--sweep", "seed"]),
    (["--configs", "a.py", "--sweep", "wandb_enabled=true,false", "--wandb_log", "true"], ["wandb_", "--sweep"]),
    (["--configs", "a.py", "--launcher", "nosuchlauncher -n 2"], ["nosuchlauncher", "--launcher"]),
    (["--configs", "a.py", "--launcher", "./a.py"], ["./a.py", "--launcher"]),  # no program
    (["--configs", "a.py", "--launcher", "env 'x"], ["env 'x"]),
    (["--configs", "a.py", "--launcher", "env {job}"], ["{job}"]),
    (["--configs", "a.py", "--launcher", "''"], ["--launcher"]),
    (["--configs", "a.py", "--stop_signal", "KILL"], ["--stop_signal", "KILL"]),
    (["--configs", "a.py", "--stop_signal", "NOSUCH"], ["--stop_signal", "NOSUCH"]),
    (["--configs", "a.py", "--stop_signal", ""], ["--stop_signal"]),
    (["--resume"], ["experiments"]),
    (["--resume", "nowhere"], ["nowhere"]),
    (["--resume", "config"], ["config"]),
    (["--resume", "a.py"], ["a.py"]),
    (["--status", "nowhere"], ["nowhere"]),
    (["--report"], ["experiments"]),
    (["--status", "--configs", "a.py"], ["--configs", "--status"]),
    (["--resume", "--report"], ["--resume", "--report"]),
    (["--resume", "--configs", "a.py"], ["--configs", "--resume"]),
    (["--resume", "--sweep", "seed=1,2"], ["--sweep", "--resume"]),
]


class CommandLineCase(RunnerCase):
    """The runner beside a strict trainer and a few configs."""

    def setUp(self) -> None:
        super().setUp()
        self.trainer(STRICT)
        (self.dir / "configurator.py").write_bytes((TESTS / "configurator.py").read_bytes())
        for name in ("a", "easy", "config/b", "lr=1"):
            self.config(name)
        (self.dir / "broken.py").write_text("a = 1\nb = = 2\n")

    def trainer(self, source: str) -> None:
        (self.dir / "train_run.py").write_text(source)

    def files(self) -> list[tuple[str, int]]:
        return sorted((str(path), path.lstat().st_mtime_ns) for path in self.dir.rglob("*"))

    def run_all(self, table: Sequence[Sequence[str]], width: int = 4) -> list[subprocess.CompletedProcess[str]]:
        """The runner with each list of arguments, some of them side by side."""
        done = []
        for start in range(0, len(table), width):
            together = [Forked(self.dir, *args) for args in table[start : start + width]]
            done += [each.ended() for each in together]
        return done

    def commands(self, *args: Any) -> list[list[str]]:
        """The commands that a dry run prints."""
        done = self.run_runner("--dry_run", *args, expect=0)
        return [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("#")]

    def settings(self, *args: Any) -> list[str]:
        """The arguments that the first of a dry run's commands gives to the trainer, --out_dir apart."""
        words = [word for word in self.commands(*args)[0] if word.startswith("--")]
        self.assertTrue(words[0].startswith("--out_dir="), words)
        return words[1:]

    def seen(self, name: str = "a") -> Any:
        """What the strict trainer saw."""
        return json.loads((self.batch() / name / "seen.json").read_text())


class UsageErrorTest(CommandLineCase):
    def test_a_mistake_is_told_in_one_line_with_exit_2_and_leaves_nothing_behind(self) -> None:
        before = self.files()
        for (args, parts), done in zip(USAGE_ERRORS, self.run_all([args for args, _ in USAGE_ERRORS])):
            with self.subTest(args=args):
                self.assertEqual(done.returncode, 2, done.stdout + done.stderr)
                self.assertRegex(done.stderr, re.compile(r"error: [^\n]+\n\Z"))
                self.assertNotIn("Traceback", done.stdout + done.stderr)
                for part in parts:
                    self.assertIn(part, done.stderr)
        self.assertEqual(self.files(), before)

    def test_a_mistake_is_told_so_by_the_program_itself_too(self) -> None:
        """The table above runs in forks of the tests; this is the program as a user starts it."""
        for args in (["--configs", "a.py", "--bacth_size", "4"], ["--resume", "nowhere"]):
            done = self.run_runner(*args, expect=2)
            self.assertEqual(done.stdout, "")
            self.assertRegex(done.stderr, re.compile(r"error: [^\n]+\n\Z"))

    def test_a_wandb_setting_that_the_trainer_has_under_no_name_is_unknown(self) -> None:
        self.trainer(STRICT.replace("wandb_log = False\n", ""))
        done = self.run_runner("--configs", "a.py", "--wandb_enabled", "true", expect=2)
        self.assertIn("wandb_log", done.stderr)

    def test_no_option_can_be_abbreviated(self) -> None:
        table = [["--conf", "a.py"], ["--ver"], ["--hel"], *(["--configs", "a.py", word, "5"] for word in ABBREVIATED)]
        for args, done in zip(table, self.run_all(table)):
            with self.subTest(args=args):
                self.assertEqual(done.returncode, 2, done.stdout + done.stderr)
        self.assertFalse((self.dir / "experiments").exists())


class HelpTest(CommandLineCase):
    def test_version_is_told_on_stdout(self) -> None:
        done = self.run_runner("--version", expect=0)
        self.assertEqual(done.stdout.split()[-1:], [runner.__version__])
        self.assertEqual(done.stderr, "")

    def test_help_names_every_option_and_the_exit_codes(self) -> None:
        done = self.run_runner("--help", expect=0)
        names = {field.name for field in dataclasses.fields(runner.Options)} - {"overrides", "trainer_args"}
        names |= {"batch_size", "wandb_project", "wandb_enabled", "device", "compile", "max_iters", "learning_rate"}
        for name in sorted(names | {"version", "help"}):
            with self.subTest(name=name):
                self.assertRegex(done.stdout, rf"(?m)^  (-h, )?--{name}\b")
        for code in ("0", "1", "2", "75", r"128\+N"):
            with self.subTest(code=code):
                self.assertRegex(done.stdout.partition("xit codes")[2], rf"\b{code}\b")
        self.assertEqual(done.stderr, "")

    def test_help_fits_a_terminal_of_100_columns(self) -> None:
        done = self.run_runner("--help", expect=0, env={**os.environ, "COLUMNS": "100"})
        self.assertEqual([line for line in done.stdout.splitlines() if len(line) > 100], [])


class OverrideTest(CommandLineCase):
    def test_overrides_reach_the_trainer_in_its_own_form(self) -> None:
        args = ["--batch_size", "4", "--learning_rate", "1", "--compile=FALSE", "--wandb_enabled", "yes"]
        args += ["--wandb_project", "2024", "--device", "cpu", "--max_iters=1e3"]
        args += ["--n_layer", "8", "--min_lr", "-1e-4", "--seed", "-5", "--decay_lr", "no", "--dtype", "float32"]
        args += ["--stages", "[{'type': 'a=b'}]"]
        self.run_runner("--configs", "a.py", *args, expect=0)
        seen, place = self.seen(), self.batch() / "a"
        self.assertEqual(
            seen["argv"],
            [
                "a.py",
                f"--out_dir={place.relative_to(self.dir.resolve())}",
                "--batch_size=4",
                "--learning_rate=1.0",
                "--compile=False",
                "--wandb_log=True",
                "--wandb_project='2024'",
                "--device=cpu",
                "--max_iters=1000",
                "--n_layer=8",
                "--min_lr=-0.0001",
                "--seed=-5",
                "--decay_lr=False",
                "--dtype=float32",
                "--stages=[{'type': 'a\\x3db'}]",
            ],
        )
        settings = seen["settings"]
        expected = dict(batch_size=4, learning_rate=1.0, compile=False, wandb_log=True, wandb_project="2024", seed=-5)
        expected.update(max_iters=1000, min_lr=-1e-4, decay_lr=False, dtype="float32", stages=[{"type": "a=b"}])
        self.assertEqual({key: settings[key] for key in expected}, expected)
        self.assertEqual(settings["block_size"], 64)

    def test_a_value_with_an_equals_sign_survives_the_configurator(self) -> None:
        for text in ("a=b", "x=='y'", "="):
            with self.subTest(text=text):
                self.run_runner("--configs", "a.py", f"--wandb_project={text}", expect=0)
                self.assertEqual(self.seen()["settings"]["wandb_project"], text)

    def test_an_empty_text_is_a_value(self) -> None:
        self.run_runner("--configs", "a.py", "--wandb_project", "", expect=0)
        self.assertEqual(self.seen()["settings"]["wandb_project"], "")

    def test_booleans_are_read_in_all_their_spellings(self) -> None:
        spellings = [("true", "false", "1"), ("TRUE", "FALSE", "0"), ("yes", "no", "True"), ("No", "yEs", "False")]
        meant = [("True", "False", "True"), ("True", "False", "False"), ("True", "False", "True")]
        meant += [("False", "True", "False")]
        table = [
            ["--dry_run", "--configs", "a.py", "--wandb_enabled", log, f"--compile={compiled}", "--decay_lr", decay]
            for log, compiled, decay in spellings
        ]
        for values, done in zip(meant, self.run_all(table)):
            with self.subTest(args=done.args):
                for key, value in zip(("wandb_log", "compile", "decay_lr"), values):
                    self.assertIn(f" --{key}={value}", done.stdout)

    def test_negative_values_are_values(self) -> None:
        args = ["--min_lr", "-1e-4", "--seed", "-1", "--learning_rate", "-.5", "--max_iters=-3", "--batch_size", "-2"]
        self.assertEqual(
            self.settings("--configs", "a.py", *args),
            ["--min_lr=-0.0001", "--seed=-1", "--learning_rate=-0.5", "--max_iters=-3", "--batch_size=-2"],
        )

    def test_of_a_setting_given_twice_the_last_counts(self) -> None:
        args = ["--n_layer", "2", "--batch_size", "4", "--n_layer=3", "--batch_size=5"]
        self.assertEqual(sorted(self.settings("--configs", "a.py", *args)), ["--batch_size=5", "--n_layer=3"])

    def test_wandb_enabled_goes_out_under_the_trainers_own_name(self) -> None:
        table = [
            ("wandb_log = False\n", "--wandb_log=True"),
            ("wandb_enabled = False\n", "--wandb_enabled=True"),
            ("wandb_enabled = False\nwandb_log = False\n", "--wandb_log=True"),
        ]
        for declared, argument in table:
            with self.subTest(declared=declared):
                self.trainer(STRICT.replace("wandb_log = False\n", declared))
                self.assertEqual(self.settings("--configs", "a.py", "--wandb_enabled", "true"), [argument])

    def test_a_script_without_a_configurator_gets_unknown_settings_as_they_are(self) -> None:
        self.trainer((TESTS / "child.py").read_text())
        self.config("a", RECORD)
        odd = ["--whatever", "1e-3", "--name=2024", "--flag", "true", "--raw=\udcff", "--quoted='x'", "--eq=a=b"]
        self.run_runner("--configs", "a.py", *odd, expect=0)
        argv = json.loads((self.batch() / "a" / "argv.json").read_text())
        self.assertEqual(
            argv[2:], ["--whatever=1e-3", "--name=2024", "--flag=true", "--raw=\udcff", "--quoted='x'", "--eq=a=b"]
        )

    def test_what_follows_two_dashes_is_handed_on_untouched(self) -> None:
        self.trainer(RECORD.replace("out_dir", "sys.argv[2][10:]"))
        last = ["--n_layer=x", "--configs", "-y", "a b", "", "--", "--dry_run=1"]
        self.run_runner("--configs", "a.py", "--n_layer", "4", "--", *last, expect=0)
        argv = json.loads((self.batch() / "a" / "argv.json").read_text())
        self.assertEqual(argv[2:], ["--n_layer=4", *last])

    def test_configs_can_be_given_in_several_ways_at_once(self) -> None:
        names = [
            words[2]
            for words in self.commands("--configs", "a.py", "--quiet", "--configs=easy.py", "--configs", "config/*.py")
        ]
        self.assertEqual(names, ["a.py", "easy.py", "config/b.py"])

    def test_all_of_a_training_repository_can_be_named_by_one_pattern(self) -> None:
        (self.dir / "lr=1.py").unlink()
        done = self.run_runner("--dry_run", "--configs", "*.py", expect=0)
        for name in ("train_run.py", "configurator.py"):
            self.assertRegex(done.stdout, rf"(?m)^left out.*: {name}$")
        self.assertRegex(done.stdout, r"(?m)^# a: ")


class DryRunTest(CommandLineCase):
    ARGS = ("--configs", "a.py", "config/b.py", "--wandb_project", "it's a 'test'", "--sweep", "seed=1,2")

    def test_a_dry_run_prints_exactly_what_a_real_run_does_apart_from_the_directory(self) -> None:
        shown = self.commands(*self.ARGS)
        self.run_runner(*self.ARGS, expect=0)
        batch = self.batch()
        ran = [
            self.json(batch / f"{config}__seed_{seed}" / "experiment_metadata.json")["command"]
            for config in "ab"
            for seed in (1, 2)
        ]
        date = re.compile(r"experiment_\d{8}_\d{6}")
        self.assertEqual(
            [[date.sub("DIR", word) for word in command] for command in shown],
            [[date.sub("DIR", word) for word in command] for command in ran],
        )
        self.assertIn("DIR", date.sub("DIR", " ".join(shown[0])))

    def test_a_dry_run_prints_the_device_that_a_slot_would_give(self) -> None:
        shown = self.commands("--configs", "a.py", "easy.py", "--devices", "cpu,cuda:1")
        self.assertIn("--device=cpu", shown[0])
        self.assertIn("--device=cuda:1", shown[1])

    def test_a_dry_run_creates_nothing_and_starts_nothing(self) -> None:
        self.trainer("open('started', 'w')\n" + STRICT)
        before = self.files()
        self.commands(*self.ARGS)
        self.commands("--configs", "a.py", "--base_out_dir", "elsewhere/deep")
        self.assertEqual(self.files(), before)

    def test_a_dry_run_says_why_each_would_run_or_fail(self) -> None:
        done = self.run_runner("--dry_run", "--configs", "a.py", "broken.py", expect=0)
        lines = done.stdout.splitlines()
        self.assertRegex(lines[0], r"^# a: starts")
        self.assertRegex(lines[2], r"^# broken: .*broken\.py, line 2.*b = = 2")
        self.assertEqual(len(lines), 3)

    def test_a_dry_run_in_a_place_that_is_not_writable_still_shows_the_plan(self) -> None:
        self.assertEqual(len(self.commands("--configs", "a.py", "--base_out_dir", "/proc/nowhere")), 1)


class QuietTest(CommandLineCase):
    def test_quiet_prints_nothing_when_all_went_well(self) -> None:
        done = self.run_runner("--quiet", "--configs", "*y.py", expect=0)
        self.assertEqual((done.stdout, done.stderr), ("", ""))

    def test_quiet_tells_of_what_failed(self) -> None:
        done = self.run_runner("--quiet", "--configs", "a.py", "broken.py", expect=1)
        self.assertIn("broken", done.stdout)
        self.assertIn("failed", done.stdout)


if __name__ == "__main__":
    unittest.main()
