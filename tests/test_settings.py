"""Settings: what reading a script tells, and that each value is written as a real configurator accepts it."""

import ast
import contextlib
import io
import os
import random
import sys
import tempfile
import unittest
import warnings
from pathlib import Path
from typing import Any, Union
from unittest import mock

import run_experiments as runner

CONFIGURATOR = compile(Path(__file__).with_name("configurator.py").read_text(encoding="utf-8"), "configurator", "exec")
SEED = int(os.environ.get("TEST_SEED", random.randrange(10**6)))

# default, what the user typed, what the trainer is given, what the trainer then has
ACCEPTED: list[tuple[Any, str, str, Any]] = [
    (False, "true", "True", True),
    (False, "TRUE", "True", True),
    (False, "True", "True", True),
    (False, "yes", "True", True),
    (False, "1", "True", True),
    (True, "false", "False", False),
    (True, "False", "False", False),
    (True, "nO", "False", False),
    (True, "0", "False", False),
    (8, "4", "4", 4),
    (8, "-4", "-4", -4),
    (8, "+4", "4", 4),
    (8, "0", "0", 0),
    (8, "007", "7", 7),
    (8, " 4 ", "4", 4),
    (8, "1_000", "1000", 1000),
    (8, "1e3", "1000", 1000),
    (8, "2.5e3", "2500", 2500),
    (8, "4.0", "4", 4),
    (8, "0x10", "16", 16),
    (8, "123456789012345678901234567890", "123456789012345678901234567890", 123456789012345678901234567890),
    (1e-3, "1", "1.0", 1.0),
    (1e-3, "-1", "-1.0", -1.0),
    (1e-3, "1e-4", "0.0001", 1e-4),
    (1e-3, "0.1", "0.1", 0.1),
    (1e-3, ".5", "0.5", 0.5),
    (1e-3, "5.", "5.0", 5.0),
    (1e-3, "1e-400", "0.0", 0.0),
    (1e-3, "1e23", "1e+23", 1e23),
    (1e-3, "inf", "1e999", float("inf")),
    (1e-3, "-Infinity", "-1e999", float("-inf")),
    (1e-3, "1e999", "1e999", float("inf")),
    ("x", "cuda:0", "cuda:0", "cuda:0"),
    ("x", "", "", ""),
    ("x", "a b", "a b", "a b"),
    ("x", "2024", "'2024'", "2024"),
    ("x", "1e5", "'1e5'", "1e5"),
    ("x", "0x10", "'0x10'", "0x10"),
    ("x", "True", "'True'", "True"),
    ("x", "None", "'None'", "None"),
    ("x", "[1, 2]", "'[1, 2]'", "[1, 2]"),
    ("x", "{'a': 1}", "\"{'a': 1}\"", "{'a': 1}"),
    ("x", "1,2", "'1,2'", "1,2"),
    ("x", "true", "true", "true"),
    ("x", "nan", "nan", "nan"),
    ("x", "it's", "it's", "it's"),
    ("x", "'2024'", "'2024'", "2024"),  # quoted by the user already
    ("x", "a=b", "'a\\x3db'", "a=b"),
    ("x", "=", "'\\x3d'", "="),
    ("x", "a==b=", "'a\\x3d\\x3db\\x3d'", "a==b="),
    ("x", "'a=b'", "'a\\x3db'", "a=b"),  # quotes mean the same with and without an '='
    ("x", 'it\'s="1"', "'it\\'s\\x3d\"1\"'", 'it\'s="1"'),
    ("x", "\\", "\\", "\\"),
    ("x", "a\\=b", "'a\\\\\\x3db'", "a\\=b"),
    ("x", "tab\tnewline\n", "tab\tnewline\n", "tab\tnewline\n"),
    ("x", "Grüße, 世界", "Grüße, 世界", "Grüße, 世界"),
    ("x", "{[]: 1}", "'{[]: 1}'", "{[]: 1}"),  # reading this raises TypeError in the configurator
    ([1], "[3, 4]", "[3, 4]", [3, 4]),
    ([1], "[]", "[]", []),
    ([1], "[{'type': 'random'}]", "[{'type': 'random'}]", [{"type": "random"}]),
    ([1], "['a=b']", "['a\\x3db']", ["a=b"]),
    ((1, 2), "(3, 4)", "(3, 4)", (3, 4)),
    ((1, 2), "3,4", "3,4", (3, 4)),
    ((1, 2), "()", "()", ()),
    ({"a": 1}, "{'b': 2}", "{'b': 2}", {"b": 2}),
    ({"a": 1}, "{}", "{}", {}),
    ({"a": 1}, "{'b=': '='}", "{'b\\x3d': '\\x3d'}", {"b=": "="}),
    (None, "None", "None", None),
]

