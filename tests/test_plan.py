"""The plan: which configs, at which points of a sweep, under which names, with which command."""

import argparse
import itertools
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any, Optional

import run_experiments as runner

SEED = int(os.environ.get("TEST_SEED", random.randrange(10**6)))


class PlanCase(unittest.TestCase):
    """Each test works in a directory of its own."""

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(scratch.name)
        self.dir = Path(scratch.name)

    def touch(self, *names: str) -> None:
        for name in names:
            path = self.dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("", encoding="utf-8")


class ExpandConfigsTest(PlanCase):
    def expand(self, *patterns: str, script: str = "train_run.py") -> list[str]:
        self.said: list[str] = []
        return runner.expand_configs(patterns, script, self.said.append)

    def refused(self, *patterns: str) -> str:
        with self.assertRaises(runner.UsageError) as caught:
            self.expand(*patterns)
        return str(caught.exception)

    def test_the_order_of_the_patterns_is_kept(self) -> None:
        self.touch("a.py", "b.py", "c1.py", "c2.py")
        self.assertEqual(self.expand("c*.py", "b.py", "a.py"), ["c1.py", "c2.py", "b.py", "a.py"])

    def test_the_matches_of_a_pattern_are_sorted_naturally(self) -> None:
        self.touch("run_10.py", "run_2.py", "run_1.py", "run_02b.py", "run.py", "x1/run_3.py")
        self.assertEqual(self.expand("run*.py"), ["run.py", "run_1.py", "run_2.py", "run_02b.py", "run_10.py"])

    def test_names_of_any_digits_can_be_sorted(self) -> None:
        names = ["²3.py", "3².py", "٣.py", "a٣b.py", "1.py", "a1b.py", "½.py", "x.py"]
        self.touch(*names)
        self.assertEqual(sorted(self.expand("*.py")), sorted(names))

    def test_one_file_by_two_names_is_one_config(self) -> None:
        self.touch("config/a.py", "b.py")
        os.symlink("a.py", "config/link.py")
        os.symlink("config", "other")
        found = self.expand("config/a.py", "./config/a.py", "config/link.py", "other/a.py", "b.py", "config/*.py")
        self.assertEqual(found, ["config/a.py", "b.py"])

    def test_a_link_keeps_its_own_name(self) -> None:
        self.touch("a.py")
        os.symlink("a.py", "z.py")
        self.assertEqual(self.expand("z.py"), ["z.py"])

    def test_two_stars_go_down_into_directories(self) -> None:
        self.touch("config/a.py", "config/x/b.py", "config/x/y/c.py", "config/x/notes.txt")
        self.assertEqual(sorted(self.expand("config/**/*.py")), ["config/a.py", "config/x/b.py", "config/x/y/c.py"])

    def test_the_programs_among_the_matches_are_left_out_and_named(self) -> None:
        self.touch("train_run.py", "configurator.py", "easy.py", "lib/configurator.py")
        os.symlink(runner.__file__, "run_experiments.py")
        self.assertEqual(self.expand("*.py", "lib/*.py"), ["easy.py"])
        left_out = ("train_run.py", "configurator.py", "run_experiments.py", "lib/configurator.py")
        for name in left_out:
            self.assertEqual(sum(line.endswith(f" {name}") for line in self.said), 1, self.said)
        self.assertEqual(len(self.said), len(left_out))

    def test_directories_among_the_matches_are_left_out(self) -> None:
        self.touch("config/a.py", "config/more.py/x.txt")
        self.assertEqual(self.expand("config/*"), ["config/a.py"])

    def test_a_directory_by_name_is_refused_with_the_pattern_to_type(self) -> None:
        self.touch("config/a.py")
        self.assertIn(os.path.join("config", "*.py"), self.refused("config"))

    def test_what_matches_nothing_is_refused_with_the_near_misses(self) -> None:
        self.touch("config/easy_first.py", "config/moderate.py")
        said = self.refused("config/easy_frist.py")
        self.assertIn("config/easy_frist.py", said)
        self.assertIn("easy_first.py", said)
        self.assertNotIn("moderate.py", said)
        self.assertIn("config/*.yaml", self.refused("config/*.yaml"))

    def test_what_lies_in_a_missing_directory_is_refused_and_the_directory_named(self) -> None:
        self.assertIn("confgi", self.refused("confgi/a.py").partition(";")[2])
        self.assertIn("nowhere/**/*.py", self.refused("nowhere/**/*.py"))

    def test_one_bad_pattern_is_enough(self) -> None:
        self.touch("a.py")
        self.assertIn("b.py", self.refused("a.py", "b.py"))

    def test_an_empty_name_is_refused(self) -> None:
        self.refused("")

    def test_nothing_but_programs_is_refused(self) -> None:
        self.touch("train_run.py")
        self.assertIn("train_run.py", self.refused("train_run.py"))

    def test_a_name_that_looks_like_a_pattern_is_taken_as_it_is_where_it_exists(self) -> None:
        self.touch("a[1].py", "a1.py", "star*.py", "starry.py", "what?.py")
        self.assertEqual(
            self.expand("a[1].py", "star*.py", "what?.py", "a[1-9].py"), ["a[1].py", "star*.py", "what?.py", "a1.py"]
        )

    def test_a_path_with_an_equals_sign_is_refused(self) -> None:
        self.touch("lr=1.py", "lr=2/a.py")
        self.assertIn("lr=1.py", self.refused("lr=1.py"))
        self.assertIn("lr=2/a.py", self.refused("lr=2/*.py"))

    def test_a_name_with_a_leading_dash_is_no_option_for_the_trainer(self) -> None:
        self.touch("-x.py", "--device.py")
        self.assertEqual(self.expand("-x.py", "--device.py"), ["./-x.py", "./--device.py"])
        self.assertEqual(sorted(self.expand("*.py")), ["./--device.py", "./-x.py"])

    def test_a_dangling_link_by_name_is_a_config_that_will_be_told_as_failed(self) -> None:
        os.symlink("nowhere.py", "dangling.py")
        self.assertEqual(self.expand("dangling.py"), ["dangling.py"])

    def test_odd_names_are_taken_as_they_are(self) -> None:
        names = ["with space.py", "quote'.py", 'quote".py', "newline\n.py", "grüße.py", "$HOME.py", "\udcff.py"]
        for name in names:
            Path(name).write_text("")
        self.assertEqual(self.expand(*names), names)
        self.assertEqual(sorted(self.expand("*.py")), sorted(names))


