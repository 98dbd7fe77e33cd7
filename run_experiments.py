#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = []
# ///
"""Run a nanoGPT-style training script once per config file, and lose nothing.

    python run_experiments.py --configs "config/*.py" --device cuda --batch_size 8
    python run_experiments.py --configs "config/*.py" --sweep seed=1,2,3 --devices cuda:0,cuda:1
    python run_experiments.py --resume

Exit codes: 0 all experiments completed; 1 some did not; 2 usage error, nothing was started;
75 another runner holds the batch; 128+N stopped by signal N.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import errno
import fcntl
import functools
import glob
import html
import importlib
import itertools
import json
import math
import operator
import os
import queue
import re
import select
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Callable, NoReturn, Optional, TypeVar, Union

__version__ = "1.0.0"

GRACE = 10.0  # seconds between the stop signal and KILL
KILL_GAP = 0.2  # never KILL sooner after the stop signal: srun needs the time to end its remote task
TERM_GAP = 1.0  # the same after the TERM that precedes KILL where the stop signal is another: srun forwards INT only
ECHO = 0.3  # seconds in which the same signal again is no second one: `timeout` sends it to its child and to the group
LINGER = 2.0  # seconds that the rest of a group gets once its leader has exited
DRAIN = 2.0  # seconds that the readers get for the end of the streams once the group is gone
BLOCK = PIPE_SIZE = 1 << 18  # bytes read from a stream at a time; larger ones are no faster, and take memory
LINE_LIMIT = 1 << 16  # bytes of an unfinished line that are kept back from combined.log
APPEND = os.O_WRONLY | os.O_APPEND
MIN_FREE = 100 << 20  # bytes of free disk below which no experiment is launched
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOGS = {name: f"{name}.log" for name in ("stdout", "stderr", "combined")}
COUNTS = {  # status -> its key in the summary
    "completed": "completed",
    "failed": "failed",
    "error": "errors",
    "timeout": "timeouts",
    "interrupted": "interrupted",
    "pending": "pending",
    "running": "running",
}
NO_GPU = "torch knows no 'gpu': it is called 'cuda'"
NO_LOCKS = "the file system knows no locks: nothing keeps a second runner off this batch"
FAILURES = ("failed", "error", "timeout")
SUMMARY = "experiment_summary.json"
ASIDE = ".set_aside"  # the ending of a checkpoint that is perhaps cut off
REPORT = "report.html"
RELOAD = 10  # seconds after which the page of a running batch reads itself anew
MAX_CURVES = 100  # drawn in one plot
RESERVED = ("master_log.txt", SUMMARY, REPORT, "runner.lock")

NUMBER = rb"([-+]?(?:nan|inf|\d+(?:\.\d*)?(?:e[-+]?\d+)?))"
EVALUATION = re.compile(rb"\bstep (\d{1,15}): train loss " + NUMBER + rb", val loss " + NUMBER)
FIRST_STEP = re.compile(rb"\b(?:step|iter) (\d{1,15}): (?:train )?loss ")
ITERATION = re.compile(rb"iter (\d{1,15}): loss " + NUMBER)
BROKEN_CHECKPOINT = re.compile(
    r"EOFError|UnpicklingError|PytorchStreamReader|central directory|invalid magic number|truncated|JSONDecodeError"
)
HINTS = [  # (what the error or the end of stderr says, the remedy)
    (
        r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED",
        "out of GPU memory: try a smaller --batch_size",
    ),
    (r"MemoryError|[Cc]annot allocate memory|DefaultCPUAllocator", "out of memory: try a smaller --batch_size"),
    (r"invalid device ordinal", "no such GPU: nvidia-smi -L lists them; try --device cuda:0 or --device cpu"),
    (
        r"Found no NVIDIA driver|not compiled with CUDA|No CUDA GPUs|CUDA driver|Expected one of cpu, cuda",
        "no usable CUDA device: try --device cpu, or --device cuda:0 where there is a GPU",
    ),
    (
        r"wandb.*(?:not logged in|api_key|login|UsageError|AuthenticationError)|No module named '?wandb",
        "wandb is not installed or not logged in: try --wandb_enabled false, or run: wandb login",
    ),
    (r"Unknown config key", "the trainer does not know this setting: see the assignments at its top"),
    (
        r'"<string>", line \d+, in <module>\n(?: .*\n)*AssertionError *(?:\n|$)',
        "a value's type is not that of its default",
    ),
    (
        r"SIGKILL",
        "killed from outside, perhaps by the kernel's out-of-memory killer: see dmesg; try a smaller --batch_size",
    ),
]


# ---------------------------------------------------------------------------------------------------- data


class UsageError(Exception):
    """A mistake of the user's; its text is the one line that gets printed."""


@dataclass
class Options:
    """What the command line asks for; the field names are the options' names."""

    configs: list[str] = field(default_factory=list)
    overrides: dict[str, str] = field(default_factory=dict)
    sweep: dict[str, list[str]] = field(default_factory=dict)
    trainer_args: list[str] = field(default_factory=list)
    train_script: str = "train_run.py"
    base_out_dir: str = "experiments"
    launcher: str = ""
    jobs: int = 1
    devices: list[str] = field(default_factory=list)
    timeout: Optional[float] = None
    stall: Optional[float] = None
    retries: int = 0
    max_failures: Optional[int] = None
    grace: float = GRACE
    stop_signal: str = "TERM"
    resume: Optional[str] = None
    dry_run: bool = False
    status: Optional[str] = None
    json: bool = False
    report: Optional[str] = None
    follow: bool = False
    quiet: bool = False


PLAN_OPTIONS: tuple[str, ...] = (
    "trainer_args",
    "train_script",
    "launcher",
    "jobs",
    "devices",
    "timeout",
    "stall",
    "retries",
)
PLAN_OPTIONS += ("max_failures", "grace", "stop_signal")  # what --resume takes over from the batch


@dataclass
class Experiment:
    """One planned run of the trainer."""

    name: str
    config: str
    overrides: dict[str, str]  # setting -> text as the user gave it
    arguments: list[str] = field(default_factory=list)  # the overrides in the trainer's form
    values: dict[str, Any] = field(default_factory=dict)  # the overrides as JSON has them
    settings: dict[str, Any] = field(default_factory=dict)  # effective: defaults < config < overrides
    problem: Optional[str] = None  # why it can't be launched


@dataclass
class Slot:
    """Room for one experiment at a time."""

    number: int
    device: Optional[str] = None


@dataclass
class Metrics:
    """What a trainer's own lines have said so far."""

    step: Optional[int] = None
    train_loss: Optional[float] = None
    val_loss: Optional[float] = None
    best_val_loss: Optional[float] = None
    best_step: Optional[int] = None
    first_step: Optional[int] = None  # of this attempt

    def read(self, lines: bytes, start: int = 0, end: int = sys.maxsize) -> list[bytes]:
        """Take in lines of stdout, from `start` to `end`; returns the evaluation lines among them."""
        evaluations: list[bytes] = []
        if lines.find(b":", start, end) < 0 or lines.rfind(b" loss ", start, end) < 0:
            return evaluations  # as most blocks; rfind is some times faster than find, a single byte is the fastest
        first = FIRST_STEP.search(lines, start, end) if self.first_step is None else None
        self.first_step = int(first[1]) if first else self.first_step
        if lines.rfind(b"val loss ", start, end) >= 0:
            for match in EVALUATION.finditer(lines, start, end):
                self.step, self.train_loss, self.val_loss = int(match[1]), float(match[2]), float(match[3])
                best = math.inf if self.best_val_loss is None else self.best_val_loss
                if self.val_loss < best and math.isfinite(self.val_loss):
                    self.best_val_loss, self.best_step = self.val_loss, self.step
                evaluations.append(match[0])
                start = match.end()
        at, last = min(end, len(lines)), None
        for _ in range(20):  # words that only look like it may follow the last one
            at = lines.rfind(b"iter ", start, at)
            last = ITERATION.match(lines, at, end) if at >= 0 else None
            if last or at < 0:
                break
        if last:
            self.step, self.train_loss = int(last[1]), float(last[2])
        return evaluations

    def diverged(self) -> bool:
        return any(loss is not None and not math.isfinite(loss) for loss in (self.train_loss, self.val_loss))


@dataclass
class Result:
    """How an experiment stands; these fields are the keys of experiment_result.json."""

    config_name: str = ""
    config_path: str = ""
    experiment_dir: str = ""
    status: str = "pending"
    return_code: Optional[int] = None
    signal: Optional[str] = None
    error: Optional[str] = None
    hint: Optional[str] = None
    start_time: Optional[str] = None
    end_time: Optional[str] = None
    duration_seconds: Optional[float] = None
    attempts: int = 0
    final_checkpoint: Optional[str] = None
    metrics: Metrics = field(default_factory=Metrics)
    max_rss_bytes: Optional[int] = None
    cpu_seconds: Optional[float] = None
    log_files: dict[str, str] = field(default_factory=dict)
    log_complete: bool = True
    stderr_tail: str = ""
    traceback: Optional[str] = None
    device: Optional[str] = None
    overrides: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # those in which the batch's experiments differ
    max_iters: Optional[int] = None
    attempt_history: list[Any] = field(default_factory=list)


T = TypeVar("T")
KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "float": (int, float),
    "list[Any]": (list,),
    "list[str]": (list,),
    "dict[str, Any]": (dict,),
}


def from_json(cls: Callable[[], T], data: dict[str, Any]) -> T:
    """A dataclass from what was read from a file; a value of a wrong type stays at its default."""
    made = cls()
    for item in fields(made):  # type: ignore[arg-type]
        value, kind = data.get(item.name), str(item.type)
        if kind.startswith("Optional["):
            kind = kind[9:-1]
        if kind == "Metrics" and isinstance(value, dict):
            setattr(made, item.name, from_json(Metrics, value))
        elif kind == "float" and isinstance(made, Metrics) and value in ("nan", "inf", "-inf"):
            setattr(made, item.name, float(value))
        elif isinstance(value, KINDS.get(kind, ())) and not (isinstance(value, (int, float)) and not abs(value) < 1e15):
            setattr(made, item.name, value)
    return made


def checked(cls: Callable[[], T], data: dict[str, Any], keys: Sequence[str], where: str) -> T:
    """The same, but raises ValueError where one of these keys has a wrong type."""
    made = from_json(cls, data)
    for key in keys:
        if key in data and data[key] != getattr(made, key):
            raise ValueError(f"{where}: not a value of {key}: {clean(repr(data[key]))[:100]}")
    return made


def to_json(value: Any) -> Any:
    """A form that every JSON parser takes: losses that are not finite become texts."""
    if isinstance(value, (Metrics, Result)):
        return {key: to_json(each) for key, each in vars(value).items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def sha256(data: bytes) -> str:
    """The digest in hexadecimal, by Python's own module for it: hashlib loads OpenSSL, 4 MB and 5 ms."""
    for name in ("_sha2", "_sha256", "hashlib"):  # from Python 3.12, before it, anywhere
        with contextlib.suppress(ImportError):
            return str(importlib.import_module(name).sha256(data).hexdigest())
    raise NotImplementedError("sha256")


# ------------------------------------------------------------------------------------------------ settings


class Unknown:
    """Stands for the value of a setting that the script computes."""

    def __repr__(self) -> str:
        return "?"


UNKNOWN = Unknown()
WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
USUAL = {  # settings with an option of their own: an example of their type, where the trainer doesn't tell
    "batch_size": 8,
    "wandb_project": "",
    "wandb_enabled": False,
    "wandb_log": False,  # what the trainer calls it, and no option
    "device": "",
    "compile": False,
    "max_iters": 1000,
    "learning_rate": 1e-3,
}


OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass
class Script:
    """What reading the training script (never running it) tells."""

    path: str
    settings: dict[str, Any] = field(default_factory=dict)
    strict: bool = False  # it uses nanoGPT's configurator.py


def read_literal(node: ast.expr) -> Any:
    """The value of a literal or of plain arithmetic on numbers (`5 * 8`), else UNKNOWN."""
    try:
        value = fold(node)
        repr(value)  # raises ValueError for a number of thousands of digits
        return value
    except (ValueError, TypeError, ArithmeticError, RecursionError):
        return UNKNOWN


def fold(node: ast.expr) -> Any:
    work = OPERATORS.get(type(node.op)) if isinstance(node, ast.BinOp) else None
    if not work or not isinstance(node, ast.BinOp):
        return ast.literal_eval(node)
    left, right = fold(node.left), fold(node.right)
    if not isinstance(left, (int, float)) or not isinstance(right, (int, float)) or max(abs(left), abs(right)) > 1e100:
        raise ValueError("not plain arithmetic")
    return work(left, right)


def read_settings(path: str) -> tuple[dict[str, Any], bool]:
    """The top-level `name = literal` assignments that stand before configurator.py is exec'd, and whether it is.

    Raises OSError where the file can't be read, ValueError with the place and the text where it doesn't parse."""
    if not os.path.isfile(path):
        os.stat(path)  # raises for what isn't there
        raise ValueError(f"{path}: not a regular file")
    with open(path, "rb") as file:
        source = file.read()
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        text = f": {error.text.strip()}" if error.text else ""
        raise ValueError(f"{path}{line}: {error.msg}{text}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path}: not Python: {error or type(error).__name__}") from None
    settings: dict[str, Any] = {}
    for statement in body:
        if uses_configurator(statement):
            return settings, True
        settings.update(assigned(statement))
    return settings, False


def uses_configurator(statement: ast.stmt) -> bool:
    nodes = list(ast.walk(statement))
    named = any(isinstance(node, ast.Constant) and str(node.value).endswith("configurator.py") for node in nodes)
    return named and any(isinstance(node, ast.Call) for node in nodes)


def assigned(statement: ast.stmt) -> Iterator[tuple[str, Any]]:
    """The names that a top-level statement sets; what is set in an `if` or a loop is UNKNOWN."""
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target in targets if statement.value else ():
            value = read_literal(statement.value) if statement.value else UNKNOWN
            if isinstance(target, ast.Name):
                yield target.id, value
            elif isinstance(target, (ast.Tuple, ast.List)):
                values = value if isinstance(value, (tuple, list)) else [UNKNOWN] * len(target.elts)
                yield from ((each.id, one) for each, one in zip(target.elts, values) if isinstance(each, ast.Name))
        return
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, UNKNOWN
        inner = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.comprehension, ast.AnnAssign)
        waiting += () if isinstance(node, inner) else ast.iter_child_nodes(node)


def read_script(path: str, launcher: str) -> Script:
    if not os.path.isfile(path):
        raise UsageError(f"training script not found: {path}; name it with --train_script")
    try:
        return Script(path, *read_settings(path))
    except OSError as error:
        raise UsageError(f"training script can't be read: {path}: {error.strerror}") from None
    except ValueError as error:
        if launcher:  # what stands there need not be Python, or not this Python
            return Script(path)
        raise UsageError(f"training script doesn't parse: {error}") from None


@functools.lru_cache(maxsize=4096)
def read_as_configurator(text: str) -> Any:
    """What the trainer's configurator makes of a text; raises what it would die of."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def trainer_form(text: str, default: Any, strict: bool) -> str:
    """Write a value so that the trainer's configurator finds the type of `default` in it.

    Raises ValueError with what was wanted where the text can't be read as that type."""
    if isinstance(default, bool):
        if text.strip().lower() not in WORDS:
            raise ValueError("true or false")
        return str(WORDS[text.strip().lower()])
    if isinstance(default, (int, float)):
        number = read_number(text)
        if isinstance(default, float) and not math.isnan(number):
            return repr(float(number)).replace("inf", "1e999")  # the configurator reads a bare inf as a text
        if isinstance(default, float) or number % 1 != 0:  # also of nan and inf
            raise ValueError("a number" if isinstance(default, float) else "a whole number")
        return str(int(number))
    try:
        value = read_as_configurator(text)
    except Exception:  # it would die of this one
        if isinstance(default, (str, Unknown)):
            return quoted(text)
        value = UNKNOWN
    if isinstance(default, str) and not isinstance(value, str):
        return quoted(text)
    if not isinstance(default, (str, Unknown)) and type(value) is not type(default):
        raise ValueError(f"a {type(default).__name__}")
    return quoted(value) if strict and "=" in text else text


def quoted(value: Any) -> str:
    return repr(value).replace("=", "\\x3d")  # the configurator splits on every `=`


def read_number(text: str) -> Union[int, float]:
    """The number in a text, nan where there is none."""
    for read in (int, float, ast.literal_eval):
        with contextlib.suppress(Exception):
            value = read(text)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return value if abs(value) < 10**300 else float(value)
    return math.nan


def plain_value(form: str, strict: bool, default: Any = "") -> Any:
    """What a value in the trainer's form means, for JSON and tables; as a text it gives the same form again."""
    with contextlib.suppress(Exception):
        value = read_as_configurator(form)
        if isinstance(value, str):
            return value if trainer_form(value, default, strict) == form else form
        return value if isinstance(value, (bool, int, float)) and repr(value) == form else form
    return form