# default, what the user typed, what is said to be wanted
REFUSED: list[tuple[Any, str, str]] = [
    *((False, text, "true or false") for text in ("2", "-1", "on", "off", "t", "None", "", "1.0", "truee", "'true'")),
    *((8, text, "a whole number") for text in ("abc", "", "1.5", "1e-3", "nan", "inf", "1e400", "true", "True", "[8]")),
    *((8, text, "a whole number") for text in ("1,5", "1 000", "--4", "'8'", "None", "5*8")),
    *((1e-3, text, "a number") for text in ("abc", "", "nan", "-nan", "true", "False", "1,5", "1e", "'1.0'", "[1.0]")),
    *(([1], text, "a list") for text in ("5", "(1, 2)", "[1", "", "abc", "None", "{}", "[a]")),
    *(((1, 2), text, "a tuple") for text in ("5", "[1, 2]", "(1", "", "abc")),
    *(({"a": 1}, text, "a dict") for text in ("5", "{1}", "{'a': }", "", "{[]: 1}")),
]


class Refusal(Exception):
    """What a configurator died of."""


def configure(default: Any, argument: str) -> Any:
    """What the real configurator makes of `--chosen=…` over a setting with this default; raises Refusal."""
    settings: dict[str, Any] = {"__name__": "__main__", "chosen": default}
    argv = mock.patch.object(sys, "argv", ["train.py", argument])
    with argv, contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd escapes and decimal literals among the values
        try:
            exec(CONFIGURATOR, settings)
        except Exception as error:
            raise Refusal(f"{type(error).__name__}: {error}") from None
    return settings["chosen"]


def form_or_refusal(text: str, default: Any) -> Union[str, ValueError]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return runner.trainer_form(text, default, True)
        except ValueError as error:
            return error


class TrainerFormTest(unittest.TestCase):
    def test_each_value_is_written_in_the_form_of_its_default(self) -> None:
        for default, text, form, _ in ACCEPTED:
            with self.subTest(default=default, text=text):
                self.assertEqual(form_or_refusal(text, default), form)

    def test_a_real_configurator_reads_each_form_as_the_value_that_was_meant(self) -> None:
        for default, text, form, value in ACCEPTED:
            with self.subTest(default=default, text=text):
                got = configure(default, f"--chosen={form}")
                self.assertEqual((type(got), got), (type(value), value))

    def test_a_value_that_cannot_be_of_the_type_is_refused_and_the_type_named(self) -> None:
        for default, text, wanted in REFUSED:
            with self.subTest(default=default, text=text):
                refusal = form_or_refusal(text, default)
                self.assertIsInstance(refusal, ValueError)
                self.assertEqual(str(refusal), wanted)

    def test_a_real_configurator_dies_of_each_refused_value(self) -> None:
        for default, text, _ in REFUSED:
            with self.subTest(default=default, text=text), self.assertRaises(Refusal):
                configure(default, f"--chosen={text}")

    def test_a_setting_that_was_none_takes_nothing_but_none(self) -> None:
        for text in ("5", "none", "", "x"):
            with self.subTest(text=text):
                self.assertIsInstance(form_or_refusal(text, None), ValueError)
                with self.assertRaises(Refusal):
                    configure(None, f"--chosen={text}")

    def test_a_computed_setting_gets_the_text_as_it_is(self) -> None:
        for text in ("bfloat16", "5", "1e-4", "True", "[1, 2]", "", "a b"):
            with self.subTest(text=text):
                self.assertEqual(form_or_refusal(text, runner.UNKNOWN), text)

    def test_an_equals_sign_in_a_computed_settings_value_keeps_its_meaning(self) -> None:
        for text, value in [("a=b", "a=b"), ("['a=b', 1]", ["a=b", 1]), ("{'a': '='}", {"a": "="})]:
            with self.subTest(text=text):
                form = form_or_refusal(text, runner.UNKNOWN)
                self.assertEqual(configure(type(value)(), f"--chosen={form}"), value)

    def test_a_list_with_an_infinite_number_stays_readable(self) -> None:
        form = form_or_refusal("[1e999, 0.5]", [1.0])
        self.assertEqual(configure([1.0], f"--chosen={form}"), [float("inf"), 0.5])

    def test_for_a_script_without_a_configurator_an_equals_sign_is_left_alone(self) -> None:
        self.assertEqual(runner.trainer_form("a=b", "x", False), "a=b")
        self.assertEqual(runner.trainer_form("a=b", runner.UNKNOWN, False), "a=b")

    def test_whatever_is_typed_is_either_accepted_by_the_configurator_or_refused_before_it(self) -> None:
        """Texts at random: an accepted one gives the type, a refused one would have died in the trainer."""
        rng = random.Random(SEED)
        pieces = list("0123456789.eE+-_xX=,:'\"[](){} \\anifTrue") + ["True", "None", "1e999", "''", "0x1", "'a'", "1."]
        defaults: list[Any] = [True, 3, 0.5, "text", [1], (1,), {"a": 1}, None]
        wrong = []
        for _ in range(6000):
            text = "".join(rng.choices(pieces, k=rng.randint(0, 6)))
            default = rng.choice(defaults)
            form = form_or_refusal(text, default)
            refused = isinstance(form, ValueError)
            try:
                value = configure(default, f"--chosen={text if refused else form}")
            except Refusal:
                value = Refusal
            if refused:
                right = value is Refusal
            else:
                right = type(value) is type(default)
                right = right and (not isinstance(value, str) or value in (text, runner.read_as_configurator(text)))
            if not right:
                wrong.append((default, text, form, value))
        self.assertEqual(wrong[:10], [], f"{len(wrong)} with seed {SEED}: (default, text, form, what the trainer has)")


