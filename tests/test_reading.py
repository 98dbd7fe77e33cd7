"""Reading trainers and configs with ast: what is a setting, what is unknown, what is worth a warning. No processes."""

from __future__ import annotations

import os
import tempfile
import unittest
from pathlib import Path
from typing import Any

import run_experiments as runner

UNKNOWN = runner.UNKNOWN
END = "exec(open('configurator.py').read())\n"
TRAINER = "import os\nlearning_rate = 1e-3\nn_layer = 2\nseed = 1\ninit_from = 'scratch'\nbatch_size = 8\n" + END


class PlanCase(unittest.TestCase):
    """Each test works in a directory of its own."""

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(scratch.name)

    def write(self, files: dict[str, str]) -> None:
        for name, source in files.items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(source, encoding="utf-8")

    def script(self, source: str = TRAINER) -> runner.Script:
        self.write({"train_run.py": source})
        return runner.read_trainer(runner.Options())

    def planner(self, source: str = TRAINER, **configs: str) -> runner.Planner:
        self.write({f"{name}.py": text for name, text in configs.items()})
        return runner.Planner(self.script(source))

    def refused(self, call: Any, *arguments: Any, **named: Any) -> str:
        with self.assertRaises(runner.UsageError) as caught:
            call(*arguments, **named)
        return str(caught.exception)