class NameTest(unittest.TestCase):
    def test_configs_get_telling_names(self) -> None:
        table: list[tuple[list[str], list[str]]] = [
            (["config/easy_first.py"], ["easy_first"]),
            (["a/easy.py", "b/easy.py"], ["a__easy", "b__easy"]),
            (["x/a/easy.py", "x/b/easy.py", "x/hard.py"], ["a__easy", "b__easy", "hard"]),
            (["x/a/easy.py", "y/a/easy.py"], ["x__a__easy", "y__a__easy"]),
            (["easy.py", "a/easy.py"], ["easy", "a__easy"]),
            (["v1.2.py"], ["v1.2"]),
            (["no_suffix"], ["no_suffix"]),
            (["with space.py"], ["with_space"]),
            ([".hidden.py", "..py"], ["hidden", "py"]),
            (["-x.py", "--y.py"], ["x", "y"]),
            (["a/Easy.py", "b/easy.py"], ["a__Easy", "b__easy"]),  # a file system may not count case
        ]
        for paths, names in table:
            with self.subTest(paths=paths):
                self.assertEqual(runner.config_names([path.replace("/", os.sep) for path in paths]), names)

    def test_names_of_one_stem_in_one_directory_are_numbered(self) -> None:
        self.assertEqual(runner.unique(runner.config_names(["a.py", "a.txt", "a.cfg"])), ["a", "a_2", "a_3"])

    def test_a_number_that_is_taken_already_is_passed_over(self) -> None:
        self.assertEqual(runner.unique(["a", "a_2", "a"]), ["a", "a_2", "a_3"])
        self.assertEqual(runner.unique(["a", "A", "a"]), ["a", "A_2", "a_3"])

    def test_the_names_of_the_runners_own_files_are_not_taken(self) -> None:
        for name in ("master_log.txt", "experiment_summary.json", "report.html", "runner.lock"):
            with self.subTest(name=name):
                self.assertNotEqual(runner.clean_name(name), name)
                self.assertTrue(runner.clean_name(name).startswith(name))

    def test_a_long_stem_is_cut_to_a_name_of_its_own(self) -> None:
        first, second = "x" * 300 + "a", "x" * 300 + "b"
        names = [runner.clean_name(first), runner.clean_name(second)]
        self.assertNotEqual(names[0], names[1])
        for name in names:
            self.assertLessEqual(len(name), 200)
            self.assertTrue(name.startswith("x" * 150))
        self.assertEqual(runner.clean_name("x" * 200), "x" * 200)

    def test_long_equal_names_are_numbered_within_the_bound(self) -> None:
        names = runner.unique(["x" * 200] * 120)
        self.assertEqual(len(set(names)), 120)
        self.assertLessEqual(max(map(len, names)), 200)

    def test_whatever_the_configs_are_called_names_are_safe_and_different(self) -> None:
        rng = random.Random(SEED)
        pieces = ["a", "B", "b", "é", "\n", "/", "/", ".", "-", "_", "=", " ", "\udcff", "$(x)", "2", "x" * 90, ".py"]
        pieces += ["report.html", "attempt_1", "ß", "\0x"[1:], "İ"]
        for number in range(300):
            stems = ["".join(rng.choices(pieces, k=rng.randint(1, 6))) for _ in range(rng.randint(1, 8))]
            endings = [f"__seed_{rng.choice(pieces)}" for _ in range(rng.randint(1, 3))]
            with self.subTest(seed=SEED, number=number, stems=stems, endings=endings):
                pairs = itertools.product(runner.config_names(stems), endings)
                names = runner.unique([runner.clean_name(name + ending) for name, ending in pairs])
                self.assertEqual(len({name.casefold() for name in names}), len(stems) * len(endings))
                for name in names:
                    self.assertRegex(name, re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}\Z"))
                    self.assertNotIn(name, runner.RESERVED)
                    self.assertEqual(runner.clean_name(name), name)  # as reading a batch back demands
                pairs = itertools.product(runner.config_names(stems), endings)
                again = runner.unique([runner.clean_name(name + ending) for name, ending in pairs])
                self.assertEqual(again, names)