class PlainValueTest(unittest.TestCase):
    """A value kept in JSON must lead to the same training when the batch is continued."""

    def again(self, form: str, default: Any) -> str:
        value = runner.plain_value(form, True, default)
        return runner.trainer_form(runner.texts({"key": value})["key"], default, True)

    def test_a_plain_value_says_what_the_form_means(self) -> None:
        table: list[tuple[str, Any]] = [
            ("True", True),
            ("4", 4),
            ("0.0001", 1e-4),
            ("1e999", "1e999"),  # not JSON as a number
            ("cuda:0", "cuda:0"),
            ("'2024'", "2024"),
            ("'a\\x3db'", "a=b"),
            ("[1, 2]", "[1, 2]"),
            ("None", "None"),
        ]
        for form, value in table:
            with self.subTest(form=form):
                got = runner.plain_value(form, True)
                self.assertEqual((type(got), got), (type(value), value))

    def test_a_plain_value_leads_back_to_what_the_trainer_had(self) -> None:
        for default, text, form, value in ACCEPTED:
            with self.subTest(default=default, text=text):
                self.assertEqual(configure(default, f"--chosen={self.again(form, default)}"), value)

    def test_a_text_that_is_a_quoted_text_itself_keeps_its_quotes(self) -> None:
        text = repr("'quoted'")
        form = runner.trainer_form(text, "x", True)
        self.assertEqual(configure("x", f"--chosen={form}"), "'quoted'")
        self.assertEqual(configure("x", f"--chosen={self.again(form, 'x')}"), "'quoted'")

    def test_a_computed_setting_that_was_given_a_quoted_number_stays_a_text(self) -> None:
        form = runner.trainer_form("'2024'", runner.UNKNOWN, True)
        self.assertEqual(configure("x", f"--chosen={self.again(form, runner.UNKNOWN)}"), "2024")