def did_you_mean(name: str, candidates: Sequence[str]) -> str:
    import difflib  # 4 ms that only a mistake costs

    close = difflib.get_close_matches(name, candidates, 3, 0.6)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


# ---------------------------------------------------------------------------------------------------- plan


def natural(text: str) -> list[Any]:
    """A sort key by which run_2 comes before run_10."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", text))]


def expand_configs(patterns: Sequence[str], script: str, say: Callable[[str], None]) -> list[str]:
    """The config files that files and glob patterns name, in their order, each once."""
    configs: dict[str, str] = {}
    programs = {os.path.realpath(__file__), os.path.realpath(script)}
    for pattern in patterns:
        named = os.path.lexists(pattern)
        matches = [pattern] if named else sorted(glob.glob(pattern, recursive=True), key=natural)
        if named and os.path.isdir(pattern):
            raise UsageError(f'config is a directory: {pattern}; name its files: "{os.path.join(pattern, "*.py")}"')
        if not matches:
            raise UsageError(f"no config matches: {pattern}{near_misses(pattern)}")
        for path in matches:
            real = os.path.realpath(path)
            if real in programs or os.path.basename(path) == "configurator.py" or os.path.isdir(path):
                say(f"left out, not a config: {path}")
            else:
                configs.setdefault(real, os.path.join(".", path) if path.startswith("-") else path)
    if not configs:
        raise UsageError(f"no config is left of: {' '.join(patterns)}; name config files with --configs")
    for path in configs.values():
        if "=" in path:
            raise UsageError(f"config path holds '=': {path}; the trainer would take it for an override, rename it")
    return list(configs.values())


def near_misses(pattern: str) -> str:
    folder, name = os.path.split(pattern)
    try:
        return did_you_mean(name, os.listdir(folder or "."))
    except OSError as error:
        return "" if glob.has_magic(folder) else f"; {folder}: {error.strerror}"


def split_values(text: str) -> list[str]:
    """The values of a sweep: split at commas, those within brackets or quotes excepted."""
    values, depth, quote = [""], 0, ""
    for letter in text:
        if quote or letter in "'\"":
            quote = "" if letter == quote else quote or letter
        elif letter in "([{" or letter in ")]}":
            depth += 1 if letter in "([{" else -1
        if letter == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += letter
    if depth or quote:  # they were no brackets or quotes
        values = text.split(",")
    return [str(read_as_configurator(value)) if value[:1] in ("'", '"') else value for value in values]


def sweep_points(sweep: dict[str, list[str]]) -> Iterator[dict[str, str]]:
    """The product of all sweeps, the last one fastest; one empty point without any."""
    for values in itertools.product(*sweep.values()):
        yield dict(zip(sweep, values))


def clean_name(text: str) -> str:
    """A directory name that holds only letters, digits, `.`, `_` and `-`, at most 200 bytes of them."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", text).lstrip(".-") or "config"
    if len(name) > 200:
        name = f"{name[:191]}_{sha256(os.fsencode(text))[:8]}"
    return name + "_" if name in RESERVED else name


def config_names(paths: Sequence[str]) -> list[str]:
    """A telling name per config: its stem, with as many of its directories as it takes to tell it from others."""
    parts = [os.path.splitext(path)[0].split(os.sep) for path in paths]
    depth = [1] * len(paths)
    while True:
        names = [clean_name("__".join(part[-count:])) for part, count in zip(parts, depth)]
        times = Counter(name.casefold() for name in names)
        deeper = [times[name.casefold()] > 1 and count < len(part) for name, part, count in zip(names, parts, depth)]
        if not any(deeper):
            return names
        depth = [count + more for count, more in zip(depth, deeper)]


def unique(names: Sequence[str]) -> list[str]:
    """The same names, the second of two equal ones numbered (also equal where case doesn't count)."""
    taken: set[str] = set()
    done = []
    for name in names:
        numbers = itertools.count(2)
        candidate = name
        while candidate.casefold() in taken:
            ending = f"_{next(numbers)}"
            candidate = name[: 200 - len(ending)] + ending
        taken.add(candidate.casefold())
        done.append(candidate)
    return done


class Planner:
    """Turns configs and overrides into experiments, by what the trainer and the configs set themselves."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.configs: dict[str, Any] = {}  # path -> what it sets, or what is wrong with it

    def plan(self, options: Options, configs: Sequence[str]) -> list[Experiment]:
        """Every config at every point of the sweep, in that order."""
        points = list(sweep_points(options.sweep))
        endings = ["".join(f"__{key}_{self.plain(key, text)}" for key, text in point.items()) for point in points]
        named = zip(configs, config_names(configs))
        names = [clean_name(name + ending) for (_, name), ending in itertools.product(named, endings)]
        experiments = []
        for (config, point), name in zip(itertools.product(configs, points), unique(names)):
            overrides = {**options.overrides, **point}
            if point and "wandb_run_name" in self.script.settings and "wandb_run_name" not in overrides:
                overrides["wandb_run_name"] = name
            experiments.append(self.experiment(name, config, overrides))
        return experiments

    def setting(self, key: str) -> str:
        """The trainer's name of a setting: the runner's wandb_enabled is nanoGPT's wandb_log."""
        if key == "wandb_enabled" and (key not in self.script.settings or "wandb_log" in self.script.settings):
            return "wandb_log"
        return key

    def plain(self, key: str, text: str) -> Any:
        """A value as the trainer will read it; what doesn't fit is told by `experiment`."""
        default = self.script.settings.get(self.setting(key), USUAL.get(key, UNKNOWN))
        try:
            return plain_value(trainer_form(text, default, self.script.strict), self.script.strict, default)
        except ValueError:
            return text

    def config(self, path: str) -> dict[str, Any]:
        """What a config sets; raises OSError or ValueError, as read_settings does."""
        if path not in self.configs:
            try:
                self.configs[path] = read_settings(path)[0]
            except (OSError, ValueError) as error:
                text = f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error)
                self.configs[path] = ValueError(text)
        found = self.configs[path]
        if isinstance(found, ValueError):
            raise found
        assert isinstance(found, dict)
        return found

    def experiment(self, name: str, config: str, overrides: dict[str, str]) -> Experiment:
        """Raises UsageError for an override that the trainer would die of."""
        made = Experiment(name, config, overrides)
        settings = dict(self.script.settings)
        try:
            settings.update(self.config(config))
        except ValueError as error:
            made.problem = f"config can't be used: {error}"
        made.settings = settings
        made.overrides = {self.setting(key): text for key, text in overrides.items()}
        for key, text in made.overrides.items():
            if not key.isidentifier():
                raise UsageError(f"no setting's name: {key}")
            if not made.problem and self.script.strict and key not in settings:
                options = [item.name for item in fields(Options)]
                close = did_you_mean(key, [*options, *settings])
                raise UsageError(f"unknown setting '{key}' of {self.script.path} with {config}{close}")
            default = settings.get(key, USUAL.get(key, UNKNOWN))
            try:
                form = trainer_form(text, default, self.script.strict)
            except ValueError as wanted:
                raise UsageError(f"value of --{key}: {text!r}; {config} wants {wanted}") from None
            made.arguments.append(f"--{key}={form}")
            settings[key] = made.values[key] = plain_value(form, self.script.strict, default)
        return made


def differing(experiments: Sequence[Experiment]) -> list[str]:
    """The settings in which the experiments differ, in the order of the trainer."""
    keys = dict.fromkeys(key for each in experiments[:1000] for key in each.settings)
    common = {key: repr(experiments[0].settings.get(key)) for key in keys} if experiments else {}
    keys = {
        key: None for key, value in common.items() if any(repr(each.settings.get(key)) != value for each in experiments)
    }
    return [key for key in keys if key not in ("out_dir", "wandb_run_name")]


def launcher_words(launcher: str, names: dict[str, str]) -> list[str]:
    """What stands before the training script: split as a shell would, {name}, {dir}, … filled in.

    Raises UsageError for a brace that means nothing."""

    def fill(match: re.Match[str]) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        if match[1] not in names:
            known = ", ".join(f"{{{name}}}" for name in names)
            raise UsageError(f"launcher holds {match[0]}: {launcher}; it knows {known}, and doubled braces")
        return names[match[1]]

    try:
        words = shlex.split(launcher)
    except ValueError as error:
        raise UsageError(f"launcher can't be split: {launcher}: {error}") from None
    return [re.sub(r"\{\{|\}\}|\{(\w*)\}|[{}]", fill, word) for word in words] or [sys.executable]


def build_command(options: Options, experiment: Experiment, folder: str, slot: Slot) -> list[str]:
    names = {"name": experiment.name, "dir": folder, "device": slot.device or "", "slot": str(slot.number)}
    command = [*launcher_words(options.launcher, names), options.train_script, experiment.config]
    return [*command, f"--out_dir={folder}", *experiment.arguments, *options.trainer_args]


def shell_line(command: Sequence[str]) -> str:
    """A command as a shell would take it, with no control character in it."""

    def word(text: str) -> str:
        if text.isprintable():
            return shlex.quote(text)
        plain = set(range(32, 127)) - set(b"'\\")
        try:
            data = os.fsencode(text)
        except UnicodeEncodeError:  # no word of a command line, but one of a damaged file
            data = text.encode(errors="replace")
        return "$'" + "".join(chr(b) if b in plain else f"\\x{b:02x}" for b in data) + "'"

    return " ".join(map(word, command))


# --------------------------------------------------------------------------------------------------- state


def now_iso() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")


def write_file(path: str, data: bytes) -> None:
    """Replace a file whole: a reader or a crash sees the old one or the new one."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.tmp")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)  # left by a crash, or planted
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def open_anew(path: str, flags: int) -> int:
    """For open(): a file that is there is emptied, a symbolic link is not followed."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def write_json(path: str, value: dict[str, Any]) -> None:
    """Write an object, a line for each key (and at the speed of C, which `indent` has not)."""
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(each)}" for key, each in value.items())
    write_file(path, f"{{\n{lines}\n}}\n".encode())


def read_json(path: str) -> Optional[dict[str, Any]]:
    """A JSON object from a file, None where there is no file; raises ValueError where it holds anything else."""
    try:
        with open(path, "rb", opener=open_read) as file:
            value = json.loads(file.read(), parse_float=finite, parse_constant=str)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object")
    return value


def finite(text: str) -> Union[float, str]:
    """A number as JSON has it; 1e999 stays a text, as nan and inf are."""
    return float(text) if math.isfinite(float(text)) else text


def free_bytes(folder: str) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


class BatchHeld(Exception):
    """Another runner has the batch; its text says who."""


def open_own(folder: str, name: str, flags: int = APPEND) -> int:
    """Open a file of the batch's own to write to it; raises UsageError where that can't be done."""
    try:
        return open_log(os.path.join(folder, name), flags)
    except OSError as error:
        raise UsageError(f"can't write to the batch: {os.path.join(folder, name)}: {error.strerror}") from None


def hold_batch(folder: str) -> Optional[int]:
    """Take the batch's lock, which the kernel drops when this process ends; None where the disk knows no locks."""
    lock = open_own(folder, "runner.lock", os.O_RDWR)
    for tries in range(20):  # a reader that looks whether the lock is free holds it for an instant
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if tries == 19:
                raise BatchHeld(os.read(lock, 1000).decode(errors="replace").strip() or "unknown runner") from None
            time.sleep(0.02)
        except OSError:
            os.close(lock)
            return None
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(lock, 0)
        os.write(lock, f"pid {os.getpid()} on {os.uname().nodename} since {now_iso()}\n".encode())
    return lock


def is_held(folder: str) -> bool:
    """Whether a living runner holds the batch."""
    try:
        lock = open_read(os.path.join(folder, "runner.lock"), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(lock)
    return False


# ------------------------------------------------------------------------------------------------- process


@dataclass
class ProcessInfo:
    pid: int
    state: str
    parent: int
    group: int
    started: str


def processes(pids: Optional[Iterable[int]] = None) -> list[ProcessInfo]:
    """These or all processes of this machine, as /proc has them; none where there is no /proc (only Linux has it)."""
    found = []
    if pids is None:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()] if sys.platform == "linux" else []
    for pid in pids:
        with contextlib.suppress(OSError, IndexError, ValueError):
            with open(f"/proc/{pid}/stat", "rb") as file:
                words = file.read().rpartition(b")")[2].decode().split()
            found.append(ProcessInfo(pid, words[0], int(words[1]), int(words[2]), words[19]))
    return found


