"""The plan: which configs, at which points of a sweep, under which names, with which command."""

from __future__ import annotations

import itertools
import math
import os
import random
import re
import subprocess
import sys
import unittest
from typing import Optional

import run_experiments as runner
from tests.support import RunnerCase

SETTINGS = "learning_rate = 1e-3\nseed = 1\ncompile = False\nwandb_run_name = 'mine'\ndataset = 'x'"


class ConfigsTest(RunnerCase):
    def touch(self, *names: str) -> None:
        for name in names:
            (self.dir / name).parent.mkdir(parents=True, exist_ok=True)
            (self.dir / name).touch()

    def names(self, *patterns: str) -> list[str]:
        """The names of the experiments that these patterns make."""
        return list(self.planned("--configs", *patterns))

    def test_patterns_keep_their_order_and_their_matches_are_sorted_naturally(self) -> None:
        self.touch("run_10.py", "run_2.py", "run_1.py", "run_02b.py", "run.py", "b.py", "a.py", "x1/run_3.py")
        runs = ["run", "run_1", "run_2", "run_02b", "run_10"]
        self.assertEqual(self.names("run*.py", "b.py", "a.py"), [*runs, "b", "a"])

    def test_one_file_by_two_names_is_one_config_and_a_link_keeps_its_own_name(self) -> None:
        self.touch("config/a.py", "b.py")
        os.symlink("a.py", self.dir / "config" / "link.py")
        os.symlink("config", self.dir / "other")
        found = self.names("config/a.py", "./config/a.py", "config/link.py", "other/a.py", "b.py", "config/*.py")
        self.assertEqual(found, ["a", "b"])
        self.assertEqual(self.names("config/link.py"), ["link"])

    def test_two_stars_go_down_into_directories_and_these_are_no_configs(self) -> None:
        self.touch("config/a.py", "config/x/b.py", "config/x/y/c.py", "config/x/notes.txt", "config/more.py/x.txt")
        self.assertEqual(sorted(self.names("config/**/*.py")), ["a", "b", "c"])
        self.assertEqual(self.names("config/*"), ["a"])

    def test_a_name_that_looks_like_a_pattern_or_an_option_is_taken_as_it_is_where_it_exists(self) -> None:
        self.touch("a[1].py", "a1.py", "star*.py", "starry.py", "what?.py", "-x.py", "--device.py")
        found = self.names("a[1].py", "star*.py", "what?.py", "a[1-9].py", "./-x.py")
        self.assertEqual(found, ["a_1_", "star_", "what_", "a1", "x"])
        self.assertLess({"device", "x"}, set(self.names("*.py")))


class NamesTest(unittest.TestCase):
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

    def test_a_long_stem_is_cut_to_a_name_of_its_own(self) -> None:
        first, second = "x" * 300 + "a", "x" * 300 + "b"
        names = [runner.clean_name(first), runner.clean_name(second)]
        self.assertNotEqual(names[0], names[1])
        for name in names:
            self.assertLessEqual(len(name), 200)
            self.assertTrue(name.startswith("x" * 150))
        self.assertEqual(runner.clean_name("x" * 200), "x" * 200)

    def test_whatever_the_configs_are_called_names_are_safe_and_different(self) -> None:
        rng = random.Random(20240128)
        pieces = ["a", "B", "b", "é", "\n", "/", "/", ".", "-", "_", "=", " ", "\udcff", "$(x)", "2", "x" * 90, ".py"]
        pieces += ["report.html", "attempt_1", "ß", "\0x"[1:], "İ"]
        for number in range(300):
            stems = ["".join(rng.choices(pieces, k=rng.randint(1, 6))) for _ in range(rng.randint(1, 8))]
            endings = [f"__seed_{rng.choice(pieces)}" for _ in range(rng.randint(1, 3))]
            with self.subTest(number=number, stems=stems, endings=endings):
                pairs = itertools.product(runner.config_names(stems), endings)
                names = runner.unique([runner.clean_name(name + ending) for name, ending in pairs])
                self.assertEqual(len({name.casefold() for name in names}), len(stems) * len(endings))
                for name in names:
                    self.assertRegex(name, re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}\Z"))
                    self.assertNotIn(name, ("master_log.txt", "experiment_summary.json", "report.html", "runner.lock"))
                    self.assertEqual(runner.clean_name(name), name)  # as reading a batch back demands
                pairs = itertools.product(runner.config_names(stems), endings)
                again = runner.unique([runner.clean_name(name + ending) for name, ending in pairs])
                self.assertEqual(again, names)