class ReadSettingsTest(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.path = os.path.join(scratch.name, "script.py")

    def read(self, source: Union[str, bytes]) -> tuple[dict[str, Any], bool]:
        Path(self.path).write_bytes(source.encode() if isinstance(source, str) else source)
        return runner.read_settings(self.path)

    def said(self, source: Union[str, bytes]) -> str:
        """What the refusal to read a source says."""
        with self.assertRaises(ValueError) as caught:
            self.read(source)
        text = str(caught.exception)
        self.assertIn(self.path, text)
        self.assertNotIn("None", text)
        self.assertNotIn("\n", text)
        return text

    def test_top_level_literals_are_settings(self) -> None:
        source = "a = 1\nb = -0.5\nc = 'x'\nd = [1, {'e': None}]\nf = (1, 2)\ng = True\nh = None\ni = j = 3\n"
        expected = dict(a=1, b=-0.5, c="x", d=[1, {"e": None}], f=(1, 2), g=True, h=None, i=3, j=3)
        self.assertEqual(self.read(source), (expected, False))

    def test_only_what_stands_before_the_configurator_is_a_setting(self) -> None:
        for line in (
            "exec(open('configurator.py').read())",
            "exec(open(os.path.join(here, 'configurator.py')).read())",
            "exec(Path('lib/configurator.py').read_text())",
            "with open('configurator.py') as f:\n    exec(f.read())",
        ):
            with self.subTest(line=line):
                self.assertEqual(self.read(f"import os\na = 1\n{line}\nb = 2\na = 3\n"), ({"a": 1}, True))

    def test_a_mention_of_the_configurator_is_not_yet_its_use(self) -> None:
        source = '"""Settings are overridden by configurator.py"""\na = 1\nexec(open("configurator.py").read())\n'
        self.assertEqual(self.read(source), ({"a": 1}, True))
        self.assertEqual(self.read("a = 1  # no configurator.py here\nb = 2\n"), ({"a": 1, "b": 2}, False))

    def test_an_annotated_assignment_is_a_setting_a_bare_annotation_is_none(self) -> None:
        self.assertEqual(self.read("a: int = 3\nb: float\n"), ({"a": 3}, False))

    def test_the_last_assignment_counts(self) -> None:
        self.assertEqual(self.read("a = 1\na = 2\n")[0], {"a": 2})

    def test_plain_arithmetic_is_worked_out(self) -> None:
        source = "a = 5 * 8\nb = 1e-3 / 10\nc = 10 - 3 + 1\nd = -2 * -3\ne = 4 / 2\n"
        self.assertEqual(self.read(source)[0], {"a": 40, "b": 1e-3 / 10, "c": 8, "d": 6, "e": 2.0})

    def test_what_is_computed_is_a_setting_of_unknown_value(self) -> None:
        source = "a = f(1)\nb = 1 / 0\nc = 'x' * 3\nd = [x for x in y]\ne = a\nf = 'x' if a else 'y'\ng = '' + 1\n"
        settings = self.read(source)[0]
        self.assertEqual(list(settings), list("abcdefg"))
        self.assertTrue(all(value is runner.UNKNOWN for value in settings.values()), settings)

    def test_what_a_block_sets_is_a_setting_of_unknown_value(self) -> None:
        source = "dtype = 'x'\nif f():\n    dtype = 'y'\nelse:\n    other = 1\nfor n in (1, 2):\n    pass\ndtype2 = 3\n"
        self.assertEqual(
            self.read(source)[0], {"dtype": runner.UNKNOWN, "other": runner.UNKNOWN, "n": runner.UNKNOWN, "dtype2": 3}
        )

    def test_a_setting_changed_in_place_is_of_unknown_value(self) -> None:
        self.assertEqual(self.read("a = 1\na *= 2\n")[0], {"a": runner.UNKNOWN})

    def test_the_targets_of_a_tuple_assignment_are_settings(self) -> None:
        settings = self.read("beta1, beta2 = 0.9, 0.95\n[c, d] = f()\n")[0]
        self.assertEqual(list(settings), ["beta1", "beta2", "c", "d"])
        for key, value in (("beta1", 0.9), ("beta2", 0.95)):
            self.assertIn(settings[key], (value, runner.UNKNOWN))

    def test_names_within_functions_and_classes_are_no_settings(self) -> None:
        source = "def f():\n    a = 1\nasync def g():\n    b = 1\nclass C:\n    c = 1\nd = 1\n"
        self.assertEqual(self.read(source)[0], {"d": 1})

    def test_attributes_and_items_are_no_settings(self) -> None:
        self.assertEqual(self.read("import os\nos.environ['A'] = '1'\nos.x = 2\na = 1\n")[0], {"a": 1})

    def test_a_syntax_error_is_told_with_file_line_and_text(self) -> None:
        self.assertIn("line 2", self.said("a = 1\nb = = 2\nc = 3\n"))
        self.assertIn("b = = 2", self.said("a = 1\nb = = 2\nc = 3\n"))
        self.assertIn("line 2", self.said("if True:\nx = 1\n"))
        self.assertIn("line 1", self.said("a = (1,\n"))

    def test_bytes_that_are_not_utf8_are_told(self) -> None:
        self.said(b"a = 1\nb = '\xff\xfe'\n")

    def test_a_declared_encoding_is_honoured(self) -> None:
        self.assertEqual(self.read(b"# -*- coding: latin-1 -*-\na = '\xfc'\n")[0], {"a": "ü"})

    def test_an_encoding_that_does_not_exist_is_told(self) -> None:
        self.said(b"# -*- coding: klingon -*-\na = 1\n")

    def test_null_bytes_are_told(self) -> None:
        self.said(b"a = 1\n\0\n")
        self.said(b"\0" * 100)

    def test_a_byte_order_mark_is_no_trouble(self) -> None:
        self.assertEqual(self.read(b"\xef\xbb\xbfa = 1\n")[0], {"a": 1})

    def test_line_ends_of_other_systems_are_no_trouble(self) -> None:
        self.assertEqual(self.read(b"a = 1\r\nb = 2\r\n")[0], {"a": 1, "b": 2})

    def test_an_empty_file_sets_nothing(self) -> None:
        self.assertEqual(self.read(""), ({}, False))

    def test_source_nested_beyond_reason_is_told_or_unknown_but_never_a_crash(self) -> None:
        for source in ("a = " + "(" * 5000, "a = " + "-" * 50000 + "1", "a = " + "+".join("1" * 20000)):
            with self.subTest(source=source[:10]):
                try:
                    self.assertIs(self.read(source)[0]["a"], runner.UNKNOWN)
                except ValueError as error:
                    self.assertIn(self.path, str(error))

    def test_a_long_sum_is_no_trouble(self) -> None:
        self.assertIn(self.read("a = " + "+".join("1" * 300))[0]["a"], (300, runner.UNKNOWN))

    def test_a_missing_file_raises_oserror(self) -> None:
        with self.assertRaises(FileNotFoundError):
            runner.read_settings(self.path)

    def test_a_dangling_link_raises_oserror(self) -> None:
        os.symlink("nowhere", self.path)
        with self.assertRaises(FileNotFoundError):
            runner.read_settings(self.path)

    def test_a_directory_is_told(self) -> None:
        os.mkdir(self.path)
        with self.assertRaises((OSError, ValueError)) as caught:
            runner.read_settings(self.path)
        self.assertIn(self.path, str(caught.exception))

    def test_a_fifo_is_told_and_not_waited_for(self) -> None:
        os.mkfifo(self.path)
        with self.assertRaises((OSError, ValueError)) as caught:
            runner.read_settings(self.path)
        self.assertIn(self.path, str(caught.exception))

    @unittest.skipIf(os.geteuid() == 0, "root reads every file")
    def test_an_unreadable_file_raises_oserror(self) -> None:
        Path(self.path).write_text("a = 1\n")
        os.chmod(self.path, 0)
        with self.assertRaises(PermissionError):
            runner.read_settings(self.path)

    def test_the_stand_in_trainer_is_read_as_it_runs(self) -> None:
        """Each setting of the real script, by its own globals at the moment the configurator takes over."""
        script = Path(__file__).with_name("train_run.py")
        settings, strict = runner.read_settings(str(script))
        tree = ast.parse(script.read_text(encoding="utf-8"))
        cut = next(n for n, each in enumerate(tree.body) if "configurator.py" in ast.dump(each))
        real: dict[str, Any] = {}
        exec(compile(ast.Module(tree.body[:cut], []), str(script), "exec"), real)
        self.assertTrue(strict)
        for key in real["config_keys"]:
            if key in settings and settings[key] is not runner.UNKNOWN:
                self.assertEqual((type(settings[key]), settings[key]), (type(real[key]), real[key]))
        known = {key for key, value in settings.items() if value is not runner.UNKNOWN}
        self.assertEqual(known, set(real["config_keys"]))


class DidYouMeanTest(unittest.TestCase):
    def test_near_misses_are_named(self) -> None:
        table = [
            ("bacth_size", ["batch_size", "block_size", "device"], "batch_size"),
            ("learning_rat", ["learning_rate", "min_lr"], "learning_rate"),
            ("n_layers", ["n_layer", "n_head"], "n_layer"),
        ]
        for name, candidates, close in table:
            with self.subTest(name=name):
                said = runner.did_you_mean(name, candidates)
                self.assertTrue(said.startswith(f"; did you mean '{close}'"), said)
                self.assertTrue(said.endswith("?"), said)

    def test_what_resembles_nothing_gets_no_suggestion(self) -> None:
        self.assertEqual(runner.did_you_mean("xyzzy", ["batch_size", "device"]), "")
        self.assertEqual(runner.did_you_mean("", ["batch_size"]), "")
        self.assertEqual(runner.did_you_mean("batch_size", []), "")


if __name__ == "__main__":
    unittest.main()
