"""The command line: what is refused, what reaches the trainer, what is only shown."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import run_experiments as runner
from tests.support import RUNNER, TESTS, RunnerCase

# A trainer that leaves what it was given and what became of it, as strict as the real ones.
SETTINGS = """
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
"""
SHOW = """
import json
with open(os.path.join(out_dir, 'seen.json'), 'w') as file:
    print(f'iter {max_iters}: loss 1.0')
    json.dump({'argv': sys.argv[1:], 'settings': {k: globals()[k] for k in config_keys}}, file)
"""
RECORD = "import json, os, sys\njson.dump(sys.argv[1:], open(os.path.join(out_dir, 'argv.json'), 'w'))\n"

# arguments -> what the one line on stderr says, beside others
USAGE_ERRORS: list[tuple[Sequence[str], Sequence[str]]] = [
    ([], ["--configs"]),
    (["--configs"], ["--configs"]),
    (["--configs", "missing.py"], ["missing.py"]),
    (["--configs", "a.py", "esay.py"], ["esay.py", "easy.py"]),
    (["--configs", "nothing*.py"], ["nothing*.py"]),
    (["--configs", "config"], ["config/*.py"]),
    (["--configs", "confgi/b.py"], ["confgi"]),
    (["--configs", "train_run.py"], ["train_run.py"]),
    (["--configs", "nowhere/**/*.py"], ["nowhere/**/*.py"]),
    (["--configs", "lr=2/*.py"], ["lr=2/c.py", "="]),
    (["--configs", "lr=1.py"], ["lr=1.py", "="]),
    (["--configs", "a.py", "--batch_size", "1.5"], ["--batch_size", "1.5"]),
    (["--configs", "a.py", "--batch-size", "4"], ["did you mean 'batch_size'?"]),
    (
        ["--configs", "a.py", "--compile"],
        ["--compile is a setting of the trainer and wants true or false: --compile VALUE"],
    ),
    (["--configs", "a.py", "--n_layer"], ["--n_layer is a setting of the trainer and wants a value: --n_layer VALUE"]),
    (["--configs", "a.py", "--batch_size"], ["--batch_size"]),
    (["--configs", "a.py", "--batch_size", "--quiet"], ["--batch_size"]),
    (["--configs", "a.py", "--learning_rate", "fast"], ["--learning_rate", "fast"]),
    (["--configs", "a.py", "--wandb_enabled", "maybe"], ["--wandb_log", "maybe"]),
    (["--configs", "a.py", "--device", "gpu"], ["gpu", "cuda"]),
    (["--configs", "a.py", "--bacth_size", "4"], ["bacth_size", "did you mean 'batch_size'"]),
    (["--configs", "a.py", "--n_layers", "4"], ["n_layers", "'n_layer'"]),
    (["--configs", "a.py", "--time_out", "4"], ["time_out", "'timeout'"]),
    (["--configs", "a.py", "--dry-run"], ["--dry-run", "'dry_run'"]),
    (["--configs", "a.py", "--n_layer", "x"], ["--n_layer", "'x'"]),
    (["--configs", "a.py", "--n-layer", "4"], ["'n-layer'", "'n_layer'"]),
    (["--configs", "a.py", "--2fast", "4"], ["2fast"]),
    (["--configs", "a.py", "-x"], ["-x"]),
    (["--configs", "a.py", "--quiet", "stray"], ["stray"]),
    (["--configs", "a.py", "--quiet=1"], ["--quiet"]),
    (["--configs", "a.py", "--out_dir", "x"], ["--out_dir", "--base_out_dir"]),
    (["--configs", "a.py", "--sweep", "out_dir=x,y"], ["out_dir"]),
    (["--configs", "a.py", "--train_script", "tarin.py"], ["tarin.py", "--train_script"]),
    (["--configs", "a.py", "--train_script", "broken.py"], ["broken.py", "line 2"]),
    (["--configs", "a.py", "--base_out_dir=--"], ["--base_out_dir"]),
    (["--configs", "a.py", "--train_script"], ["--train_script"]),
    (["--configs", "a.py", "--base_out_dir", "x=y"], ["x=y", "="]),
    (["--configs", "a.py", "--base_out_dir", "a.py/x"], ["a.py/x"]),
    (["--configs", "a.py", "--grace", "-1"], ["--grace", "-1"]),
    (["--configs", "a.py", "--grace", "nan"], ["--grace", "nan"]),
    (["--configs", "a.py", "--timeout", "0"], ["--timeout"]),
    (["--configs", "a.py", "--stall", "1x"], ["--stall", "1x"]),
    (["--configs", "a.py", "--retries", "-1"], ["--retries", "-1"]),
    (["--configs", "a.py", "--max_failures", "0"], ["--max_failures", "0"]),
    (["--configs", "a.py", "--jobs", "0"], ["--jobs", "0"]),
    (["--configs", "a.py", "--devices", "cuda:0,,cuda:1"], ["--devices"]),
    (["--configs", "a.py", "--devices", "cuda:0,gpu"], ["gpu", "cuda"]),
    (["--configs", "a.py", "--devices", "cuda:0,cuda:1", "--device", "cpu"], ["--device", "--devices"]),
    (["--configs", "a.py", "--devices", "cuda:0", "--sweep", "device=cpu,cuda"], ["device", "--devices"]),
    (["--configs", "a.py", "--devices", "cuda:0,cuda:1", "--jobs", "3"], ["--jobs", "--devices"]),
    (["--configs", "a.py", "--devices", "auto"], ["nvidia-smi"]),
    (["--configs", "a.py", "--sweep"], ["--sweep"]),
    (["--configs", "a.py", "--sweep", "seed"], ["--sweep", "seed"]),
    (["--configs", "a.py", "--sweep", "seed=1,,2"], ["--sweep", "seed=1,,2"]),
    (["--configs", "a.py", "--sweep", "a-b=1,2"], ["a-b"]),
    (["--configs", "a.py", "--sweep", "seed=1,x"], ["--seed", "'x'"]),
    (["--configs", "a.py", "--sweep", "sede=1,2"], ["sede", "'seed'"]),
    (["--configs", "a.py", "--sweep", "seed=1,2", "--seed", "3"], ["--seed", "--sweep"]),
    (["--configs", "a.py", "--sweep", "seed=1,2", "--sweep", "seed=3"], ["--sweep", "seed"]),
    (["--configs", "a.py", "--sweep", "a,seed=1:2", "--sweep", "seed=3"], ["--sweep", "twice", "a, seed, seed"]),
    (["--configs", "a.py", "--sweep", "a,a=1:2"], ["--sweep", "twice"]),
    (["--configs", "a.py", "--sweep", "wandb_enabled=true,false", "--wandb_log", "true"], ["wandb_", "--sweep"]),
    (["--configs", "a.py", "--launcher", "nosuchlauncher -n 2"], ["nosuchlauncher", "--launcher"]),
    (["--configs", "a.py", "--launcher", "./a.py"], ["./a.py", "--launcher"]),  # no program
    (["--configs", "a.py", "--launcher", "env 'x"], ["env 'x"]),
    (["--configs", "a.py", "--launcher", "env {job}"], ["{job}"]),
    (["--configs", "a.py", "--launcher", "''"], ["--launcher"]),
    *((["--configs", "a.py", "--launcher", f"env {brace}"], ["{"]) for brace in ("{}", "{", "{a b}")),
    (["--configs", "a.py", "--shard", "5/4"], ["--shard", "5/4"]),
    (["--configs", "a.py", "--metrics", "("], ["--metrics", "not a regular expression: ("]),
    (["--command", "nosuchprogram {dir}"], ["not found: nosuchprogram"]),
    (["--configs", "a.py", "--stop_signal", "KILL"], ["--stop_signal", "KILL"]),
    (["--configs", "a.py", "--stop_signal", "NOSUCH"], ["--stop_signal", "NOSUCH"]),
    (["--resume"], ["experiments"]),
    (["--resume", "nowhere"], ["nowhere"]),
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
        self.strict_trainer(SETTINGS, SHOW)
        for name in ("a", "easy", "config/b", "lr=1", "lr=2/c"):
            self.config(name)
        (self.dir / "broken.py").write_text("a = 1\nb = = 2\n")

    def files(self) -> list[tuple[str, int]]:
        return sorted((str(path), path.lstat().st_mtime_ns) for path in self.dir.rglob("*"))

    def settings(self, *args: Any) -> list[str]:
        """The settings that a dry run's one command gives to the trainer."""
        [words] = self.planned("--configs", "a.py", *args).values()
        return [word for word in words if re.match("--(?!out_dir=)", word)]

    def seen(self) -> Any:
        """What the strict trainer saw."""
        return json.loads((self.batch() / "a" / "seen.json").read_text())