class ReadingTest(PlanCase):
    def reading(self, source: str) -> runner.Script:
        return runner.read_code("c.py", source.encode())

    def test_a_statement_that_may_set_any_name_is_seen_and_what_only_looks_like_it_is_not(self) -> None:
        opaque = ["from base import *", "exec(open('base.py').read())", "exec('a = 1')", "globals().update(a=1)"]
        opaque += ["if x:\n    from base import *", "for name in names:\n    exec(name)"]
        opaque += ["try:\n    exec(open('b.py').read())\nexcept OSError:\n    pass"]
        opaque += ["with open('b.py') as f:\n    exec(f.read())"]
        clear = ["import base", "from base import x", "def f():\n    exec('a = 1')", "executor.exec('x')"]
        clear += ["keys = [k for k, v in globals().items()]", "'exec(open(1))'", "print(globals()['a'])"]
        for source in opaque + clear:
            with self.subTest(source=source):
                found = self.reading(f"before = 1\n{source}\nafter = 2\n")
                self.assertEqual(found.opaque, source in opaque)
                before = UNKNOWN if source in opaque else 1
                self.assertEqual((found.settings["before"], found.settings["after"]), (before, 2))

    def test_imported_names_are_unknown_until_they_are_assigned(self) -> None:
        table: list[tuple[str, Any, bool]] = [
            ("from base import a", UNKNOWN, True),
            ("import a.b", UNKNOWN, True),
            ("import b as a", UNKNOWN, True),
            ("if x:\n    from base import a", UNKNOWN, True),
            ("a = 1\nfrom base import a", UNKNOWN, True),
            ("from base import a\na = 1", 1, False),
        ]
        for source, value, only_imported in table:
            with self.subTest(source=source):
                found = self.reading(source)
                self.assertIs(found.settings.get("a", UNKNOWN), value)
                self.assertEqual("a" in found.imported, only_imported)

    def test_a_list_that_is_changed_in_place_is_unknown(self) -> None:
        for source in ("a.append(2)", "a[0] = 2", "a += [2]", "b = a\nb.append(2)", "for x in a:\n    x['y'] = 1"):
            with self.subTest(source=source):
                self.assertIs(self.reading(f"a = [1]\n{source}\n").settings["a"], UNKNOWN)
        self.assertEqual(self.reading("a = 5\nb = a * 2\n").settings, {"a": 5, "b": UNKNOWN})

    def test_stars_and_nested_targets_are_never_guessed(self) -> None:
        table: list[tuple[str, dict[str, Any]]] = [
            ("*a, b = 1, 2, 3", {"a": UNKNOWN, "b": UNKNOWN}),
            ("a, (b, c) = 1, (2, 3)", {"a": UNKNOWN, "b": UNKNOWN, "c": UNKNOWN}),
            ("a, b = 1, 2, 3", {"a": UNKNOWN, "b": UNKNOWN}),
            ("a = (b := 3)", {"a": UNKNOWN, "b": UNKNOWN}),
            ("if x:\n    a: int = 3", {"a": UNKNOWN}),
        ]
        for source, settings in table:
            with self.subTest(source=source):
                self.assertEqual(self.reading(source).settings, settings)

    def test_what_is_nested_too_deeply_is_unknown(self) -> None:
        long_sum = "b = " + "+".join(["1"] * 2000)
        chain = "if x == 0:\n    pass\n" + "".join(f"elif x == {n}:\n    pass\n" for n in range(400))
        for source in (long_sum, f"def f(x):\n    {chain.replace(chr(10), chr(10) + '    ')}\n    return x"):
            with self.subTest(source=source[:20]):
                found = self.reading(f"a = 1\n{source}\nc = 3\n")
                self.assertIn(found.settings["a"], (1, UNKNOWN))
                self.assertEqual((found.settings["c"], found.settings.get("b", UNKNOWN)), (3, UNKNOWN))

    def test_the_use_of_file_is_told(self) -> None:
        table = [
            (f"here = os.path.dirname(__file__)\n{END}", "", False),
            ("a = 1\nexec(open(os.path.join(os.path.dirname(__file__), 'configurator.py')).read())\n", "", False),
            (END, "import sys\n", False),
            (END, "globals()['__file__'] = sys.argv[1]\n", True),
        ]
        for script, configurator, uses_file in table:
            with self.subTest(script=script, configurator=configurator):
                self.write({"lib/train.py": script, "lib/configurator.py": configurator})
                self.assertEqual(runner.read_trainer(runner.Options(train_script="lib/train.py")).uses_file, uses_file)
        self.write({"configurator.py": "__file__", "lib/configurator.py": ""})
        self.assertTrue(runner.read_trainer(runner.Options(train_script="lib/train.py")).uses_file)
        self.assertTrue(self.reading("path = __file__").uses_file)

    def test_comments_and_layout_are_no_change_of_the_code(self) -> None:
        table = [
            ("a = 1", "a  =  1  # why\n\n", True),
            ("a = 'x'", 'a = "x"', True),
            ("a = 1", "a = 1.0", False),
            ("a = 1", "a = True", False),
            ("a = 1\nb = 2", "b = 2\na = 1", False),
            ("a = = 1", "a = = 1", True),
            ("a = = 1", "a = = 1 # x", False),
            ("a = 1", "a = = 1", False),
        ]
        for a, b, same in table:
            with self.subTest(a=a, b=b):
                self.assertEqual(runner.same_code(a.encode(), b.encode()), same)

    def test_a_config_that_no_configurator_execs_need_not_be_python(self) -> None:
        self.write({"a.yaml": "lr: [", "b.py": "x = = 1"})
        for script, path, is_problem in (
            (runner.Script("t.py", strict=True), "a.yaml", True),
            (runner.Script("t.py"), "a.yaml", False),
            (runner.Script("t.py"), "b.py", True),
            (runner.Script(""), "gone.yaml", True),
        ):
            with self.subTest(script=script, path=path):
                self.assertEqual(runner.Planner(script).read(path).problem is not None, is_problem)

    def test_train_py_is_the_script_where_there_is_no_train_run_py(self) -> None:
        self.assertEqual(runner.default_script(), "train_run.py")
        self.write({"train.py": ""})
        self.assertEqual(runner.default_script(), "train.py")
        self.write({"train_run.py": ""})
        self.assertEqual(runner.default_script(), "train_run.py")