class SweepTest(PlanCase):
    def test_values_are_split_at_commas_but_not_within_brackets_or_quotes(self) -> None:
        table = [
            ("1,2,3", ["1", "2", "3"]),
            ("7", ["7"]),
            ("0.001,0.01", ["0.001", "0.01"]),
            ("a,b", ["a", "b"]),
            ("cuda:0,cpu", ["cuda:0", "cpu"]),
            ("true,false", ["true", "false"]),
            ("2024,x", ["2024", "x"]),
            ("[1,2],[3]", ["[1,2]", "[3]"]),
            ("(1,2),(3,4)", ["(1,2)", "(3,4)"]),
            ("{'a': 1, 'b': 2},{}", ["{'a': 1, 'b': 2}", "{}"]),
            ("'a,b','c'", ["a,b", "c"]),
            ("'a,b',c", ["a,b", "c"]),
            ("cosine,[1,2]", ["cosine", "[1,2]"]),
            ("-1,-0.5", ["-1", "-0.5"]),
            ("it's", ["it's"]),
        ]
        for text, values in table:
            with self.subTest(text=text):
                self.assertEqual(runner.split_values(text), values)

    def test_the_last_sweep_is_the_fastest(self) -> None:
        points = list(runner.sweep_points({"a": ["1", "2"], "b": ["x", "y", "z"]}))
        told = [f"{point['a']}{point['b']}" for point in points]
        self.assertEqual(told, ["1x", "1y", "1z", "2x", "2y", "2z"])
        self.assertEqual([list(point) for point in points], [["a", "b"]] * 6)

    def test_no_sweep_is_one_point(self) -> None:
        self.assertEqual(list(runner.sweep_points({})), [{}])