class UsageErrorTest(CommandLineCase):
    def test_a_mistake_is_told_in_one_line_with_exit_2_and_leaves_nothing_behind(self) -> None:
        before = self.files()
        for args, parts in USAGE_ERRORS:
            with self.subTest(args=args):
                done = self.forked(*args, expect=2)
                self.assertRegex(done.stderr, re.compile(r"\Aerror: [^\n]+\n\Z"))
                for part in parts:
                    self.assertIn(part, done.stderr)
        self.assertEqual(self.files(), before)

    def test_a_mistake_is_told_so_by_the_program_itself_too(self) -> None:
        """The table above runs in forks of the tests; this is the program as a user starts it."""
        for args in (["--configs", "a.py", "--bacth_size", "4"], ["--resume", "nowhere"]):
            done = self.run_runner(*args, expect=2)
            self.assertEqual(done.stdout, "")
            self.assertRegex(done.stderr, re.compile(r"\Aerror: [^\n]+\n\Z"))

    def test_a_wandb_setting_that_the_trainer_has_under_no_name_is_unknown(self) -> None:
        self.strict_trainer(SETTINGS.replace("wandb_log = False\n", ""))
        self.assertIn("wandb_log", self.forked("--configs", "a.py", "--wandb_enabled", "true", expect=2).stderr)

    def test_no_option_can_be_abbreviated(self) -> None:
        for word in ("--max_iter", "--batch", "--retrie", "--base_out", "--train", "--job", "--time", "--ver", "--hel"):
            with self.subTest(word=word):
                self.forked("--configs", "a.py", word, "5", expect=2)
        self.assertFalse((self.dir / "experiments").exists())


