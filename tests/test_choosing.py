"""Choosing configs, sweeps in pairs, shards, command templates: literal tables, no processes."""

from __future__ import annotations

import os
import sys
from typing import Any, Optional

import run_experiments as runner
from tests.test_reading import END, PlanCase


class ChoosingTest(PlanCase):
    def setUp(self) -> None:
        super().setUp()
        self.trainer = self.script()
        self.write(
            {
                "bench.py": "seed = 1\n" + END,
                "model.py": "import math\nclass GPT:\n    pass\n",
                "configurator.py": "import sys\n",
                "small.py": "seed = 2\n",
                "baseline.py": "# all as it is\n",
                "__init__.py": "",
                "opaque.py": "from small import *\n",
                "broken.py": "seed = = 1\n",
            }
        )

    def expand(self, *patterns: str) -> list[str]:
        self.said: list[str] = []
        return runner.expand_configs(patterns, runner.Planner(self.trainer), self.said)

    def test_scripts_and_modules_are_left_out_of_a_pattern(self) -> None:
        os.symlink(runner.__file__, "run_experiments.py")
        expected = ["baseline.py", "broken.py", "opaque.py", "small.py"]
        self.assertEqual(self.expand("*.py"), expected)
        left_out = [line.rpartition(" ")[2] for line in self.said]
        programs = ["bench.py", "configurator.py", "model.py", "run_experiments.py", "train_run.py"]
        self.assertEqual(left_out, ["__init__.py", *programs])

    def test_of_what_the_shell_may_have_expanded_scripts_are_left_out(self) -> None:
        self.assertEqual(self.expand("bench.py", "model.py", "small.py"), ["model.py", "small.py"])
        self.assertEqual(len(self.said), 1)

    def test_where_no_config_is_left_the_reasons_are_told(self) -> None:
        with self.assertRaisesRegex(runner.UsageError, r"no config is left .*sets no setting of \S+: model\.py"):
            self.expand("[bm]*[hl].py")

    def test_one_plain_name_is_always_taken(self) -> None:
        for name in ("bench.py", "model.py"):
            with self.subTest(name=name):
                self.assertEqual(self.expand(name), [name])
        self.assertEqual(self.expand("model.py", "s*.py"), ["model.py", "small.py"])

    def test_without_known_settings_a_module_may_be_a_config(self) -> None:
        self.trainer = runner.Script("train_run.py")
        self.assertIn("model.py", self.expand("*.py"))

    def test_configs_of_any_ending_are_taken(self) -> None:
        self.write({"x/a.yaml": "a: [", "x/b.json": "{}", "x/c.toml": "[a]"})
        self.trainer = runner.Script("")
        self.assertEqual(self.expand("x/*"), ["x/a.yaml", "x/b.json", "x/c.toml"])

    def test_a_dropped_duplicate_is_said(self) -> None:
        os.symlink("small.py", "link.py")
        self.assertEqual(self.expand("small.py", "link.py"), ["small.py"])
        self.assertEqual(self.said, ["left out, the same as small.py: link.py"])
        self.assertEqual(self.expand("small.py", "small.py"), ["small.py"])
        self.assertEqual(self.said, ["left out, the same as small.py: small.py"])

    def test_a_misspelt_directory_is_suggested_with_the_pattern(self) -> None:
        self.write({"config/sub/a.py": ""})
        table = [
            ("confg/*.py", "'config/*.py'"),
            ("confg/sub/a.py", "'config/sub/a.py'"),
            ("config/sbu/*.py", "'config/sub/*.py'"),
            ("config/sub/b.py", "'config/sub/a.py'"),
            (f"{os.getcwd()}/confg/*.py", f"'{os.getcwd()}/config/*.py'"),
        ]
        for pattern, near in table:
            with self.subTest(pattern=pattern):
                self.assertIn(f"did you mean {near}", self.refused(self.expand, pattern))


class SuggestionTest(PlanCase):
    def test_what_a_key_may_have_meant(self) -> None:
        settings = ["learning_rate", "batch_size", "n_layer"]
        table = [
            ("batch-size", "batch_size"),
            ("lr", "learning_rate"),
            ("bs", "batch_size"),
            ("num-layers", "n_layer"),
            ("learning_rat", "learning_rate"),
            ("max-failures", "max_failures"),
            ("retrys", "retries"),
        ]
        for key, meant in table:
            with self.subTest(key=key):
                self.assertTrue(runner.suggestion(key, settings).startswith(f"; did you mean '{meant}'"))
        self.assertEqual(runner.suggestion("lr", ["n_layer"]), "")

    def test_a_trainer_with_a_hard_coded_seed_is_told(self) -> None:
        planner = self.planner("n_layer = 2\n" + END, a="")
        said = self.refused(planner.plan, runner.Options(sweep={"seed": ["1", "2"]}), ["a.py"])
        self.assertIn("'seed'", said)
        self.assertIn("torch.manual_seed", said)

    def test_a_dashed_key_is_no_setting_of_a_configurator(self) -> None:
        planner = self.planner(a="")
        said = self.refused(planner.plan, runner.Options(sweep={"batch-size": ["1", "2"]}), ["a.py"])
        for part in ("batch-size", "did you mean 'batch_size'"):
            self.assertIn(part, said)
        self.assertIn("'batch_size'", self.refused(planner.experiment, "a", "a.py", {"batch-size": "1"}))