class PlannerTest(PlanCase):
    SETTINGS: dict[str, Any] = {
        "out_dir": "out",
        "learning_rate": 1e-3,
        "seed": 1,
        "compile": False,
        "wandb_log": False,
        "wandb_run_name": "mine",
        "dataset": "x",
    }

    def plan(
        self, configs: dict[str, str], settings: Optional[dict[str, Any]] = None, strict: bool = True, **options: Any
    ) -> list[runner.Experiment]:
        for name, source in configs.items():
            self.touch(name)
            (self.dir / name).write_text(source)
        script = runner.Script("train_run.py", self.SETTINGS if settings is None else settings, strict)
        return runner.Planner(script).plan(runner.Options(**options), list(configs))

    def test_experiments_of_a_sweep_are_named_by_its_values_config_outermost(self) -> None:
        plan = self.plan(
            {"easy_first.py": "", "hard.py": ""}, sweep={"learning_rate": ["1e-3", "1"], "seed": ["2", "10"]}
        )
        names = [
            f"{config}__learning_rate_{rate}__seed_{seed}"
            for config in ("easy_first", "hard")
            for rate in ("0.001", "1.0")
            for seed in ("2", "10")
        ]
        self.assertEqual([each.name for each in plan], names)
        self.assertEqual(plan[0].name, "easy_first__learning_rate_0.001__seed_2")
        self.assertIn("--learning_rate=1.0", plan[2].arguments)
        self.assertEqual([each.config for each in plan], ["easy_first.py"] * 4 + ["hard.py"] * 4)

    def test_every_experiment_of_a_sweep_gets_its_own_wandb_run_name(self) -> None:
        for each in self.plan({"a.py": "", "b.py": ""}, sweep={"seed": ["1", "2"]}):
            self.assertIn(f"--wandb_run_name={each.name}", each.arguments)

    def test_a_users_wandb_run_name_stays(self) -> None:
        for each in self.plan({"a.py": ""}, sweep={"seed": ["1", "2"]}, overrides={"wandb_run_name": "ours"}):
            self.assertIn("--wandb_run_name=ours", each.arguments)
            self.assertEqual(sum("wandb_run_name" in argument for argument in each.arguments), 1)

    def test_a_swept_wandb_run_name_stays(self) -> None:
        plan = self.plan({"a.py": ""}, sweep={"wandb_run_name": ["p", "q"]})
        self.assertEqual([each.arguments for each in plan], [["--wandb_run_name=p"], ["--wandb_run_name=q"]])

    def test_without_a_sweep_or_without_the_setting_no_wandb_run_name_is_invented(self) -> None:
        self.assertEqual(self.plan({"a.py": ""})[0].arguments, [])
        plan = self.plan({"a.py": ""}, settings={"seed": 1}, sweep={"seed": ["1"]})
        self.assertEqual(plan[0].arguments, ["--seed=1"])

    def test_swept_texts_and_lists_make_safe_and_different_names(self) -> None:
        values = ["a/b", "a b", "a=b", "a\nb", "é", "'2024'", "../..", "x" * 300, "X" * 300]
        plan = self.plan({"a.py": ""}, sweep={"dataset": values})
        names = [each.name for each in plan]
        self.assertEqual(len({name.casefold() for name in names}), len(values))
        for name in names:
            self.assertRegex(name, re.compile(r"a__dataset_[A-Za-z0-9._-]{1,189}\Z"))

    def test_a_value_swept_twice_makes_two_experiments(self) -> None:
        self.assertEqual(
            [each.name for each in self.plan({"a.py": ""}, sweep={"seed": ["1", "1"]})], ["a__seed_1", "a__seed_1_2"]
        )

    def test_a_config_may_change_the_type_that_a_value_must_have(self) -> None:
        plan = self.plan({"a.py": "seed = 0.5", "b.py": ""}, overrides={"seed": "2"})
        self.assertEqual([each.arguments for each in plan], [["--seed=2.0"], ["--seed=2"]])

    def test_effective_settings_are_defaults_below_config_below_overrides(self) -> None:
        plan = self.plan({"a.py": "seed = 5\ndataset = 'mine'\n"}, overrides={"seed": "7"})
        settings = plan[0].settings
        self.assertEqual((settings["seed"], settings["dataset"], settings["learning_rate"]), (7, "mine", 1e-3))

    def test_an_unknown_setting_is_refused_with_the_near_miss(self) -> None:
        with self.assertRaises(runner.UsageError) as caught:
            self.plan({"a.py": ""}, overrides={"learning_rat": "1"})
        self.assertIn("learning_rat", str(caught.exception))
        self.assertIn("did you mean 'learning_rate'", str(caught.exception))
        with self.assertRaises(runner.UsageError):
            self.plan({"a.py": ""}, sweep={"sed": ["1"]})

    def test_a_setting_that_only_the_config_brings_is_known(self) -> None:
        self.assertEqual(self.plan({"a.py": "extra = 1"}, overrides={"extra": "2"})[0].arguments, ["--extra=2"])

    def test_a_script_without_a_configurator_gets_keys_that_the_runner_does_not_know(self) -> None:
        plan = self.plan({"a.py": ""}, settings={}, strict=False, overrides={"whatever": "1e-3", "name": "2024"})
        self.assertEqual(plan[0].arguments, ["--whatever=1e-3", "--name=2024"])

    def test_a_value_that_cannot_be_is_refused_and_key_and_value_named(self) -> None:
        for key, text in (("seed", "abc"), ("learning_rate", "fast"), ("compile", "maybe")):
            with self.subTest(key=key), self.assertRaises(runner.UsageError) as caught:
                self.plan({"a.py": ""}, overrides={key: text})
            self.assertIn(f"--{key}", str(caught.exception))
            self.assertIn(text, str(caught.exception))

    def test_wandb_enabled_is_the_trainers_wandb_log(self) -> None:
        table: list[tuple[dict[str, Any], str]] = [
            ({"wandb_log": False}, "--wandb_log=True"),
            ({"wandb_enabled": False}, "--wandb_enabled=True"),
            ({"wandb_log": False, "wandb_enabled": False}, "--wandb_log=True"),
        ]
        for settings, argument in table:
            with self.subTest(settings=settings):
                plan = self.plan({"a.py": ""}, settings=settings, overrides={"wandb_enabled": "yes"})
                self.assertEqual(plan[0].arguments, [argument])
        self.assertEqual(
            self.plan({"a.py": ""}, settings={}, strict=False, overrides={"wandb_enabled": "0"})[0].arguments,
            ["--wandb_log=False"],
        )

    def test_a_config_that_does_not_parse_is_a_problem_of_its_own_experiment(self) -> None:
        plan = self.plan({"a.py": "x = = 1", "b.py": ""}, overrides={"seed": "2"})
        self.assertIn("a.py", str(plan[0].problem))
        self.assertIn("line 1", str(plan[0].problem))
        self.assertIn("x = = 1", str(plan[0].problem))
        self.assertIsNone(plan[1].problem)

    def test_the_settings_that_differ_are_named_in_the_trainers_order(self) -> None:
        plan = self.plan(
            {"a.py": "seed = 5", "b.py": "extra = 1"}, sweep={"dataset": ["p", "q"]}, overrides={"compile": "1"}
        )
        self.assertEqual(runner.differing(plan), ["seed", "dataset", "extra"])
        self.assertEqual(runner.differing(plan[:1]), [])
        self.assertEqual(runner.differing([]), [])

    def test_ten_thousand_experiments_are_planned_each_with_a_name_of_its_own(self) -> None:
        configs = {f"c{number}.py": f"dataset = 'd{number}'" for number in range(25)}
        sweep = {"learning_rate": [str(n / 100) for n in range(1, 21)], "seed": list(map(str, range(20)))}
        plan = self.plan(configs, sweep=sweep)
        self.assertEqual(len(plan), 10_000)
        self.assertEqual(len({each.name for each in plan}), 10_000)
        self.assertEqual(plan[-1].name, "c24__learning_rate_0.2__seed_19")
        self.assertEqual(plan[-1].settings["seed"], 19)
        self.assertEqual(runner.differing(plan), ["learning_rate", "seed", "dataset"])