def group_members(group: int) -> list[int]:
    """The living processes of a process group; zombies are none. Without /proc its number stands for them all."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return []
    except PermissionError:
        return []  # none that could be signalled
    if sys.platform != "linux":
        return [group]
    return [each.pid for each in processes() if each.group == group and each.state not in "ZX"]


def started_at(pid: int) -> Optional[str]:
    """When a process was started, in a form that tells it from a later one of the same pid; None if it is gone."""
    if sys.platform == "linux":
        return next((each.started for each in processes([pid]) if each.state not in "ZX"), None)
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
    return done.stdout.strip() or None


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def open_log(path: str, flags: int = APPEND) -> int:
    """Open a file to write to it; no link is followed, and no pipe in its place is waited for."""
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def stamp(label: str) -> bytes:
    now = time.time()
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    return f"{clock}.{int(now % 1 * 1000):03d} [{label}] ".encode()


class Tee(threading.Thread):
    """Copies one stream of a training to its log as it comes, and stamped line by line to combined.log."""

    def __init__(self, training: Training, name: str, source: int, cancel: int) -> None:
        super().__init__(name=f"{training.experiment.name} {name}", daemon=True)
        self.training, self.label, self.source, self.cancel = training, name.upper(), source, cancel
        self.logs = {each: training.logs[each] for each in (name, "combined")}
        self.log, self.combined = self.logs.values()
        self.failures: dict[int, str] = {}  # log -> what went wrong first
        self.rest = b""  # the unfinished line
        self.blocks: queue.Queue[bytes] = queue.Queue(2)  # for the stamper, once there is one
        self.stamper: Optional[threading.Thread] = None
        self.after_return = False
        self.last_output = time.monotonic()
        self.queued = False  # srun waits for its resources
        self.evaluations: deque[bytes] = deque(maxlen=1000)  # for the master log; a flood loses its oldest
        os.set_blocking(source, False)

    def run(self) -> None:
        poll = select.poll()
        poll.register(self.source, select.POLLIN)
        poll.register(self.cancel, select.POLLIN)
        try:
            while not self.training.cancelled:
                try:
                    block = os.read(self.source, BLOCK)
                except BlockingIOError:
                    poll.poll()
                    continue
                if not block:
                    break
                self.last_output = time.monotonic()
                self.write(self.log, [block])
                if len(block) == BLOCK and not self.stamper:
                    self.start_stamper()
                self.blocks.put(block) if self.stamper else self.pass_on(block)
        except Exception as error:  # no memory
            self.fail(self.log, repr(error))
        os.close(self.source)
        if self.stamper:
            self.blocks.put(b"")
            self.stamper.join()
        else:
            self.pass_on(b"")
        self.training.post(self.training.on_stream_end)

    def start_stamper(self) -> None:
        """A second thread for combined.log: of a flood, one block is stamped and written while the next one is read."""
        stamper = threading.Thread(target=self.stamp_blocks, name=f"{self.name} stamper", daemon=True)
        with contextlib.suppress(RuntimeError):  # no thread can be had: one must do
            stamper.start()
            self.stamper = stamper

    def stamp_blocks(self) -> None:
        block = b"."
        while block:
            block = self.blocks.get()
            self.pass_on(block)

    def pass_on(self, block: bytes) -> None:
        """Hand a block of the stream, b"" for its end, to combined.log and to what reads the lines."""
        try:
            if block:
                self.take(block)
            elif self.rest:
                self.take_lines(b"\n", 1)
        except Exception as error:  # no memory
            self.fail(self.combined, repr(error))

    def take(self, block: bytes) -> None:
        if self.after_return and block[:1] == b"\n":
            block = block[1:]
        self.after_return = block[-1:] == b"\r"
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        end = block.rfind(b"\n") + 1
        if not end and len(self.rest) + len(block) > LINE_LIMIT:
            block += b"\n"
            end = len(block)
        if end:
            self.take_lines(block, end)
        else:
            self.rest += block

    def take_lines(self, block: bytes, end: int) -> None:
        """Take the unfinished line and, up to `end`, the lines of a block; what follows is unfinished now."""
        mark = stamp(self.label)
        stamped = block.replace(b"\n", b"\n" + mark)
        first, self.rest = self.rest, block[end:]
        whole = len(stamped) - len(self.rest) - len(mark)
        self.write(self.combined, [mark, first, memoryview(stamped)[:whole]])
        if self.training.batch.console.follow:
            name = f"{self.training.experiment.name}: " if self.training.batch.slots > 1 else ""
            self.training.batch.console.copy(name, first + block[:end])
        if self.label == "STDOUT":
            read = self.training.result.metrics.read
            cut = block.find(b"\n") + 1 if first else 0
            evaluations = read(first + block[:cut]) + read(block, cut, end)
            if evaluations:
                self.evaluations.extend(evaluations)
                self.training.post(self.training.on_evaluation)
        elif self.queued or b"queued and waiting for resources" in block:
            self.queued = b"has been allocated" not in block.rpartition(b"queued and waiting")[2]
            self.training.clock = time.monotonic()
            self.training.post(lambda: None)  # the loop's deadlines are others now

    def write(self, log: int, parts: Sequence[bytes | memoryview]) -> None:
        """Append to a log, in one piece; one that can't be written doesn't stop the training."""
        try:
            done = os.writev(log, parts)
            rest = b"".join(parts)[done:] if done < sum(map(len, parts)) else b""
            while rest:
                rest = rest[os.write(log, rest) :]
        except OSError as error:
            self.fail(log, str(error.strerror))

    def fail(self, log: int, why: str) -> None:
        if log not in self.failures:
            self.failures[log] = why
            self.training.post(self.training.on_log_failure)


class Training:
    """One attempt of an experiment: its process group, its streams, and how far its end has come."""

    def __init__(
        self, experiment: Experiment, result: Result, folder: str, slot: Slot, options: Options, batch: Batch
    ) -> None:
        self.experiment, self.result, self.folder, self.slot = experiment, result, folder, slot
        self.options, self.batch = options, batch
        self.pid = 0
        self.return_code: Optional[int] = None  # of the group's leader, once it has exited
        self.status, self.error = "", ""  # why the runner ended it, if it did
        self.began = self.clock = time.monotonic()  # clock: from when --timeout counts
        self.kill_at = self.kill_earliest = self.drain_until = math.inf
        self.last_signal = ""  # the runner's latest to the group
        self.group_gone = self.cancelled = False
        self.next_look = 0.0  # at the rest of the group, once its leader has exited: no event tells of its end
        self.open_streams = 0
        self.logs: dict[str, int] = {}
        self.tees: list[Tee] = []
        self.wake: tuple[int, ...] = ()  # a pipe whose end tells the tees to stop
        self.log_failures: list[str] = []
        self.evaluated = False

    def post(self, event: Callable[[], None]) -> None:
        self.batch.events.put(event)

    def start(self, command: Sequence[str]) -> None:
        """Start the process and its threads; raises OSError or RuntimeError, and then nothing is left of it."""
        wrapped = [*guard(), *command]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        sinks: list[int] = []
        try:
            for name, file in LOGS.items():
                self.logs[name] = open_log(os.path.join(self.folder, file))
            self.wake = os.pipe()
            for name in ("stdout", "stderr"):
                source, sink = os.pipe()
                sinks.append(sink)
                widen(source)
                self.tees.append(Tee(self, name, source, self.wake[0]))
                self.tees[-1].start()
                self.open_streams += 1
            process = subprocess.Popen(
                wrapped,
                stdin=subprocess.DEVNULL,
                stdout=sinks[0],
                stderr=sinks[1],
                env=environment,
                start_new_session=True,
            )
            self.pid = process.pid
            process.returncode = 0  # it is reaped by `on_exit`, never by Popen
            threading.Thread(target=self.wait_for_exit, daemon=True).start()
        except BaseException:
            if self.pid:
                os.killpg(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
            self.cancel()
            for tee in self.tees:
                if tee.ident:
                    tee.join()
                else:  # no thread could be had
                    os.close(tee.source)
            self.close()
            raise
        finally:
            for sink in sinks:
                os.close(sink)

    def wait_for_exit(self) -> None:
        """A thread: wait until the leader exits, but leave it a zombie, so that its pid can't be another's."""
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            self.post(lambda: self.on_exit(*os.wait4(self.pid, 0)[1:]))
        else:  # macOS before Python 3.13
            status, usage = os.wait4(self.pid, 0)[1:]
            self.post(lambda: self.on_exit(status, usage))

    def on_exit(self, status: int, usage: Any) -> None:
        self.return_code = os.waitstatus_to_exitcode(status)
        self.result.cpu_seconds = round(usage.ru_utime + usage.ru_stime, 3)
        self.result.max_rss_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        self.result.duration_seconds = round(time.monotonic() - self.began, 3)
        self.kill_at = min(self.kill_at, time.monotonic() + LINGER)

    def on_stream_end(self) -> None:
        self.open_streams -= 1

    def on_evaluation(self) -> None:
        self.evaluated = True
        waiting = self.tees[0].evaluations
        while waiting:
            self.batch.say(f"{self.experiment.name}: {waiting.popleft().decode()}")
        self.batch.changed(self.result)

    def on_log_failure(self) -> None:
        for tee in self.tees:
            for name, log in tee.logs.items():
                if log in tee.failures and name not in self.log_failures:
                    self.log_failures.append(name)
                    self.batch.say(f"{self.experiment.name}: {name}.log is incomplete: {tee.failures[log]}")

    def stop(self, status: str, error: str) -> None:
        """Ask the group to end; KILL follows after the grace. Does nothing where the leader has ended already."""
        if self.return_code is None and not self.status and not self.has_exited():
            self.status, self.error = status, error
            self.ask_to_end(self.options.stop_signal, KILL_GAP)
            self.kill_at = max(self.kill_earliest, time.monotonic() + self.options.grace)

    def ask_to_end(self, name: str, gap: float) -> None:
        self.last_signal = name
        self.kill_earliest = self.kill_at = time.monotonic() + gap
        self.signal_group(getattr(signal, f"SIG{name}"))

    def has_exited(self) -> bool:
        """Whether the leader has ended by itself, though the event that says so is yet to come."""
        look = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return hasattr(os, "waitid") and os.waitid(os.P_PID, self.pid, look) is not None

    def hurry(self) -> None:
        """KILL as soon as may be."""
        self.kill_at = min(self.kill_at, max(time.monotonic(), self.kill_earliest))

    def signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """KILL the group, and what its leader has started in sessions of their own (torchrun's workers)."""
        self.kill_at = math.inf
        family, known = {self.pid}, processes()
        for _ in known:
            children = {each.pid for each in known if each.parent in family} - family
            if not children:
                break
            family |= children
        self.signal_group(signal.SIGKILL)
        for pid in family - {self.pid} - {each.pid for each in known if each.group == self.pid}:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def queued(self) -> bool:
        return any(tee.queued for tee in self.tees)

    def limits(self) -> list[tuple[float, str]]:
        """When the experiment runs into a limit, and what is said then; the time in a queue doesn't count."""
        if self.queued():
            return []
        limits = []
        if self.options.timeout:
            text = f"not done after {show_duration(self.options.timeout)} (--timeout)"
            limits.append((self.clock + self.options.timeout, text))
        if self.options.stall:
            quiet_since = max(tee.last_output for tee in self.tees)
            text = f"stalled: no output for {show_duration(self.options.stall)} (--stall)"
            limits.append((quiet_since + self.options.stall, text))
        return limits

    def due(self) -> float:
        """The monotonic time at which `advance` has something to do, unless an event comes first."""
        if self.return_code is None:
            return self.kill_at if self.status else min([at for at, _ in self.limits()], default=math.inf)
        if not self.group_gone:
            return min(self.kill_at, self.next_look)
        return self.drain_until

    def advance(self, now: float) -> None:
        """Take the steps towards the end that are due."""
        if self.return_code is None:
            if not self.status:
                for at, text in self.limits():
                    if at <= now:
                        self.stop("timeout", text)
            elif now >= self.kill_at and self.last_signal != "TERM":
                self.batch.say(f"{self.experiment.name}: did not end on SIG{self.last_signal}, gets SIGTERM")
                self.ask_to_end("TERM", TERM_GAP)
            elif now >= self.kill_at:
                self.batch.say(f"{self.experiment.name}: did not end on SIG{self.options.stop_signal}, killed")
                self.kill()
            return
        if not self.group_gone:
            left = group_members(self.pid)
            if left and now >= self.kill_at:
                self.batch.say(f"{self.experiment.name}: killed what it left behind: pid {', '.join(map(str, left))}")
                self.kill()
                left = []
            self.next_look = now + 0.05
            if not left:
                self.group_gone = True
                self.drain_until = now + DRAIN
        elif self.open_streams and now >= self.drain_until and not self.cancelled:
            self.batch.say(f"{self.experiment.name}: a process outside its group still holds its output, left alone")
            self.cancel()

    def cancel(self) -> None:
        """Have the tees stop without the end of their streams."""
        self.cancelled = True
        self.drain_until = math.inf
        if self.wake:
            os.close(self.wake[1])
            self.wake = self.wake[:1]

    def is_over(self) -> bool:
        return self.return_code is not None and self.group_gone and not self.open_streams

    def lost_logs(self) -> list[str]:
        """The logs that are no longer, or not wholly, where they should be."""
        lost = list(self.log_failures)
        for name, log in self.logs.items():
            try:
                there = os.path.samestat(os.fstat(log), os.stat(os.path.join(self.folder, LOGS[name])))
            except OSError:
                there = False
            if not there and name not in lost:
                lost.append(name)
        return lost

    def close(self) -> None:
        for each in (*self.logs.values(), *self.wake):
            os.close(each)
        self.logs, self.wake = {}, ()


@functools.cache
def guard() -> tuple[str, ...]:
    """What stands before a command so that it is told to end when the runner dies: Linux with util-linux only."""
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    command = (setpriv or "", "--pdeathsig", "TERM", "--")
    with contextlib.suppress(OSError):  # BusyBox has a setpriv without this option
        if setpriv and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            return command
    return ()


def widen(pipe: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # refused once a user holds many
            fcntl.fcntl(pipe, getattr(fcntl, "F_SETPIPE_SZ", 1031), PIPE_SIZE)


def ended_by(return_code: Optional[int]) -> int:
    """The signal that a return code tells of, 0 for none; launchers tell a signal N as exit code 128+N."""
    code = return_code or 0
    return -code if code < 0 else code - 128 if 128 < code < 192 else 0


def ending(return_code: int) -> tuple[Optional[str], str]:
    """The signal that ended a process, and its end in words."""
    told = signal_name(ended_by(return_code))
    if return_code < 0:
        return told, f"killed by {told}"
    return None, f"exit code {return_code}" + (f" ({told})" if told.startswith("SIG") else "")


def exception_line(stderr: str) -> str:
    """The line that says what the last Python traceback in stderr was about; torchrun's own is passed over, and of its
    ranks the one counts that failed first."""
    lines = stderr.splitlines()
    cause = re.search(r"Root Cause[^\n]*\n(?:.*\n){0,4}? *rank *: (\d+)", stderr)
    own = [line for line in lines if cause and line.startswith(f"[rank{cause[1]}]:")]
    lines = [re.sub(r"^\[rank\d+\]: ?", "", line) for line in own or lines]
    found = ""
    for number, line in enumerate(lines):
        if line.lstrip().startswith("Traceback (most recent call last)"):
            indent = len(line) - len(line.lstrip())
            said = next(
                (each for each in lines[number + 1 :] if each.strip() and not each[indent:].startswith(" ")), ""
            )
            found = found if "ChildFailedError" in said and found else said
    if not found:  # a syntax error in the training script comes without the Traceback line
        found = next((each for each in reversed(lines) if re.match(r"[A-Za-z_.]+(Error|Exception): ", each)), "")
    return found.strip()[:500]


def hint_for(text: str) -> Optional[str]:
    return next((hint for pattern, hint in HINTS if re.search(pattern, text)), None)


def names_in(folder: str, pattern: str) -> list[str]:
    """The names in a directory that match; none where there is no directory."""
    with contextlib.suppress(OSError):
        return [name for name in os.listdir(folder) if re.fullmatch(pattern, name)]
    return []


def open_read(path: str, flags: int) -> int:
    """For open(): only a regular file; a pipe in its place would block, a device might never end."""
    file = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return file


def read_tail(path: str, size: int = 1 << 16) -> bytes:
    """The end of a file; nothing where it can't be read."""
    with contextlib.suppress(OSError), open(path, "rb", opener=open_read) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - size))
        return file.read()
    return b""


def checkpoints(folder: str) -> list[str]:
    """The trainer's checkpoints, the newest first."""
    found = []
    with contextlib.suppress(OSError):
        for each in os.scandir(folder):
            if re.fullmatch(r"ckpt.*\.pt", each.name) and each.is_file():
                found.append((each.stat().st_mtime_ns, natural(each.name), each.path))
    return [path for _, _, path in sorted(found, reverse=True)]


def git_state() -> Optional[dict[str, Any]]:
    """The commit that is checked out here, its branch, and whether tracked files differ from it."""
    command = ["git", "--no-optional-locks", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.decode(errors="replace").splitlines()
    heads = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# "))
    if done.returncode or "branch.oid" not in heads:
        return None
    dirty = any(not line.startswith("# ") for line in lines)
    commit = None if heads["branch.oid"] == "(initial)" else heads["branch.oid"]
    return {"commit": commit, "branch": heads.get("branch.head"), "dirty": dirty}


# --------------------------------------------------------------------------------------------------- views


def clean(text: str) -> str:
    """Text of others, safe to show: a config or a trainer can't paint the terminal."""
    return text if text.isprintable() else "".join(each if each.isprintable() else "?" for each in text)


def show_duration(seconds: Optional[float]) -> str:
    if seconds is None or not math.isfinite(seconds):
        return "-"
    if seconds < 60:
        return f"{seconds:.1f}s".replace(".0s", "s")
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (seconds, "s")]
    first = next(number for number, (value, _) in enumerate(parts) if value)
    return "".join(f"{value}{unit}" for value, unit in parts[first : first + 2] if value)


def whole_seconds(seconds: Optional[float]) -> str:
    return show_duration(None if seconds is None or not math.isfinite(seconds) else float(int(seconds)))


def show_loss(loss: Optional[float], unknown: str = "-") -> str:
    return unknown if loss is None else f"{float(loss):.4f}"


def show_value(value: Any, most: int = 20) -> str:
    text = clean(str(value))
    return text if len(text) <= most else text[: most - 1] + "…"