class HelpTest(CommandLineCase):
    def test_version_is_told_on_stdout(self) -> None:
        done = self.run_runner("--version", expect=0)
        self.assertEqual(done.stdout.split()[-1:], [runner.__version__])
        self.assertEqual(done.stderr, "")

    def test_help_names_every_option_and_the_exit_codes(self) -> None:
        done = self.run_runner("--help", expect=0)
        names = {field.name for field in dataclasses.fields(runner.Options)} - {"overrides", "trainer_args"}
        for name in sorted(names | {"version", "help"}):
            with self.subTest(name=name):
                self.assertRegex(done.stdout, rf"(?m)^  (-h, )?--{name}\b")
        for name in ("batch_size", "wandb_project", "wandb_enabled", "device", "compile", "max_iters", "learning_rate"):
            with self.subTest(name=name):
                self.assertRegex(done.stdout, rf"(?m)^  .*--{name} [A-Z]+\b")
        for code in ("0", "1", "2", "75", r"128\+N"):
            with self.subTest(code=code):
                self.assertRegex(done.stdout.partition("xit codes")[2], rf"\b{code}\b")
        self.assertEqual(done.stderr, "")

    def test_help_is_there_without_docstrings_too(self) -> None:
        done = subprocess.run([sys.executable, "-OO", RUNNER, "--help"], capture_output=True, text=True)
        self.assertIn("Exit codes: 0 all", done.stdout, done.stderr)

    def test_help_fits_two_screens(self) -> None:
        done = self.run_runner("--help", expect=0, env={"COLUMNS": "80"})
        lines = done.stdout.splitlines()
        self.assertLessEqual(len(lines), 2 * 24)
        self.assertLessEqual(max(map(len, lines)), 80)