class PairTest(PlanCase):
    def test_a_sweep_is_read(self) -> None:
        table: list[tuple[str, Optional[tuple[str, list[str]]]]] = [
            ("seed=1,2", ("seed", ["1", "2"])),
            ("n_embd,n_head=128:4,256:8", ("n_embd,n_head", ["128:4", "256:8"])),
            ("optimizer.lr=1e-3,1e-4", ("optimizer.lr", ["1e-3", "1e-4"])),
            ("batch-size=8,16", ("batch-size", ["8", "16"])),
            ("device=cuda:0,cpu", ("device", ["cuda:0", "cpu"])),
            ("seed", None),
            ("seed=", None),
            ("seed=1,,2", None),
            ("=1,2", None),
            ("a,=1:2", None),
            ("-a=1", None),
        ]
        for text, expected in table:
            with self.subTest(text=text):
                if expected:
                    self.assertEqual(runner.parse_sweep(text), expected)
                    continue
                with self.assertRaises(ValueError) as caught:
                    runner.parse_sweep(text)
                self.assertEqual(str(caught.exception), f"not of the form KEY=V1,V2,...: {text}")

    def test_pairs_are_set_together(self) -> None:
        points = list(runner.sweep_points({"a,b": ["1:2", "3:4"], "c": ["x", "y:z"]}))
        expected = [("1", "2", "x"), ("1", "2", "y:z"), ("3", "4", "x"), ("3", "4", "y:z")]
        self.assertEqual([tuple(point.values()) for point in points], expected)
        self.assertEqual(list(points[0]), ["a", "b", "c"])

    def test_a_colon_within_brackets_or_quotes_is_part_of_the_value(self) -> None:
        for text, values in (
            ("{'a': 1}:4", ["{'a': 1}", "4"]),
            ("'cuda:0':8", ["cuda:0", "8"]),
            ("[1]:x", ["[1]", "x"]),
        ):
            with self.subTest(text=text):
                self.assertEqual(list(next(runner.sweep_points({"a,b": [text]})).values()), values)

    def test_a_count_that_does_not_fit_is_refused(self) -> None:
        for sweep in ({"a,b": ["1:2", "3"]}, {"a,b": ["1:2:3"]}):
            with self.subTest(sweep=sweep):
                self.refused(list, runner.sweep_points(sweep))

    def test_pairs_are_in_the_name(self) -> None:
        planner = self.planner(a="")
        [first, _] = planner.plan(runner.Options(sweep={"n_layer,seed": ["2:4", "3:5"]}), ["a.py"])
        self.assertEqual(first.name, "a__n_layer_2__seed_4")
        self.assertEqual(first.point, {"n_layer": "2", "seed": "4"})
        self.assertEqual(first.arguments, ["--n_layer=2", "--seed=4"])

    def test_wandb_enabled_is_renamed_in_a_pair_as_well(self) -> None:
        planner = runner.Planner(runner.Script("t.py", {"wandb_log": False, "seed": 1}, True))
        self.assertEqual(planner.setting("wandb_enabled,seed"), "wandb_log,seed")


class ShardTest(PlanCase):
    def test_a_shard_is_every_nth(self) -> None:
        plan = [runner.Experiment(str(number), "", {}) for number in range(1, 8)]
        table = [("1/3", "147"), ("2/3", "25"), ("3/3", "36"), ("1/1", "1234567"), ("8/8", "")]
        for part, names in table:
            with self.subTest(part=part):
                self.assertEqual("".join(each.name for each in runner.take_shard(plan, part)), names)
        for part in ("0/3", "4/3", "1", "1/0", "a/b", "-1/3", "1/3/5", ""):
            with self.subTest(part=part), self.assertRaises(ValueError):
                runner.parse_shard(part)

    def test_the_digest_is_that_of_the_whole_plan(self) -> None:
        planner = self.planner(a="")
        plans = [planner.plan(runner.Options(sweep={"seed": seeds}), ["a.py"]) for seeds in (["1"], ["1"], ["2"])]
        digests = [runner.plan_digest(plan) for plan in plans]
        self.assertEqual(digests[0], digests[1])
        self.assertNotEqual(digests[0], digests[2])