class CommandTest(PlanCase):
    def test_a_shell_takes_the_line_as_the_command(self) -> None:
        every_byte = os.fsdecode(bytes(range(1, 256)))
        words = [
            "plain",
            "",
            " ",
            "a b",
            "it's",
            '"',
            "$HOME",
            "`id`",
            "\\",
            "*",
            "~",
            "#x",
            "!",
            "a=b",
            "{a,b}",
            ";&|",
        ]
        words += ["line\nbreak", "\t", "\x1b[31m", "\x7f", "\udcff\udcfe", "é", "世界", "\u202e", "\r", "'\n'", "\x01f"]
        words += [every_byte, "\\x41\n", "trailing\n", "\n", "-n", "--"]
        line = runner.shell_line(words)
        self.assertTrue(line.isprintable(), "a control character in the line")
        done = subprocess.run(
            ["bash", "-c", b"printf '%s\\0' " + os.fsencode(line)], capture_output=True, check=True, cwd=self.dir
        )
        self.assertEqual(done.stdout.split(b"\0")[:-1], [os.fsencode(word) for word in words])

    def test_random_commands_survive_a_shell(self) -> None:
        rng = random.Random(SEED)
        commands = [
            [
                "".join(
                    chr(rng.choice((rng.randint(1, 126), rng.randint(0xA0, 0x2FF)))) for _ in range(rng.randint(0, 8))
                )
            ]
            for _ in range(300)
        ]
        script = "\n".join(f"printf '%s\\0' {runner.shell_line(command)}" for command in commands)
        done = subprocess.run(["bash"], input=os.fsencode(script), capture_output=True, check=True, cwd=self.dir)
        words = [os.fsencode(word) for command in commands for word in command]
        self.assertEqual(done.stdout.split(b"\0")[:-1], words, f"seed {SEED}")

    def words(self, launcher: str, **names: str) -> list[str]:
        return runner.launcher_words(launcher, {"name": "n", "dir": "d", "device": "v", "slot": "0", **names})

    def test_a_launcher_is_split_as_a_shell_would(self) -> None:
        table = [
            ("torchrun --standalone --nproc_per_node=2", ["torchrun", "--standalone", "--nproc_per_node=2"]),
            ("'my python' -u", ["my python", "-u"]),
            ('sh -c "a b" \\"', ["sh", "-c", "a b", '"']),
            ("echo $HOME *", ["echo", "$HOME", "*"]),
        ]
        for launcher, words in table:
            with self.subTest(launcher=launcher):
                self.assertEqual(self.words(launcher), words)

    def test_without_a_launcher_it_is_the_interpreter_that_runs_the_runner(self) -> None:
        self.assertEqual(self.words(""), [sys.executable])
        self.assertEqual(self.words("  "), [sys.executable])

    def test_placeholders_are_filled_in_within_their_word(self) -> None:
        names = {"name": "easy__seed_2", "dir": "out dir/$x", "device": "cuda:1", "slot": "3"}
        self.assertEqual(
            self.words("srun --job-name={name} -o {dir}/o.log {device} s{slot}{slot}", **names),
            ["srun", "--job-name=easy__seed_2", "-o", "out dir/$x/o.log", "cuda:1", "s33"],
        )

    def test_what_is_filled_in_is_not_filled_in_again(self) -> None:
        self.assertEqual(self.words("x {dir}", dir="{name} 'a b' {{"), ["x", "{name} 'a b' {{"])

    def test_a_doubled_brace_stands_for_itself(self) -> None:
        self.assertEqual(self.words("x {{name}} {{{name}}} {{}}"), ["x", "{name}", "{n}", "{}"])

    def test_a_brace_that_means_nothing_is_refused_and_named(self) -> None:
        for launcher, part in (("x {job}", "{job}"), ("x {}", "{}"), ("x {", "{"), ("x }", "}"), ("x {a b}", "{")):
            with self.subTest(launcher=launcher), self.assertRaises(runner.UsageError) as caught:
                self.words(launcher)
            self.assertIn(part, str(caught.exception))

    def test_a_launcher_that_cannot_be_split_is_refused(self) -> None:
        with self.assertRaises(runner.UsageError):
            self.words("x 'never closed")

    def test_the_command_has_its_parts_in_order(self) -> None:
        options = runner.Options(launcher="run -d {device}", train_script="t.py", trainer_args=["--", "-x", "y=1"])
        experiment = runner.Experiment("n", "c.py", {}, arguments=["--a=1", "--b=x y"])
        command = runner.build_command(options, experiment, "out/n", runner.Slot(1, "cuda:1"))
        expected = ["run", "-d", "cuda:1", "t.py", "c.py", "--out_dir=out/n", "--a=1", "--b=x y", "--", "-x", "y=1"]
        self.assertEqual(command, expected)