class FormTest(unittest.TestCase):
    def test_the_words_of_json_become_pythons(self) -> None:
        table: list[tuple[Any, str, str]] = [
            (UNKNOWN, "true", "True"),
            (UNKNOWN, "1", "1"),
            (UNKNOWN, "yes", "yes"),
            (UNKNOWN, "null", "None"),
            (UNKNOWN, '[{"a": true, "b": null}]', "[{'a': True, 'b': None}]"),
            (UNKNOWN, "[truer, true]", "[truer, true]"),
            ([1], '[{"a": true, "b": null}]', "[{'a': True, 'b': None}]"),
            ([1], '["true", false]', "['true', False]"),
            ([1], '["a=b", null]', "['a\\x3db', None]"),
            ({"a": 1}, '{"null": null}', "{'null': None}"),
            ("x", "[true]", "'[true]'"),
        ]
        for default, text, form in table:
            with self.subTest(default=default, text=text):
                self.assertEqual(runner.trainer_form(text, default), form)

    def test_a_type_that_the_script_tells_counts_before_the_usual_one(self) -> None:
        script = runner.Script("t.py", {"compile": "auto", "device": runner.UNKNOWN, "batch_size": 8}, strict=True)
        planner = runner.Planner(script)
        planner.configs["c.py"] = runner.Script("c.py", opaque=True)  # it may set any of them
        made = planner.experiment("n", "c.py", {"compile": "yes", "device": "8", "batch_size": "4"})
        self.assertEqual(made.arguments, ["--compile=yes", "--device='8'", "--batch_size=4"])

    def test_numbers_and_truth_values_have_their_form_without_a_configurator_too(self) -> None:
        planner = runner.Planner(runner.Script("t.py", {"lr": 1e-3, "use": False, "n": 4}))
        made = planner.experiment("n", "", {"lr": "1", "use": "yes", "n": "8.0"})
        self.assertEqual(made.arguments, ["--lr=1.0", "--use=True", "--n=8"])
        with self.assertRaisesRegex(runner.UsageError, "--lr: 'abc'.*a number"):
            planner.experiment("n", "", {"lr": "abc"})

    def test_a_trainer_without_a_configurator_gets_values_as_written(self) -> None:
        planner = runner.Planner(runner.Script("t.py", {"use": False, "betas": [1]}))
        given = {"use": "True", "betas": "[true]", "n": "007", "x": "{[]: 1}"}
        self.assertEqual(
            planner.experiment("n", "", given).arguments, [f"--{key}={text}" for key, text in given.items()]
        )


class EffectiveSettingsTest(PlanCase):
    def test_what_a_config_may_have_set_is_unknown_unless_assigned_after_it(self) -> None:
        planner = self.planner(
            a="seed = 5\nfrom base import *\nn_layer = 4\n", b="from base import seed\nimport time\n"
        )
        settings = planner.experiment("a", "a.py", {"batch_size": "16"}).settings
        told = {"learning_rate": UNKNOWN, "n_layer": 4, "seed": UNKNOWN, "init_from": UNKNOWN, "batch_size": 16}
        self.assertEqual(settings, told)
        settings = planner.experiment("b", "b.py", {}).settings
        self.assertEqual((settings["seed"], settings["n_layer"], "time" in settings), (UNKNOWN, 2, False))

    def test_so_is_what_the_script_may_have_set(self) -> None:
        script = self.script("a = 1\nfrom base import *\nb = 2\n" + END)
        self.assertEqual((script.settings, script.opaque), ({"a": UNKNOWN, "b": 2}, True))
        script = self.script("import os\nfrom model import GPT\nb = 2\n" + END)
        self.assertEqual((script.settings, script.opaque, script.imported), ({"b": 2}, False, {"os", "GPT"}))

    def test_where_names_are_not_all_known_none_is_refused(self) -> None:
        planner = self.planner(a="from base import *\n", b="")
        self.assertEqual(planner.experiment("a", "a.py", {"depth": "3"}).arguments, ["--depth=3"])
        self.refused(planner.experiment, "b", "b.py", {"depth": "3"})
        planner = self.planner("from base import depth\n" + END, b="")
        self.assertEqual(planner.experiment("b", "b.py", {"depth": "3"}).arguments, ["--depth=3"])

    def test_an_unknown_value_is_written_like_the_scripts_own_default(self) -> None:
        source = "learning_rate = 1e-3\nuse_x = f()\ncompile = f()\nmax_iters = f()\n" + END
        planner = self.planner(source, a="from base import *\n", b="learning_rate = f()\n")
        table = [
            ("a", "learning_rate", "1", "1.0"),  # the script's type
            ("b", "learning_rate", "1", "1.0"),
            ("b", "learning_rate", "auto", "0.001"),  # the usual type, which refuses it
            ("b", "use_x", "true", "True"),
            ("b", "use_x", "1", "1"),
            ("b", "compile", "1", "True"),  # a usual example decides first
            ("b", "max_iters", "1e3", "1000"),
        ]
        for name, key, text, form in table:
            with self.subTest(name=name, key=key, text=text):
                if text == "auto":
                    self.assertIn("a number", self.refused(planner.experiment, name, f"{name}.py", {key: text}))
                    continue
                made = planner.experiment(name, f"{name}.py", {key: text})
                self.assertEqual(made.arguments, [f"--{key}={form}"])

    def test_a_frozen_copy_is_read_in_place_of_the_config(self) -> None:
        planner = self.planner(a="seed = 2\n", copy="seed = 3\n")
        made = planner.experiment("a", "a.py", {}, source="copy.py")
        self.assertEqual((made.config, made.settings["seed"]), ("a.py", 3))
        self.write({"copy.py": "seed = 4\n"})
        self.assertEqual(planner.experiment("a", "a.py", {}, source="copy.py").settings["seed"], 3)

    def test_unknown_values_are_no_difference(self) -> None:
        planner = self.planner(a="seed = f()\nn_layer = 3\n", b="seed = g()\nn_layer = {1}\n")
        plan = planner.plan(runner.Options(), ["a.py", "b.py"])
        self.assertEqual(runner.differing(plan), ["n_layer"])