class NameTest(CommandLineCase):
    def test_the_runner_works_under_any_name_and_says_how_it_goes_on_under_that_name(self) -> None:
        shutil.copy(RUNNER, self.dir / "re.py")  # a library of this name is imported
        (self.dir / "re").symlink_to("re.py")
        for words in (["re.py"], ["-S", "-O", "re.py"], ["re"]):
            with self.subTest(words=words):
                command: list[Any] = [sys.executable, *words, "--configs", "broken.py"]
                done = subprocess.run(command, cwd=self.dir, capture_output=True, text=True)
                self.assertRegex(done.stdout, rf"(?m)^continue with: \S*python\S* {words[-1]} --resume /", done.stderr)

    def test_what_uv_runs_goes_on_with_the_python_of_its_environment(self) -> None:
        command: list[Any] = [sys.executable, RUNNER, "--configs", "broken.py"]
        environment = {**os.environ, "UV": "/usr/bin/uv"}
        done = subprocess.run(command, cwd=self.dir, env=environment, capture_output=True, text=True)
        self.assertIn(f"continue with: {sys.executable} {RUNNER} --resume /", done.stdout)

    def test_only_where_no_script_is_named_train_py_stands_for_train_run_py(self) -> None:
        (self.dir / "train_run.py").rename(self.dir / "train.py")
        [command] = self.planned("--configs", "a.py").values()
        self.assertEqual(command[1], "train.py")
        err = self.forked("--configs", "a.py", "--train_script", "train_run.py", expect=2).stderr
        self.assertIn("training script can't be used: train_run.py: No such file", err)


class OverrideTest(CommandLineCase):
    def test_overrides_reach_the_trainer_in_its_own_form(self) -> None:
        given = "--batch_size 4 --learning_rate 1 --compile=FALSE --wandb_enabled yes --wandb_project 2024 --device cpu"
        given += " --max_iters=1e3 --n_layer 2 --n_layer 8 --min_lr -1e-4 --seed -5 --decay_lr no --dtype float32"
        self.run_runner("--configs", "a.py", *given.split(), "--stages", "[{'type': 'a=b'}]", expect=0)
        seen, place = self.seen(), self.batch() / "a"
        self.assertEqual(os.path.basename(seen["argv"][0]), "a.py")
        got = f"--out_dir={place.relative_to(self.dir.resolve())} --batch_size=4 --learning_rate=1.0 --compile=False"
        got += " --wandb_log=True --wandb_project='2024' --device=cpu --max_iters=1000 --n_layer=8 --min_lr=-0.0001"
        got += " --seed=-5 --decay_lr=False --dtype=float32"
        self.assertEqual(seen["argv"][1:], [*got.split(), "--stages=[{'type': 'a\\x3db'}]"])
        settings = seen["settings"]
        expected = dict(batch_size=4, learning_rate=1.0, compile=False, wandb_log=True, wandb_project="2024", seed=-5)
        expected.update(max_iters=1000, min_lr=-1e-4, decay_lr=False, dtype="float32", stages=[{"type": "a=b"}])
        self.assertEqual({key: settings[key] for key in expected}, expected)
        self.assertEqual(settings["block_size"], 64)

    def test_a_script_without_a_configurator_gets_unknown_settings_as_they_are(self) -> None:
        (self.dir / "train_run.py").write_bytes((TESTS / "child.py").read_bytes())
        self.config("a", RECORD)
        odd = ["--whatever", "1e-3", "--name=2024", "--flag", "true", "--raw=\udcff", "--quoted='x'", "--eq=a=b"]
        self.run_runner("--configs", "a.py", *odd, expect=0)
        argv = json.loads((self.batch() / "a" / "argv.json").read_text())
        self.assertEqual(
            argv[2:], ["--whatever=1e-3", "--name=2024", "--flag=true", "--raw=\udcff", "--quoted='x'", "--eq=a=b"]
        )

    def test_what_follows_two_dashes_is_handed_on_untouched(self) -> None:
        (self.dir / "train_run.py").write_text(RECORD.replace("out_dir", "sys.argv[2][10:]"))
        last = ["--n_layer=x", "--configs", "-y", "a b", "", "--", "--dry_run=1"]
        self.run_runner("--configs", "a.py", "--n_layer", "4", "--", *last, expect=0)
        argv = json.loads((self.batch() / "a" / "argv.json").read_text())
        self.assertEqual(argv[2:], ["--n_layer=4", *last])

    def test_wandb_enabled_goes_out_under_the_trainers_own_name(self) -> None:
        table = [
            ("wandb_log = False\n", "--wandb_log=True"),
            ("wandb_enabled = False\n", "--wandb_enabled=True"),
            ("wandb_enabled = False\nwandb_log = False\n", "--wandb_log=True"),
        ]
        for declared, argument in table:
            with self.subTest(declared=declared):
                self.strict_trainer(SETTINGS.replace("wandb_log = False\n", declared))
                self.assertEqual(self.settings("--wandb_enabled", "true"), [argument])

    def test_configs_can_be_given_in_several_ways_at_once(self) -> None:
        plan = self.planned("--configs", "a.py", "--quiet", "--configs=easy.py", "--configs", "config/*.py")
        self.assertEqual(list(plan), ["a", "easy", "b"])