def cut(text: str, most: int) -> str:
    """A name in so many columns; names of a sweep differ at both ends, so it is the middle that goes."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]}..{text[len(text) - (most - 1 - most // 2) :]}"


def elapsed(result: Result) -> Optional[float]:
    """Seconds that an attempt took, or has taken so far."""
    if result.status == "running" and result.start_time:
        with contextlib.suppress(ValueError, TypeError, OverflowError, OSError):
            return max(0.0, time.time() - datetime.fromisoformat(result.start_time).timestamp())
    return result.duration_seconds


def seconds_left(result: Result) -> Optional[float]:
    """Iterations left times the time per iteration of a running experiment, where both are known."""
    metrics, took = result.metrics, elapsed(result)
    if result.status != "running" or None in (metrics.step, metrics.first_step, result.max_iters, took):
        return None
    done = (metrics.step or 0) - (metrics.first_step or 0)
    return max(0.0, ((result.max_iters or 0) - (metrics.step or 0)) * (took or 0.0) / done) if done > 0 else None


def batch_left(results: Sequence[Result], slots: int) -> Optional[float]:
    """Seconds until a batch is done: what its running experiments need, and the usual time for each pending one."""
    running = [seconds_left(each) for each in results if each.status == "running"]
    lefts = [left for left in running if left is not None]
    took = [each.duration_seconds for each in results if each.status == "completed" and each.duration_seconds]
    took = took or [
        left + (elapsed(each) or 0) for each in results for left in [seconds_left(each)] if left is not None
    ]
    waiting = sum(each.status == "pending" for each in results) + len(running) - len(lefts)
    if not (waiting or running) or (waiting and not took):
        return None
    return max([(sum(lefts) + waiting * (sum(took) / len(took) if took else 0)) / max(1, slots), *lefts])


def rows_of(results: Sequence[Result]) -> list[dict[str, Any]]:
    """What the table, the page and --status --json show of each experiment."""
    known = [
        (each.metrics.best_val_loss, n) for n, each in enumerate(results) if each.metrics.best_val_loss is not None
    ]
    best = min(known)[1] if len(known) > 1 else None
    keys = ("status", "error", "hint", "stderr_tail", "attempts", "settings", "device")
    rows = []
    for number, each in enumerate(results):
        step = each.metrics.step
        progress = "" if step is None else f"{step}/{each.max_iters}" if each.max_iters else str(step)
        row = {"name": each.config_name, "progress": progress, **to_json(each.metrics)}
        row.update((key, getattr(each, key)) for key in keys)
        row.update(best=number == best)
        row.update(duration_seconds=elapsed(each), eta_seconds=seconds_left(each))
        rows.append(row)
    return rows


def table(results: Sequence[Result]) -> list[str]:
    """The results as lines for people; columns that would be empty are left out."""
    keys = list(dict.fromkeys(key for each in results for key in each.settings))
    columns = ["experiment", "status", "step", "val loss", "best val loss", "duration", "ETA", "device"]
    lines = [[*columns, *map(clean, keys), "error"]]
    for row in rows_of(results):
        losses = [show_loss(row["val_loss"], ""), show_loss(row["best_val_loss"], "") + "*" * row["best"]]
        left = row["eta_seconds"]
        times = [show_duration(row["duration_seconds"]), show_duration(left) if left is not None else ""]
        settings = [show_value(row["settings"][key]) if key in row["settings"] else "" for key in keys]
        error = row["error"] or ("loss is not finite" if row["status"] == "completed" and row["hint"] else "")
        cells = [row["name"], row["status"], row["progress"], *losses, *times, row["device"] or "", *settings, error]
        lines.append(list(map(clean, cells)))
    filled = [column for column in zip(*lines) if any(column[1:])]
    widths = [max(map(len, column)) for column in filled]
    right = [column[0] in ("step", "val loss", "best val loss", "duration", "ETA") for column in filled]
    return [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in zip(line, widths, right)
        ).rstrip()
        for line in zip(*filled)
    ]


def live_lines(
    results: Sequence[Result], all_results: Sequence[Result], slots: int, width: int, height: int
) -> list[str]:
    """The block at the foot of a terminal: a line per running experiment, as many as fit, and one for the batch."""
    shown = results[: max(1, height - 3)]
    rows = []
    for each in shown:
        metrics, left = each.metrics, seconds_left(each)
        row = [f"iter {metrics.step or 0}" + f"/{each.max_iters}" * bool(each.max_iters)]
        row += [f"loss {show_loss(metrics.train_loss)}", f"val {show_loss(metrics.val_loss)}"]
        rows.append([*row, whole_seconds(elapsed(each)), "" if left is None else f"ETA {whole_seconds(left)}"])
    widths = [max(map(len, column)) for column in zip(*rows)]
    room = width - 1 - sum(widths) - 2 * len(widths)
    longest = max((len(each.config_name) for each in shown), default=0)
    name = min(longest, max(16, room - 12))
    bar = min(20, room - name - 2)
    lines = []
    for each, row in zip(shown, rows):
        done = min(1.0, (each.metrics.step or 0) / each.max_iters) if each.max_iters else 0.0
        parts = [f"{cut(each.config_name, name):{name}}", *map(str.ljust, row, widths)]
        if bar > 4:
            parts.insert(2, "#" * int(bar * done) + "." * (bar - int(bar * done)))
        lines.append("  ".join(parts).rstrip())
    counts = {key: count for key, count in count_statuses(all_results).items() if count}
    left = batch_left(all_results, slots)
    batch = ", ".join(f"{count} {key}" for key, count in counts.items())
    lines.append(batch + (f"; ETA {whole_seconds(left)}" if left is not None else ""))
    return [line[: max(1, width - 1)] for line in lines]


class Console:
    """The runner's own output: lines, and under them on a terminal a live block.

    A view: if it breaks or blocks, the batch goes on without it. Safe to use from several threads."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.stuck, self.broken = quiet, False, False
        self.live = not quiet and os.isatty(2) and os.environ.get("TERM", "dumb") != "dumb"
        if self.live and stat.S_ISFIFO(os.fstat(1).st_mode):
            self.live = False  # `| tee`: its lines come to the same terminal at moments that can't be known
        self.follow = False
        self.block: list[str] = []  # as it stands on the screen
        self.lock = threading.RLock()

    def line(self, text: str) -> None:
        self.lines([text])

    def lines(self, lines: Sequence[str]) -> None:
        if not self.quiet and not self.broken:
            with self.lock:
                block = self.block
                self.draw([])
                self.write(1, "".join(f"{line}\n" for line in lines))
                self.draw(block)

    def copy(self, name: str, lines: bytes) -> None:
        """Lines of a training, for --follow."""
        self.lines([name + clean(line) for line in lines.decode(errors="replace").expandtabs().splitlines()])

    def draw(self, block: list[str]) -> None:
        """Put a block in the place of the one on the screen."""
        with self.lock:
            if self.live and block != self.block and not self.broken and self.in_front():
                width = self.size()[0]
                rows = sum(max(1, -(-len(line) // width)) for line in self.block)  # a narrower window has wrapped them
                up = f"\x1b[{rows}A\r" if rows else ""
                text = "".join(f"{line}\x1b[K\n" for line in block)
                self.write(2, up + ("\x1b[J" if len(block) < rows else "") + text)
                self.block = block

    def in_front(self) -> bool:
        """Whether the terminal is this program's own just now, not that of the shell which put it in the background."""
        try:
            return os.tcgetpgrp(2) == os.getpgrp()
        except OSError:
            return True

    def size(self) -> tuple[int, int]:
        try:
            columns, rows = os.get_terminal_size(2)
        except OSError:
            columns, rows = 0, 0
        return columns or 80, rows or 24

    def write(self, descriptor: int, text: str) -> None:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        data = text.encode(encoding, "backslashreplace")
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        try:
            while data:
                self.stuck = not poll.poll(0 if self.stuck else 2000)
                if self.stuck:  # Ctrl+S, or a pager that nobody reads
                    return
                data = data[os.write(descriptor, data[:512]) :]  # so little doesn't block once poll says there is room
        except OSError:
            self.broken = True


def print_whole(lines: Iterable[str]) -> None:
    """Print all of what was asked for, at the pace of its reader. Raises UsageError where it can't be written."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    data = memoryview("".join(f"{line}\n" for line in lines).encode(encoding, "backslashreplace"))
    poll = select.poll()
    poll.register(1, select.POLLOUT)
    try:
        while data:
            try:
                data = data[os.write(1, data) :]
            except BlockingIOError:  # another program left the terminal so
                poll.poll()
    except BrokenPipeError:
        pass  # `head` has seen enough
    except OSError as error:
        raise UsageError(f"can't write to stdout: {error.strerror}") from None


# --------------------------------------------------------------------------------------------------- page


Point = tuple[float, ...]  # the step first, the loss that is drawn last


class Series:
    """The points that one kind of line in a log gives, steps ascending; of many, as many as a plot can show.

    The line is written with N for its numbers. So many are taken exactly; after these, `skip` bytes are left
    out after each: of millions of lines enough remain to draw, and they are read in seconds.
    """

    def __init__(self, line: bytes, exact: int, skip: int, lowest: bool) -> None:
        self.start, self.word = line.split(b"N")[:2]
        self.line = re.compile(rb"\b" + line.replace(b"N", rb"(\d{1,15})", 1).replace(b"N", NUMBER))
        self.exact, self.skip, self.lowest = exact, skip, lowest
        self.tried = 0
        self.points: list[Point] = []

    def take(self, data: bytes, end: int) -> None:
        done, at = 0, data.find(self.word, 0, end)
        while at >= 0:
            self.tried += 1
            start = data.rfind(self.start, max(done, at - 20), at)
            found = self.line.match(data, start, end) if start >= 0 else None
            if found:
                self.add((int(found[1]), *map(float, found.groups()[1:])))
            done = found.end() if found else at + len(self.word)
            at = data.find(self.word, done + (self.skip if self.tried > self.exact else 0), end)

    def add(self, point: Point) -> None:
        while self.points and self.points[-1][0] >= point[0]:
            self.points.pop()  # a resumed run does these steps again, and what it says of them counts
        self.points.append(point)
        if len(self.points) > 1200:
            self.points = self.thinned(300)

    def thinned(self, spans: int) -> list[Point]:
        """Of each of so many equal spans of steps the first point, the first nan or inf and the lowest."""
        if len(self.points) <= 2 * spans:
            return self.points
        width = (self.points[-1][0] - self.points[0][0] + 1) / spans
        kept = {self.points[-1]}
        for _, group in itertools.groupby(self.points, lambda point: point[0] // width):
            span = list(group)
            finite = [point for point in span if math.isfinite(point[-1])]
            broken = [point for point in span if not math.isfinite(point[-1])]
            lowest = [min(finite, key=lambda point: point[-1])] if self.lowest and finite else []
            kept.update(span[:1], broken[:1], lowest)
        return sorted(kept)


class Curve:
    """The losses in one stdout.log, read as it grows."""

    def __init__(self) -> None:
        self.start_over((0, 0))

    def start_over(self, file: tuple[int, int]) -> None:
        self.file, self.offset, self.rest = file, 0, b""
        self.evaluations = Series(b"step N: train loss N, val loss N", exact=100_000, skip=4096, lowest=True)
        self.iterations = Series(b"iter N: loss N", exact=20_000, skip=16_384, lowest=False)

    def update(self, path: str, limit: float = math.inf) -> None:
        """Read what was added since the last call, `limit` bytes at most; a log that shrank counts as new."""
        try:
            with open(path, "rb", buffering=0, opener=open_read) as log:
                status = os.fstat(log.fileno())
                file = (status.st_dev, status.st_ino)
                if file != self.file or status.st_size < self.offset:
                    self.start_over(file)
                log.seek(self.offset)
                end = min(status.st_size, self.offset + limit)  # a trainer that writes faster can't hold this up
                while self.offset < end and (block := log.read(BLOCK)):
                    self.offset += len(block)
                    self.take(self.rest + block)
        except OSError:
            self.start_over((0, 0))

    def take(self, data: bytes) -> None:
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if data.rfind(b"loss ", 0, end) >= 0:
            self.evaluations.take(data, end)
            self.iterations.take(data, end)
        self.rest = data[end:][-LINE_LIMIT:]

    def drawn(self, spans: int = 300) -> dict[str, list[list[Any]]]:
        """The [step, loss] that the page draws; train losses of evaluations if no iteration is printed."""
        val = self.evaluations.thinned(spans)
        train = self.iterations.thinned(spans) or [point[:2] for point in val]
        return {
            "val": [[point[0], to_json(point[-1])] for point in val],
            "train": [[point[0], to_json(point[-1])] for point in train],
        }


def shown(value: Any) -> str:
    """HTML of a text that may come from anywhere."""
    return "" if value is None else html.escape(clean(str(value)))


def shown_loss(loss: Any) -> str:
    if not isinstance(loss, (int, float)) or not math.isfinite(loss):
        return shown(loss)
    return f"{loss:.4f}" if 1e-3 <= abs(loss) < 1e5 or loss == 0 else f"{loss:.4g}"


def shown_status(status: Any, text: Any = None) -> str:
    return f'<i class="dot {shown(status)}"></i>{shown(text or status)}'


PAGE_COLUMNS: list[tuple[str, str, str, Callable[[Any], str]]] = [  # title, key, class, how it is shown
    ("Status", "status", "", shown_status),
    ("Progress", "progress", "n", shown),
    ("Train loss", "train_loss", "n", shown_loss),
    ("Val loss", "val_loss", "n", shown_loss),
    ("Best val loss", "best_val_loss", "n b", shown_loss),
    ("At step", "best_step", "n", shown),
    ("Attempts", "attempts", "n", shown),
    ("Duration", "duration_seconds", "n", show_duration),
    ("ETA", "eta_seconds", "n", show_duration),
]


def page_table(rows: list[dict[str, Any]]) -> str:
    """The columns that hold something; a tbody for each experiment: its row and, if it failed, why."""
    columns = [column for column in PAGE_COLUMNS if any(row[column[1]] not in (None, "") for row in rows)]
    settings: dict[str, str] = {}  # key: class
    for row in rows:
        for key, value in row["settings"].items():
            numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
            settings[key] = "n" if numeric and settings.get(key) != "s" else "s"
    titles = [("", "Experiment"), *((kind, title) for title, _, kind, _ in columns)]
    titles += [*((f"{kind} code", shown(key)) for key, kind in settings.items()), ("f", "Files")]
    heads = "".join([f'<th scope="col" class="{kind}">{title}</th>' for kind, title in titles])
    lines = [f"<thead><tr>{heads}</tr></thead>"]
    for row in rows:
        links = [f'<a href="./{path}">{shown(name)}</a>' for name, path in row["files"]]
        cells = [f'<th scope="row"><div>{shown(row["name"])}</div></th>']
        cells += [f'<td class="{kind}">{show(row[key])}</td>' for _, key, kind, show in columns]
        for key, kind in settings.items():
            cells.append(f'<td class="{kind}"><div>{shown(show_value(row["settings"].get(key, ""), 60))}</div></td>')
        cells.append(f'<td class="f">{"".join(links)}</td></tr>{page_failure(row, len(titles))}</tbody>')
        lines.append(f'<tbody class="{"won" if row["best"] else ""}"><tr>{"".join(cells)}')
    return "\n".join(lines)


def page_failure(row: dict[str, Any], width: int) -> str:
    """A second row with the error; hint and end of stderr are folded under it."""
    if not row["error"]:
        return ""
    tail = row["stderr_tail"] or ""
    more = f"<p>{shown(row['hint'])}</p>" if row["hint"] else ""
    more += f"<pre>{chr(10).join(map(shown, tail.expandtabs().splitlines()))}</pre>" if tail else ""
    start, end = ("<details><summary>", "</summary>") if more else ("<p>", "</p>")
    more += "</details>" if more else ""
    return f'<tr class="why"><td colspan="{width}">{start}{shown(row["error"])}{end}{more}</td></tr>'


def page_head(head: dict[str, Any]) -> str:
    counts = [(word, f"{number} {word}") for word, number in head["counts"].items() if number]
    counted = "".join([f"<span>{shown_status(word, text)}</span>" for word, text in counts])
    facts = {key.title(): head[key] for key in ("host", "commit", "started", "updated")}
    facts.update({"Duration": show_duration(head["duration"]), "ETA": head["eta"] and show_duration(head["eta"])})
    listed = [f"<div><dt>{key}</dt><dd>{shown(fact)}</dd></div>" for key, fact in facts.items() if fact]
    listed += [f'<div class="wide"><dt>Command</dt><dd><code>{shown(head["command"])}</code></dd></div>']
    dot = "running" if head["state"] == "running" else counts[0][0] if len(counts) == 1 else "interrupted"
    state = f'<p class="bar counts"><b>{shown_status(dot, head["state"])}</b>{counted}</p>'
    return f"<h1>{shown(head['title'])}</h1>{state}<dl>{''.join(listed)}</dl>"


def render_page(head: dict[str, Any], rows: list[dict[str, Any]], charts: dict[str, Any]) -> str:
    """report.html, whole; text is escaped here, and a nan or inf is a string."""
    wait = head["reload_seconds"] if head["state"] == "running" else None
    data = {**charts, "state": head["state"], "reload": wait}
    parts = {
        "TITLE": shown(head["title"]),
        "REFRESH": f'<noscript><meta http-equiv="refresh" content="{wait}"></noscript>' if wait else "",
        "HEAD": page_head(head),
        "ROWS": page_table(rows),
        "DATA": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return re.sub("<!--([A-Z]+)-->", lambda mark: parts[mark[1]], PAGE)


def page_charts(results: Sequence[Result], sweep: Any, curves: dict[str, Curve]) -> dict[str, Any]:
    """The curves of the running and the best experiments, and what a sweep of one setting has brought."""
    key = next(iter(sweep)) if isinstance(sweep, dict) and len(sweep) == 1 else ""
    values = {each.config_name: each.overrides.get(key) for each in results}
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values.values())
    drawn = sorted(results, key=rank)[:MAX_CURVES]
    shown_names = {each.config_name for each in drawn}
    lines = []
    for name in (each.config_name for each in results if each.config_name in shown_names):
        series = curves[name].drawn() if name in curves else {"val": [], "train": []}
        lines.append({"name": name, "value": values[name] if numeric else None, "best": False, **series})
    points = [[values[each.config_name], to_json(each.metrics.best_val_loss), each.config_name] for each in results]
    points = [point for point in points if numeric and point[1] is not None]
    chart = {"key": key, "log": log_spaced({point[0] for point in points}), "points": points} if points else None
    note = f"the best {len(drawn):,} of {len(results):,} are drawn" if len(drawn) < len(results) else ""
    return {"curves": lines, "sweep": chart, "note": note}


def rank(result: Result) -> tuple[bool, float]:
    loss = result.metrics.best_val_loss
    return result.status != "running", math.inf if loss is None else loss


def log_spaced(values: set[Any]) -> bool:
    ordered = sorted(values)
    if len(ordered) < 3 or ordered[0] <= 0:
        return False
    middle = ordered[len(ordered) // 2]
    return bool(middle < (ordered[0] + ordered[-1]) / 3 and ordered[-1] >= 10 * ordered[0])


def write_report(
    folder: str, summary: dict[str, Any], results: Sequence[Result], curves: dict[str, Curve], limit: float = math.inf
) -> str:
    """Write a batch's report.html, with what its logs hold by now; returns its path. Raises OSError."""
    for each in sorted(results, key=rank)[:MAX_CURVES]:
        if each.attempts and (each.metrics.step is not None or each.status not in ("completed", "failed")):
            curve = curves.setdefault(each.config_name, Curve())
            curve.update(os.path.join(folder, each.config_name, LOGS["stdout"]), limit)
    rows = rows_of(results)
    for row, each in zip(rows, results):
        files = {**LOGS, "config": "config_used.py", "metadata": "experiment_metadata.json"}
        files.update({} if each.status == "running" else {"result": "experiment_result.json"})
        row["attempts"] = each.attempts if each.attempts > 1 else None
        row["error"] = row["error"] or (row["hint"] if each.status == "completed" else None)
        row["files"] = [(name, f"{each.config_name}/{file}") for name, file in files.items() if each.attempts]
    charts = page_charts(results, summary.get("sweep"), curves)
    best = {row["name"] for row in rows if row["best"]}
    for line in charts["curves"]:
        line["best"] = line["name"] in best
    git, command = summary.get("git"), summary.get("command")
    git = git if isinstance(git, dict) else {}
    running = summary.get("state") == "running"
    head = {
        "title": os.path.basename(os.path.abspath(folder)),
        "host": summary.get("hostname"),
        "commit": f"{str(git.get('commit'))[:12]}{' with changes' * bool(git.get('dirty'))}" if git else None,
        "command": shell_line([str(word) for word in command]) if isinstance(command, list) else "",
        "started": str(summary.get("start_time"))[:19].replace("T", " "),
        "updated": time.strftime("%Y-%m-%d %H:%M:%S") if running else None,
        "state": str(summary.get("state")),
        "counts": count_statuses(results),
        "duration": summary_duration(summary),
        "eta": batch_left(results, slot_count(summary)),
        "reload_seconds": RELOAD,
    }
    path = os.path.join(folder, REPORT)
    write_file(path, render_page(head, rows, charts).encode(errors="backslashreplace"))
    return path


def summary_duration(summary: dict[str, Any]) -> Optional[float]:
    """Seconds that a batch took, or has taken so far."""
    stand_in = from_json(Result, {**summary, "status": summary.get("state")})
    return elapsed(stand_in)


def slot_count(summary: dict[str, Any]) -> int:
    options = summary.get("options")
    devices, jobs = (options.get("devices"), options.get("jobs")) if isinstance(options, dict) else (None, 1)
    return len(devices) if isinstance(devices, list) else jobs if isinstance(jobs, int) else 1


PAGE = r"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
 style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<!--REFRESH-->
<title><!--TITLE--></title>
<style>
:root { color-scheme: light dark; --page: #fff; --ink: #1c1e21; --dim: #656b73; --line: #e4e6e9;
  --box: #f5f6f7; --good: #1a7f37; --bad: #cf222e; --warn: #bf6a02; --busy: #0a66c2; --c0: #0072b2;
  --c1: #d55e00; --c2: #009e73; --c3: #c2619a; --c4: #3d9fd8; --c5: #d38f00; --c6: #4a4f55 }
@media screen and (prefers-color-scheme: dark) { :root { --page: #131518; --ink: #e3e5e8; --dim: #959ca6;
  --line: #2b2f35; --box: #1d2024; --good: #45b363; --bad: #f0645c; --warn: #e0962f; --busy: #5fabf5;
  --c0: #3b96d9; --c1: #ee7a2c; --c2: #1bb98b; --c3: #d98bb8; --c4: #7cc6f2; --c5: #eeb233; --c6: #b4bac2 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
main { max-width: 80rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem } section { margin-top: 2.5rem }
h1, h2, b { font-weight: 600 } h1 { margin: 0; font-size: clamp(1.2rem, 5vw, 1.6rem); line-height: 1.25 }
h2 { margin: 0 auto 0 0; font-size: 1.05rem } dt { font-size: .8rem } dd { margin: 0 }
a, .more { color: var(--busy); text-decoration: none } a:hover { text-decoration: underline }
button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer }
code, pre, .code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .86em }
.dim, dt, thead { color: var(--dim) } .wide { flex-basis: 100% } label { font-size: .88rem }
.dot { display: inline-block; width: .55em; height: .55em; margin-right: .5em; border-radius: 50%;
  background: var(--dim); vertical-align: .1em } .dot, .legend i { print-color-adjust: exact }
.completed { background: var(--good) } .failed, .error, .errors { background: var(--bad) }
.timeout, .timeouts, .interrupted { background: var(--warn) } .running { background: var(--busy) }
.bar, dl, .legend, .legend > * { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; margin: 0 0 .6rem }
.counts { margin: .5rem 0 1.2rem } dl { gap: .7rem 2.2rem } input { margin: 0; vertical-align: -.1em }
.plot { position: relative } #sweep { max-width: 46rem }
.plot svg { display: block; width: 100%; height: auto; overflow: visible; touch-action: pan-y }
text { font-size: 12px; fill: var(--dim) } circle { fill: currentColor }
.grid { stroke: var(--line); shape-rendering: crispEdges }
.curve { fill: none; stroke-width: 1.6; stroke-linejoin: round } .best { stroke-width: 2.8 }
.faint { opacity: .4; stroke-width: 1.2 } .lit g g { opacity: .15 } .lit g .on { opacity: 1 }
.tip { position: absolute; pointer-events: none; max-width: 16rem; padding: .3rem .6rem; font-size: .82rem;
  white-space: pre-line; background: var(--page); border: 1px solid var(--line); border-radius: 6px }
.legend { gap: 0; max-height: 8.2rem; overflow: auto; margin: .5rem 0 0 -.5rem; font-size: .85rem }
.legend > * { flex-wrap: nowrap; align-items: center; gap: .5em; padding: .15rem .5rem; margin: 0;
  text-align: left } .legend > :hover { color: var(--busy) }
[aria-pressed=false] { opacity: .45; text-decoration: line-through }
.legend svg { flex: none; width: 22px; height: 8px } .legend i { width: 9rem; height: .5rem }
.scroll { overflow-x: auto; margin: 0 -1.5rem; padding: 0 1.5rem .5rem; content-visibility: auto;
  contain-intrinsic-size: auto 30rem }
table { border-collapse: collapse; min-width: 100%; font-size: .9rem }
tbody { border-top: 1px solid var(--line) } summary { cursor: pointer }
th, td { padding: .5rem 0 .5rem 1.3rem; text-align: left; vertical-align: baseline; white-space: nowrap }
tr > :first-child { padding-left: 0 } .n { text-align: right } .n div { margin-left: auto }
th { font-weight: 500 } thead th { font-size: .88em } .f a { margin-right: .7em }
[aria-sort] { color: var(--ink) } [aria-sort]::after { content: " ↑" }
[aria-sort^=d]::after { content: " ↓" }
th div, td div { width: max-content; max-width: 20rem; white-space: normal }
.won .b { font-weight: 700 } .won .b::before { content: "★ "; color: var(--good) }
.why td { padding: 0 0 .6rem; white-space: normal } .why p, pre { margin: .4rem 0 }
.why td > * { position: sticky; left: 0; width: fit-content; max-width: min(75rem, 100vw - 2rem) }
.why td > p { margin: 0 } summary, .why td > p { color: var(--bad) }
pre { padding: .8rem 1rem; max-height: 24rem; overflow: auto; background: var(--box); border-radius: 6px }
@media (max-width: 40rem) { main { padding: 1.4rem 1rem 3rem } h2 { flex-basis: 100% }
  th div { max-width: 9rem } .scroll { margin: 0 -1rem; padding: 0 1rem .5rem } }
@media print { main { max-width: none; padding: 0 } .scroll, .legend { overflow: visible; max-height: none }
  table { font-size: 8pt } th, td { padding-left: .6rem } label, .f, .more, .tip { display: none }
  #curves, #sweep, tbody { break-inside: avoid } }
</style>
</head>
<body>
<main>
<header><!--HEAD--></header>
<section id="curves"><div class="bar"><h2>Validation loss</h2>
<label hidden><input type="checkbox" id="train"> training loss</label>
<label hidden><input type="checkbox" id="log"> log scale</label></div>
<noscript><p class="dim">The curves are drawn by JavaScript, which is off. The table is whole.</p></noscript>
<div class="plot"></div><div class="legend"></div></section>
<section id="sweep" hidden><div class="bar"><h2></h2></div><div class="plot"></div></section>
<section><div class="bar"><h2>Experiments</h2></div>
<div class="scroll"><table>
<!--ROWS-->
</table></div><button class="more" hidden></button></section>
</main>
<script type="application/json" id="data"><!--DATA--></script>
<script>
"use strict";
const one = query => document.querySelector(query), number = v => typeof v === "number";
const data = JSON.parse(one("#data").textContent), curves = data.curves, sweep = data.sweep;
const KEY = "report " + location.pathname;
let kept = {};  // what the reader chose; it outlives the reload
try { kept = JSON.parse(sessionStorage.getItem(KEY)) || {} } catch {}
function keep(change, then) {
  Object.assign(kept, change);
  try { sessionStorage.setItem(KEY, JSON.stringify(kept)) } catch {}
  then();
}
function add(parent, tag, attributes = {}, text = "") {
  const space = tag === "svg" || parent instanceof SVGElement ? "2000/svg" : "1999/xhtml";
  const node = document.createElementNS("http://www.w3.org/" + space, tag);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  node.textContent = text;
  parent.append(node);
  return node;
}

// Axes
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });
const tiny = v => v && Math.abs(v) < 1e-3;
const short = v => tiny(v) ? (+v.toPrecision(4)).toExponential() : compact.format(v).replace("K", "k");
function ticks([low, high], count, log) {
  const power = 10 ** Math.floor(Math.log10((high - low) / count)), found = [];
  const step = power * [1, 2, 5, 10].find(m => m * power >= (high - low) / count * .999);
  for (let k = Math.floor(Math.log10(low)); log && k <= Math.log10(high); k++)
    found.push(...[1, 2, 5].map(m => +`${m}e${k}`).filter(v => v >= low && v <= high));
  if (found.length > 2 && found.length <= 2 * count) return found;
  const tens = found.filter(v => /^1e/.test(v.toExponential())), every = Math.ceil(tens.length / count);
  if (found.length > 2) return tens.filter((_, i) => i % every === 0);
  const start = Math.ceil(low / step), length = Math.floor(high / step) - start + 1;
  return Array.from({ length }, (_, i) => +((start + i) * step).toPrecision(9));
}
function range(values, log, room) {  // with some room around, never empty
  let low = Infinity, high = -Infinity;
  for (const v of values) low = Math.min(low, v), high = Math.max(high, v);
  if (low > high) return [1, 10];
  const more = low < high ? (log ? high / low : high - low) : log ? 2 : Math.abs(low) || 1;
  room = low < high ? room : .5;
  return log ? [low / more ** room, high * more ** room] : [low - more * room, high + more * room];
}
function scale([low, high], from, to, log) {
  const f = log ? Math.log : v => v;
  return v => from + (f(v) - f(low)) / (f(high) - f(low)) * (to - from);
}

// series: [{name, color, dash, kind, dots, points: [[x, loss or "nan", name]]}]; o: titles, ranges, logs
function plot(host, series, o) {
  const wide = Math.max(260, host.clientWidth), high = Math.round(Math.min(430, Math.max(230, wide / 2)));
  const left = 46, right = wide - 16, top = 26, bottom = high - 42, clip = host.parentNode.id + "-clip";
  const x = scale(o.xs, left, right, o.xlog), y = scale(o.ys, bottom, top, o.ylog), spots = [];
  host.textContent = "";
  const root = add(host, "svg", { viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": o.y });
  const label = (x, y, anchor, text) => add(root, "text", { x, y, "text-anchor": anchor }, text);
  const grid = d => add(root, "path", { class: "grid", d });
  for (const v of ticks(o.ys, bottom / 42, o.ylog))
    grid(`M${left} ${y(v)}H${right}`), label(left - 8, y(v) + 4, "end", short(v));
  const apart = (v, i, all) => !i || x(v) - x(all[i - 1]) > 44;
  for (const v of o.values && o.values.every(apart) ? o.values : ticks(o.xs, (right - left) / 80, o.xlog))
    grid(`M${x(v)} ${bottom}v5`), label(x(v), bottom + 20, "middle", short(v));
  grid(`M${left} ${bottom}H${right}`), label(0, 10, "start", o.y), label(right, high - 4, "end", o.x);
  add(add(root, "clipPath", { id: clip }), "rect", { x: left - 6, y: 20, width: wide, height: bottom - 14 });
  const inside = add(root, "g", { "clip-path": `url(#${clip})` });
  for (const s of series) {
    const group = s.group = add(inside, "g"), style = `stroke:${s.color};stroke-dasharray:`;
    let path = "", crosses = "", pen = "M", px = 0, py = top;
    for (const [at, loss, name = s.name] of s.points) {
      const fits = number(loss) && (loss > 0 || !o.ylog), last = pen === "L" || !path || s.dots;
      if (fits || s.dots || !path) px = x(at);
      py = fits ? Math.max(-2e3, y(loss)) : s.dots ? top : Math.max(top, py);
      if (fits) path += pen + px.toFixed(1) + " " + py.toFixed(1);
      else if (last) crosses += `M${px - 4} ${py - 4}l8 8m0-8l-8 8`;  // nan or inf: the curve ends
      if (fits && (s.dots || s.points.length < 2))
        add(group, "circle", { cx: px, cy: py, r: s.dots || 3.5, style: "fill:" + s.color });
      const text = `${name}\n${o.x} ${at}: ${number(loss) ? +loss.toPrecision(6) : loss}`;
      if (fits || last) spots.push({ px, py: Math.max(top, py), group, text });
      pen = fits ? "L" : "M";
    }
    const joined = s.kind === "unjoined" ? "stroke:none" : style + s.dash;
    add(group, "path", { class: "curve " + s.kind, d: path, style: joined });
    add(group, "path", { class: "curve", d: crosses, style: style + "none" });
  }
  const mark = add(root, "circle"), tip = add(host, "div", { class: "tip", hidden: "" });
  root.onpointerleave = () => { tip.hidden = true; mark.setAttribute("r", 0); light() };
  root.onpointermove = event => {
    const box = root.getBoundingClientRect();
    const far = s => Math.hypot(s.px - event.clientX + box.left, s.py - event.clientY + box.top);
    const near = spots.reduce((a, s) => far(s) < a[0] ? [far(s), s] : a, [Infinity, null])[1];
    if (!near) return;
    tip.hidden = false;
    tip.textContent = near.text;
    tip.style.top = near.py + 12 + "px";
    tip.style.left = Math.max(0, Math.min(near.px + 12, wide - tip.offsetWidth)) + "px";
    for (const [key, v] of [["cx", near.px], ["cy", near.py], ["r", 4]]) mark.setAttribute(key, v);
    light(near.group);
  };
}
function light(group = null) {
  for (const svg of document.querySelectorAll(".plot svg")) svg.classList.toggle("lit", svg.contains(group));
  for (const g of document.querySelectorAll(".plot g g")) g.classList.toggle("on", g === group);
}

// Up to ten curves in colours that the colour-blind tell apart, more on a scale by value or place
const few = curves.length <= 10, byValue = !few && curves.every(c => number(c.value));
const xlog = !!sweep && sweep.log, night = matchMedia("(prefers-color-scheme: dark)");
const ends = range(curves.map((c, i) => byValue ? c.value : i), xlog && byValue, 0);
function viridis(t) {
  const stops = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"];
  const at = night.matches ? .8 + 3.2 * t : 3.5 * t, k = Math.min(3, Math.floor(at));
  return `color-mix(in srgb, ${stops[k + 1]} ${Math.round((at - k) * 100)}%, ${stops[k]})`;
}
function smooth(points) {
  const finite = points.filter(p => number(p[1])), most = Math.ceil(finite.length / 60);
  return finite.map(([step], i) => {
    const w = Math.min(most, i, finite.length - 1 - i), around = finite.slice(i - w, i + w + 1);
    return [step, around.reduce((sum, p) => sum + p[1], 0) / around.length];
  });
}
function draw() {
  const host = one("#curves .plot"), gone = kept.gone || [], evaluated = curves.some(c => c.val.length);
  const any = evaluated || curves.some(c => c.train.length), shade = scale(ends, 0, 1, xlog && byValue);
  const train = kept.train ?? !evaluated, ylog = !!kept.log;
  for (const input of document.querySelectorAll("input")) {
    input.parentNode.hidden = !any;
    input.checked = input.id === "log" ? ylog : train;
    input.onchange = () => keep({ [input.id]: input.checked }, draw);
  }
  host.classList.toggle("dim", !any);
  if (!any) return host.textContent = data.state === "running" ? "The curves begin with the first evaluation."
    : "No experiment printed an evaluation, so there are no curves.";
  curves.forEach((c, i) => Object.assign(c, {
    color: few ? `var(--c${i % 7})` : viridis(shade(byValue ? c.value : i)),
    dash: few && i > 6 ? "6 3" : "none", kind: c.best ? "best" : "", points: c.val }));
  const here = curves.filter(c => !gone.includes(c.name)).sort((a, b) => a.best - b.best);
  const faint = c => ({ ...c, kind: "faint", points: smooth(c.train), name: c.name + ", training loss" });
  const series = train ? [...here.map(faint), ...here] : here, points = series.flatMap(s => s.points);
  const losses = points.map(p => p[1]).filter(v => number(v) && (v > 0 || !ylog));
  // A run that diverges leaves the plot at the top: it must not flatten the others.
  const first = Math.max(...series.map(s => (s.points.find(p => number(p[1])) || [0, 0])[1]));
  const most = first > 0 && losses.some(v => v > 2 * first) ? 1.2 * first : Infinity;
  plot(host, series, { x: "step", y: "loss", xs: range(points.map(p => p[0]), false, 0), ylog,
    ys: range(losses.map(v => Math.min(v, most)), ylog, .04) });
  legend(gone);
}
function legend(gone) {
  const host = one(".legend");
  host.textContent = "";
  if (byValue) {
    const ramp = add(host, "div", { class: "wide dim" }, (sweep ? sweep.key + " " : "") + short(ends[0]));
    add(ramp, "i", { style: `background: linear-gradient(to right, ${[0, .25, .5, .75, 1].map(viridis)})` });
    ramp.append(short(ends[1]));
  }
  if (data.note) add(host, "div", { class: "wide dim" }, data.note);
  for (const c of curves.filter(c => c.val.length || c.train.length)) {
    const off = gone.includes(c.name), button = add(host, "button", { "aria-pressed": !off });
    const style = `stroke:${c.color};stroke-dasharray:${c.dash}`;
    add(add(button, "svg"), "path", { d: "M0 4H22", class: "curve " + c.kind, style });
    button.append(c.name + (c.best ? " ★" : ""));
    button.onclick = () => keep({ gone: off ? gone.filter(n => n !== c.name) : [...gone, c.name] }, draw);
    button.onpointerenter = () => off || light(c.group);
    button.onpointerleave = () => light();
  }
}
function drawSweep() {
  const rank = p => number(p[1]) ? p[1] : Infinity, points = sweep.points.sort((a, b) => a[0] - b[0]);
  const best = points.reduce((a, b) => rank(b) < rank(a) ? b : a), line = { kind: "faint", dash: "none" };
  const xs = range(points.map(p => p[0]), xlog, .05), losses = points.map(p => p[1]).filter(number);
  one("#sweep").hidden = false;
  one("#sweep h2").textContent = "Best validation loss by " + sweep.key;
  const lowest = points.filter(p => points.every(q => q[0] !== p[0] || rank(p) <= rank(q)));
  plot(one("#sweep .plot"), [{ ...line, points: lowest, color: "var(--c0)" },
    { ...line, kind: "unjoined", points, color: "var(--c0)", dots: points.length > 40 ? 2.5 : 4 },
    { ...line, points: [best], color: "var(--good)", dots: 6 }],
    { x: sweep.key, y: "best val loss", xs, ys: range(losses, false, .08), xlog,
      values: [...new Set(points.map(p => p[0]))] });
}
function drawAll() { draw(); if (sweep && sweep.points.length) drawSweep() }

// The table: a click sorts up, then down, then as in the batch
const table = one("table"), bodies = [...table.tBodies], heads = [...table.tHead.rows[0].cells];
const titles = heads.map(th => th.textContent), words = new Intl.Collator("en", { numeric: true });
let all = false;
function sortKey(body, column) {
  const text = body.rows[0].cells[column].textContent;
  if (!heads[column].classList.contains("n")) return text;
  const times = [...text.matchAll(/([\d.]+)([dhms])/g)], unit = { d: 86400, h: 3600, m: 60, s: 1 };
  return times.length ? times.reduce((sum, [, n, u]) => sum + n * unit[u], 0) : parseFloat(text);
}
function arrange() {
  const [title, way] = kept.sort || [], column = titles.indexOf(title), none = v => v === "" || v !== v;
  const more = one(".more"), keys = bodies.map(body => [column < 0 ? 0 : sortKey(body, column), body]);
  keys.sort(([a], [b]) => none(a) - none(b) || way * (number(a) ? a - b : words.compare(a, b)));
  for (const th of heads) th.removeAttribute("aria-sort");
  if (column >= 0) heads[column].setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
  const count = all ? keys.length : 500;
  more.hidden = keys.length <= count;
  more.textContent = `Show all ${keys.length.toLocaleString("en")} experiments`;
  more.onclick = () => { all = true; arrange() };
  for (const body of bodies) body.remove();
  table.append(...keys.slice(0, count).map(pair => pair[1]));
}
heads.slice(0, -1).forEach((th, i) => {
  th.textContent = "";
  add(th, "button", { type: "button" }, titles[i]).onclick = () => {
    const way = kept.sort && kept.sort[0] === titles[i] ? kept.sort[1] : 0;
    keep({ sort: way < 0 ? null : [titles[i], way ? -1 : 1] }, arrange);
  };
});
arrange();
drawAll();
one(".scroll").style.contentVisibility = "visible";  // until here it spared laying out 10,000 rows
window.onresize = night.onchange = drawAll;
function again() {  // not while nobody looks, or somebody reads an error or marks a text
  if (document.hidden || one("details[open]") || String(getSelection())) setTimeout(again, 1000);
  else location.reload();
}
if (data.reload) setTimeout(again, 1000 * data.reload);
</script>
</body>
</html>
"""


# --------------------------------------------------------------------------------------------------- batch


def config_sha256(path: str) -> Optional[str]:
    with contextlib.suppress(OSError), open(path, "rb", opener=open_read) as file:
        return sha256(file.read())
    return None


def read_own(folder: str, name: str) -> dict[str, Any]:
    """One of an experiment's own JSON files; empty where there is none that can be read."""
    with contextlib.suppress(ValueError):
        return read_json(os.path.join(folder, name)) or {}
    return {}


def take_up(experiment: Experiment, folder: str, attempts: int) -> tuple[str, str]:
    """How the next attempt begins, `starts`, `continues` or `starts over`, and why."""
    if not attempts:
        return "starts", "first attempt"
    if experiment.overrides.get("init_from") == "scratch":
        return "starts over", "--init_from=scratch"
    if "init_from" not in experiment.settings:
        return "starts over", "the trainer has no setting init_from"
    launched = read_own(folder, "experiment_metadata.json").get("config_sha256")
    if launched != config_sha256(experiment.config):
        return "starts over", "the config changed" if launched else "no metadata of the earlier attempt"
    newest = checkpoints(folder)
    if not newest:
        return "starts over", "no checkpoint"
    return "continues", f"from {os.path.basename(newest[0])}"


def told(how: str, why: str) -> str:
    return f"{how} {why}" if how == "continues" else f"{how}: {why}"


def continue_from_checkpoint(experiment: Experiment) -> None:
    experiment.arguments = [each for each in experiment.arguments if not each.startswith("--init_from=")]
    experiment.arguments.append("--init_from=resume")


def with_device(experiment: Experiment, slot: Slot) -> dict[str, str]:
    return {**experiment.overrides, **({"device": slot.device} if slot.device else {})}


def past(result: Result) -> dict[str, Any]:
    """What the history keeps of an attempt."""
    keys = ("start_time", "end_time", "status", "return_code", "error")
    return {"attempt": result.attempts, **{key: getattr(result, key) for key in keys}}


def refuse_link(folder: str) -> None:
    """Nothing is written through a symbolic link that was planted in a batch."""
    if os.path.islink(folder):
        raise OSError(errno.ELOOP, "is a symbolic link", folder)


def move_aside(folder: str, attempt: int) -> None:
    """Move all that an earlier attempt left to attempt_N/; its metadata last, so that a crash half-way is seen."""
    target = os.path.join(folder, f"attempt_{attempt}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(target)
    refuse_link(target)
    for name in sorted(names_in(folder, r"(?!attempt_\d+$).*"), key="experiment_metadata.json".__eq__):
        place = os.path.join(target, name)
        while os.path.lexists(place):
            place += "_"
        os.rename(os.path.join(folder, name), place)


def catch_up(result: Result, folder: str, held: bool) -> Result:
    """A result as the experiment's own files tell it, which may be newer than the summary."""
    own = read_own(folder, "experiment_result.json")
    latest = from_json(Result, {**own, "config_name": result.config_name})
    if own and latest.status in COUNTS and latest.attempts >= result.attempts:
        result = latest
    metadata = read_own(folder, "experiment_metadata.json")
    attempt = metadata.get("attempt")
    result.attempts = max([result.attempts, *(int(name[8:]) for name in names_in(folder, r"attempt_\d{1,6}"))])
    if isinstance(attempt, int) and (attempt > result.attempts or result.status == "running"):
        history = metadata.get("attempt_history")
        result.attempts, result.status, result.start_time = (attempt, "running", str(metadata.get("start_time")))
        result.attempt_history = history if isinstance(history, list) else []
    if result.status == "running":
        result.metrics.read(read_tail(os.path.join(folder, LOGS["stdout"])))
        if not held:
            result.status, result.error = "interrupted", "its runner died"
    return result


def read_batch(folder: str, held: Optional[bool] = None) -> tuple[dict[str, Any], dict[str, Result]]:
    """A batch as its files tell it: the summary and the results by name.

    Raises UsageError for what is no batch or is damaged."""
    path = os.path.join(folder, SUMMARY)
    if not os.path.isdir(folder):
        raise UsageError(f"no batch there: {folder}")
    try:
        summary = read_json(path)
        if summary is None:
            summary = summary_from_experiments(folder)
        stored = summary.get("results")
        if not isinstance(stored, dict) or not all(isinstance(each, dict) for each in stored.values()):
            raise ValueError(f"{path}: no results in it")
        options = summary.get("options", {})
        if not isinstance(options, dict):
            raise ValueError(f"{path}: not options: {clean(repr(options))[:100]}")
        checked(Options, {"train_script": summary.get("train_script") or "", **options}, PLAN_OPTIONS, path)
        results = {}
        for name, data in stored.items():
            if name != clean_name(name):
                raise ValueError(f"{path}: not an experiment's name: {clean(name)}")
            keys = ("config_path", "overrides", "status", "attempts")
            results[name] = checked(Result, {**data, "config_name": name}, keys, path)
            if results[name].status not in COUNTS or results[name].attempts < 0:
                raise ValueError(f"{path}: not a status, or not a number of attempts: {name}")
    except ValueError as error:
        raise UsageError(f"summary is damaged: {error}; without it, the experiments' own files are read") from None
    held = is_held(folder) if held is None else held
    for name, result in results.items():
        if result.status != "completed" and (held or summary.get("state") != "finished"):
            results[name] = catch_up(result, os.path.join(folder, name), held)
    if not held and summary.get("state") == "running":
        summary["state"] = "interrupted"
    return summary, results


def summary_from_experiments(folder: str) -> dict[str, Any]:
    """A stand-in for a lost summary, from the files of the experiments that were started."""
    known = {}
    for each in sorted(os.scandir(folder), key=lambda entry: natural(entry.name)):
        metadata = read_own(each.path, "experiment_metadata.json") if each.is_dir(follow_symlinks=False) else {}
        if metadata and each.name == clean_name(each.name):
            known[each.name] = metadata
    if not known:
        raise UsageError(f"no batch there: {folder}")
    first = next(iter(known.values()))
    results = {
        name: {"config_path": each.get("config_path"), "overrides": each.get("overrides")}
        for name, each in known.items()
    }
    keys = ("train_script", "global_overrides", "options", "working_directory")
    return {**{key: first.get(key) for key in keys}, "state": "interrupted", "results": results}


def texts(values: Any) -> dict[str, str]:
    """Overrides as they are kept in JSON, in the form in which a user gives them."""
    pairs = values.items() if isinstance(values, dict) else ()
    return {key: value if isinstance(value, str) else repr(value) for key, value in pairs}


def newest_batch(base: str) -> str:
    names = sorted(names_in(base, r"experiment_\d{8}_.*"), key=natural)
    begun = {"runner.lock", "master_log.txt"}  # all that a runner leaves that died before its first summary
    found = [name for name in names if set(names_in(os.path.join(base, name), r"[^.].*")) - begun]
    if not found:
        raise UsageError(f"no batch in: {base}; name one, or its --base_out_dir")
    return os.path.join(base, found[-1])


def create_folder(base: str) -> str:
    """A new directory for a batch, and `latest` pointing to it; raises UsageError where it can't be made."""
    stem = os.path.join(base, datetime.now().strftime("experiment_%Y%m%d_%H%M%S"))
    try:
        os.makedirs(base, exist_ok=True)
        for number in itertools.count(1):
            folder = stem if number == 1 else f"{stem}_{number}"
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)
                break
    except OSError as error:
        raise UsageError(f"can't write to --base_out_dir: {base}: {error.strerror}") from None
    with contextlib.suppress(OSError):
        link = os.path.join(base, f".latest.{os.getpid()}")
        os.symlink(os.path.basename(folder), link)
        os.replace(link, os.path.join(base, "latest"))
    return folder


class Batch:
    """A batch that runs: the one loop, which owns all state."""

    def __init__(
        self,
        options: Options,
        planner: Planner,
        folder: str,
        plan: Sequence[Experiment],
        results: dict[str, Result],
        head: dict[str, Any],
    ) -> None:
        self.options, self.planner, self.folder, self.results = options, planner, folder, results
        self.plan = {each.name: each for each in plan}
        self.head = head  # of the summary
        self.events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.console = Console(options.quiet)
        self.console.follow = options.follow
        self.waiting = deque(each for each in plan if results[each.name].status != "completed")
        self.free = [Slot(n, device) for n, device in enumerate(options.devices or [None] * options.jobs)]
        self.slots = len(self.free)
        self.running: list[Training] = []
        self.retries: Counter[str] = Counter()
        self.failed: set[str] = set()  # in this run
        self.set_aside: dict[str, str] = {}  # experiment -> its newest checkpoint, under another name for a try
        self.stopped_by: Optional[int] = None
        self.signalled = (0, -math.inf)  # the latest signal, and when it came
        self.ignored: list[int] = []  # signals that the runner was started to ignore
        self.obstacle = ""  # why nothing more is launched
        self.began = time.monotonic()
        self.lines: dict[str, str] = {}  # name -> its result as it stands in the summary
        self.unwritten = set(results)
        self.summary_due = self.report_due = math.inf  # monotonic times
        self.draw_due = 0.0 if self.console.live else math.inf
        self.summary_earliest = self.report_earliest = 0.0
        self.curves: dict[str, Curve] = {}
        self.head.update(hostname=os.uname().nodename, git=git_state())
        self.master_log = open_own(folder, "master_log.txt")

    def run(self) -> int:
        """Run what is waiting; returns the exit code."""
        self.catch_signals()
        self.say(f"batch {self.folder}: {len(self.waiting)} of {len(self.plan)} experiments to run")
        self.write_summary()
        try:
            while self.running or self.may_launch():
                self.fill_slots()
                self.wait()
                for training in list(self.running):
                    training.advance(time.monotonic())
                    if training.is_over():
                        self.finish(training)
                self.refresh_views()
            return self.end()
        finally:  # whatever this program's own mistake is, no training outlives it
            for training in self.running:
                training.kill()

    def catch_signals(self) -> None:
        """Have signals come as events, through a pipe that Python's own C handler writes and a thread reads.

        A handler in Python runs only once the main thread does, and a signal that the kernel gave to another thread
        doesn't wake it. Raises UsageError where no pipe or thread can be had: no training could start either."""

        def pass_on() -> None:
            while True:
                self.events.put(functools.partial(self.on_signal, os.read(source, 1)[0]))

        try:
            source, sink = os.pipe()
            os.set_blocking(sink, False)
            signal.set_wakeup_fd(sink, warn_on_full_buffer=False)
            threading.Thread(target=pass_on, name="signals", daemon=True).start()
        except (OSError, RuntimeError) as error:
            raise UsageError(f"no room for the runner's own pipe and thread: {error}") from None
        for number in (*STOP_SIGNALS, *[signal.SIGTSTP] * self.console.live):
            if signal.getsignal(number) == signal.SIG_IGN:  # nohup's wish is kept
                self.ignored.append(number)
                if signal_name(number) != f"SIG{self.options.stop_signal}":
                    continue  # else a training would inherit that it is ignored, and not hear the runner
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def refresh_views(self) -> None:
        """Write the summary and the page, draw the live block, where one is due."""
        now = time.monotonic()
        if now >= self.summary_due:
            self.write_summary()
        if now >= self.report_due:
            self.write_report(64 << 20)
        if now >= self.draw_due:
            running = [each.result for each in self.running]
            self.console.draw(live_lines(running, list(self.results.values()), self.slots, *self.console.size()))
            self.draw_due = now + 0.25

    def write_report(self, limit: float) -> None:
        began = time.monotonic()
        try:
            write_report(self.folder, self.head, [self.results[name] for name in self.plan], self.curves, limit)
        except OSError as error:
            self.on_write_error(os.path.join(self.folder, REPORT), error)
        self.report_due = math.inf
        self.report_earliest = time.monotonic() + max(2.0, 50 * (time.monotonic() - began))

    def may_launch(self) -> bool:
        return bool(self.waiting) and self.stopped_by is None and not self.obstacle

    def fill_slots(self) -> None:
        while self.free and self.may_launch():
            self.check_room()
            if not self.obstacle:
                slot = self.free.pop(0)
                if not self.launch(self.waiting.popleft(), slot):
                    self.free.insert(0, slot)
            self.take_events()

    def wait(self) -> None:
        """Sleep until an event or the next deadline."""
        if self.running:
            due = min(self.summary_due, self.report_due, self.draw_due, *(training.due() for training in self.running))
            timeout = None if due == math.inf else min(max(0.0, due - time.monotonic()), 86400.0)
            with contextlib.suppress(queue.Empty):
                self.events.get(timeout=timeout)()
        self.take_events()

    def take_events(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self.events.get_nowait()()

    def on_signal(self, number: int) -> None:
        name, now, before = signal_name(number), time.monotonic(), self.signalled
        if number in self.ignored:
            return
        self.signalled = (number, now)
        if number == signal.SIGTSTP:
            self.on_suspend()
        elif before[0] == number and now < before[1] + ECHO:
            return
        elif self.stopped_by is None:
            self.stopped_by = number
            self.say(f"{name}: stopping {len(self.running)} running; once more to kill at once")
            for training in self.running:
                training.stop("interrupted", f"stopped by {name}")
        else:
            for training in self.running:
                training.hurry()

    def on_suspend(self) -> None:
        """Ctrl+Z stops the runner alone, the training goes on; the terminal is left clean."""
        self.console.draw([])
        os.kill(os.getpid(), signal.SIGSTOP)
        self.draw_due = time.monotonic()

    def say(self, text: str) -> None:
        """One line for the master log and the console."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {clean(text)}"
        with contextlib.suppress(OSError):  # a full disk is told elsewhere
            os.write(self.master_log, (line + "\n").encode(errors="backslashreplace"))
        self.console.line(line)

    def check_room(self) -> None:
        with contextlib.suppress(OSError):
            free = free_bytes(self.folder)
            if free < MIN_FREE:
                self.stop_launching(f"only {free >> 20} MB free on the disk of {self.folder}")

    def stop_launching(self, why: str) -> None:
        if not self.obstacle:
            self.obstacle = why
            self.say(f"error: {why}; nothing more is started")

    def save(self, path: str, value: Any) -> bool:
        """Write one of the runner's own files; a disk that is full stops the batch, not the program."""
        try:
            if os.path.dirname(path) != self.folder:
                refuse_link(os.path.dirname(path))
            write_file(path, value) if isinstance(value, bytes) else write_json(path, value)
            return True
        except OSError as error:
            self.on_write_error(path, error)
            return False

    def on_write_error(self, path: str, error: OSError) -> None:
        self.say(f"error: can't write {path}: {error.strerror}")
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            self.stop_launching(f"no room for the runner's own files: {error.strerror}")

    def launch(self, experiment: Experiment, slot: Slot) -> bool:
        """Begin the next attempt of an experiment; where that fails, that is its result."""
        name = experiment.name
        before = self.results[name]
        keys = ("config_name", "config_path", "experiment_dir", "overrides", "settings", "max_iters", "log_files")
        result = Result(status="running", attempts=before.attempts, **{key: getattr(before, key) for key in keys})
        result.device = slot.device
        self.results[name] = result
        try:
            self.planner.configs.pop(experiment.config, None)  # it may have changed since the batch was planned
            experiment = self.planner.experiment(name, experiment.config, with_device(experiment, slot))
            if experiment.problem:
                result.status, result.error = "failed", experiment.problem
            else:
                result.attempts = before.attempts + 1
                result.attempt_history = [*before.attempt_history, past(before)] if before.attempts else []
                self.running.append(self.start(experiment, result, slot))
                return True
        except UsageError as error:  # the config has changed since the batch was planned
            result.status, result.error = "failed", str(error)
        except Exception as error:
            result.status, result.error = "error", f"could not be started: {type(error).__name__}: {error}"
            result.traceback = traceback.format_exc()
        result.start_time = result.end_time = now_iso()
        result.duration_seconds = 0.0
        self.record(result)
        return False

    def start(self, experiment: Experiment, result: Result, slot: Slot) -> Training:
        """Lay out the experiment's directory and start its process."""
        folder = os.path.join(self.folder, experiment.name)
        how, why = take_up(experiment, folder, result.attempts - 1)
        with open(experiment.config, "rb") as file:
            source = file.read()
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        refuse_link(folder)
        if how == "starts over":
            move_aside(folder, result.attempts - 1)
        training = Training(experiment, result, folder, slot, self.options, self)
        if how == "continues":
            continue_from_checkpoint(experiment)
            read_metrics(result.metrics, os.path.join(folder, LOGS["stdout"]))
            mark_attempt(os.path.join(folder, LOGS["combined"]), f"attempt {result.attempts} continues {why}")
        command = build_command(self.options, experiment, folder, slot)
        result.start_time = now_iso()
        metadata = self.metadata(experiment, result, command, source)
        with open(os.path.join(folder, "config_used.py"), "wb", opener=open_anew) as file:
            file.write(source)
        write_json(os.path.join(folder, "experiment_metadata.json"), metadata)
        training.start(command)
        metadata.update(pid=training.pid, pid_started=started_at(training.pid))
        self.save(os.path.join(folder, "experiment_metadata.json"), metadata)
        begins = "started" if how == "starts" else told(how, why)
        self.say(f"{experiment.name}: {begins}, pid {training.pid}: {shell_line(command)}")
        self.changed(result)
        return training

    def metadata(self, experiment: Experiment, result: Result, command: list[str], source: bytes) -> dict[str, Any]:
        system = os.uname()
        return {
            "config_name": experiment.name,
            "config_path": experiment.config,
            "config_sha256": sha256(source),
            "command": command,
            "command_line": shell_line(command),
            "train_script": self.options.train_script,
            "options": plan_options(self.options),
            "global_overrides": self.head.get("global_overrides", {}),
            "overrides": result.overrides,
            "attempt": result.attempts,
            "attempt_history": result.attempt_history,
            "start_time": result.start_time,
            "working_directory": os.getcwd(),
            "python_executable": sys.executable,
            "python_version": sys.version.split()[0],
            "hostname": system.nodename,
            "platform": f"{system.sysname} {system.release} {system.machine}",
            "pid": None,
            "git": self.head["git"],
            "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        }

    def finish(self, training: Training) -> None:
        """Say how an attempt ended, and whether there is another."""
        self.running.remove(training)
        self.free.append(training.slot)
        self.free.sort(key=lambda slot: slot.number)
        result, experiment = training.result, training.experiment
        result.log_complete = not training.lost_logs()
        for name in set(training.lost_logs()) - set(training.log_failures):
            self.say(f"{experiment.name}: {name}.log is incomplete: it was deleted or replaced")
        training.close()
        if self.stopped_by and not training.status and ended_by(training.return_code) in STOP_SIGNALS:
            training.status, training.error = "interrupted", f"stopped by {signal_name(self.stopped_by)}"
        conclude(result, training)
        result.end_time = now_iso()
        self.record(result)
        planned = self.plan[experiment.name]
        if self.tries_older_checkpoint(training):
            self.waiting.appendleft(planned)
        elif result.status in FAILURES and self.retries[result.config_name] < self.options.retries:
            self.retries[result.config_name] += 1
            self.failed.discard(result.config_name)
            self.say(
                f"{result.config_name}: retry {self.retries[result.config_name]} of {self.options.retries} follows"
            )
            self.waiting.append(planned)
        if self.options.max_failures and len(self.failed) >= self.options.max_failures:
            self.stop_launching(f"{len(self.failed)} experiments have failed (--max_failures)")

    def tries_older_checkpoint(self, training: Training) -> bool:
        """After a continued attempt that failed at once: whether it is tried again without the newest checkpoint.

        That one may have been cut off while it was written. Where it was not to blame it gets its name back."""
        name, result = training.experiment.name, training.result
        aside = self.set_aside.pop(name, None)
        at_once = result.status == "failed" and not training.evaluated
        if aside:
            if at_once and os.path.exists(aside + ASIDE):
                os.rename(aside + ASIDE, aside)
                self.say(f"{name}: failed without {os.path.basename(aside)} as well, which has its name back")
            return False
        found = checkpoints(training.folder)
        broken = BROKEN_CHECKPOINT.search(result.stderr_tail)
        continued = "--init_from=resume" in training.experiment.arguments
        if not (at_once and continued and found and (broken or (len(found) > 1 and not result.hint))):
            return False
        os.rename(found[0], found[0] + ASIDE)
        self.set_aside[name] = found[0]
        self.say(f"{name}: failed at once, set aside as perhaps cut off: {os.path.basename(found[0])}{ASIDE}")
        return self.stopped_by is None

    def record(self, result: Result) -> None:
        """Keep a result that is final for now, and say it."""
        name = result.config_name
        if result.status in FAILURES:
            self.failed.add(name)
        with contextlib.suppress(OSError):  # it is there, unless the experiment could not be started
            os.mkdir(os.path.join(self.folder, name))
        self.save(os.path.join(self.folder, name, "experiment_result.json"), to_json(result))
        parts = [f"{name}: {result.status} after {show_duration(result.duration_seconds)}"]
        if result.metrics.step is not None:
            parts.append(f"step {result.metrics.step}, val loss {show_loss(result.metrics.val_loss)}")
        parts += [f"{result.error}"] * bool(result.error) + [f"hint: {result.hint}"] * bool(result.hint)
        self.say("; ".join(parts))
        for line in (result.traceback or "").splitlines():
            self.say(f"    {line}")
        self.changed(result)

    def changed(self, result: Result) -> None:
        """Have the summary written anew, but so that the writing takes a twentieth of the time at the most."""
        self.unwritten.add(result.config_name)
        self.summary_due = min(self.summary_due, self.summary_earliest)
        self.report_due = min(self.report_due, self.report_earliest)

    def write_summary(self) -> bool:
        began = time.monotonic()
        for name in self.unwritten:
            self.lines[name] = f"  {json.dumps(name)}: {json.dumps(to_json(self.results[name]))}"
        self.unwritten.clear()
        self.head.update(count_statuses(self.results.values()))
        self.head["duration_seconds"] = round(began - self.began, 3)
        head = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in self.head.items())
        lines = ",\n".join(self.lines[name] for name in self.plan)
        text = f'{{\n{head} "results": {{\n{lines}\n }}\n}}\n'
        saved = self.save(os.path.join(self.folder, SUMMARY), text.encode())
        self.summary_due = math.inf
        self.summary_earliest = time.monotonic() + 20 * (time.monotonic() - began)
        return saved

    def end(self) -> int:
        """Write and say how the batch ended; returns the exit code."""
        counts = count_statuses(self.results.values())
        unfinished = self.stopped_by is not None or counts["pending"]
        self.head.update(state="interrupted" if unfinished else "finished", end_time=now_iso())
        saved = self.write_summary()
        self.write_report(math.inf)
        self.console.draw([])
        all_well = saved and counts["completed"] == len(self.plan) and self.stopped_by is None
        self.console.quiet = self.options.quiet and all_well
        for line in table([self.results[name] for name in self.plan]):
            self.say(line)
        self.say(", ".join(f"{count} {status}" for status, count in counts.items() if count))
        if not all_well:
            self.say(f"continue with: {shell_line([*program(), '--resume', self.folder])}")
        if self.stopped_by is not None:
            return 128 + self.stopped_by
        return 0 if all_well else 1


def count_statuses(results: Iterable[Result]) -> dict[str, int]:
    times = Counter(each.status for each in results)
    return {key: times[status] for status, key in COUNTS.items()}


def conclude(result: Result, training: Training) -> None:
    """Tell from a training that is over how its attempt ended."""
    assert training.return_code is not None
    result.return_code = training.return_code
    result.signal, error = ending(training.return_code)
    result.status = training.status or ("completed" if training.return_code == 0 else "failed")
    newest = checkpoints(training.folder)
    result.final_checkpoint = newest[0] if newest else None
    if result.status == "completed":
        if result.metrics.diverged():
            result.hint = "the loss is not finite: try a smaller --learning_rate"
        return
    stderr = read_tail(os.path.join(training.folder, LOGS["stderr"])).decode(errors="replace")
    result.stderr_tail = "\n".join(stderr.splitlines()[-20:])
    result.error = training.error
    if not training.status:
        said = exception_line(stderr)
        result.error = f"{error}: {said}" if said else error
        result.hint = hint_for(f"{stderr}\n{result.error}")


def read_metrics(metrics: Metrics, path: str) -> None:
    """Take in a whole stdout.log."""
    with contextlib.suppress(OSError), open(path, "rb", opener=open_read) as file:
        rest = b""
        for block in iter(lambda: file.read(BLOCK), b""):
            lines, end, rest = (rest[-LINE_LIMIT:] + block).rpartition(b"\n")
            metrics.read(lines)
        metrics.read(rest)
    metrics.first_step = None


def mark_attempt(path: str, text: str) -> None:
    """A line of the runner's own in combined.log, so that attempts can be told apart."""
    start = b"" if read_tail(path, 1) in (b"", b"\n") else b"\n"
    log = open_log(path)
    try:
        os.write(log, start + stamp("RUNNER") + text.encode() + b"\n")
    finally:
        os.close(log)


def program() -> list[str]:
    """How this program was called, as far as a user would type it again."""
    return [os.path.basename(sys.executable), sys.argv[0]] if sys.argv[0].endswith(".py") else [sys.argv[0]]


def plan_options(options: Options) -> dict[str, Any]:
    """The options that the batch's plan keeps, where they are not the defaults."""
    usual = vars(Options())
    return {key: value for key, value in vars(options).items() if key in PLAN_OPTIONS and value != usual[key]}


def outlived(name: str, folder: str, grace: float) -> Optional[str]:
    """What to say where a training of a dead runner still runs here; it gets the grace to end by itself."""
    metadata = read_own(folder, "experiment_metadata.json")
    pid, started = metadata.get("pid"), metadata.get("pid_started")
    if not isinstance(pid, int) or not 1 < pid < 1 << 31 or metadata.get("hostname") != os.uname().nodename:
        return None
    for _ in range(int(min(grace, GRACE) * 10) + 1):
        now = started_at(pid)
        if (now != started) if now else not group_members(pid):
            return None
        time.sleep(0.1)  # no event tells of another's child
    return f"training {name} outlived its runner as pid {pid}; end it with: kill -KILL -- -{pid}"


# -------------------------------------------------------------------------------------------- command line


class Override(argparse.Action):
    """Collects settings of the trainer, in their order."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Optional[str] = None) -> None:
        namespace.overrides[(option_string or "")[2:]] = str(values)


class Sweep(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Optional[str] = None) -> None:
        key, equals, listed = str(values).partition("=")
        points = split_values(listed)
        if not equals or not key.isidentifier() or "" in points:
            parser.error(f"argument --sweep: not of the form KEY=V1,V2,...: {values}")
        if key in namespace.sweep:
            parser.error(f"argument --sweep: {key} given twice")
        namespace.sweep[key] = points


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")


def duration(text: str) -> float:
    """Seconds from `90`, `30m`, `2h`, `1d12h`; raises ArgumentTypeError."""
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text)
    seconds = sum(float(part or 0) * unit for part, unit in zip(match.groups(), (86400, 3600, 60, 1))) if match else 0
    if not 0 < seconds < 1e10:
        raise argparse.ArgumentTypeError(f"not a duration such as 90, 30m, 2h or 1d12h: {text!r}")
    return seconds


def seconds(text: str) -> float:
    number = float(read_number(text))
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"not a number of seconds: {text!r}")
    return number


def count(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"not a whole number from {least}: {text!r}")
        return int(text)

    return parse


def stop_signal(text: str) -> str:
    name = text.upper()[3:] if text.upper().startswith("SIG") else text.upper()
    if name in ("KILL", "STOP") or f"SIG{name}" not in signal.Signals.__members__:
        raise argparse.ArgumentTypeError(f"not a signal that a trainer can handle: {text!r}")
    return name


def usual(key: str) -> Callable[[str], str]:
    """The check of a setting that has an option of its own."""

    def parse(text: str) -> str:
        try:
            trainer_form(text, USUAL[key], True)
        except ValueError as wanted:
            raise argparse.ArgumentTypeError(f"wants {wanted}, not {text!r}") from None
        if key == "device" and text == "gpu":
            raise argparse.ArgumentTypeError(NO_GPU)
        return text

    return parse


def build_parser() -> Parser:
    parser = Parser(
        prog="run_experiments.py",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s --configs PATTERN [PATTERN ...] [options]\n         [--any_setting value ...] [-- ARGS ...]",
        description="Run a nanoGPT-style training script once per config file, and lose nothing.",
        epilog="\n".join(__doc__.splitlines()[1:]),
    )
    add = parser.add_argument_group("what to run").add_argument
    patterns = 'config files and glob patterns ("config/**/*.py")'
    add("--configs", nargs="+", action="extend", metavar="PATTERN", help=patterns)
    product = "run every config with each of these values; repeat it for a product"
    add("--sweep", action=Sweep, metavar="KEY=V1,V2", help=product)
    add("--train_script", metavar="PATH", help="the training script (train_run.py)")
    add("--base_out_dir", metavar="DIR", help="where batches go (experiments)")
    resumed = "continue this batch, or the newest one: all but what is completed"
    add("--resume", nargs="?", const="", metavar="DIR", help=resumed)
    add = parser.add_argument_group("what to see").add_argument
    add("--status", nargs="?", const="", metavar="DIR", help="the table of this batch, or of the newest one")
    add("--json", action="store_true", help="with --status: the same as JSON")
    add("--report", nargs="?", const="", metavar="DIR", help="write the batch's report.html anew and print its path")
    add("--follow", action="store_true", help="copy the training's output to the console")
    add("--quiet", action="store_true", help="print nothing when all goes well")
    add("--dry_run", action="store_true", help="print each command and why it would run; create nothing")
    others = "These and any other, for all configs: --n_layer 4, --dropout=0.1"
    add = parser.add_argument_group("settings of the trainer", others).add_argument
    metavars = {bool: "true/false", str: "STR", int: "INT", float: "FLOAT"}
    for key in [key for key in USUAL if key != "wandb_log"]:
        add(f"--{key}", action=Override, type=usual(key), metavar=metavars[type(USUAL[key])], dest="overrides")
    add = parser.add_argument_group("how to run it").add_argument
    add("--jobs", type=count(1), metavar="N", help="experiments at a time (1)")
    each = "one experiment at a time on each of these; auto: all GPUs"
    add("--devices", type=lambda text: text.split(","), metavar="D1,D2", help=each)
    before = "stands before the training script instead of Python; {name}, {dir}, {device}, {slot} are filled in"
    add("--launcher", metavar="CMD", help=before)
    add("--timeout", type=duration, metavar="TIME", help="end an attempt after this time: 90, 30m, 2h, 1d12h")
    add("--stall", type=duration, metavar="TIME", help="end an attempt that has printed nothing for this time")
    add("--retries", type=count(0), metavar="N", help="take a failed experiment up again, at most N times (0)")
    add("--max_failures", type=count(1), metavar="N", help="start no more once N experiments have failed")
    add("--grace", type=seconds, metavar="SECONDS", help=f"from the stop signal to KILL ({GRACE:.0f})")
    add("--stop_signal", type=stop_signal, metavar="NAME", help="what a training gets first when it is stopped (TERM)")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def parse(argv: Sequence[str], options: Options) -> Options:
    """Lay a command line over options; an option that is not the runner's is a setting of the trainer."""
    end = list(argv).index("--") if "--" in argv else len(argv)
    parser = build_parser()
    words: list[str] = []
    for word in argv[:end]:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            if value == "--":  # argparse drops it
                raise UsageError(f"{name}: not a value: --")
            with contextlib.suppress(argparse.ArgumentError):  # known: the runner's own, or seen before
                parser.add_argument(name, action=Override, dest="overrides", help=argparse.SUPPRESS)
                if not name[2:].isidentifier():
                    close = did_you_mean(name[2:], [item.name for item in fields(Options)])
                    raise UsageError(f"not an option, and no setting's name: {name}{close}")
        if words and words[-1].startswith("--") and re.match(r"-[\d.]", word):
            words[-1] += f"={word}"  # a negative value, which argparse would take for an option
        else:
            words.append(word)
    parser.parse_args(words, namespace=options)
    if end < len(argv):
        options.trainer_args = list(argv[end + 1 :])
    return options


def all_devices() -> list[str]:
    """What --devices auto stands for: the GPUs that nvidia-smi lists and CUDA_VISIBLE_DEVICES leaves."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"--devices auto: nvidia-smi can't be asked: {error}; name the devices") from None
    count = len(re.findall(r"(?m)^GPU \d+:", listed))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:  # CUDA numbers what is left, up to the first that isn't there
        words = [word.strip() for word in visible.split(",")]
        real = itertools.takewhile(
            lambda word: int(word) < count if word.isdigit() else word[:4] in ("GPU-", "MIG-"), words
        )
        count = len(list(real))
    if not count:
        raise UsageError("--devices auto: no GPU found by nvidia-smi and CUDA_VISIBLE_DEVICES; try --device cpu")
    return [f"cuda:{number}" for number in range(count)]


def check(options: Options, planner: Planner) -> None:
    """Refuse what can't work before anything starts."""
    options.overrides = {planner.setting(key): text for key, text in options.overrides.items()}
    options.sweep = {planner.setting(key): values for key, values in options.sweep.items()}
    if "out_dir" in (*options.overrides, *options.sweep):
        raise UsageError("--out_dir: the runner sets it for each experiment, see --base_out_dir")
    for key in options.sweep:
        if key in options.overrides:
            raise UsageError(f"--{key}: not allowed with --sweep {key}")
    if options.devices:
        options.devices = all_devices() if options.devices == ["auto"] else options.devices
        if not all(options.devices) or len(set(options.devices)) < len(options.devices):
            raise UsageError(f"--devices: empty or twice the same: {','.join(options.devices)}")
        if "gpu" in options.devices:
            raise UsageError(f"--devices: {NO_GPU}")
        if "device" in options.overrides or "device" in options.sweep:
            raise UsageError("--device: not allowed with --devices")
        if options.jobs > 1:
            raise UsageError("--jobs: not allowed with --devices, which gives one slot to each device")
    words = launcher_words(options.launcher, dict.fromkeys(("name", "dir", "device", "slot"), ""))
    if not shutil.which(words[0]):
        raise UsageError(f"launcher not found: {words[0]}; see --launcher")
    if "=" in options.base_out_dir:
        raise UsageError(f"--base_out_dir holds '=': {options.base_out_dir}; the trainer's configurator splits on it")


def in_words(value: Any) -> Any:
    """A setting's value for JSON: itself where JSON has it, else as Python writes it."""
    return to_json(value) if isinstance(value, (bool, int, float, str, type(None))) else repr(value)


def first_results(plan: Sequence[Experiment], folder: str) -> dict[str, Result]:
    """What is known of experiments before they run."""
    keys, results = differing(plan), {}
    for each in plan:
        place = os.path.join(folder, each.name)
        iterations = each.settings.get("max_iters")
        results[each.name] = Result(
            config_name=each.name,
            config_path=each.config,
            experiment_dir=place,
            log_files={name: os.path.join(place, file) for name, file in LOGS.items()},
            overrides=each.values,
            settings={key: in_words(each.settings[key]) for key in keys if key in each.settings},
            max_iters=iterations if isinstance(iterations, int) else None,
        )
    return results


def new_batch(options: Options, argv: Sequence[str]) -> int:
    console = Console(options.quiet)
    if not options.configs:
        raise UsageError("no configs; name them with --configs, or continue a batch with --resume; see --help")
    script = read_script(options.train_script, options.launcher)
    planner = Planner(script)
    check(options, planner)
    plan = planner.plan(options, expand_configs(options.configs, options.train_script, console.line))
    if options.dry_run:
        name = datetime.now().strftime("experiment_%Y%m%d_%H%M%S")
        return dry_run(options, planner, os.path.join(options.base_out_dir, name), plan, {})
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until the batch is there to take them
    folder = create_folder(options.base_out_dir)
    started = now_iso()
    results = first_results(plan, folder)
    head = {
        "timestamp": os.path.basename(folder)[len("experiment_") :],
        "base_out_dir": options.base_out_dir,
        "experiment_dir": folder,
        "state": "running",
        "start_time": started,
        "end_time": None,
        "duration_seconds": 0.0,
        "command": [*program(), *argv],
        "train_script": options.train_script,
        "global_overrides": {key: planner.plain(key, text) for key, text in options.overrides.items()},
        "sweep": options.sweep,
        "options": plan_options(options),
        "working_directory": os.getcwd(),
        "total_experiments": len(plan),
    }
    lock = hold_batch(folder)
    batch = Batch(options, planner, folder, plan, results, head)
    if lock is None:
        batch.say(NO_LOCKS)
    return batch.run()


def dry_run(
    options: Options,
    planner: Planner,
    folder: str,
    plan: Sequence[Experiment],
    results: dict[str, Result],
    notes: Sequence[str] = (),
) -> int:
    """Print what would be run and why, after some notes."""
    lines = list(notes)
    slots = itertools.cycle([Slot(n, device) for n, device in enumerate(options.devices or [None] * options.jobs)])
    for each in plan:
        place = os.path.join(folder, each.name)
        result = results.get(each.name, Result())
        if result.status == "completed":
            lines.append(f"# {each.name}: completed, left alone")
            continue
        if each.problem:
            lines.append(f"# {each.name}: fails, {clean(each.problem)}")
            continue
        how, why = take_up(each, place, result.attempts)
        slot = next(slots)
        each = planner.experiment(each.name, each.config, with_device(each, slot))
        if how == "continues":
            continue_from_checkpoint(each)
        lines.append(f"# {each.name}: {told(how, why)}")
        lines.append(shell_line(build_command(options, each, place, slot)))
    print_whole(lines)
    return 0


def stored_words(options: Any) -> list[str]:
    """The options of a batch's plan as words of a command line, so that they are checked like a user's."""
    pairs = options.items() if isinstance(options, dict) else ()
    words = [
        f"--{key}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in pairs
        if key in PLAN_OPTIONS and key != "trainer_args"
    ]
    passed = options.get("trainer_args") if isinstance(options, dict) else None
    return [*words, "--", *map(str, passed)] if isinstance(passed, list) else words


def go_where(place: Any, folder: str) -> str:
    """Work where the batch was started, where that directory is still there; returns the batch's path from there."""
    if isinstance(place, str) and os.path.isdir(place) and not os.path.samefile(place, "."):
        folder = os.path.abspath(folder)
        os.chdir(place)
        inside = os.path.relpath(folder)
        return folder if inside.startswith("..") else inside
    return folder


def plan_again(
    planner: Planner, options: Options, folder: str, result: Result, say: Callable[[str], None]
) -> Experiment:
    """An experiment of a batch that is continued; the options given now are laid over its own."""
    name, config, place = result.config_name, result.config_path, os.path.join(folder, result.config_name)
    overrides = texts(result.overrides)
    snapshot = os.path.join(place, "config_used.py")
    known = read_own(place, "experiment_metadata.json").get("config_sha256")
    if not os.path.exists(config) and os.path.exists(snapshot):
        config = snapshot
        say(f"{name}: config {result.config_path} has gone, its copy is used: {snapshot}")
    if result.status == "completed":
        if known and config_sha256(config) != known:
            say(f"{name}: completed, but its config has changed since: {config}")
        with contextlib.suppress(UsageError):
            return planner.experiment(name, config, overrides)
        return Experiment(name, config, overrides)
    return planner.experiment(name, config, {**overrides, **options.overrides})


def resume_batch(given: Options, argv: Sequence[str]) -> int:
    if given.sweep:
        raise UsageError("--sweep: not allowed with --resume, which takes the batch's own")
    folder = os.path.normpath(given.resume or newest_batch(given.base_out_dir))
    folder = os.path.relpath(os.path.realpath(folder)) if os.path.islink(folder) else folder  # latest
    if not os.path.isdir(folder):
        raise UsageError(f"no batch there: {folder}")
    read_batch(folder)  # nothing is written to what is no batch
    lock = given.dry_run or hold_batch(folder)
    summary, results = read_batch(folder, held=False)  # but by this runner
    now = {word.partition("=")[0] for word in argv}  # slots given now replace those of the plan, however given
    replaced = {"jobs"} if "--devices" in now else {"devices"} if now & {"--jobs", "--device"} else set()
    stored = summary.get("options")
    words = stored_words({k: v for k, v in stored.items() if k not in replaced} if isinstance(stored, dict) else None)
    cut = words.index("--") if "--" in words else len(words)
    try:
        parse(words, Options())
    except UsageError as error:
        raise UsageError(f"summary is damaged: {os.path.join(folder, SUMMARY)}: {error}") from None
    options = parse([*words[:cut], *argv, *([] if "--" in argv else words[cut:])], Options())
    if not any(word.startswith("--train_script") for word in argv):
        options.train_script = str(summary.get("train_script") or options.train_script)
    folder = go_where(summary.get("working_directory"), folder)
    script = read_script(options.train_script, options.launcher)
    planner = Planner(script)
    check(options, planner)
    notes: list[str] = []
    plan = [plan_again(planner, options, folder, result, notes.append) for result in results.values()]
    if given.dry_run:
        return dry_run(options, planner, folder, plan, results, [f"# {clean(note)}" for note in notes])
    if summary.get("state") == "finished" and all(each.status == "completed" for each in results.values()):
        Console(given.quiet).lines([*notes, f"{folder}: all {len(results)} experiments are completed, nothing to do"])
        return 0
    for each in results.values():
        alive = each.status != "completed" and outlived(
            each.config_name, os.path.join(folder, each.config_name), options.grace
        )
        if alive:
            raise UsageError(alive)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    for name, fresh in first_results(plan, folder).items():
        keys = ["config_path", "experiment_dir", "log_files", "settings", "max_iters"]
        keys += [] if results[name].status == "completed" else ["overrides"]
        for key in keys:
            setattr(results[name], key, getattr(fresh, key))
    resumes = summary.get("resumes")
    resume = {"time": now_iso(), "command": [*program(), *argv], "overrides": options.overrides}
    head = {key: value for key, value in summary.items() if key != "results"}
    head.update(experiment_dir=folder, state="running", end_time=None, train_script=options.train_script)
    head.update(options=plan_options(options), working_directory=os.getcwd(), total_experiments=len(plan))
    head.update(resumes=[*(resumes if isinstance(resumes, list) else []), resume])
    batch = Batch(options, planner, folder, plan, results, head)
    for note in notes:
        batch.say(note)
    if lock is None:
        batch.say(NO_LOCKS)
    return batch.run()


def show_batch(options: Options) -> int:
    """--status and --report: a batch as its files tell it, whether it runs, is finished or its runner died."""
    folder = options.status or options.report or newest_batch(options.base_out_dir)
    summary, by_name = read_batch(folder)
    results = list(by_name.values())
    if options.report is not None:
        try:
            path = write_report(folder, summary, results, {})
        except OSError as error:
            raise UsageError(f"can't write the report: {folder}: {error.strerror}") from None
        print_whole([path])
        return 0
    left = batch_left(results, slot_count(summary))
    if options.json:
        head = {key: value for key, value in summary.items() if key != "results"}
        told = {**head, **count_statuses(results), "eta_seconds": left, "experiments": rows_of(results)}
        print_whole([json.dumps(told)])
        return 0
    counts = ", ".join(f"{count} {key}" for key, count in count_statuses(results).items() if count)
    took = f"{show_duration(summary_duration(summary))}" + f", ETA {show_duration(left)}" * (left is not None)
    print_whole([f"{clean(folder)}: {clean(str(summary.get('state')))}, {counts}; {took}", *table(results)])
    return 0


def main(argv: Optional[Sequence[str]] = None) -> int:
    bytes(4 << 20)  # freed at once: from then on glibc keeps the tees' blocks instead of returning each to the kernel
    warnings.simplefilter("ignore")  # a config with an odd escape is no business of the user's here
    for descriptor in (0, 1, 2):  # started with one closed: no log may take its number
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        options = parse(words, Options())
        modes = {name: getattr(options, name) for name in ("resume", "status", "report")}
        modes["configs"] = options.configs or None
        given = [f"--{name}" for name, value in modes.items() if value is not None]
        if len(given) > 1:
            raise UsageError(f"{given[1]}: not allowed with {given[0]}")
        if options.json and options.status is None:
            raise UsageError("--json: only with --status")
        if options.status is not None or options.report is not None:
            return show_batch(options)
        return new_batch(options, words) if options.resume is None else resume_batch(options, words)
    except UsageError as error:
        Console(False).write(2, f"error: {clean(str(error))}\n")
        return 2
    except BatchHeld as error:
        Console(False).write(2, f"error: another runner holds this batch: {clean(str(error))}\n")
        return 75
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