class WarningTest(PlanCase):
    def test_a_probable_mistake_in_a_config_is_named(self) -> None:
        script = self.script()
        table = [
            ("learning_rat = 1", ["'learning_rat'", "'learning_rate'"]),
            ("n_layers = 1", ["'n_layers'", "'n_layer'"]),
            ("n_layer = '2'", ["n_layer", "'2'", "int"]),
            ("n_layer = 2.5", ["n_layer", "2.5"]),
            ("seed = [1]", ["seed", "[1]"]),
        ]
        for source, parts in table:
            with self.subTest(source=source):
                [said] = runner.config_warnings(runner.read_code("a.py", source.encode()), script)
                for part in parts:
                    self.assertIn(part, said)

    def test_nothing_is_said_of_what_is_right_or_not_known(self) -> None:
        script = self.script("a = None\nuse = True\nbetas = (1, 2)\nmax_iters = f()\n" + TRAINER)
        for source in (
            "learning_rate = 1",
            "a = 5",
            "seed = None",
            "use = 1",
            "betas = [1, 2]",
            "max_iters = 'x'",
            "seed = f()",
            "n_layers = 3\nn_layer = n_layers * 2",
            "model = 'x'",
            "import n_layers",
            "def n_layers():\n    pass",
        ):
            with self.subTest(source=source):
                self.assertEqual(runner.config_warnings(runner.read_code("a.py", source.encode()), script), [])
        opaque = self.script("from base import *\n" + TRAINER)
        self.assertEqual(runner.config_warnings(runner.read_code("a.py", b"n_layers = 1"), opaque), [])

    def test_a_first_attempt_that_wants_a_checkpoint_is_told(self) -> None:
        planner = self.planner(a="init_from = 'resume'\nn_layers = 1\n", b="")
        table: list[tuple[str, dict[str, str], int]] = [
            ("a", {}, 2),
            ("a", {"init_from": "scratch"}, 1),
            ("b", {"init_from": "resume"}, 1),
            ("b", {}, 0),
        ]
        for name, overrides, count in table:
            with self.subTest(name=name, overrides=overrides):
                experiment = planner.experiment(name, f"{name}.py", overrides)
                said = planner.warnings(experiment)
                self.assertEqual(len(said), count, said)