class DryRunTest(CommandLineCase):
    ARGS = ("--configs", "a.py", "config/b.py", "--wandb_project", "it's a 'test'", "--sweep", "seed=1,2")

    def test_a_dry_run_prints_exactly_what_a_real_run_does_apart_from_the_directory(self) -> None:
        shown = self.planned(*self.ARGS)
        self.run_runner(*self.ARGS, expect=0)
        date = re.compile(r"experiment_\d{8}_\d{6}")
        self.assertEqual(list(shown), ["a__seed_1", "a__seed_2", "b__seed_1", "b__seed_2"])
        for name, command in shown.items():
            ran = self.json(self.batch() / name / "experiment_metadata.json")["command"]
            self.assertEqual([date.sub("DIR", word) for word in command], [date.sub("DIR", word) for word in ran])

    def test_a_dry_run_prints_the_device_that_a_slot_would_give(self) -> None:
        shown = self.planned("--configs", "a.py", "easy.py", "--devices", "cpu,cuda:1")
        self.assertIn("--device=cpu", shown["a"])
        self.assertIn("--device=cuda:1", shown["easy"])

    def test_a_dry_run_creates_nothing_and_starts_nothing(self) -> None:
        (self.dir / "train_run.py").write_text("open('started', 'w')\n")
        before = self.files()
        self.planned(*self.ARGS[:3])
        self.planned("--configs", "a.py", "--base_out_dir", "elsewhere/deep")
        self.assertEqual(len(self.planned("--configs", "a.py", "--base_out_dir", "/proc/nowhere")), 1)
        self.assertEqual(self.files(), before)

    def test_a_dry_run_says_why_each_would_run_or_fail(self) -> None:
        lines = self.forked("--dry_run", "--configs", "a.py", "broken.py").stdout.splitlines()
        self.assertRegex(lines[0], r"^# a: starts")
        self.assertRegex(lines[2], r"^# broken: .*broken\.py, line 2.*b = = 2")
        self.assertEqual(lines[3:], ["# 1 of 2 experiments would run"])

    def test_what_is_odd_is_said_by_a_dry_run_and_by_a_run(self) -> None:
        (self.dir / "train_run.py").rename(self.dir / "train.py")
        for name, code in (
            ("near", "seed = 2\nlearning_rat = 1"),
            ("tunes", "init_from = 'resume'"),
            ("model", "import math"),
        ):
            self.config(f"odd/{name}", code)
        expected = ["the training script is train.py: there is no train_run.py"]
        expected += ["left out, sets no setting of train.py: odd/model.py"]
        expected += ["warning: odd/near.py: config sets 'learning_rat', which train.py doesn't have"]
        expected += ["warning: odd/tunes.py: init_from = 'resume' needs a checkpoint in the experiment's directory"]
        for words, mark in ((["--dry_run"], "# "), ([], r"\S+ \S+ ")):
            said = self.forked(*words, "--configs", "odd/*.py").stdout
            for text in expected:
                self.assertRegex(said, f"(?m)^{mark}{re.escape(text)}")


class QuietTest(CommandLineCase):
    def test_quiet_prints_nothing_when_all_went_well(self) -> None:
        done = self.run_runner("--quiet", "--configs", "*y.py", expect=0)
        self.assertEqual((done.stdout, done.stderr), ("", ""))

    def test_quiet_tells_of_what_failed(self) -> None:
        done = self.run_runner("--quiet", "--configs", "a.py", "broken.py", expect=1)
        self.assertRegex(done.stdout, r"(?m)^broken +failed .*\n    error: .*b = = 2")
        self.assertNotRegex(done.stdout, r"(?m)^a: ")