class DurationTest(unittest.TestCase):
    def test_durations_are_read(self) -> None:
        table = [
            ("90", 90),
            ("90s", 90),
            ("1.5", 1.5),
            ("0.25s", 0.25),
            ("30m", 1800),
            ("2h", 7200),
            ("1d", 86400),
            ("1d12h", 129600),
            ("1h30m15s", 5415),
            ("1d2h3m4.5s", 93784.5),
        ]
        for text, seconds in table:
            with self.subTest(text=text):
                self.assertEqual(runner.duration(text), seconds)

    def test_what_is_no_duration_is_refused_and_quoted(self) -> None:
        for text in (
            "",
            "0",
            "0s",
            "0h0m",
            "-5",
            "5x",
            "h",
            "1h1h",
            "30m2h",
            "1.5h",
            "1 h",
            "nan",
            "inf",
            "1e3",
            "1:30",
        ):
            with self.subTest(text=text), self.assertRaises(argparse.ArgumentTypeError) as caught:
                runner.duration(text)
            self.assertIn(repr(text), str(caught.exception))

    def test_durations_are_shown_for_people(self) -> None:
        table: list[tuple[Optional[float], str]] = [
            (None, "-"),
            (math.nan, "-"),
            (math.inf, "-"),
            (0.0, "0s"),
            (0.04, "0s"),
            (3.14, "3.1s"),
            (20.0, "20s"),
            (59.9, "59.9s"),
            (60.0, "1m"),
            (61.9, "1m1s"),
            (3600.0, "1h"),
            (3605.0, "1h"),
            (3661.0, "1h1m"),
            (86400.0, "1d"),
            (129600.0, "1d12h"),
            (10 * 86400.0, "10d"),
        ]
        for seconds, text in table:
            with self.subTest(seconds=seconds):
                self.assertEqual(runner.show_duration(seconds), text)

    def test_what_is_shown_of_a_whole_duration_is_read_back(self) -> None:
        for seconds in (1.0, 59.0, 60.0, 90.0, 3600.0, 5400.0, 86400.0, 129600.0):
            with self.subTest(seconds=seconds):
                self.assertEqual(runner.duration(runner.show_duration(seconds)), seconds)


if __name__ == "__main__":
    unittest.main()
