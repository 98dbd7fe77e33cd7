"""Settings: what reading a script tells, and that each value is written as a real configurator accepts it."""

from __future__ import annotations

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
from tests.support import TESTS

CONFIGURATOR = compile((TESTS / "configurator.py").read_text(encoding="utf-8"), "configurator", "exec")


def read(source: Union[str, bytes]) -> tuple[dict[str, Any], bool]:
    """What reading a script of this source tells: its settings, and whether it has a configurator."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "script.py")
        path.write_bytes(source.encode() if isinstance(source, str) else source)
        return read_file(path)


def read_file(path: Union[str, Path]) -> tuple[dict[str, Any], bool]:
    found = runner.read_file(str(path), True)
    if found.problem:
        raise ValueError(found.problem)
    return found.settings, found.strict


UNKNOWN = read("computed = f()\n")[0]["computed"]

# default, what the user typed, what the trainer is given, what the trainer then has
ACCEPTED: list[tuple[Any, str, str, Any]] = [
    (False, "true", "True", True),
    (False, "yes", "True", True),
    (False, "1", "True", True),
    (True, "false", "False", False),
    (True, "nO", "False", False),
    (True, "0", "False", False),
    (8, "4", "4", 4),
    (8, "-4", "-4", -4),
    (8, "007", "7", 7),
    (8, "'8'", "8", 8),
    (8, "1_000", "1000", 1000),
    (8, "1e3", "1000", 1000),
    (8, "4.0", "4", 4),
    (8, "123456789012345678901234567890", "123456789012345678901234567890", 123456789012345678901234567890),
    (1e-3, "1", "1.0", 1.0),
    (1e-3, "-1", "-1.0", -1.0),
    (1e-3, "1e-4", "0.0001", 1e-4),
    (1e-3, ".5", "0.5", 0.5),
    (1e-3, "1e-400", "0.0", 0.0),
    (1e-3, "inf", "1e999", float("inf")),
    ("x", "cuda:0", "cuda:0", "cuda:0"),
    ("x", "a b", "a b", "a b"),
    ("x", "2024", "'2024'", "2024"),
    ("x", "1e5", "'1e5'", "1e5"),
    ("x", "True", "'True'", "True"),
    ("x", "[1, 2]", "'[1, 2]'", "[1, 2]"),
    ("x", "{'a': 1}", "\"{'a': 1}\"", "{'a': 1}"),
    ("x", "1,2", "'1,2'", "1,2"),
    ("x", "nan", "nan", "nan"),
    ("x", "NaN", "NaN", "NaN"),  # which JSON would have
    ("x", "it's", "it's", "it's"),
    ("x", "'2024'", "'2024'", "2024"),  # quoted by the user already
    ("x", "a=b", "'a\\x3db'", "a=b"),
    ("x", "'a=b'", "'a\\x3db'", "a=b"),  # quotes mean the same with and without an '='
    ("x", 'it\'s="1"', "'it\\'s\\x3d\"1\"'", 'it\'s="1"'),
    ("x", "a\\=b", "'a\\\\\\x3db'", "a\\=b"),
    ("x", "tab\tnewline\n", "tab\tnewline\n", "tab\tnewline\n"),
    ("x", "Grüße, 世界", "Grüße, 世界", "Grüße, 世界"),
    ([1], "[3, 4]", "[3, 4]", [3, 4]),
    ([1], "[{'type': 'random'}]", "[{'type': 'random'}]", [{"type": "random"}]),
    ([1], "['a=b']", "['a\\x3db']", ["a=b"]),
    ((1, 2), "(3, 4)", "(3, 4)", (3, 4)),
    ((1, 2), "3,4", "3,4", (3, 4)),
    ({"a": 1}, "{'b': 2}", "{'b': 2}", {"b": 2}),
    ({"a": 1}, "{'b=': '='}", "{'b\\x3d': '\\x3d'}", {"b=": "="}),
    (None, "None", "None", None),
]

# default, what the user typed, what is said to be wanted
REFUSED: list[tuple[Any, str, str]] = [
    *((False, text, "true or false") for text in ("2", "-1", "on", "off", "t", "None", "", "1.0", "truee", "'true'")),
    *((8, text, "a whole number") for text in ("abc", "", "1.5", "1e-3", "nan", "inf", "1e400", "true", "True", "[8]")),
    *((8, text, "a whole number") for text in ("1,5", "1 000", "--4", "None", "5*8")),
    *((1e-3, text, "a number") for text in ("abc", "", "nan", "-nan", "true", "False", "1,5", "1e", "[1.0]")),
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
            return runner.trainer_form(text, default)
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
                self.assertEqual(form_or_refusal(text, UNKNOWN), text)

    def test_an_equals_sign_in_a_computed_settings_value_keeps_its_meaning(self) -> None:
        for text, value in [("a=b", "a=b"), ("['a=b', 1]", ["a=b", 1]), ("{'a': '='}", {"a": "="})]:
            with self.subTest(text=text):
                form = form_or_refusal(text, UNKNOWN)
                self.assertEqual(configure(type(value)(), f"--chosen={form}"), value)

    def test_whatever_is_typed_is_either_accepted_by_the_configurator_or_refused_before_it(self) -> None:
        """Texts at random: an accepted one gives the type, a refused one would have died in the trainer."""
        rng = random.Random(20240128)
        pieces = list("0123456789.eE+-_xX=,:'\"[](){} \\anifTrue") + ["True", "None", "1e999", "''", "0x1", "'a'", "1."]
        defaults: list[Any] = [True, 3, 0.5, "text", [1], (1,), {"a": 1}, None]
        for _ in range(4000):
            text, default = "".join(rng.choices(pieces, k=rng.randint(0, 6))), rng.choice(defaults)
            form = form_or_refusal(text, default)
            with self.subTest(default=default, text=text, form=form):
                if isinstance(form, ValueError):
                    with self.assertRaises(Refusal):
                        configure(default, f"--chosen={text}")
                else:
                    self.assertIs(type(configure(default, f"--chosen={form}")), type(default))


class PlainValueTest(unittest.TestCase):
    def test_what_json_holds_of_a_value_is_what_its_form_means(self) -> None:
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
                got = runner.plain_value(form)
                self.assertEqual((type(got), got), (type(value), value))


class ReadSettingsTest(unittest.TestCase):
    def test_top_level_assignments_of_literals_are_settings(self) -> None:
        every = "a = 1\nb = -0.5\nc = 'x'\nd = [1, {'e': None}]\nf = (1, 2)\ng = True\nh = None\ni = j = 3\n"
        table: dict[Union[str, bytes], dict[str, Any]] = {
            "": {},
            every: dict(a=1, b=-0.5, c="x", d=[1, {"e": None}], f=(1, 2), g=True, h=None, i=3, j=3),
            "a: int = 3\n": {"a": 3},
            "a = 1\na = 2\n": {"a": 2},
            "a = 5 * 8\nb = 1e-3 / 10\nc = 10 - 3 + 1\nd = -2 * -3\ne = 4 / 2\n": dict(a=40, b=1e-4, c=8, d=6, e=2.0),
            "def f():\n    a = 1\nasync def g():\n    b = 1\nclass C:\n    c = 1\nd = 1\n": {"d": 1},
            "import os\nos.environ['A'] = '1'\nos.x = 2\na = 1\n": {"a": 1},
            b"# -*- coding: latin-1 -*-\na = '\xfc'\n": {"a": "ü"},
            b"\xef\xbb\xbfa = 1\r\nb = 2\r\n": {"a": 1, "b": 2},
        }
        for source, settings in table.items():
            with self.subTest(source=source):
                self.assertEqual(read(source), (settings, False))

    def test_what_is_computed_is_a_setting_of_unknown_value(self) -> None:
        table: dict[str, dict[str, Any]] = {
            "a = f(1)\nb = 1 / 0\nc = 'x' * 3\nd = [x for x in y]": dict.fromkeys("abcd", UNKNOWN),
            "a = f\nb = 'x' if a else 'y'\nc = '' + 1\n": dict.fromkeys("abc", UNKNOWN),
            "a = 1\na *= 2\n": {"a": UNKNOWN},
            "a = 'x'\nif f():\n    a = 'y'\nelse:\n    b = 1\nfor c in (1, 2):\n    pass\nd = 3\n": dict(
                a=UNKNOWN, b=UNKNOWN, c=UNKNOWN, d=3
            ),
        }
        for source, settings in table.items():
            with self.subTest(source=source):
                self.assertEqual(read(source)[0], settings)

    def test_the_targets_of_a_tuple_assignment_are_settings(self) -> None:
        settings = read("beta1, beta2 = 0.9, 0.95\n[c, d] = f()\n")[0]
        self.assertEqual(list(settings), ["beta1", "beta2", "c", "d"])
        self.assertIn(settings["beta1"], (0.9, UNKNOWN))

    def test_only_what_stands_before_the_configurator_is_a_setting(self) -> None:
        for line in (
            "exec(open('configurator.py').read())",
            "exec(open(os.path.join(here, 'configurator.py')).read())",
            "exec(Path('lib/configurator.py').read_text())",
            "with open('configurator.py') as f:\n    exec(f.read())",
        ):
            with self.subTest(line=line):
                self.assertEqual(read(f"import os\na = 1\n{line}\nb = 2\na = 3\n"), ({"a": 1}, True))

    def test_a_mention_of_the_configurator_is_not_yet_its_use(self) -> None:
        source = '"""Settings are overridden by configurator.py"""\na = 1\nexec(open("configurator.py").read())\n'
        self.assertEqual(read(source), ({"a": 1}, True))
        self.assertEqual(read("a = 1  # no configurator.py here\nb = 2\n"), ({"a": 1, "b": 2}, False))

    def test_source_that_is_no_python_is_told_in_one_line_with_the_file(self) -> None:
        table: list[tuple[Union[str, bytes], str]] = [
            ("a = 1\nb = = 2\nc = 3\n", "line 2"),
            ("if True:\nx = 1\n", "line 2"),
            ("a = (1,\n", "line 1"),
            (b"a = 1\nb = '\xff\xfe'\n", ""),
            (b"# -*- coding: klingon -*-\na = 1\n", ""),
            (b"a = 1\n\0\n", ""),
        ]
        for source, said in table:
            with self.subTest(source=source), self.assertRaisesRegex(ValueError, rf"\A.*script\.py.*{said}.*\Z"):
                read(source)

    def test_source_nested_beyond_reason_is_told_or_unknown_but_never_a_crash(self) -> None:
        for source in ("a = " + "(" * 5000, "a = " + "-" * 50000 + "1", "a = " + "+".join("1" * 20000)):
            with self.subTest(source=source[:10]), contextlib.suppress(ValueError):
                self.assertIs(read(source)[0].get("a", UNKNOWN), UNKNOWN)

    def test_what_can_not_be_read_is_a_problem(self) -> None:
        for path in ("nowhere.py", os.curdir, os.devnull):
            with self.subTest(path=path):
                self.assertIsNotNone(runner.read_file(path, True).problem)

    def test_the_stand_in_trainer_is_read_as_it_runs(self) -> None:
        """Each setting of the real script, by its own globals at the moment the configurator takes over."""
        script = TESTS / "train_run.py"
        settings, strict = read_file(script)
        tree = ast.parse(script.read_text(encoding="utf-8"))
        cut = next(n for n, each in enumerate(tree.body) if "configurator.py" in ast.dump(each))
        real: dict[str, Any] = {}
        exec(compile(ast.Module(tree.body[:cut], []), str(script), "exec"), real)
        self.assertTrue(strict)
        for key in real["config_keys"]:
            if key in settings and settings[key] is not UNKNOWN:
                self.assertEqual((type(settings[key]), settings[key]), (type(real[key]), real[key]))
        known = {key for key, value in settings.items() if value is not UNKNOWN}
        self.assertEqual(known, set(real["config_keys"]))