class TemplateTest(PlanCase):
    def options(self, command: str, **named: Any) -> runner.Options:
        return runner.Options(command=command, **named)

    def build(self, command: str, checkpoint: str = "", config: str = "a.yaml", **named: Any) -> list[str]:
        planner = runner.Planner(runner.Script(""))
        experiment = planner.experiment("n", config, {"batch-size": "8", "a.b": "[1, true]"})
        slot = runner.Slot(1, "cuda:1")
        return runner.build_command(self.options(command, **named), experiment, "out/n", slot, checkpoint)

    def test_a_command_is_filled_in(self) -> None:
        table: list[tuple[str, list[str]]] = [
            ("x --c {config} {overrides}", ["x", "--c", "a.yaml", "--batch-size=8", "--a.b=[1, true]"]),
            ("x {overrides:hydra} y", ["x", "batch-size=8", "a.b=[1, true]", "y"]),
            ("x -o {dir}/m.pt {name} {device} {slot}", ["x", "-o", "out/n/m.pt", "n", "cuda:1", "1"]),
            ("x '{{config}}' $HOME", ["x", "{config}", "$HOME"]),
        ]
        for command, words in table:
            with self.subTest(command=command):
                self.assertEqual(self.build(command), words)
        words = self.build("x {dir}", "c.pt", continue_with="--resume {checkpoint}")
        self.assertEqual(words, ["x", "out/n", "--resume", "c.pt"])
        self.assertEqual(self.build("x {config}", config="a b.yaml"), ["x", "a b.yaml"])

    def test_experiments_without_configs_come_from_the_sweep(self) -> None:
        planner = runner.Planner(runner.Script(""))
        table: list[tuple[dict[str, list[str]], list[str]]] = [
            ({}, ["run"]),
            ({"lr": ["0.1", "1e-3"]}, ["run__lr_0.1", "run__lr_1e-3"]),
            ({"optim.lr": ["1"], "batch-size": ["8"]}, ["run__optim.lr_1__batch-size_8"]),
        ]
        for sweep, names in table:
            with self.subTest(sweep=sweep):
                plan = planner.plan(self.options("x {overrides}", sweep=sweep), [])
                self.assertEqual([each.name for each in plan], names)
                self.assertEqual({each.config for each in plan}, {""})
                self.assertEqual(planner.warnings(plan[0]), [])

    def test_keys_and_values_reach_a_command_as_written(self) -> None:
        planner = runner.Planner(runner.Script(""))
        given = {"wandb_enabled": "yes", "x": "true", "--odd": "1_0", "compile": "maybe", "y": "{[]: 1}"}
        made = planner.experiment("n", "", given)
        self.assertEqual(made.arguments, [f"--{key}={text}" for key, text in given.items()])
        self.assertEqual(made.overrides, given)

    def test_what_would_be_dropped_or_means_nothing_is_refused(self) -> None:
        table: list[tuple[runner.Options, list[str]]] = [
            (self.options("x", overrides={"lr": "1"}), ["{overrides}", "--lr"]),
            (self.options("x {config}", configs=["a"], sweep={"lr": ["1"]}), ["{overrides}", "--sweep"]),
            (self.options("x", devices=["cuda:0"]), ["{device}", "--devices"]),
            (self.options("x", configs=["a.yaml"]), ["{config}", "--configs"]),
            (self.options("x {config}"), ["{config}", "--configs"]),
            (self.options("x {device}"), ["{device}", "--devices"]),
            (self.options("x {job}"), ["--command", "{job}", "{overrides:hydra}"]),
            (self.options("x {checkpoint}"), ["--command", "{checkpoint}"]),
            (self.options("x a{overrides}", overrides={"lr": "1"}), ["{overrides}", "word of its own"]),
            (self.options("x 'y"), ["--command", "split"]),
            (self.options("  "), ["--command", "empty"]),
            (self.options("x", launcher="srun"), ["--launcher", "--command"]),
            (self.options("x", train_script="t.py"), ["--train_script", "--command"]),
            (self.options("x", trainer_args=["-v"]), ["-v", "--command"]),
            (self.options("x", continue_with="--resume {nothing}"), ["--continue_with", "{nothing}", "{checkpoint}"]),
            (runner.Options(launcher="srun {job}"), ["launcher", "{job}"]),
        ]
        for options, parts in table:
            with self.subTest(options=options):
                said = self.refused(runner.check_template, options)
                for part in parts:
                    self.assertIn(part, said)

    def test_an_attempt_that_continues(self) -> None:
        slot, options = runner.Slot(0), runner.Options(train_script="t.py", trainer_args=["-v"])
        experiment = runner.Experiment("n", "c.py", {}, arguments=["--init_from=gpt2", "--a=1"])
        experiment.settings = {"init_from": "gpt2"}
        experiment.launched_config = "plan/c.py"
        command = runner.build_command(options, experiment, "d", slot, "d/ckpt.pt")
        expected = [sys.executable, "t.py", "plan/c.py", "--out_dir=d", "--init_from=gpt2", "--a=1"]
        expected += ["--init_from=resume", "-v"]
        self.assertEqual(command, expected)
        table: list[tuple[runner.Options, bool, list[str]]] = [
            (self.options("x"), False, []),
            (self.options("x", continue_with="--from {checkpoint} {dir}"), True, ["x", "--from", "d/ckpt.pt", "d"]),
            (self.options("x", continue_with=""), True, ["x"]),
        ]
        for options, can_continue, words in table:
            with self.subTest(options=options):
                self.assertEqual(runner.can_continue(options, experiment), can_continue)
                if can_continue:
                    self.assertEqual(runner.build_command(options, experiment, "d", slot, "d/ckpt.pt"), words)
