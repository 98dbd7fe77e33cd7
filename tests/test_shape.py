"""The shape of the one file: a section uses only itself and those above it, and a name means one thing."""

from __future__ import annotations

import ast
import re
import unittest
from collections import Counter
from collections.abc import Iterator

from tests.support import RUNNER

BANNER = re.compile(r"# -{20,} (.+)$")
SECTIONS = ["head", "data", "words", "trainer", "plan", "output", "store", "process", "views", "page", "batch"]
MADE_UP = """
import os

# ---------------------------------------------------------------- data

LIMIT = 3


def low():
    draw = LIMIT
    return paint(draw)


# ---------------------------------------------------------------- views


class Screen:
    def show(self, low):
        return LIMIT


def paint(what):
    return Screen


def paint(again):
    return low
"""


class Shape:
    """What a source defines at its top level, and in which section."""

    def __init__(self, source: str) -> None:
        self.tree = ast.parse(source)
        lines = enumerate(source.splitlines(), 1)
        banners = [(number, found[1].strip()) for number, line in lines if (found := BANNER.match(line))]
        self.starts = [(0, "head"), *banners]
        self.names = [name for _, name in self.starts]
        self.defined: Counter[str] = Counter()
        self.home: dict[str, int] = {}
        self.callables: set[str] = set()
        for node in self.tree.body:
            for name in names_of(node):
                self.defined[name] += 1
                self.home[name] = self.section(node)
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                self.callables.add(node.name)

    def section(self, node: ast.stmt) -> int:
        return max(index for index, (line, _) in enumerate(self.starts) if line <= node.lineno)

    def upward(self) -> list[str]:
        """The references that run up, each with both of its ends."""
        found = []
        for node in self.tree.body:
            here, where = self.section(node), ", ".join(names_of(node)) or f"line {node.lineno}"
            names = [each for each in ast.walk(node) if isinstance(each, ast.Name)]
            for each in names:
                if isinstance(each.ctx, ast.Load) and self.home.get(each.id, 0) > here:
                    there = self.names[self.home[each.id]]
                    found.append(f"{where}, {self.names[here]} -> {each.id}, {there}")
        return sorted(set(found))

    def twice(self) -> list[str]:
        return sorted(name for name, times in self.defined.items() if times > 1)

    def shadows(self) -> list[str]:
        """Locals and parameters that are called like a function or class of the module."""
        found = set()
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                owner = getattr(node, "name", f"lambda in line {node.lineno}")
                found |= {f"{owner}: {name}" for name in locals_of(node) if name in self.callables}
        return sorted(found)


def names_of(node: ast.stmt) -> list[str]:
    """The names that a top-level statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [each.id for target in node.targets for each in ast.walk(target) if isinstance(each, ast.Name)]
    return [node.target.id] if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else []


def locals_of(function: ast.AST) -> Iterator[str]:
    for each in ast.walk(function):
        if isinstance(each, ast.arg):
            yield each.arg
        elif isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
            yield each.id
        elif isinstance(each, ast.FunctionDef) and each is not function:
            yield each.name


class ShapeTest(unittest.TestCase):
    maxDiff = None
    shape: Shape

    @classmethod
    def setUpClass(cls) -> None:
        cls.shape = Shape(RUNNER.read_text(encoding="utf-8"))

    def test_the_sections_stand_in_the_order_of_the_design(self) -> None:
        self.assertEqual(self.shape.names, [*SECTIONS, "command line"])

    def test_a_section_uses_only_itself_and_those_above_it(self) -> None:
        self.assertEqual(self.shape.upward(), [])

    def test_no_name_is_defined_twice(self) -> None:
        self.assertEqual(self.shape.twice(), [])

    def test_no_local_is_called_like_a_function_or_class_of_the_file(self) -> None:
        self.assertEqual(self.shape.shadows(), [])

    def test_a_made_up_source_with_each_of_these_faults_is_told_by_its_ends(self) -> None:
        shape = Shape(MADE_UP)
        self.assertEqual(shape.names, ["head", "data", "views"])
        self.assertEqual(shape.upward(), ["low, data -> paint, views"])
        self.assertEqual(shape.twice(), ["paint"])
        self.assertEqual(shape.shadows(), ["show: low"])