class SweepTest(RunnerCase):
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

    def plan(self, *args: str, settings: str = SETTINGS, **configs: str) -> dict[str, list[str]]:
        """Name -> settings on the command line, of configs with these sources."""
        self.strict_trainer(settings)
        for name, source in (configs or {"a": ""}).items():
            self.config(f"config/{name}", source)
        commands = self.planned("--configs", "config/*.py", *args)
        return {name: [word for word in words if re.match("--(?!out_dir=)", word)] for name, words in commands.items()}

    def test_experiments_are_named_by_their_values_config_outermost_and_have_a_wandb_run_name_each(self) -> None:
        plan = self.plan("--sweep", "learning_rate=1e-3,1", "--sweep", "seed=2,10", easy="", hard="")
        expected = {}
        for config, rate, seed in itertools.product(("easy", "hard"), ("0.001", "1.0"), ("2", "10")):
            name = f"{config}__learning_rate_{rate}__seed_{seed}"
            expected[name] = [f"--learning_rate={rate}", f"--seed={seed}", f"--wandb_run_name={name}"]
        self.assertEqual(plan, expected)
        self.assertEqual(list(plan), list(expected))

    def test_a_wandb_run_name_of_the_users_own_stays_and_none_is_invented_without_need(self) -> None:
        ours = self.plan("--sweep", "seed=1", "--wandb_run_name", "ours")
        self.assertEqual(ours, {"a__seed_1": ["--wandb_run_name=ours", "--seed=1"]})
        swept = self.plan("--sweep", "wandb_run_name=p,q")
        self.assertEqual(list(swept.values()), [["--wandb_run_name=p"], ["--wandb_run_name=q"]])
        self.assertEqual(self.plan(), {"a": []})
        self.assertEqual(self.plan("--sweep", "seed=1", settings="seed = 1"), {"a__seed_1": ["--seed=1"]})

    def test_swept_texts_make_safe_and_different_names(self) -> None:
        values = ["a/b", "a b", "a=b", "a\nb", "é", "'2024'", "../..", "x" * 300, "X" * 300, "a b"]
        names = list(self.plan("--sweep", f"dataset={','.join(values)}"))
        self.assertEqual(len({name.casefold() for name in names}), len(values))
        for name in names:
            self.assertRegex(name, re.compile(r"a__dataset_[A-Za-z0-9._-]{1,189}\Z"))

    def test_a_config_may_change_the_type_that_a_value_must_have_or_bring_a_setting_of_its_own(self) -> None:
        plan = self.plan("--seed", "2", a="seed = 0.5", b="")
        self.assertEqual(plan, {"a": ["--seed=2.0"], "b": ["--seed=2"]})
        plan = self.plan("--extra", "2", a="seed = 1\nextra = 1", b="seed = 1\nextra = 0.5")
        self.assertEqual(plan["b"], ["--extra=2.0"])


class CommandTest(RunnerCase):
    def through_bash(self, commands: list[list[str]]) -> None:
        """A shell takes each line for the same words, and shows none of their escapes."""
        lines = [runner.shell_line(command) for command in commands]
        self.assertTrue(all(map(str.isprintable, lines)), "a control character in a line")
        script = os.fsencode("\n".join(f"printf '%s\\0' {line}" for line in lines))
        done = subprocess.run(["bash"], input=script, capture_output=True, check=True, cwd=self.dir)
        self.assertEqual(done.stdout.split(b"\0")[:-1], [os.fsencode(word) for words in commands for word in words])

    def test_a_shell_takes_the_line_as_the_command(self) -> None:
        words = ["plain", "", " ", "a b", "it's", *'"\\*~!', "$HOME", "`id`", "#x", "a=b", "{a,b}", ";&|"]
        words += ["line\nbreak", "\t", "\x1b[31m", "\x7f", "\udcff\udcfe", "é", "世界", "\u202e", "\r", "'\n'", "\x01f"]
        self.through_bash([[*words, os.fsdecode(bytes(range(1, 256))), "\\x41\n", "trailing\n", "\n", "-n", "--"]])

    def test_random_commands_survive_a_shell(self) -> None:
        rng = random.Random(20240128)
        letters = [*map(chr, range(1, 127)), *map(chr, range(0xA0, 0x300))]
        self.through_bash([["".join(rng.choices(letters, k=rng.randint(0, 8)))] for _ in range(300)])

    def launched(self, launcher: str) -> list[str]:
        """What stands before the training script."""
        self.config("n")
        [words] = self.planned("--configs", "n.py", "--devices", "cuda:1", "--launcher", launcher).values()
        return words[: words.index("train_run.py")]

    def test_a_launcher_is_split_as_a_shell_would_and_its_placeholders_are_filled_in(self) -> None:
        table = [
            ("env --standalone --nproc_per_node=2", ["env", "--standalone", "--nproc_per_node=2"]),
            ("sh -c 'a  b' \\\"", ["sh", "-c", "a  b", '"']),
            ("env $HOME *", ["env", "$HOME", "*"]),
            ("env --job-name={name} {device} s{slot}{slot}", ["env", "--job-name=n", "cuda:1", "s00"]),
            ("env {{name}} {{{name}}} {{}}", ["env", "{name}", "{n}", "{}"]),
            ("  ", [sys.executable]),
        ]
        for launcher, words in table:
            with self.subTest(launcher=launcher):
                self.assertEqual(self.launched(launcher), words)
        self.assertRegex(self.launched("env -o {dir}/o.log")[2], r"\Aexperiments/experiment_\d+_\d+/n/o\.log\Z")

    def test_the_command_has_its_parts_in_order(self) -> None:
        self.config("c")
        args = ["--launcher", "env -u X", "--configs", "c.py", "--a", "1", "--b=x y", "--", "--", "-x", "y=1"]
        [words] = self.planned(*args).values()
        self.assertEqual(words[:4], ["env", "-u", "X", "train_run.py"])
        self.assertEqual(os.path.basename(words[4]), "c.py")
        self.assertRegex(words[5], r"\A--out_dir=experiments/experiment_\d+_\d+/c\Z")
        self.assertEqual(words[6:], ["--a=1", "--b=x y", "--", "-x", "y=1"])


class DurationTest(RunnerCase):
    def test_durations_are_read(self) -> None:
        self.config("a")
        table = {"90": 90, "0.25s": 0.25, "30m": 1800, "1d2h3m4.5s": 93784.5}
        for text, seconds in table.items():
            with self.subTest(text=text):
                self.forked("--configs", "a.py", "--launcher", "true", "--timeout", text)
                self.assertEqual(self.summary()["options"]["timeout"], seconds)

    def test_what_is_no_duration_is_refused_and_quoted(self) -> None:
        self.config("a")
        for text in ("", "0", "0h0m", "-5", "5x", "h", "1h1h", "30m2h", "1.5h", "1 h", "nan", "inf", "1e3", "1:30"):
            with self.subTest(text=text):
                self.assertIn(repr(text), self.forked("--configs", "a.py", f"--timeout={text}", expect=2).stderr)

    def test_durations_are_shown_for_people(self) -> None:
        table: dict[Optional[float], str] = {None: "-", math.nan: "-", math.inf: "-", 0.0: "0s", 3.14: "3.1s"}
        table.update({59.9: "59.9s", 60.0: "1m", 61.9: "1m1s", 3600.0: "1h", 3661.0: "1h1m", 86400.0: "1d"})
        table.update({129600.0: "1d12h", 10 * 86400.0: "10d"})
        for seconds, text in table.items():
            with self.subTest(seconds=seconds):
                self.assertEqual(runner.show_duration(seconds), text)
