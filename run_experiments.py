#!/usr/bin/env python3
"""Run a nanoGPT-style training script once per config file, and lose nothing.

How to read this file: it goes one way, from the words of a command line to what stands on a screen. `main`, at the
end, makes a plan of experiments, freezes it in the batch's directory, and hands it to `Batch.run`, the one loop that
decides. Each attempt is a `Process` with a phase; its `Tee`s copy the streams to the logs; `Batch.end_attempt` is where
every attempt ends, whatever became of it; the `Recorder` writes it down. A section uses only itself and those above it.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    del sys.path[0]  # what is imported is the library's, whatever files lie beside this one
import argparse
import ast
import bisect
import contextlib
import enum
import errno
import fcntl
import fnmatch
import functools
import glob
import hashlib
import html
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
import termios
import threading
import time
import traceback
import warnings
from collections import ChainMap, Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Callable, NoReturn, Optional, TypeVar, Union

__version__ = "2.0.0"

if sys.version_info < (3, 9):  # noqa: UP036 - who has an older one is told so here
    sys.stderr.write("error: this Python is too old: {}.{}; Python 3.9 or newer is needed\n".format(*sys.version_info))
    sys.exit(2)

GRACE = 10.0  # seconds between the stop signal and KILL, unless --grace says otherwise
LOGS = {"stdout": "stdout.log", "stderr": "stderr.log", "combined": "combined.log"}
LINE_LIMIT = 1 << 16  # bytes of an unfinished line that are kept back from combined.log
BLOCK = 1 << 17  # bytes read at a time from a stream or a log
SUMMARY = "experiment_summary.json"
MASTER_LOG = "master_log.txt"
REPORT = "report.html"
LOCK = "runner.lock"
PLAN = "plan"
PATCH = "uncommitted.patch"
METADATA = "experiment_metadata.json"
RESULT = "experiment_result.json"
RESERVED = (MASTER_LOG, SUMMARY, REPORT, LOCK, PLAN, PATCH)  # no experiment's name


# ---------------------------------------------------------------------------------------------------- data
# What the program speaks of, as plain records. They know nothing of parsing, of files and of processes.


class UsageError(Exception):
    """A mistake of the user's; its text is the one line that gets printed."""

    exit_code = 2


class BatchHeld(UsageError):
    exit_code = 75


class Status(str, enum.Enum):
    """How an experiment stands; the values stand in JSON, the order in counts."""

    COMPLETED = "completed"
    FAILED = "failed"
    ERROR = "error"  # the runner could not run it
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"  # the batch was stopped
    PENDING = "pending"
    RUNNING = "running"

    __str__ = str.__str__


FAILURES = (Status.FAILED, Status.ERROR, Status.TIMEOUT)
Loss = float  # in JSON a text where it is not finite
PLURALS = {Status.ERROR: "errors", Status.TIMEOUT: "timeouts"}  # keys of the summary


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
    timeout: Optional[float] = None  # seconds, as all times
    stall: Optional[float] = None
    retries: int = 0
    max_failures: Optional[int] = None
    grace: float = GRACE
    stop_signal: str = "auto"
    resume: Optional[str] = None
    dry_run: bool = False
    status: Optional[list[str]] = None  # directories; none given: the newest batch
    json: bool = False
    report: Optional[list[str]] = None
    follow: bool = False
    quiet: bool = False
    command: str = ""  # --command: the template, where it is not the contract of configurator.py
    continue_with: Optional[str] = None
    checkpoints: str = "ckpt*.pt"  # relative to the experiment's directory
    metrics: list[str] = field(default_factory=list)  # regular expressions
    gpus: Optional[int] = None  # per experiment
    shard: Optional[str] = None  # I/N
    again: list[str] = field(default_factory=list)  # patterns of names
    stop_on_nan: bool = False


@dataclass
class Experiment:
    """One planned run of the trainer."""

    name: str = ""
    config: str = ""  # the original file
    overrides: dict[str, str] = field(default_factory=dict)  # setting -> text as the user gave it
    point: dict[str, str] = field(default_factory=dict)  # those of the overrides that a sweep gave
    arguments: list[str] = field(default_factory=list)  # the overrides in the trainer's form
    values: dict[str, Any] = field(default_factory=dict)  # the overrides as JSON has them
    settings: dict[str, Any] = field(default_factory=dict)  # effective: defaults < config < overrides
    problem: Optional[str] = None  # why it can't be launched
    source: str = ""  # the file that was read: `config` or a frozen copy; none where it has a problem
    launched_config: str = ""  # the path that the trainer gets: the frozen copy, or the original
    frozen: str = ""  # the config's copy, below plan/
    config_sha256: str = ""  # of that copy
    starts_over: bool = False  # its next attempt, whatever checkpoints there are: it was asked for


@dataclass(frozen=True)
class Slot:
    """Room for one experiment at a time."""

    number: int
    device: Optional[str] = None  # of --devices
    gpus: str = ""  # of --gpus: what CUDA_VISIBLE_DEVICES says


@dataclass
class Metrics:
    """What a trainer's own lines have said so far."""

    step: Optional[int] = None
    train_loss: Optional[Loss] = None
    val_loss: Optional[Loss] = None
    best_val_loss: Optional[Loss] = None
    best_step: Optional[int] = None
    first_step: Optional[int] = None  # of this attempt
    largest_gap: Optional[int] = None  # between two printed steps
    diverged_since: Optional[int] = None  # the step since which the last loss, finite before, is nan or inf


@dataclass
class Result:
    """How an experiment stands; these fields are the keys of experiment_result.json."""

    config_name: str = ""
    config_path: str = ""
    experiment_dir: str = ""
    status: Status = Status.PENDING
    return_code: Optional[int] = None
    signal: Optional[str] = None
    error: Optional[str] = None
    hint: Optional[str] = None
    warnings: list[str] = field(default_factory=list)
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
    total_seconds: Optional[float] = None  # of all attempts
    diverged: bool = False  # its loss is nan or inf: it would diverge again
    last_line: str = ""  # of its output, where no step is printed


def count_statuses(results: Iterable[Result]) -> dict[str, int]:
    """How many experiments have each status, by its key in the summary."""
    times = Counter(each.status for each in results)
    return {PLURALS.get(status, status.value): times[status] for status in Status}


# --------------------------------------------------------------------------------------------------- words
# Values as people read them, and names that are safe: texts in, texts out. Knows nothing of experiments.

LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # of a damaged file; the others stand for bytes


def clean(text: str) -> str:
    """Text of others, safe to show: a config or a trainer can't paint the terminal."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else "?" for each in text)


def show_duration(seconds: Optional[float], unknown: str = "-") -> str:
    """`5.3s`, `12m5s`, `3h20m`: the two largest units."""
    if seconds is None or not math.isfinite(seconds):
        return unknown
    if seconds < 60:
        return f"{seconds:.1f}s".replace(".0s", "s")
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = f"{days}d{hours}h{minutes}m{left}s"
    shown: list[str] = re.findall(r"[1-9]\d*[a-z](?:[1-9]\d*[a-z])?", parts)
    return shown[0]


def show_loss(loss: Union[float, str, None], unknown: str = "-") -> str:
    """A loss with four digits that count; one that is nan or inf is a text in JSON."""
    if loss is None:
        return unknown
    value = float(loss)
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e5 else f"{value:.4g}"


def shorten(text: str, most: int) -> str:
    """Names of a sweep differ at both ends, so it is the middle that goes."""
    if len(text) <= most:
        return text
    head = most // 2 - 1
    tail = most - 2 - head
    return f"{text[:head]}..{text[-tail:]}"


def json_number(number: float) -> Union[float, str]:
    """A number for JSON, which has no nan and no infinity: these become texts."""
    return number if math.isfinite(number) else str(number)


def count_of(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def show_counts(counts: Mapping[str, int]) -> str:
    """`2 completed, 1 error`; of one the summary's key loses its plural."""
    return ", ".join(f"{number} {key.rstrip('s') if number == 1 else key}" for key, number in counts.items() if number)


def natural(text: str) -> str:
    """A sort key by which run_2 comes before run_10: numbers of one width."""
    return re.sub(r"[0-9]+", lambda number: number[0].zfill(20), text)


def nearest(name: str, candidates: Iterable[str], least: float = 0.6) -> list[str]:
    """Up to three candidates that are spelled alike, the nearest first; `least` is their likeness, of 1."""
    import difflib  # 4 ms that only a mistake costs

    return difflib.get_close_matches(name, list(candidates), 3, least)


def did_you_mean(names: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(map(repr, names))}?" if names else ""


def shell_word(text: str) -> str:
    """A word as a shell would take it, with no control character in it."""
    if text.isprintable():
        return shlex.quote(text)
    data = LONE_SURROGATE.sub("?", text).encode(errors="surrogateescape")
    escaped = data.decode("latin-1").encode("unicode_escape").decode()
    return "$'" + escaped.replace("'", "\\'") + "'"


def shell_line(command: Sequence[str]) -> str:
    return " ".join(map(shell_word, command))


def now_iso() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")


def signal_name(number: int) -> str:
    names = {each.value: each.name for each in signal.Signals}
    return names.get(number, f"signal {number}")


def signal_in(return_code: int) -> int:
    """The signal that a return code tells of, 0 for none; launchers tell a signal N as exit code 128+N."""
    if return_code < 0:
        return -return_code
    return return_code - 128 if 128 < return_code < 192 else 0


def clean_name(text: str) -> str:
    """A directory name that holds only letters, digits, `.`, `_` and `-`, at most 200 bytes of them."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", text).lstrip(".-") or "config"
    if len(name) > 200:
        name = f"{name[:191]}_{sha256(os.fsencode(text))[:8]}"
    return name + "_" if name in RESERVED else name


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ------------------------------------------------------------------------------------------------- trainer
# What the training script and the configs set, read with ast and never run, and how a value must be written so that
# nanoGPT's configurator.py takes it. Knows no experiments, no batches, no disks but for these files.


class Unknown:
    """Stands for the value of a setting that the source computes, or that another file may set."""

    def __repr__(self) -> str:
        return "?"


UNKNOWN = Unknown()
WORDS = {"true": "True", "1": "True", "yes": "True", "false": "False", "0": "False", "no": "False"}
WANTED = {bool: "true or false", int: "a whole number", float: "a number"}
USUAL: dict[str, Any] = {  # settings with an option of their own: an example of their type, where the trainer has none
    **{"batch_size": 8, "max_iters": 1000, "learning_rate": 1e-3, "device": "", "wandb_project": ""},
    **{"compile": False, "wandb_enabled": False, "wandb_log": False},  # the last: what the trainer calls it, no option
}
CONFIGURATOR = re.compile(r"(\S*/)?configurator\.py")  # as a path: a docstring may name it, too
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)  # what ast.parse raises
LIKE_ENOUGH = 0.85  # of 1: `learning_rat` is near learning_rate, a helper such as `min_iters` isn't near max_iters
HARMLESS: dict[type, Any] = {  # what a config may set a setting to, by the type of its default; else only the same
    **{bool: int, float: (int, float), list: (list, tuple), tuple: (list, tuple)},
    **{Unknown: object, type(None): object},
}


@dataclass
class Script(ast.NodeVisitor):
    """What reading the training script, or a config, tells; the visits take in what a statement sets."""

    path: str  # empty where it stands for a --command, which any key and value reaches as written
    settings: dict[str, Any] = field(default_factory=dict)
    strict: bool = False  # it execs nanoGPT's configurator.py
    opaque: bool = False  # it may set any name: what isn't assigned after that is UNKNOWN
    uses_file: bool = False  # it, or for the training script its configurator, mentions __file__: a copy won't do
    imported: set[str] = field(default_factory=set)  # what an import binds: no setting, but the configurator takes it
    reads: set[str] = field(default_factory=set)  # names that it uses
    source: bytes = b""
    warnings: list[str] = field(default_factory=list)  # what in a config is probably a mistake
    problem: Optional[str] = None  # why it can't be used

    def read(self, statement: ast.stmt) -> None:
        """Take in what a top-level statement sets: UNKNOWN, unless it assigns literals."""
        try:
            self.visit(statement)
        except RecursionError:  # nested too deeply to be followed
            self.may_set_any_name()
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            self.settings.update(dict.fromkeys(names, read_literal(statement.value)))

    def may_set_any_name(self) -> None:
        self.opaque = True
        self.settings = dict.fromkeys(self.settings, UNKNOWN)

    def visit_Name(self, node: ast.Name) -> None:
        is_read = isinstance(node.ctx, ast.Load)
        if is_read:
            self.reads.add(node.id)
        # A list that is read may be changed in place, by `stages.append(...)` or through another name for it.
        if not is_read or isinstance(self.settings.get(node.id), (list, dict, set)):
            self.settings[node.id] = UNKNOWN

    def visit_alias(self, node: ast.alias) -> None:
        if node.name == "*":
            self.may_set_any_name()
        name = node.asname or node.name.partition(".")[0]
        self.imported.add(name)
        self.settings.pop(name, None)

    def visit_Call(self, node: ast.Call) -> None:
        if ast.unparse(node.func) in ("exec", "globals().update"):
            self.may_set_any_name()
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.AST) -> None:
        """What stands in it has a scope of its own."""

    visit_AsyncFunctionDef = visit_ClassDef = visit_Lambda = visit_comprehension = visit_FunctionDef


def read_literal(node: Any) -> Any:
    """The value of a literal or of plain arithmetic on numbers (`5 * 8`), else UNKNOWN."""
    try:
        if isinstance(node, ast.BinOp):
            left, right = read_literal(node.left), read_literal(node.right)
            value = OPERATORS[type(node.op)](+left, +right)  # the plus raises TypeError for what is no number
        else:
            value = ast.literal_eval(node)
        repr(value)  # raises ValueError for a number of thousands of digits
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError):
        return UNKNOWN
    return value


def read_code(path: str, source: bytes) -> Script:
    """What a source sets before it execs configurator.py; raises one of NOT_PYTHON if it doesn't parse."""
    found = Script(path, source=source, uses_file=b"__file__" in source)
    body = ast.parse(source, path).body
    for statement in body:
        values = [str(getattr(node, "value", "")) for node in ast.walk(statement)]
        found.strict = any(map(CONFIGURATOR.fullmatch, values))
        if found.strict:
            break
        found.read(statement)
    found.imported -= found.settings.keys()
    return found


def default_script() -> str:
    """The training script where none is named."""
    usual = Options().train_script
    return next(filter(os.path.exists, [usual, "train.py"]), usual)


def read_trainer(options: Options) -> Script:
    """The training script, or what stands for it with --command; raises UsageError where it can't be run."""
    if options.command:
        return Script("")
    script = read_file(options.train_script, True)
    # What a launcher starts need not be Python, or not this Python.
    if script.problem and not (options.launcher and script.source):
        raise UsageError(f"training script {script.problem}; see --train_script")
    # Its own __file__ doesn't depend on the config. The configurator lies beside it, or in the working directory.
    script.uses_file = False
    for folder in (os.path.dirname(script.path), ""):
        script.uses_file |= read_file(os.path.join(folder, "configurator.py"), True).uses_file
    return script


def read_file(path: str, is_python: bool) -> Script:
    """A training script or a config. Never raises: `problem` says why it can't be used."""
    found = Script(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a device might never end
            raise OSError(errno.EINVAL, "not a regular file")
        with open(path, "rb") as file:
            found.source = file.read()
        if is_python:
            return read_code(path, found.source)
    except OSError as error:
        found.problem = f"can't be used: {path}: {error.strerror}"
    except SyntaxError as error:
        found.problem = f"can't be used: {path}, line {error.lineno}: {error.msg}: {(error.text or '').strip()}"
    except NOT_PYTHON as error:
        found.problem = f"can't be used: {path}: not Python: {error}"
    return found


def same_code(a: bytes, b: bytes) -> bool:
    """Whether two Python sources are the same program: comments and layout don't count."""
    with contextlib.suppress(*NOT_PYTHON):
        return ast.dump(ast.parse(a)) == ast.dump(ast.parse(b))
    return a == b


def all_known(trainer: Script, config: Script) -> bool:
    """Whether the two have no settings but those that were seen."""
    doubts = (trainer.opaque, config.opaque, config.problem)
    return trainer.strict and not any(doubts)


def config_warnings(config: Script, trainer: Script) -> list[str]:
    """What a config sets that is probably a mistake: a value of another type, a name near to a setting's."""
    lines = []
    for key, value in config.settings.items():
        default = trainer.settings.get(key, UNKNOWN)
        kind = type(default)
        if not isinstance(value, (HARMLESS.get(kind, kind), Unknown, type(None))):
            told = f"config sets {key} to {shorten(repr(value), 20)}; the trainer's default"
            lines.append(f"{told} {shorten(repr(default), 20)} is of type {kind.__name__}")
    if trainer.opaque:
        return lines
    # A name that the config reads again is a variable of its own.
    for key in sorted(config.settings.keys() - trainer.settings.keys() - trainer.imported - config.reads):
        for meant in nearest(key, trainer.settings, LIKE_ENOUGH)[:1]:
            lines.append(f"config sets {key!r}, which {trainer.path} doesn't have{did_you_mean([meant])}")
    return lines


@functools.lru_cache(maxsize=4096)
def as_configurator(text: str) -> Any:
    """What the trainer's configurator makes of a text: a literal, or the text itself."""
    try:
        value = ast.literal_eval(text)
        repr(value)  # raises ValueError for a number of thousands of digits
    except Exception:  # of some it would die: {[]: 1}
        return text
    return value


def trainer_form(text: str, default: Any) -> str:
    """A value written so that the configurator finds the type of `default` in it; ValueError says what was wanted."""
    kind = type(default)
    if kind in WANTED:
        return number_form(text, kind)
    literal = python_words(text)
    value = as_configurator(literal)
    if kind is str and not isinstance(value, str):
        return quoted(text)
    if kind not in (Unknown, type(value)):
        raise ValueError(f"a {kind.__name__}")
    return quoted(value) if "=" in literal else literal


def number_form(text: str, kind: type) -> str:
    """A number or a truth value in the form of its type."""
    with contextlib.suppress(KeyError, ValueError, TypeError, OverflowError):
        if kind is bool:
            return WORDS[text.strip().lower()]
        value = as_configurator(text)  # of 007 and inf a text, of which int and float make a number, too
        number = kind(value)
        is_same = float(number) == float(value)  # not of 1.5 as an int, nor of nan
        if is_same and not isinstance(value, bool):
            return repr(number).replace("inf", "1e999")  # the configurator reads a bare inf as a text
    raise ValueError(WANTED[kind])


def python_words(text: str) -> str:
    """JSON that is no Python, for its true, false and null, as a Python literal; any other text as it is."""
    if isinstance(as_configurator(text), str):
        with contextlib.suppress(ValueError):
            return repr(json.loads(text, parse_constant=ast.literal_eval))  # which refuses NaN and Infinity
    return text


def quoted(value: Any) -> str:
    """A literal in which no `=` stands: the configurator splits at every one."""
    return repr(value).replace("=", "\\x3d")


def plain_value(form: str) -> Any:
    """What a text or a number in the trainer's form means, for JSON and tables; of all else the form itself."""
    value = as_configurator(form)
    return value if isinstance(value, (str, int, float)) and quoted(value) == form else form


# ---------------------------------------------------------------------------------------------------- plan
# Which experiments there are, under which names, and the command of each. Lists configs; knows no batch's directory and
# no processes.

ALIASES = {"lr": "learning_rate", "bs": "batch_size", "steps": "max_iters", "epochs": "max_iters"}  # as others say
NO_SEED = "; its code may have torch.manual_seed(1337): write seed = 1337 above the line that execs configurator.py"
NO_CHECKPOINT = "init_from = 'resume' needs a checkpoint in the experiment's directory, which is new and has none; "
NO_CHECKPOINT += "go on with a batch by --resume, or let a --launcher copy a checkpoint into {dir}"
INVENTED = ("out_dir", "wandb_run_name")  # settings that differ by the runner's own doing
BRACES = re.compile(r"\{\{|\}\}|\{[\w:]*\}|[{}]")
QUOTES = re.compile(r"""'[^']*'|"[^"]*\"""")


def expand_configs(patterns: Sequence[str], planner: Planner, notes: list[str]) -> list[str]:
    """The config files that files and glob patterns name, in their order, each once; `notes` get what is left out."""
    paths = [path for pattern in patterns for path in matches_of(pattern)]
    named = set(patterns)
    programs = map(os.path.realpath, (__file__, planner.script.path))
    reasons = dict.fromkeys(programs, "not a config")  # by the file that it really is
    configs = []
    for path in paths:
        real = os.path.realpath(path)
        reason = reasons.get(real) or why_no_config(path, planner, path in named, len(paths) == 1)
        if reason:
            notes.append(f"left out, {reason}: {path}")
        else:
            configs.append(path)
            reasons[real] = f"the same as {path}"
    if not configs:
        remedy = f'name files, as by --configs "config/*.py"; {"; ".join(notes)}'
        raise UsageError(f"no config is left of: {' '.join(patterns)}; {remedy}")
    return configs


def matches_of(pattern: str) -> list[str]:
    """The paths that a pattern stands for; a name that looks like a pattern is itself where it exists."""
    matches = [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern, recursive=True), key=natural)
    if not matches:
        raise UsageError(f"no config matches: {pattern}{did_you_mean(near_paths(pattern))}")
    return matches


def near_paths(path: str) -> list[str]:
    """What is spelled like a path that isn't there; where its directory isn't either, that is what is looked for."""
    folder, name = os.path.split(path)
    if folder and not os.path.isdir(folder):
        return [os.path.join(each, name) for each in near_paths(folder)]
    there = glob.glob(os.path.join(glob.escape(folder), "*"))
    return [os.path.join(folder, each) for each in nearest(name, map(os.path.basename, there))]


def why_no_config(path: str, planner: Planner, is_named: bool, is_alone: bool) -> str:
    """Why a match of a pattern is left out: nanoGPT's root has bench.py, sample.py, model.py. One alone is meant."""
    if os.path.isdir(path) or os.path.basename(path) in ("configurator.py", "__init__.py"):
        return "not a config"
    config, script = planner.read(path), planner.script
    if is_alone:
        return ""
    if config.strict:  # also where it is named: the shell may have expanded a pattern
        return "a script that uses configurator.py itself"
    names = config.settings.keys() | config.imported
    is_module = bool(names) and names.isdisjoint(script.settings) and not config.warnings
    if is_module and all_known(script, config) and not is_named:
        return f"sets no setting of {script.path}"
    return ""


def suggestion(key: str, settings: Iterable[str]) -> str:
    """`; did you mean 'x'?` for an unknown key: one of the options, or of the trainer's settings."""
    known = [*sorted(vars(Options()).keys() - {"overrides", "trainer_args"}), *settings]
    return did_you_mean(nearest(ALIASES.get(key, key.replace("-", "_")), known)[:1])


def parse_sweep(text: str) -> tuple[str, list[str]]:
    """The key and the values of KEY=V1,V2 or of K1,K2=V1:W1,V2:W2; raises ValueError."""
    key, _, listed = text.partition("=")
    values = split_values(listed)
    if "" in values or not re.fullmatch(r"[^\W\d][\w.-]*(,[^\W\d][\w.-]*)*", key):
        raise ValueError(f"not of the form KEY=V1,V2,...: {text}")
    return key, values


def split_values(text: str, mark: str = ",") -> list[str]:
    """Split at the marks that stand outside brackets and quotes; a value in quotes loses them."""
    first, *others = text.split(mark)
    parts = [first]
    for piece in others:
        bare = QUOTES.sub("", parts[-1])
        if len(re.findall(r"[(\[{'\"]", bare)) != len(re.findall(r"[)\]}]", bare)):  # what is open waits for its end
            parts[-1] += mark + piece
        else:
            parts.append(piece)
    return [re.sub(r"(?s)^(['\"])(.*)\1$", r"\2", part) for part in parts]


def sweep_points(sweep: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
    """The product of all sweeps, the last one fastest; one empty point without any."""
    axes = [[together(keys.split(","), text) for text in texts] for keys, texts in sweep.items()]
    for parts in itertools.product(*axes):
        yield dict(itertools.chain.from_iterable(parts))


def together(keys: Sequence[str], text: str) -> list[tuple[str, str]]:
    """Settings that are swept together with their values at one point; raises UsageError for too few or too many."""
    values = split_values(text, ":") if len(keys) > 1 else [text]
    if len(values) != len(keys):
        told = f"{text!r} holds {len(values)} values for {len(keys)} settings"
        raise UsageError(f"--sweep {','.join(keys)}: {told}; quote a ':'")
    return list(zip(keys, values))


def parse_shard(text: str) -> tuple[int, int]:
    """I and N of I/N, the first I being 1; raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"not of the form I/N with I from 1 to N: {text!r}")
    return int(match[1]), int(match[2])


def take_shard(experiments: Sequence[Experiment], part: str) -> list[Experiment]:
    """Every N-th experiment, beginning with the I-th."""
    first, count = parse_shard(part)
    return list(experiments[first - 1 :: count])


def plan_digest(experiments: Iterable[Experiment]) -> str:
    """The same for the same plan, so that shards of different plans can be told."""
    return sha256(json.dumps([(each.name, each.config, each.overrides) for each in experiments]).encode())


def config_names(paths: Sequence[str]) -> list[str]:
    """A telling name per config: its stem; where several have one stem, behind the directories in which they differ."""
    stems = [os.path.splitext(os.path.abspath(path))[0] for path in paths]
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for stem in stems:
        folders[os.path.basename(stem).casefold()].append(os.path.dirname(stem))
    shared = {name: os.path.commonpath(which) for name, which in folders.items()}
    own_parts = [os.path.relpath(stem, shared[os.path.basename(stem).casefold()]) for stem in stems]
    return [clean_name(part.replace(os.sep, "__")) for part in own_parts]


def unique(names: Iterable[str]) -> list[str]:
    """The same names, the second of two equal ones numbered (also equal where case doesn't count)."""
    taken: dict[str, str] = {}
    for name in names:
        candidate, number = name, 1
        while candidate.casefold() in taken:
            number += 1
            candidate = clean_name(f"{name}_{number}")
        taken[candidate.casefold()] = candidate
    return list(taken.values())


class Planner:
    """Turns configs and overrides into experiments, by what the trainer and the configs set themselves."""

    def __init__(self, script: Script) -> None:
        self.script = script
        # Of each setting's type, where its own value isn't known.
        self.examples = {**USUAL, **{key: each for key, each in script.settings.items() if each is not UNKNOWN}}
        self.configs = {"": Script("")}  # without a config, of a --command, nothing is set
        known = script.settings.keys() & {"wandb_enabled", "wandb_log"}
        keeps_name = not script.path or known == {"wandb_enabled"}
        self.wandb_enabled = "wandb_enabled" if keeps_name else "wandb_log"

    def setting(self, key: str) -> str:
        """The trainer's name of a setting: the runner's wandb_enabled is nanoGPT's wandb_log. Takes a sweep's pair."""
        return re.sub(r"\bwandb_enabled\b", self.wandb_enabled, key)

    def read(self, path: str) -> Script:
        """A config as it was when it was read first. What no configurator execs need not be Python."""
        if path not in self.configs:
            is_python = self.script.strict or path.endswith(".py")
            config = read_file(path, is_python)
            if config.source and not self.script.path:
                config.problem = None  # what a --command makes of it isn't known
            config.warnings = config_warnings(config, self.script)
            self.configs[path] = config
        return self.configs[path]

    def plan(self, options: Options, configs: Sequence[str]) -> list[Experiment]:
        """Every config at every point of the sweep, in that order; raises UsageError, as `experiment` does."""
        points = list(sweep_points(options.sweep))
        endings = list(map(self.ending, points))
        stems = config_names(configs) or ["run"]
        names = unique(clean_name(stem + ending) for stem, ending in itertools.product(stems, endings))
        needs_run_name = options.sweep and "wandb_run_name" in self.script.settings
        experiments = []
        for name, (config, point) in zip(names, itertools.product(configs or [""], points)):
            overrides = {**options.overrides, **point}
            if needs_run_name:
                overrides.setdefault("wandb_run_name", name)
            experiments.append(self.experiment(name, config, overrides, point))
        return experiments

    def ending(self, point: Mapping[str, str]) -> str:
        """What the name of an experiment tells of its point of the sweep."""
        return "".join(f"__{key}_{self.plain(key, text)}" for key, text in point.items())

    def plain(self, key: str, text: str) -> Any:
        """A value as the trainer will read it; what doesn't fit is told by `experiment`."""
        with contextlib.suppress(ValueError):
            return plain_value(self.form(key, text, UNKNOWN))
        return text

    def experiment(
        self, name: str, config: str, overrides: Mapping[str, str], point: Mapping[str, str] = {}, source: str = ""
    ) -> Experiment:
        """Of a config, or its frozen copy `source`; raises UsageError for an override that the trainer would die of."""
        if "=" in config and self.script.strict:
            raise UsageError(f"config path holds '=': {config}; the trainer would take it for an override, rename it")
        made = Experiment(name, config, dict(overrides), dict(point), source=source or config, launched_config=config)
        found = self.read(made.source)
        # Defaults below what the config sets; it may set any of them, or import some.
        untold = self.script.settings if found.opaque else found.imported & self.script.settings.keys()
        made.settings = {**self.script.settings, **dict.fromkeys(untold, UNKNOWN), **found.settings}
        if found.problem:
            made.problem, made.source = f"config {found.problem}", ""
        self.check_keys(made, found)
        for key, text in overrides.items():
            try:
                form = self.form(key, text, made.settings.get(key, UNKNOWN))
            except ValueError as wanted:
                raise UsageError(f"value of --{key}: {text!r}; {config} wants {wanted}") from None
            made.arguments.append(f"--{key}={form}")
            made.settings[key] = made.values[key] = plain_value(form)
        return made

    def check_keys(self, made: Experiment, found: Script) -> None:
        """Raises UsageError for an override that the trainer doesn't know."""
        unknown = made.overrides.keys() - made.settings.keys() - self.script.imported
        if unknown and all_known(self.script, found):
            key = min(unknown)
            remedy = NO_SEED if key == "seed" else suggestion(key, made.settings)
            raise UsageError(f"unknown setting '{key}' of {self.script.path} with {made.config}{remedy}")

    def form(self, key: str, text: str, default: Any) -> str:
        """A value as the trainer gets it; raises ValueError with what was wanted."""
        # A config hardly ever changes the type that a setting has in the script.
        example = self.examples.get(key, UNKNOWN) if default is UNKNOWN else default
        is_number = type(example) in WANTED and self.script.path
        return trainer_form(text, example) if self.script.strict or is_number else text

    def warnings(self, experiment: Experiment) -> list[str]:
        """What to say before an experiment's first attempt."""
        known = self.read(experiment.config).warnings
        return [*known, NO_CHECKPOINT] if experiment.settings.get("init_from") == "resume" else known


def on_device(options: Options, planner: Planner, planned: Experiment, slot: Slot) -> Experiment:
    """The experiment with the device of its slot; a --command has that filled in."""
    if slot.device is None or options.command:
        return planned
    overrides = {**planned.overrides, "device": slot.device}
    made = planner.experiment(planned.name, planned.config, overrides, planned.point, planned.source)
    return replace(made, launched_config=planned.launched_config, starts_over=planned.starts_over)


def differing(experiments: Sequence[Experiment]) -> list[str]:
    """The settings in which the experiments differ, in the order of the trainer."""
    values: defaultdict[str, set[str]] = defaultdict(set)
    for each in experiments:
        for key, value in each.settings.items():
            values[key].add(repr(value))
    return [key for key, texts in values.items() if len(texts) > 1 and key not in INVENTED]


def template_words(what: str, template: str, names: dict[str, str], lists: Mapping[str, list[str]] = {}) -> list[str]:
    """A command split as a shell would, {name}, {dir}, … filled in; one of `lists` takes the place of a whole word."""
    texts = {"{{": "{", "}}": "}", **{f"{{{name}}}": text for name, text in names.items()}}
    words: list[str] = []
    try:
        for word in shlex.split(template):
            words += lists[word] if word in lists else [BRACES.sub(lambda match: texts[match[0]], word)]
    except (ValueError, KeyError) as error:
        known = f"it knows {', '.join([*texts, *lists])}; what stands for several is a word of its own"
        raise UsageError(f"{what} can't be split and filled in: {template}: {error}; {known}") from None
    return words


def names_for(experiment: Experiment, folder: str, slot: Slot) -> dict[str, str]:
    """What a template may hold."""
    told = {"name": experiment.name, "config": experiment.launched_config, "dir": folder}
    return {**told, "device": slot.device or "", "slot": str(slot.number)}


def build_command(options: Options, experiment: Experiment, folder: str, slot: Slot, checkpoint: str = "") -> list[str]:
    """The command of an attempt; one that continues from a checkpoint gets words besides, which win as the last."""
    names, arguments, continuing = names_for(experiment, folder, slot), experiment.arguments, []
    if checkpoint:
        template = "--init_from=resume" if options.continue_with is None else options.continue_with
        continuing = template_words("--continue_with", template, {**names, "checkpoint": checkpoint})
    if options.command:
        lists = {"{overrides}": arguments, "{overrides:hydra}": [word[2:] for word in arguments]}
        return [*template_words("--command", options.command, names, lists), *continuing]
    launcher = template_words("--launcher", options.launcher, names) or [sys.executable]
    command = [*launcher, options.train_script, names["config"], f"--out_dir={folder}"]
    return [*command, *arguments, *continuing, *options.trainer_args]


def can_continue(options: Options, experiment: Experiment) -> bool:
    has_init_from = not options.command and "init_from" in experiment.settings
    return has_init_from or options.continue_with is not None


def check_template(options: Options) -> None:
    """Raises UsageError for a --command, --launcher or --continue_with that can't be filled in, or drops something."""
    nothing, slot = Experiment(), Slot(0)
    build_command(options, nothing, "", slot, "a checkpoint")
    if not build_command(options, nothing, "", slot):
        raise UsageError("--command is empty; write the training's command")
    if not options.command:
        return
    nowhere = "place for it"  # which no command holds
    placed = [  # what is given, where it must stand, whether what stands there must be given
        ("--launcher", options.launcher, nowhere, False),
        ("--train_script", options.train_script != Options().train_script, nowhere, False),
        (shell_line(["--", *options.trainer_args]), options.trainer_args, nowhere, False),
        ("--configs", options.configs, "{config}", options.resume is None),
        ("--devices", options.devices, "{device}", True),
        ("--" + next(iter(options.overrides), ""), options.overrides, "{overrides}", False),
        ("--sweep", options.sweep, "{overrides}", False),
    ]
    for name, given, place, is_needed in placed:
        is_placed = place.rstrip("}") in options.command  # {overrides:hydra} will do
        if given and not is_placed:
            raise UsageError(f"--command holds no {place}: {options.command}; {name} would be dropped")
        if is_placed and is_needed and not given:
            raise UsageError(f"--command holds {place}: {options.command}; name the {name}")


# -------------------------------------------------------------------------------------------------- output
# What a training's output and its directory tell: metrics, errors and hints, checkpoints, curves. Bytes and files in,
# facts out. Knows nothing of processes, batches and screens.
#
# A metric is a line that tells a step and a loss. nanoGPT's own two forms are tried first; the general form takes the
# names that public trainers give these two, in any order, wherever in the line they stand.

CROWD = 1 << 12  # bytes from the first to the last loss of a block, of which each is read; of more only samples
SAMPLE = 128  # bytes at both ends that are read then
MAX_EVALUATIONS = 1000  # kept between two takes; a flood loses its oldest
LAST_LINE = 1024  # bytes at the end of what came in which the last line is looked for
LOSS_WORDS = (b"oss", b"trl:", b"tel:")  # one of these stands in each line that tells a loss; the last two are llm.c's
LOSS_WORD = re.compile(b"|".join(LOSS_WORDS))
EVALUATION_WORDS = (b"val", b"Val", b"est", b"tel:")  # and one of these, if it is an evaluation's

# A number with a unit is no loss (`loss: 0.00ms`), nor is one that goes on as a word.
NUMBER = rb"[-+]?(?i:nan|inf(?:inity)?|(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?)(?!\w|\.\d| ?(?:%|[mu]?s\b))"
EVALUATION = re.compile(
    rb"\bstep (?P<step>\d{1,15}): train loss (?P<train_loss>%b), val loss (?P<val_loss>%b)" % (NUMBER, NUMBER)
)
ITERATION = re.compile(rb"iter (?P<step>\d{1,15}): loss (?P<loss>%b)" % NUMBER)
COUNT = rb"\s{0,20}[:=]?\s{0,20}[\[(]?\s{0,20}(\d{1,15})(?:\.0+)?(?![\w%]|\.\d)"
LOSS = rb"(?: value)?\s{0,20}[:=]?\s{0,20}(?:tensor\()?(%b)" % NUMBER
NAMES = {  # what trainers call it, with its value
    "past": rb"(?:(?:best|lowest|min|last)[ _/](?:\w+[ _/])?loss|per (?:step|iter(?:ation)?|epoch))()",  # not of now
    "val_loss": rb"(?:(?:valid(?:ation)?|eval(?:uation)?|val|test|dev)[ _/.-]?loss(?:_epoch)?|loss[_/]val|tel(?=:))"
    + LOSS,
    "train_loss": rb"(?:(?:avg_)?train(?:ing)?[ _/.-]?loss(?:_step|_epoch)?|loss[ _/]train|trl(?=:))" + LOSS,
    "loss": rb"(?:(?:total|avg|mean|batch|running|lm|ce)_)?loss" + LOSS,
    "step": rb"(?:(?:global[ _])?step|iter(?:ation)?(?:_num)?|it|update|s(?=:))" + COUNT,
    "epoch": rb"(?:epoch|ep)" + COUNT,
}
FIELD = re.compile(rb"\b(?<![/.-])_?(?:%b)" % b"|".join(b"(?P<%b>%b)" % (k.encode(), v) for k, v in NAMES.items()))
COLUMN = re.compile(rb"(?:^|\]:? | - )\s*\[?(\d{1,15})(?:\s*/\s*\d+\]|\s*\|)")  # `58 | loss 5.4`, `[58/100] loss 5.4`
VALIDATION = rb"(?<![\w/.-])(?:val|valid|validation|eval|evaluation)(?![\w/.-])"
EVALUATING = re.compile(rb"(?:(?!loss).)*?" + VALIDATION + rb".*(?<![\w/.-])loss")  # `validation: iter 10, loss 2.5`
BAR = re.compile(rb"^(?!.*" + VALIDATION + rb").*\|\s*(\d{1,15})/\d+ \[\d")  # tqdm's `450/1000 [00:12<00:15`
UNNAMED = {"step": COLUMN, "epoch": BAR}
COLOUR = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")
SPECIAL = re.compile(rb"[#\"'`]")
# A key of JSON, or of a printed dictionary, and its value where that is one word in quotes.
KEY = re.compile(rb"[\"'](\w[\w /.-]*)[\"']\s*:(?:\s*[\"']([-+.\w]+)[\"'])?")
# Others' words, or code: what stands in quotes, or behind a `#` (but `|####5     |` is a bar).
QUOTED = re.compile(rb"\"[^\"]*\"|(?<!\w)[fbrFBR]{0,2}'[^']*'|`[^`]*`|(?<![|#])#.*")

QUEUED = b"queued and waiting for resources"  # srun, on stderr
ALLOCATED = b"has been allocated"
T = TypeVar("T")
Told = dict[str, Optional[bytes]]  # what a line says, by the names above


@dataclass
class Said:
    """What one line has said; a `Said()` stands where lines were left out."""

    step: Optional[int] = None
    train: Optional[float] = None
    val: Optional[float] = None
    text: bytes = b""


@dataclass
class News:
    """What one stream has said since the last time."""

    metrics: Metrics = field(default_factory=Metrics)
    evaluations: list[bytes] = field(default_factory=list)
    is_lost: bool = False  # three training losses in a row, or one evaluation, were not finite


def or_else(value: Optional[T], otherwise: T) -> T:
    return otherwise if value is None else value


def number_in(kind: Callable[[Any], T], text: Optional[bytes]) -> Optional[T]:
    try:
        return kind(text)
    except (TypeError, ValueError):
        return None


def told_as_asked(line: bytes, patterns: Iterable[re.Pattern[bytes]]) -> Told:
    told: Told = {}
    for match in filter(None, [pattern.search(line) for pattern in patterns]):
        told.update(match.groupdict())
    return told


def told_in(line: bytes) -> Told:
    plain = QUOTED.sub(b" ", KEY.sub(rb"\1: \2", line)) if SPECIAL.search(line) else line
    # nanoGPT's own two forms first: these stay as they are, and fast.
    own = (EVALUATION if b"val" in plain else ITERATION).search(plain)
    return own.groupdict() if own else told_in_words(plain.lower())


def told_in_words(plain: bytes) -> Told:
    """The general form: `Epoch 1/9 | Step 20/900 | train_loss: 2.1 | val_loss: 2.2`, or JSON without its quotes."""
    told: Told = {}
    for match in FIELD.finditer(plain):
        name = str(match.lastgroup)
        told.setdefault(name, match[FIELD.groupindex[name] + 1])
    if EVALUATING.match(plain):
        told.setdefault("val_loss", told.pop("loss", None))
    if "step" in told:
        return told
    for kind, pattern in UNNAMED.items():
        for number in pattern.findall(plain)[:1]:
            told.setdefault(kind, number)
    return told if told.keys() & {"step", "epoch"} else {}


def lines_with(words: Iterable[bytes], data: bytes) -> list[bytes]:
    """The whole lines that hold one of the words, in their order."""
    starts = set()
    for word in words:
        start = len(data)
        while (place := data.rfind(word, 0, start)) >= 0:
            start = data.rfind(b"\n", 0, place) + 1
            starts.add(start)
    return [data[start : data.find(b"\n", start)] for start in sorted(starts)]


def loss_lines(data: bytes, most: float) -> list[bytes]:
    """The lines that may tell a loss. Where they take more than so many bytes: those at both ends and all that may be
    evaluations, with b"" where others are left out."""
    # Most blocks tell none, which `rfind` says twice as fast as `find`; and of a colon it is known at once.
    words = LOSS_WORDS if b":" in data else LOSS_WORDS[:1]
    last = max(map(data.rfind, words))
    if last < 0:
        return []
    if len(data) <= most:
        return list(filter(LOSS_WORD.search, data.split(b"\n")))
    first = next(LOSS_WORD.finditer(data)).start()
    lines = data[data.rfind(b"\n", 0, first) + 1 : data.find(b"\n", last) + 1]
    head, tail = lines.find(b"\n", SAMPLE) + 1, lines.rfind(b"\n", 0, -SAMPLE) + 1
    if len(lines) <= most or head >= tail:
        return list(filter(LOSS_WORD.search, lines.split(b"\n")))
    between = [b"", *lines_with(EVALUATION_WORDS, lines[head:tail]), b""]
    return [*lines_with(LOSS_WORDS, lines[:head]), *between, *lines_with(LOSS_WORDS, lines[tail:])]


def lines_like_metrics(*sources: bytes) -> frozenset[bytes]:
    """The lines of these files that could be taken for metrics once they are echoed: those that hold a digit."""
    return frozenset(re.findall(rb"(?m)^[^\S\n]*((?=.*\d)\S.*?)[^\S\n]*$", b"\n".join(sources)))


def compile_metrics(texts: Iterable[str]) -> list[re.Pattern[bytes]]:
    """The patterns of --metrics; raises ValueError, with one line of text, for one that can't be used."""
    losses = {"train_loss", "val_loss"}
    patterns = []
    for text in texts:
        try:
            pattern = re.compile(text.encode())
        except (re.error, UnicodeEncodeError, RecursionError, OverflowError) as error:
            raise ValueError(f"not a regular expression: {clean(text)} ({error})") from None
        unknown = pattern.groupindex.keys() - losses - {"step", "total"}
        if unknown:
            raise ValueError(f"unknown group in {clean(text)}: {', '.join(sorted(unknown))}")
        if losses.isdisjoint(pattern.groupindex):
            raise ValueError(f"no group (?P<train_loss>...) or (?P<val_loss>...) in: {clean(text)}")
        patterns.append(pattern)
    return patterns


def add_metrics(total: Metrics, news: Metrics) -> None:
    """Lay over what is known what one stream has said since."""
    total.step = or_else(news.step, total.step)
    total.train_loss = or_else(news.train_loss, total.train_loss)
    total.val_loss = or_else(news.val_loss, total.val_loss)
    if -math.inf < or_else(news.best_val_loss, math.inf) < or_else(total.best_val_loss, math.inf):
        total.best_val_loss, total.best_step = news.best_val_loss, news.best_step
    total.first_step = or_else(total.first_step, news.first_step)
    total.largest_gap = max(or_else(total.largest_gap, 0), or_else(news.largest_gap, 0)) or None
    if or_else(news.train_loss, news.val_loss) is not None:
        total.diverged_since = news.diverged_since


@dataclass
class Watch:
    """Whether one kind of loss stays finite."""

    was_finite: bool = False
    broken_since: Optional[int] = None
    in_a_row: int = 0  # losses that aren't finite

    def see(self, loss: Optional[float], step: int) -> None:
        if loss is None:
            return
        self.in_a_row += 1
        if math.isfinite(loss):
            self.was_finite, self.broken_since, self.in_a_row = True, None, 0
        elif self.was_finite:
            self.broken_since = or_else(self.broken_since, step)


class LineReader:
    """Reads the lines of one stream of one attempt. `read` is called by the thread that has the stream, `take` by any
    other."""

    def __init__(
        self, ignored: Collection[bytes] = (), patterns: Sequence[re.Pattern[bytes]] = (), was_finite: bool = False
    ) -> None:
        """`was_finite`: the losses of an earlier attempt were, from which this one goes on."""
        self.ignored = ignored  # lines of the config and the script: their echo tells nothing
        self.patterns = patterns
        self.lock = threading.Lock()
        self.news = News()
        self.queued = False  # srun waits for its resources
        self.tail = b""
        self.last_step: Optional[int] = None
        self.counted = "epoch"  # which counts as the step until a step is told
        self.previous: Optional[int] = None  # the step of the metric before, unless there is a hole between
        self.train, self.val = Watch(was_finite), Watch(was_finite)

    def read(self, data: bytes) -> bool:
        """Take in whole lines, ended by line feeds; True where there is news to take (a last line alone is none)."""
        tail = data[-LAST_LINE:].strip()
        self.tail = tail or self.tail
        was_queued = self.queued
        if was_queued or QUEUED in tail:  # nothing comes behind that message until the wait ends
            self.queued = data.rfind(ALLOCATED) <= data.rfind(QUEUED)
        found = self.find(data)
        with self.lock:
            for said in found:
                self.note(said)
        return bool(found) or self.queued != was_queued

    def find(self, data: bytes, most: float = CROWD) -> list[Said]:
        """What the lines say, in their order; of losses that crowd only samples."""
        lines = list(filter(None, data.split(b"\n"))) if self.patterns else loss_lines(data, most)
        return list(filter(None, map(self.said_in, lines)))

    def said_in(self, line: bytes) -> Optional[Said]:
        """What a line says; None where it tells no loss, or is an echo."""
        if not line:
            return Said()
        plain = COLOUR.sub(b"", line)
        told = told_as_asked(plain, self.patterns) if self.patterns else told_in(plain)
        train = number_in(float, told.get("train_loss", told.get("loss")))
        val = number_in(float, told.get("val_loss"))
        text = plain.strip()
        if or_else(train, val) is None or text in self.ignored:
            return None
        if "step" in told:
            self.counted = "step"
        if self.counted in told:
            self.last_step = number_in(int, told[self.counted])
        return Said(self.last_step, train, val, text[:200])

    def note(self, said: Said) -> None:
        news = self.news
        step = or_else(said.step, 0)
        gap = step - or_else(self.previous, step)
        self.previous = said.step
        self.train.see(said.train, step)
        self.val.see(said.val, step)
        since = or_else(self.train.broken_since, self.val.broken_since)
        add_metrics(news.metrics, Metrics(said.step, said.train, said.val, said.val, said.step, said.step, gap, since))
        news.is_lost |= self.train.in_a_row >= 3
        if said.val is not None:
            news.evaluations.append(said.text)
            del news.evaluations[:-MAX_EVALUATIONS]
            news.is_lost |= not math.isfinite(said.val + or_else(said.train, 0.0))

    def last_line(self) -> str:
        """The last line that was printed, whatever it says."""
        return clean(COLOUR.sub(b"", self.tail.rpartition(b"\n")[2]).decode(errors="replace"))

    def take(self) -> News:
        """What has come since the last time."""
        with self.lock:
            news, self.news = self.news, News()
        return news


# What the end of a training says of its cause.

RANK = re.compile(r"(?m)^\[\w*?\d+\]: ?")  # torch's `[rank1]: `, torchrun's `[default1]:`
ROOT_CAUSE = re.compile(r"Root Cause[^\n]*\n(?:.*\n){0,4}? *rank *: (\d+).*\n *exitcode *: (-?\d+)")  # torchrun's
# The frames, which stand farther in than the head, and the exception: its further lines stand in or follow a colon.
TRACEBACK = re.compile(
    r"(?m)^([ \t]*)Traceback \(most recent call last\).*\n((?:\1[ \t].*\n|\n)*)"
    r"\1((?!.*ChildFailedError|KeyboardInterrupt)\S.*(?:(?:(?<=:)\n\1|\n\1[ \t]+)\S.*)*)"
)
# The last frame, where its source stands below it.
FRAME = re.compile(r'(?m)^ *File "([^"]+)", line (\d+).*\n(?! *File)(.+)\n(?:(?! *File).*\n)*\Z')
REFUSED = re.compile(r"(?m)^[Uu]sage: (?:.*\n)+?((?!srun|slurm)(?:[^:\n]{1,100}: )?[eE]rror: .+)")  # argparse, click
# A syntax error in the training script comes without a traceback, as what Python itself can't find.
BARE_ERROR = re.compile(
    r"(?m)^(?!.*ChildFailed)(?:[\w.]+(?:Error|Exception): |\S*python[\d.]*: (?:can't open|No module|Error)).*"
)
BROKEN_CHECKPOINT = re.compile(
    r"(?m)^(?:\[\w+\]: ?)? *(?:"
    # torch's weights_only says UnpicklingError of a sound file too. stdin is empty, input() raises EOFError.
    r"[\w.]*UnpicklingError(?!(?:.*\n){0,9}?.*Unsupported )|EOFError(?!: EOF when)|[\w.]*BadZipFile"
    r"|[\w.]*SafetensorError|[\w.]*JSONDecodeError|struct\.error: unpack"
    r"|[\w.]+: .*(?:PytorchStreamReader|failed finding central directory|[Ii]nvalid magic number|unexpected EOF"
    r"|data was truncated|truncated file|InvalidHeader|IncompleteBuffer|HeaderTooLarge|storage has wrong byte size"
    r"|'storages' not found|not a ZIP archive))"
    r"|PyTorchFileReader\(.*\n(?:.*\^\n)?OSError: \[Errno 22\]"  # a file cut off in the middle
)
HINTS = {  # what the error or the end of stderr says: the remedy
    "CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC": "out of GPU memory: try a smaller --batch_size",
    "MemoryError|[Cc]annot allocate memory|DefaultCPUAllocator": "out of memory: try a smaller --batch_size",
    "invalid device ordinal": "no such GPU: nvidia-smi -L lists them; try --device cuda:0 or --device cpu",
    "(?:NVIDIA|CUDA) driver|not compiled with CUDA|No CUDA GPUs|one of cpu, cuda": "no usable GPU: try --device cpu",
    "wandb.*(?:not logged in|api_key|login|UsageError|AuthenticationError)|No module named '?wandb": (
        "wandb is not installed or not logged in: try --wandb_enabled false, or run: wandb login"
    ),
    "Unknown config key": "the trainer does not know this setting: see the assignments at its top",
    r'(?m)"<string>", line \d+, in <module>\n(?: .*\n)*AssertionError *$': "a value's type is not that of its default",
    "SIGKILL": "killed from outside, perhaps by the out-of-memory killer (see dmesg): try a smaller --batch_size",
}


def end_in_words(return_code: int) -> tuple[Optional[str], str]:
    """The signal that ended a process, and its end in words."""
    told = signal_name(signal_in(return_code))
    if return_code < 0:
        return told, f"killed by {told}"
    by_signal = f" ({told})" if told.startswith("SIG") else ""
    return None, f"exit code {return_code}{by_signal}"


def error_line(stderr: str) -> str:
    """What stderr says the attempt failed of, in one line of 300 characters; nothing where it doesn't say."""
    plain = RANK.sub("", stderr)  # what a worker says may come without its rank
    told = [last_exception(plain), *REFUSED.findall(plain)[-1:], *BARE_ERROR.findall(plain)[-1:]]
    told += re.findall(r"(?m)^KeyboardInterrupt$", plain)  # mostly that of a stop, so what else is said counts first
    for rank, exit_code in ROOT_CAUSE.findall(stderr)[:1]:
        # The other ranks only miss the one that failed first.
        own = last_exception("\n".join(re.findall(rf"(?m)^\[\w*?{rank}\]: ?(.*)", stderr)))
        died = f"rank {rank} died of {signal_name(-int(exit_code))}" if exit_code.startswith("-") else ""
        told = [own, died, *told, f"rank {rank} ended with exit code {exit_code}"]
    return next(filter(None, told), "").strip()[:300]


def last_exception(stderr: str) -> str:
    """The last Python traceback's exception; a bare one with its source: `AssertionError: x > 0 (a.py, line 1)`."""
    _, frames, lines = [("", "", ""), *TRACEBACK.findall(stderr)][-1]
    said = " ".join(lines.split())
    for path, line, source in FRAME.findall(frames):
        if re.fullmatch(r"[\w.]+(?:Error|Exception)", said):
            said += f": {source.strip()} ({os.path.basename(path)}, line {line})"
    return said


def hint_for(text: str) -> Optional[str]:
    return next((hint for pattern, hint in HINTS.items() if re.search(pattern, text)), None)


def bytes_of(path: str) -> bytes:
    """What a file holds; nothing where it can't be read."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read()
    return b""


def read_tail(path: str, size: int = 1 << 16, start: int = 0) -> bytes:
    """The end of a file, but nothing before the offset `start`; nothing where it can't be read."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        end = os.fstat(file.fileno()).st_size
        file.seek(max(start, end - size))
        return file.read(size)
    return b""


# Checkpoints: files or directories by a glob.

TEMPORARY = re.compile(r"(?i)^\.|^tmp|~$|(?:^|[._-])(?:tmp|temp|part|partial|incomplete|set_aside)(?:[._-]|$)")
Look = tuple[int, int]  # bytes, and when they changed last, in ns


def checkpoints(folder: str, pattern: str = "ckpt*.pt") -> list[str]:
    """The trainer's checkpoints, the newest first."""
    found = itertools.filterfalse(is_temporary, paths_like(folder, pattern))
    return sorted(found, key=lambda path: (look_at(path)[1], natural(path)), reverse=True)


def being_written(folder: str, pattern: str) -> dict[str, Look]:
    """What is, or may become, a checkpoint; what changes between two looks is being written."""
    parent, name = os.path.split(pattern.rstrip("/"))
    stem = glob.escape(re.split(r"[*?[]", name)[0].strip("._-"))
    paths = paths_like(folder, pattern)
    # `ckpt.pt.tmp`, `tmpckpt.pt`, `ckpt_tmp.pt`, `.ckpt.pt.Xy12`: a star leaves out what begins with a dot.
    for form in (f"*{stem}*", f".*{stem}*"):
        paths += filter(is_temporary, paths_like(folder, os.path.join(parent, form)))
    return {os.path.relpath(path, folder): look_at(path) for path in paths}


def paths_like(folder: str, pattern: str) -> list[str]:
    found = filter(os.path.exists, glob.glob(os.path.join(glob.escape(folder), pattern)))
    return [path.rstrip("/") for path in found]


def is_temporary(path: str) -> bool:
    """Whether a path is called as what becomes a checkpoint once it is whole, or can't be one any more."""
    return bool(TEMPORARY.search(os.path.basename(path)))


def look_at(path: str) -> Look:
    """Of a directory the sum and the latest of what is in it; of what has gone (0, 0)."""
    with contextlib.suppress(OSError):
        paths = [path]
        for place, _, names in os.walk(path):
            paths += [os.path.join(place, name) for name in names]
        sizes, times = zip(*[(state.st_size, state.st_mtime_ns) for state in map(os.stat, paths)])
        return sum(sizes), max(times)
    return 0, 0


# Curves for the page.

EXACT = 1 << 20  # bytes of a log of which each loss is read
SPANS = 300  # of steps, of which a curve keeps a point or two each: as many as a plot can show
Point = tuple[int, float]  # the step and the loss


def add_point(points: list[Point], step: Optional[int], loss: Optional[float]) -> None:
    if step is None or loss is None:
        return
    # A resumed run does these steps again, and what it says of them counts.
    del points[bisect.bisect_left(points, (step, -math.inf)) :]
    points.append((step, loss))


def thinned(kind: str, points: list[Point]) -> list[Point]:
    """Of each of many equal spans of steps the first point, and of evaluations the lowest."""
    if len(points) <= 2 * SPANS:
        return points
    width = (points[-1][0] - points[0][0] + 1) / SPANS
    kept = {points[-1]}
    for _, group in itertools.groupby(points, lambda point: point[0] // width):
        span = list(group)
        kept.add(span[0])
        if kind == "val":
            kept.add(min(span, key=lambda point: (not math.isfinite(point[1]), point[1])))
    return sorted(kept)


class Curve:
    """The losses in one log, read as it grows; of millions of lines enough to draw, and in seconds."""

    def __init__(self, ignored: Collection[bytes] = (), patterns: Sequence[re.Pattern[bytes]] = ()) -> None:
        self.reader = LineReader(ignored, patterns)
        self.start_over((0, 0))

    def start_over(self, file: tuple[int, int]) -> None:
        self.file, self.offset = file, 0
        self.points: dict[str, list[Point]] = {"val": [], "train": []}

    def update(self, path: str, limit: float = math.inf) -> None:
        """Read what was added since the last call, `limit` bytes at most; a log that shrank counts as new."""
        try:
            with open(path, "rb", buffering=0) as log:
                status = os.fstat(log.fileno())
                file = (status.st_dev, status.st_ino)
                if file != self.file or status.st_size < self.offset:
                    self.start_over(file)
                end = min(status.st_size, self.offset + limit)  # a trainer that writes faster can't hold this up
                while self.take(os.pread(log.fileno(), int(min(BLOCK, end - self.offset)), self.offset)):
                    pass
        except OSError:
            self.start_over((0, 0))

    def take(self, data: bytes) -> int:
        """Read the whole lines of a block; returns their size, 0 where there is none as yet."""
        lines = data.replace(b"\r", b"\n")
        size = lines.rfind(b"\n") + 1
        if not size and len(data) == BLOCK:
            size = BLOCK  # of a line that is no metric
        most = math.inf if self.offset < EXACT else CROWD
        for said in self.reader.find(lines[:size], most):
            add_point(self.points["train"], said.step, said.train)
            add_point(self.points["val"], said.step, said.val)
        for kind, points in self.points.items():
            if len(points) > 4 * SPANS:  # seldom: it takes its time
                self.points[kind] = thinned(kind, points)
        self.offset += size
        return size

    def drawn(self) -> dict[str, list[list[Any]]]:
        """The [step, loss] that the page draws; losses that are not finite become texts, as JSON wants it."""
        return {
            kind: [[step, json_number(loss)] for step, loss in thinned(kind, points)]
            for kind, points in self.points.items()
        }


# --------------------------------------------------------------------------------------------------- store
# The batch on disk: where its files are, how they are written so that a crash leaves the old or the new one, what they
# tell when they are read back, and how an attempt begins by them. It must not know of processes and views.

FICLONE = 0x40049409  # Linux's ioctl by which two files share their bytes
ASIDE = ".set_aside"  # the ending of a checkpoint that can't be read
NO_LOCKS = "the file system knows no locks: nothing keeps a second runner off this batch"
PLAN_JSON = os.path.join(PLAN, "plan.json")
OF_ONE_START = "configs overrides sweep base_out_dir resume dry_run status json report follow quiet again".split()
KEPT = {k: v for k, v in vars(Options()).items() if k not in OF_ONE_START}  # what plan.json keeps, with defaults


# ---- files


def write_file(path: str, data: bytes, sync: bool = True, is_holder: bool = True) -> None:
    """Replace a file whole: a reader or a crash sees the old one or the new one. Raises OSError.

    Who holds the batch's lock uses one temporary name for each file; others add their pid, so that no two share one."""
    folder, name = os.path.split(path)
    writer = "" if is_holder else f".{os.getpid()}"
    temporary = os.path.join(folder, f".{name[:60]}{writer}.tmp")  # a file's name has 255 bytes at the most
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        remove_tree(temporary)
        raise


def sweep_temporaries(folder: str) -> None:
    """Remove what writers left that are dead; for the runner that has just taken the lock."""
    for name in names_in(folder, r"\..*\.tmp"):
        writer = re.search(r"\.(\d{1,9})\.tmp$", name)
        with contextlib.suppress(OSError):
            if writer:
                os.kill(int(writer[1]), 0)
                continue
        remove_tree(os.path.join(folder, name))


def remove_tree(path: str) -> None:
    """Remove a file or a directory, as far as that can be done."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.unlink(path)


def json_bytes(value: dict[str, Any]) -> bytes:
    """JSON for people where it is small; `indent` is slow, and nobody reads a thousand results by eye."""
    text = json.dumps(value)
    if len(text) < 200_000:
        text = json.dumps(value, indent=2)
    return f"{text}\n".encode()


def read_float(text: str) -> Union[float, str]:
    return json_number(float(text))


def an_object(value: Any, otherwise: str) -> dict[str, Any]:
    """A value of a JSON file that must be an object; raises ValueError, with this text, for any other."""
    if not isinstance(value, dict):
        raise ValueError(otherwise)
    return value


def read_json(path: str) -> dict[str, Any]:
    """A JSON object from a file; raises ValueError where there is none."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(), parse_constant=str, parse_float=read_float)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
    return an_object(value, f"{path}: not a JSON object")


def read_own(folder: str, name: str) -> dict[str, Any]:
    """One of an experiment's own JSON files; empty where there is none that can be read."""
    with contextlib.suppress(ValueError):
        return read_json(os.path.join(folder, name))
    return {}


def to_json(value: Any) -> Any:
    """A form that every JSON parser takes: losses that are not finite become texts."""
    if isinstance(value, (Metrics, Result)):
        return {key: to_json(each) for key, each in vars(value).items()}
    return json_number(value) if isinstance(value, float) else value


def in_words(value: Any) -> Any:
    """A setting's value for JSON: itself where JSON has it, null where it isn't known, else as Python writes it."""
    if value is UNKNOWN:
        return None
    return to_json(value) if isinstance(value, (bool, int, float, str, type(None))) else repr(value)


def read_number(value: float) -> float:
    if abs(value) >= 1e15:
        raise ValueError("beyond reason")
    return value


def read_texts(values: list[Any]) -> list[str]:
    if not all(isinstance(each, str) for each in values):
        raise ValueError("not all of them are texts")
    return values


# By the types that a record's fields have: what stands for it in JSON, and how it is read.
READERS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "str": (str, str),
    "bool": (bool, bool),
    "int": (int, read_number),
    "float": ((int, float), read_number),
    "Loss": ((int, float, str), float),
    "list[str]": (list, read_texts),
    "list[Any]": (list, list),
    "dict[str, str]": (dict, dict),
    "dict[str, Any]": (dict, dict),
    "dict[str, list[str]]": (dict, dict),
    "Status": (str, Status),
    "Metrics": (dict, lambda value: from_json(Metrics, value)),
}


@functools.cache
def kinds_of(cls: Any) -> dict[str, str]:
    """The types of the fields of a record, by their names."""
    return {each.name: re.sub(r"^Optional\[(.*)\]$", r"\1", str(each.type)) for each in fields(cls)}


def from_json(cls: Callable[[], T], data: Mapping[str, Any]) -> T:
    """A record from what was read from a file; a value of a wrong type stays at its default."""
    made = cls()
    for name, kind in kinds_of(cls).items():
        types, read = READERS[kind]
        value = data.get(name)
        if isinstance(value, types):
            with contextlib.suppress(ValueError, OverflowError):
                setattr(made, name, read(value))
    return made


def check_read(made: Any, data: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    """Raises ValueError where a value that counts was of a wrong type, and so was not taken from the data."""
    for key in keys:
        taken = getattr(made, key)
        if data.get(key, taken) != taken:
            raise ValueError(f"{where}: not a value of {key}: {clean(repr(data[key]))[:100]}")


def names_in(folder: str, pattern: str) -> list[str]:
    """The names in a directory that match; none where there is no directory."""
    with contextlib.suppress(OSError):
        return [name for name in os.listdir(folder) if re.fullmatch(pattern, name)]
    return []


# ---- the batch's directory, and who holds it


def create_folder(base: str) -> tuple[str, list[str]]:
    """A new directory for a batch, `latest` pointing to it, and notes of what is wrong with that link.

    Raises UsageError where the directory can't be made."""
    stem = folder = os.path.join(base, datetime.now().strftime("experiment_%Y%m%d_%H%M%S"))
    try:
        os.makedirs(base, exist_ok=True)
        for number in itertools.count(2):
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)
                break
            folder = f"{stem}_{number}"
    except OSError as error:
        raise UsageError(f"can't write to --base_out_dir: {base}: {error.strerror}") from None
    latest, link = os.path.join(base, "latest"), os.path.join(base, f".latest.{os.getpid()}")
    try:
        os.symlink(os.path.basename(folder), link)
        os.replace(link, latest)
    except OSError as error:  # a copied batch may have made a directory of it
        remove_tree(link)
        return folder, [f"'latest' can't be set to this batch: {latest}: {error.strerror}"]
    return folder, []


def hold_batch(folder: str) -> Optional[int]:
    """Take the batch's lock, which the kernel drops when this process ends; None where the disk knows no locks.

    Raises BatchHeld where another runner has it, UsageError where the batch can't be written to."""
    path = os.path.join(folder, LOCK)
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UsageError(f"can't write to the batch: {path}: {error.strerror}") from None
    for _ in range(20):  # a reader that looks whether the lock is free holds it for an instant
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(0.02)
        except OSError:
            os.close(lock)
            return None
    else:
        holder = os.read(lock, 1000).decode(errors="replace").strip()
        raise BatchHeld(f"another runner holds this batch: {holder or 'unknown'}")
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(lock, 0)
        os.write(lock, f"pid {os.getpid()} on {os.uname().nodename} since {now_iso()}\n".encode())
    sweep_temporaries(folder)
    return lock


def is_held(folder: str) -> bool:
    """Whether a living runner holds the batch."""
    with contextlib.suppress(OSError), open(os.path.join(folder, LOCK), "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def batches_in(base: str) -> list[str]:
    """The batches below a directory, the newest last: by when they began, which renames and copies don't change."""
    paths = [os.path.join(base, name) for name in names_in(base, ".*")]
    found = itertools.filterfalse(os.path.islink, filter(looks_like_batch, paths))
    with contextlib.suppress(OSError):
        return sorted(found, key=lambda path: (began_at(path), natural(path)))
    return []


def looks_like_batch(folder: str) -> bool:
    """Whether a directory is a batch, whatever its name is by now: not one of a runner that died at its very start."""
    return any(os.path.exists(os.path.join(folder, name)) for name in (SUMMARY, PLAN_JSON))


def began_at(folder: str) -> float:
    """When a batch began, in seconds of the epoch, as its own files tell; they may be large, but say it early."""
    for name in (SUMMARY, PLAN_JSON):
        with contextlib.suppress(OSError, LookupError, ValueError, OverflowError):
            with open(os.path.join(folder, name), "rb") as file:
                told = re.findall(r'"start_time": "([^"]+)"', file.read(1 << 14).decode(errors="replace"))
            return datetime.fromisoformat(told[0]).timestamp()
    return os.stat(folder).st_mtime


def newest_batch(base: str) -> str:
    """Raises UsageError where there is none."""
    found = batches_in(base)
    if not found:
        raise UsageError(f"no batch in: {base}; name one, or its --base_out_dir")
    return found[-1]


# ---- the plan, as it was when the batch began


def frozen_names(folder: str, originals: Mapping[str, str]) -> dict[str, str]:
    """A name below plan/ for each path that a config is read from: that of its original, the second of two equal ones
    in a directory; what lies there already keeps its name."""
    place = os.path.join(folder, PLAN)
    taken = {"plan.json"}
    names = {}
    for path, original in originals.items():
        names[path] = os.path.relpath(path, place)
        if path.startswith(place + os.sep):
            continue
        name = own = os.path.basename(original)
        numbers = itertools.count(2)
        while name.casefold() in taken or os.path.lexists(os.path.join(place, name)):
            name = os.path.join(str(next(numbers)), own)
        taken.add(name.casefold())
        names[path] = name
    return names


def freeze(folder: str, plan: Sequence[Experiment], sources: Mapping[str, bytes], head: dict[str, Any]) -> None:
    """Write plan/: what each config holds, once, and plan.json; synced. Raises OSError.

    What is frozen already keeps its copy, and no copy is ever written over: plan.json changes last, and whole."""
    names = {each.source: each.frozen for each in plan}
    digests = {}
    os.makedirs(os.path.join(folder, PLAN), exist_ok=True)
    for path, data in sources.items():
        digests[path] = sha256(data)
        target = os.path.join(folder, PLAN, names[path])
        if not os.path.exists(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            write_file(target, data)
    for each in plan:
        each.config_sha256 = digests.get(each.source, "")
    write_file(os.path.join(folder, PLAN_JSON), json_bytes({**head, "experiments": list(map(plan_line, plan))}))


def plan_line(planned: Experiment) -> dict[str, Any]:
    return {
        "name": planned.name,
        "config_path": planned.config,
        "frozen": planned.frozen,
        "config_sha256": planned.config_sha256,
        "overrides": {key: text for key, text in planned.overrides.items() if key not in planned.point},
        "sweep": planned.point,
    }


def plan_options(options: Options) -> dict[str, Any]:
    """The options that the batch's plan keeps, where they are not the defaults."""
    return {key: getattr(options, key) for key, usual in KEPT.items() if getattr(options, key) != usual}


def options_from_json(summary: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options that a batch has kept, for --resume; raises ValueError where one is none."""
    told = summary.get("options", {})
    an_object(told, f"{where}: not options: {clean(repr(told))[:100]}")
    known = {key: value for key, value in told.items() if key in KEPT}
    known["train_script"] = summary.get("train_script", Options.train_script)
    check_read(from_json(Options, known), known, known, where)
    return known


# ---- reading a batch back


def read_plan(folder: str) -> tuple[dict[str, Any], list[Experiment]]:
    """plan.json: the head of a summary, and the experiments; empty where it can't be used."""
    head = read_own(folder, PLAN_JSON)
    plan = []
    try:
        options_from_json(head, PLAN_JSON)
        for line in head.pop("experiments"):
            check_name(line["name"], PLAN_JSON)
            overrides = {**line["overrides"], **line["sweep"]}
            read_texts(list(overrides.values()))
            own = {"config": line["config_path"], "overrides": overrides, "point": line["sweep"]}
            plan.append(from_json(Experiment, {**line, **own}))
    except (KeyError, TypeError, ValueError):
        return {}, []
    return head, plan


def check_name(name: str, where: str) -> None:
    """Raises ValueError for what is no experiment's name, and so may lead to any place."""
    if name != clean_name(name):
        raise ValueError(f"{where}: not an experiment: {clean(name)}")


@dataclass
class BatchFacts:
    """What the views need of a summary, whatever a file has there; the field names are its keys."""

    state: str = ""
    start_time: str = ""
    hostname: str = ""
    command: list[str] = field(default_factory=list)
    sweep: dict[str, Any] = field(default_factory=dict)
    common_settings: dict[str, Any] = field(default_factory=dict)
    git: dict[str, Any] = field(default_factory=dict)
    shard: dict[str, Any] = field(default_factory=dict)  # as in ShardFacts
    resumes: list[Any] = field(default_factory=list)
    slots: int = 1
    stopped_because: str = ""


@dataclass
class ShardFacts:
    """Which part of a plan a batch is; the field names are the summary's keys."""

    index: int = 0
    count: int = 0  # 0 where it is no shard
    plan_digest: str = ""
    experiments: int = 1 << 20  # of the whole plan; an older batch doesn't say


@dataclass
class StoredBatch:
    """A batch as its files tell it."""

    folder: str
    summary: dict[str, Any]
    results: dict[str, Result]
    plan: list[Experiment] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was wrong with the files

    @property
    def facts(self) -> BatchFacts:
        return from_json(BatchFacts, self.summary)


def read_batch(folder: str, is_holder: bool = False) -> StoredBatch:
    """Raises UsageError for what is no batch, or is damaged beyond what its other files can make good.

    Who asks may hold the batch, and runs nothing yet."""
    if not looks_like_batch(folder):
        raise UsageError(f"no batch there: {folder}")
    head, plan = read_plan(folder)
    notes: list[str] = []
    try:
        summary, stored = read_summary(os.path.join(folder, SUMMARY))
    except ValueError as error:
        if not plan:
            raise UsageError(f"summary is damaged: {error}") from None
        notes.append(f"summary is damaged, its plan and the experiments' own files are read: {error}")
        summary, stored = head, {}
    plan = plan or list(map(old_plan_line, stored.values()))
    held = not is_holder and is_held(folder)
    if summary.get("state") == "running" and not held:
        summary["state"] = "interrupted"
    patterns, results = metrics_of(summary), {}
    for each in plan:
        place = os.path.join(folder, each.name)
        result = stored.get(each.name, Result(config_name=each.name, config_path=each.config))
        if result.status is not Status.COMPLETED and summary.get("state") != "finished":
            result = catch_up(result, place, held, patterns)
        relocate(result, place)
        results[each.name] = result
    return StoredBatch(folder, summary, results, plan, notes)


def old_plan_line(result: Result) -> Experiment:
    """What version 1.0.0 kept of an experiment's plan."""
    used = os.path.join("..", result.config_name, "config_used" + os.path.splitext(result.config_path)[1])
    # As a user would give them: it kept them only as JSON has them.
    overrides = {key: value if isinstance(value, str) else repr(value) for key, value in result.overrides.items()}
    return Experiment(result.config_name, result.config_path, overrides, frozen=used)


def relocate(result: Result, place: str) -> None:
    """A batch may have been renamed or moved since: its paths are where it is."""
    if result.final_checkpoint:
        inside = os.path.relpath(result.final_checkpoint, result.experiment_dir)
        result.final_checkpoint = os.path.join(place, inside)
    result.experiment_dir = place
    result.log_files = {name: os.path.join(place, file) for name, file in LOGS.items()}


def read_summary(path: str) -> tuple[dict[str, Any], dict[str, Result]]:
    """The summary and its results; raises ValueError for a damaged one."""
    summary = read_json(path)
    stored = an_object(summary.pop("results", None), f"{path}: no results in it")
    options_from_json(summary, path)
    return summary, {name: read_result(name, data, path) for name, data in stored.items()}


def read_result(name: str, data: Any, path: str) -> Result:
    """A result as a summary has it; raises ValueError where what a resume builds on is of a wrong type."""
    check_name(name, path)
    own = an_object(data, f"{path}: not an experiment: {clean(name)}")
    result = from_json(Result, {**own, "config_name": name})
    result.attempts = max(0, result.attempts)
    check_read(result, own, ("config_path", "overrides", "status", "attempts"), f"{path}: {name}")
    return result


def metrics_of(summary: Mapping[str, Any]) -> list[re.Pattern[bytes]]:
    """The patterns by which the trainings of a batch are read; none where they can't be used any more."""
    with contextlib.suppress(ValueError):
        return compile_metrics(summary.get("options", {}).get("metrics", []))
    return []


def catch_up(result: Result, folder: str, held: bool, patterns: Sequence[re.Pattern[bytes]]) -> Result:
    """A result as the experiment's own files tell it, which may be newer than the summary."""
    own = from_json(Result, {**read_own(folder, RESULT), "config_name": result.config_name})
    if own.attempts >= max(1, result.attempts):
        result = own
    metadata = read_own(folder, METADATA)
    begun = from_json(Result, {**metadata, "attempts": metadata.get("attempt")})
    if begun.attempts > result.attempts:  # what is known of the attempt before isn't true of this one
        kept = ("config_name", "config_path", "overrides", "settings", "max_iters", "metrics", "total_seconds")
        result = Result(**{key: getattr(result, key) for key in kept}, status=Status.RUNNING)
        result.attempts, result.start_time = begun.attempts, begun.start_time
        result.attempt_history = begun.attempt_history
    if result.status is Status.RUNNING:
        read_progress(result, folder, patterns)
        if not held:
            result.status, result.error = Status.INTERRUPTED, "its runner died"
            read_end(result, folder)
    return result


def read_end(result: Result, folder: str) -> None:
    """How long an attempt ran whose runner has died: its logs were written to until then, at the least."""
    with contextlib.suppress(OSError, ValueError, OverflowError):
        began = datetime.fromisoformat(str(result.start_time)).timestamp()
        ended = max(os.stat(os.path.join(folder, name)).st_mtime for name in LOGS.values())
        result.duration_seconds = round(max(0.0, ended - began), 3)
        result.total_seconds = round(or_else(result.total_seconds, 0.0) + result.duration_seconds, 3)


def read_progress(result: Result, folder: str, patterns: Sequence[re.Pattern[bytes]]) -> None:
    """What the ends of the logs say of how far a training is."""
    for stream in ("stderr", "stdout"):
        reader = LineReader(patterns=patterns)
        reader.read(read_tail(os.path.join(folder, LOGS[stream])).replace(b"\r", b"\n") + b"\n")
        add_metrics(result.metrics, reader.take().metrics)
        result.last_line = reader.last_line() or result.last_line
    if result.metrics.step is not None:
        result.last_line = ""


# ---- attempts


@dataclass(frozen=True)
class TakeUp:
    """How the next attempt of an experiment begins, in words with the reason."""

    words: str
    checkpoint: str = ""  # from which it continues; empty where it starts, or starts over


def take_up(experiment: Experiment, folder: str, attempts: int, options: Options) -> TakeUp:
    """How an experiment that has had so many attempts begins its next one."""
    if not attempts:
        return TakeUp("starts: first attempt")
    if experiment.starts_over:
        return TakeUp("starts over: --init_from=scratch")
    if not can_continue(options, experiment):
        why = "no --continue_with" if options.command else "the trainer has no setting init_from"
        return TakeUp(f"starts over: {why}")
    for newest in checkpoints(folder, options.checkpoints)[:1]:
        return TakeUp(f"continues from {os.path.relpath(newest, folder)}", newest)
    return TakeUp("starts over: no checkpoint")


def move_aside(folder: str, attempt: int) -> None:
    """Move all that an earlier attempt left to attempt_N/; its metadata last, so that a crash half-way is seen."""
    target = os.path.join(folder, f"attempt_{attempt}")
    os.makedirs(target, exist_ok=True)
    names = names_in(folder, rf"(?!attempt_\d+$)(?!.*{re.escape(ASIDE)}$).*")
    for name in sorted(names, key=METADATA.__eq__):
        place = os.path.join(target, name)
        while os.path.lexists(place):
            place += "_"
        os.rename(os.path.join(folder, name), place)


def past(result: Result) -> dict[str, Any]:
    """What the history keeps of an attempt."""
    keys = ("start_time", "end_time", "status", "return_code", "error", "duration_seconds")
    return {"attempt": result.attempts, **{key: getattr(result, key) for key in keys}}


def copy_path(checkpoint: str) -> str:
    """Where a copy of a checkpoint as it is now is kept: beside it, under a name that no pattern of checkpoints
    matches, with the time of its last change."""
    folder, name = os.path.split(checkpoint)
    return os.path.join(folder, f".kept_{name}.{look_at(checkpoint)[1]}")


def older_copies(checkpoint: str) -> list[str]:
    """The copies of what a checkpoint was before, the oldest first."""
    folder, name = os.path.split(checkpoint)
    copies = {os.path.join(folder, each) for each in names_in(folder, rf"\.kept_{re.escape(name)}\.\d+")}
    return sorted(copies - {copy_path(checkpoint)}, key=natural)


def keep_copy(checkpoint: str) -> None:
    """Keep a copy of an attempt's only checkpoint beside it, where there is room; raises OSError.

    Of the older ones the latest stays: its original has been written over, so an attempt has read it, and has gone on
    from it, which nobody knows yet of the new one."""
    for path in older_copies(checkpoint)[:-1]:
        remove_tree(path)
    target = copy_path(checkpoint)
    part = f"{os.path.splitext(target)[0]}.part"
    remove_tree(part)
    try:
        if not reflink(checkpoint, part):
            if shutil.disk_usage(os.path.dirname(checkpoint)).free < 3 * look_at(checkpoint)[0]:
                return
            if os.path.isdir(checkpoint):
                shutil.copytree(checkpoint, part)
            else:
                shutil.copyfile(checkpoint, part)
        shutil.copystat(checkpoint, part)
        os.rename(part, target)
    finally:
        remove_tree(part)


def reflink(path: str, copy: str) -> bool:
    """Have the file system share the bytes of two files; few can, and what it has made then is empty."""
    with contextlib.suppress(OSError), open(path, "rb") as source, open(copy, "wb") as target:
        fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
        return True
    return False


# ------------------------------------------------------------------------------------------------- process
# A training as the operating system sees it: its group, its streams, the steps to its end, and who looks after it
# when the runner is killed. It must not know of batches, results or consoles: it is given descriptors and callables.

PIPE_SIZE = 1 << 18  # bytes that a stream's pipe holds, where the kernel allows it
KILL_GAP = 0.2  # seconds: KILL never comes sooner after another signal: srun needs the time to end its remote task
TERM_GAP = 1.0  # seconds between a late TERM and KILL
LINGER = 2.0  # seconds that the rest of a group gets once its leader has ended by itself
PAUSE = 3.0  # seconds that a save may pause with its file open
LOOK = 0.25  # seconds between two looks at a checkpoint that may be being written
QUICK_LOOK = 0.05  # the same, where each look so far has found another save, and none that goes on
POLL = 0.05  # seconds between two looks at a group whose leader has gone: no event tells of its end
UNTOLD_LOOKS = 30  # at all processes, POLL apart, for a training that was launched but not told of
GIVE_UP = 10.0  # seconds after KILL: what lives on then can't be killed
MARK = "RUN_EXPERIMENTS_ATTEMPT"  # in a training's environment: which launch of which runner it is
GOODBYE = 0  # what the guardian reads in place of a leader's pid when the runner ends by itself
DEAD = "ZX"  # the states of zombies and of what has gone
HANDS_ON_NOTHING = ("srun", "docker", "podman")  # launchers that end their task on TERM, and ignore or swallow INT


@dataclass
class ProcessInfo:
    pid: int
    state: str  # a letter
    parent: int
    group: int
    started: str  # in clock ticks since boot: tells it from a later process of the same pid


@dataclass
class Exit:
    """How the leader of a group ended."""

    return_code: int
    cpu_seconds: float
    max_rss_bytes: int


def about(pid: int, what: str) -> bytes:
    """A file that /proc has of a process; empty where that has gone, or where there is no /proc."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/{what}", "rb") as file:
        return file.read()
    return b""


def process_info(pid: int) -> ProcessInfo:
    """What /proc tells of a process; what has gone is dead."""
    words = about(pid, "stat").rpartition(b")")[2].decode().split()
    if not words:
        return ProcessInfo(pid, "X", -1, -1, "")
    return ProcessInfo(pid, words[0], int(words[1]), int(words[2]), words[19])


def processes() -> list[ProcessInfo]:
    """All of this machine; none where there is no /proc."""
    return [process_info(int(name)) for name in names_in("/proc", r"\d+")]


def started_at(pid: int) -> Optional[str]:
    """When a process was started, in a form that tells it from a later one of the same pid; None if it is gone."""
    if os.path.exists("/proc/self/stat"):
        found = process_info(pid)
        return found.started if found.state not in DEAD else None
    with contextlib.suppress(OSError):
        done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
        return done.stdout.strip() or None
    return None


def command_line(pid: int) -> str:
    """What a process was started as, for people; empty where that can't be read."""
    words = about(pid, "cmdline")[:4096].split(b"\0")
    return clean(b" ".join(words).decode(errors="replace").strip())


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal; False where that can't be known."""
    caught = re.search(rb"(?m)^SigCgt:\s*([0-9a-f]+)", about(pid, "status"))
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


def has_mark(pid: int, mark: bytes) -> bool:
    return mark in about(pid, "environ").split(b"\0")


def opened_for_writing(pid: int) -> Iterator[str]:
    """The files that a process has open so, as far as /proc tells."""
    for number in names_in(f"/proc/{pid}/fd", r"\d+"):
        flags = re.search(rb"flags:\s*([0-7]+)", about(pid, f"fdinfo/{number}"))
        if flags and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY:
            yield os.path.realpath(f"/proc/{pid}/fd/{number}")


def send(number: int, target: int) -> bool:
    """Send a signal to a process, or to a group by its negative number; False where there is none that may get it."""
    try:
        os.kill(target, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


class Group:
    """The process group of a training, and what its leader has started in sessions of their own.

    The leader is reaped as soon as it has exited; its number stays the group's as long as the group has members."""

    def __init__(self, leader: int) -> None:
        self.leader = leader
        self.started = started_at(leader)
        self.strays: dict[int, str] = {}  # pid -> when it was started: descendants outside the group
        self.exit: Optional[Exit] = None

    def poll(self) -> Optional[Exit]:
        """How the leader ended; None while it runs. Once it has told, it can't be asked again."""
        pid, status, usage = os.wait4(self.leader, os.WNOHANG)
        if pid:
            unit = 1 if sys.platform == "darwin" else 1024
            code = os.waitstatus_to_exitcode(status)
            self.exit = Exit(code, round(usage.ru_utime + usage.ru_stime, 3), usage.ru_maxrss * unit)
        return self.exit

    def members(self) -> list[int]:
        """The living processes of the group; zombies are none. Without /proc its number stands for them all."""
        if not send(0, -self.leader):
            return []
        known = processes()
        if not known:
            return [self.leader]
        return [each.pid for each in known if each.group == self.leader and each.state not in DEAD]

    def signal(self, number: int) -> None:
        send(number, -self.leader)

    def owns(self, info: ProcessInfo) -> bool:
        """Whether a process is the training's, whoever its parent is."""
        return info.group == self.leader

    def remember_strays(self) -> None:
        """Find them while their parents live: later nothing tells whose they are."""
        known = processes()
        children: defaultdict[int, list[ProcessInfo]] = defaultdict(list)
        for each in known:
            children[each.parent].append(each)
        # What was a stray before stays one, whether or not its own parent lives.
        family = [each for each in known if self.owns(each) or self.strays.get(each.pid) == each.started]
        for each in family:  # which grows meanwhile, generation by generation
            family += children.pop(each.pid, [])
        self.strays.update((each.pid, each.started) for each in family if each.group != self.leader)

    def signal_strays(self, number: int) -> None:
        for pid, started in self.strays.items():
            if started_at(pid) == started:
                send(number, pid)

    def kill(self) -> None:
        """KILL the group and the strays (torchrun's workers have sessions of their own).

        They are stopped first: between a look at them and KILL, one could start another or leave the group."""
        self.signal(signal.SIGSTOP)
        stopped: Optional[dict[int, str]] = None
        while self.strays != stopped:
            stopped = dict(self.strays)
            self.signal_strays(signal.SIGSTOP)
            self.remember_strays()
        self.signal(signal.SIGKILL)
        self.signal_strays(signal.SIGKILL)

    def writes_to(self, paths: Collection[str]) -> str:
        """Which of these files and directories the training has open for writing; empty where none is known to be."""
        self.remember_strays()
        for pid in (*self.members(), *self.strays):
            for file in opened_for_writing(pid):
                for path in paths:
                    if f"{file}/".startswith(f"{path}/"):
                        return path
        return ""

    def is_suspended(self) -> bool:
        """Whether the leader is stopped (SIGSTOP, Ctrl+Z, Slurm's suspend)."""
        return process_info(self.leader).state == "T"


@dataclass
class StopRules:
    """When a training is asked to end, and how."""

    signal: str = "auto"  # a name without SIG, or auto
    grace: float = GRACE  # seconds
    launcher: tuple[str, ...] = ()  # the words that stand before the training script, if it isn't Python itself
    folder: str = os.devnull  # where the training writes its checkpoints; nothing is ever found in this one
    checkpoints: str = ""  # the pattern of their names
    timeout: Optional[float] = None  # seconds that it may take
    stall: Optional[float] = None  # seconds that it may print nothing

    def choose(self, group: Group) -> int:
        """The first signal. A person's Ctrl+C is INT, and Python cleans up on it; TERM cleans up only where a program
        handles it. So it is TERM for one that does, INT for others."""
        if self.signal != "auto":
            return int(getattr(signal, f"SIG{self.signal}"))
        asked = {group.leader}
        if self.launcher:
            if os.path.basename(self.launcher[0]) in HANDS_ON_NOTHING:
                # `srun -X` hands INT on; that its helper process catches TERM says nothing of the trainer.
                hands_on = {"-X", "--disable-status"} & set(self.launcher)
                return signal.SIGINT if hands_on else signal.SIGTERM
            group.remember_strays()  # torchrun's workers have sessions of their own
            # What a launcher catches says nothing of the trainer behind it; but `nice` becomes the trainer.
            asked = {*group.members(), *group.strays} - asked or asked
        return signal.SIGTERM if any(catches(pid, signal.SIGTERM) for pid in asked) else signal.SIGINT


class Ending:
    """The end of a group, step by step: the stop signal, TERM if it has had none, KILL, each when the one before has
    not helped; none while a checkpoint is being written, within bounds."""

    def __init__(self, group: Group, rules: StopRules, now: float) -> None:
        """Begin: with the signal where there is no checkpoint that could be cut off, else with a first look at it."""
        self.group, self.rules = group, rules
        self.grace = rules.grace
        self.sent: list[int] = []  # the signals so far
        self.sent_at = -math.inf
        self.given_up = self.has_waited = self.is_to_look_round = False
        self.wait_until = now + 2 * rules.grace  # for a checkpoint, at the longest
        self.look: dict[str, tuple[int, int]] = {}  # at checkpoints, since the latest signal
        self.saving = ""  # the checkpoint that is being written
        self.changed_at = now  # when a look last found a change, or was the first one
        self.short_saves = 0  # looks in a row that found a new file, or a rewritten one, but none that grows
        self.deadline = now
        self.step(now)

    def step(self, now: float) -> list[str]:
        """Do what is due; returns what there is to say of it."""
        if self.is_to_look_round:
            self.is_to_look_round = False
            self.group.remember_strays()
        if now < self.deadline:
            return []
        if signal.SIGKILL in self.sent:
            self.given_up = True
            self.deadline = math.inf
            return []
        if now >= self.wait_until or not self.is_saving(now):
            return self.send_next(now)
        self.deadline = now + (LOOK if self.short_saves < 3 else QUICK_LOOK)
        if self.has_waited or not self.saving:
            return []
        self.has_waited = True
        longest = show_duration(round(self.wait_until - now))
        return [f"waiting for {self.saving} to be written (at most {longest})"]

    def is_saving(self, now: float) -> bool:
        """Whether a checkpoint is being written: it has changed between two looks, or is held open. At the first look
        at any it may be. Sizes and times are only compared with each other: NFS has its own clock."""
        before = self.look
        self.look = being_written(self.rules.folder, self.rules.checkpoints)
        if not before:
            self.changed_at = now
            return bool(self.look)
        changed = [name for name, look in self.look.items() if look != before.get(name)]
        if changed:
            grows = any(name in before and self.look[name][0] != before[name][0] for name in changed)
            self.short_saves = 0 if grows else self.short_saves + 1
            self.changed_at = now
            self.saving = changed[0]
            return True
        self.short_saves = 0
        if now >= self.changed_at + PAUSE:  # it hangs
            return False
        names = {os.path.realpath(os.path.join(self.rules.folder, name)): name for name in self.look}
        self.saving = names.get(self.group.writes_to(names), "")
        return bool(self.saving)

    def send_next(self, now: float) -> list[str]:
        """The signal whose turn it is; returns what there is to say of it."""
        if not self.sent:
            number, patience, said = self.rules.choose(self.group), max(KILL_GAP, self.grace), []
            self.group.signal(number)
            self.is_to_look_round = True  # later: of many trainings each is to get its own signal at once
        elif signal.SIGTERM not in self.sent:
            number, patience = signal.SIGTERM, TERM_GAP
            said = [f"did not end on {signal_name(self.sent[-1])}, gets SIGTERM"]
            self.group.signal(number)
        else:
            number, patience = signal.SIGKILL, GIVE_UP
            said = [f"did not end on {signal_name(self.sent[-1])}, killed"]
            self.group.kill()
        self.sent.append(number)
        self.sent_at, self.deadline = now, now + patience
        self.look = {}  # what has been saved meanwhile is not being written
        return said

    def hurry(self, now: float) -> None:
        """The next signal as soon as may be, whatever is being written."""
        self.grace, self.wait_until = 0.0, -math.inf
        if signal.SIGKILL not in self.sent:
            self.deadline = min(self.deadline, max(now, self.sent_at + KILL_GAP))

    def suspend(self, seconds: float) -> None:
        """Suspended time is no time."""
        self.deadline += seconds
        self.wait_until += seconds


class Log:
    """A log that is written as its stream comes. What goes wrong with it is kept and told, never raised."""

    def __init__(self, path: str, users: int) -> None:
        """Raises OSError where the file can't be opened."""
        self.path = path
        self.name = os.path.basename(path)
        self.users = users  # the Tees that write to it; the last one closes it
        self.lock = threading.Lock()
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)

    def write(self, parts: Sequence[bytes]) -> str:
        """Append, in one piece; returns what went wrong. A disk that is full may have room again for the next."""
        try:
            left = sum(map(len, parts)) - os.writev(self.descriptor, parts)
            while left:
                left -= os.write(self.descriptor, b"".join(parts)[-left:])
        except (OSError, MemoryError) as error:
            return str(getattr(error, "strerror", repr(error)))
        return ""

    def leave(self) -> bool:
        """A user is done with it; returns whether it was the last one."""
        with self.lock:
            self.users -= 1
            return self.users == 0

    def put_back(self) -> bool:
        """Whether a trainer that remakes its directory has taken it away; then it is back. What is open still has
        every byte. Raises OSError where another stands in its place, or there is no room."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.path), os.fstat(self.descriptor)):
                return False
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.dirname(self.path))
        with open(self.descriptor, "rb", closefd=False) as source, open(self.path, "xb") as target:
            source.seek(0)
            shutil.copyfileobj(source, target, BLOCK)
        return True

    def close(self) -> str:
        """Returns what went wrong: some file systems tell only now that a quota was exceeded."""
        try:
            os.close(self.descriptor)
        except OSError as error:
            return str(error.strerror)
        return ""


def stamp(label: str) -> bytes:
    """What stands before a line of combined.log."""
    now = time.time()
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    return f"{clock}.{int(now % 1 * 1000):03d} [{label}] ".encode()


Message = Callable[["Process"], None]  # from a Tee to the loop: what its Process is to take in


class Tee(threading.Thread):
    """Copies one stream of a training to its log as it comes, and stamped line by line to combined.log.

    It is started before the training's directory is touched and waits for `begin`, so that a shortage of threads
    costs nothing. Nothing is queued: a slow disk slows the training, and never fills the memory."""

    def __init__(self, stream: str, source: int, wake: int, post: Callable[[Message], None]) -> None:
        """`wake` is at its end once `must_measure` was set."""
        super().__init__(name=f"tee {stream}", daemon=True)
        self.stream, self.source, self.post = stream, source, post
        self.begun: queue.SimpleQueue[bool] = queue.SimpleQueue()  # whether there is a training
        self.rest = b""  # the unfinished line
        self.after_return = False  # the last block ended with \r: a \n that follows belongs to it
        self.announced = False  # the loop has been told of news, and has not taken them yet
        self.failed: set[str] = set()  # the logs of which it was told
        self.must_measure = False  # the group is gone: only what the pipe holds now is still read
        self.left = math.inf  # so many bytes of it
        self.buffer = memoryview(bytearray(BLOCK))  # used again: new ones of this size tear the heap to pieces
        self.quiet_since = math.inf  # when it began to wait for output; infinite while it has some in hand
        os.set_blocking(source, False)  # a poll before each read would halve the speed of small writes
        self.poll = select.poll()
        self.poll.register(source, select.POLLIN)
        self.poll.register(wake, select.POLLIN)

    def begin(
        self, log: Log, combined: Log, read: Callable[[bytes], bool], follow: Optional[Callable[[bytes], None]]
    ) -> None:
        self.log, self.combined, self.read, self.follow = log, combined, read, follow
        self.begun.put(True)

    def dismiss(self) -> None:
        """There is no training: end the thread."""
        self.begun.put(False)
        self.join()

    def run(self) -> None:
        if not self.begun.get():
            return
        while block := self.next_block():
            self.tell(self.log, self.log.write([block]))
            self.take(block)
        is_at_end = bool(dict(self.poll.poll(0)).get(self.source, 0) & select.POLLHUP)  # nobody holds its other end
        if self.rest:
            self.take(b"\n")
        os.close(self.source)
        for log in (self.log, self.combined):
            if log.leave():
                self.finish(log)
        self.quiet_since = time.monotonic()
        self.post(lambda process: process.on_end(self.stream, is_at_end))

    def next_block(self) -> bytes:
        """Some bytes of the stream; none at its end, or when all is read that a group has left."""
        while True:
            if self.must_measure:
                self.must_measure = False
                waiting = fcntl.ioctl(self.source, termios.FIONREAD, bytes(4))
                self.left = int.from_bytes(waiting, sys.byteorder)
            try:  # where nothing is left, nothing is asked for, and comes
                size = os.readv(self.source, [self.buffer[: int(min(BLOCK, self.left))]])
            except BlockingIOError:
                self.quiet_since = time.monotonic()
                self.poll.poll()
                self.quiet_since = math.inf
                continue
            self.left -= size
            return bytes(self.buffer[:size])

    def take(self, block: bytes) -> None:
        """Whatever goes wrong (there is no memory), the training must not be held up by a pipe that nobody reads."""
        try:
            self.take_lines(block)
        except Exception as error:
            self.rest = b""
            self.tell(self.combined, f"{type(error).__name__}: {error}")

    def take_lines(self, block: bytes) -> None:
        """Hand on the lines that have come to their end; the rest is kept until there is more."""
        if self.after_return:
            block = block.removeprefix(b"\n")
        self.after_return = block[-1:] == b"\r"
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        end = block.rfind(b"\n") + 1
        if not end:
            self.rest += block
            if len(self.rest) <= LINE_LIMIT:
                return
            block, end = b"\n", 1  # an endless line is broken here, in combined.log only
        lines = self.rest + block[:end]
        self.rest = block[end:]
        mark = stamp(self.stream.upper())
        stamped = [mark, lines[:-1].replace(b"\n", b"\n" + mark), b"\n"]
        self.tell(self.combined, self.combined.write(stamped))
        if self.follow:
            self.follow(lines)
        if self.read(lines) and not self.announced:
            self.announced = True  # the loop is woken once until it takes them, however fast the training prints
            self.post(lambda process: None)

    def finish(self, log: Log) -> None:
        try:
            if log.put_back():
                self.post(lambda process: process.remark(f"{log.name} had been deleted, and was put back"))
        except OSError as error:
            self.tell(log, f"it was deleted or replaced, and can't be put back: {error.strerror}")
        self.tell(log, log.close())

    def tell(self, log: Log, problem: str) -> None:
        """What went wrong with a log, if it did, the first time."""
        if problem and log.name not in self.failed:
            self.failed.add(log.name)
            self.post(lambda process: process.on_log_failure(log.name, problem))


def open_pipe(taken: contextlib.ExitStack) -> tuple[int, int]:
    source, sink = os.pipe()
    taken.callback(os.close, source)
    taken.callback(os.close, sink)
    return source, sink


class Launch:
    """The pipes and threads of a training, which it needs before its directory may be touched."""

    def __init__(self, post: Callable[[Message], None]) -> None:
        """Raises OSError or RuntimeError where they can't be had, and then nothing is left of it."""
        self.tees: list[Tee] = []
        self.sinks: list[int] = []
        with contextlib.ExitStack() as taken:
            self.wake = open_pipe(taken)
            for stream in ("stdout", "stderr"):
                source, sink = open_pipe(taken)
                with contextlib.suppress(OSError):  # refused once a user holds many, and known to Linux only
                    fcntl.fcntl(source, getattr(fcntl, "F_SETPIPE_SZ", 1031), PIPE_SIZE)
                tee = Tee(stream, source, self.wake[0], post)
                tee.start()
                taken.callback(tee.dismiss)
                self.tees.append(tee)
                self.sinks.append(sink)
            self.taken = taken.pop_all()

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> Group:
        """Start the training; raises OSError where it can't be."""
        out, err = self.sinks
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, start_new_session=True
        )
        process.returncode = 0  # it is reaped by its Group, never by Popen
        for sink in self.sinks:
            os.close(sink)
        self.taken.pop_all()  # the rest belongs to the Tees now, and to `drain` and `close`
        return Group(process.pid)

    def abandon(self) -> None:
        """Give back what was taken; there is no training."""
        self.taken.close()

    def quiet_since(self) -> float:
        """Since when nothing was printed; infinite while a slow disk holds a Tee up, which may have more to read."""
        return max(tee.quiet_since for tee in self.tees)

    def drain(self) -> None:
        """The group is gone: each stream ends once its Tee has what the pipe holds now."""
        for tee in self.tees:
            tee.must_measure = True
        os.close(self.wake[1])  # which wakes those that wait

    def close(self) -> None:
        """Both streams have ended; a Tee that hangs in a write still has use for the pipe."""
        os.close(self.wake[0])


class Phase(enum.Enum):
    """How far a process is on its way."""

    RUNNING = "running"
    STOPPING = "asked to end"
    LINGERING = "the leader has ended, others of its group may not have"
    DRAINING = "the group is gone, what it has printed is still being read"
    OVER = "over"


class Process:
    """A training from its launch to the end of its streams. All of it is the loop's, no thread's.

    RUNNING -> STOPPING -> LINGERING -> DRAINING -> OVER; `enter` is the one place in which the phase changes. Each
    phase has one deadline; `step` does what is due."""

    def __init__(self, group: Group, launch: Launch, rules: StopRules, now: float) -> None:
        self.group, self.launch, self.rules = group, launch, rules
        self.phase = Phase.RUNNING
        self.began = self.ended_at = now
        self.clock = now  # from when the timeout counts
        self.awake_since = now  # from when silence counts: a suspension is over, a queue is left
        self.is_queued = False  # srun waits for resources, and time doesn't count
        self.open = {"stdout", "stderr"}
        self.ending: Optional[Ending] = None  # once it has been asked to end
        self.reason = ""  # why it was
        self.is_stuck = False  # KILL did not end it, or a disk holds its output: what it was given is not given back
        self.is_unkillable = False
        self.kill_left = False  # what lingers has been killed
        self.patience = math.inf  # seconds that a disk gets for what has been printed
        self.failed_logs: dict[str, str] = {}  # log -> what went wrong first
        self.is_left_open = False  # a process outside the group holds a stream
        self.remarks: list[str] = []  # to be said
        self.warnings: list[str] = []  # to be kept with the result
        self.deadline, _ = self.next_limit(now)

    def enter(self, phase: Phase, deadline: float) -> None:
        self.phase, self.deadline = phase, deadline

    # ---- what its Tees have to tell

    def on_log_failure(self, log: str, text: str) -> None:
        if log not in self.failed_logs:
            self.failed_logs[log] = text
            self.remark(f"{log} is incomplete: {text}")

    def on_end(self, stream: str, is_at_end: bool) -> None:
        self.open.discard(stream)
        if not is_at_end and not self.is_left_open:
            self.is_left_open = True
            self.remarks.append("a process outside its group still holds its output, left alone")

    def remark(self, text: str) -> None:
        """Something to be said, and to be kept with the result."""
        self.remarks.append(text)
        self.warnings.append(text)

    # ---- what the loop wants of it

    def stop(self, reason: str, now: float) -> None:
        """Ask the group to end; does nothing where it has been asked, or has ended by itself."""
        self.note_exit(now)
        if self.phase is Phase.RUNNING:
            self.reason = reason
            self.ending = Ending(self.group, self.rules, now)
            self.enter(Phase.STOPPING, self.ending.deadline)

    def hurry(self, now: float) -> None:
        """No more patience: KILL as soon as may be, and no waiting for a disk."""
        self.patience = GIVE_UP
        if self.phase is Phase.DRAINING:
            self.deadline = min(self.deadline, now + GIVE_UP)
        elif self.ending:
            self.ending.hurry(now)
            self.deadline = self.ending.deadline
        elif self.phase is Phase.LINGERING and not self.kill_left:
            self.deadline = now

    def set_queued(self, is_queued: bool, now: float) -> None:
        """srun waits for resources, or has them: the time in a queue doesn't count."""
        if is_queued == self.is_queued:
            return
        self.is_queued = is_queued
        self.clock = self.awake_since = now
        if self.phase is Phase.RUNNING:
            self.deadline, _ = self.next_limit(now)

    def suspend(self, seconds: float, now: float) -> None:
        """All stood still for so long: deadlines move by it, and silence counts anew."""
        self.clock += seconds
        self.deadline += seconds
        self.awake_since = now
        if self.ending:
            self.ending.suspend(seconds)

    def next_look(self) -> float:
        """The monotonic time at which `step` is to be called, unless an event comes first."""
        if self.phase is Phase.LINGERING:
            return min(self.deadline, time.monotonic() + POLL)
        return self.deadline

    # ---- the way to the end

    def step(self, now: float) -> None:
        """Do what is due, through as many phases as have passed."""
        self.note_exit(now)
        if self.phase is Phase.RUNNING and now >= self.deadline:
            self.deadline, reason = self.next_limit(now)  # output has moved it, perhaps
            if now >= self.deadline:
                self.stop(reason, now)
        if self.phase is Phase.STOPPING:
            self.step_ending(now)
        if self.phase is Phase.LINGERING:
            self.step_lingering(now)
        if self.phase is Phase.DRAINING:
            self.step_draining(now)

    def note_exit(self, now: float) -> None:
        """Once the leader has ended, what is left of its group lingers."""
        if self.phase in (Phase.RUNNING, Phase.STOPPING) and self.group.poll():
            self.ended_at = now
            self.enter(Phase.LINGERING, now + LINGER)

    def next_limit(self, now: float) -> tuple[float, str]:
        """When it is to be stopped, and why."""
        if self.is_queued:
            return math.inf, ""
        timeout, stall = or_else(self.rules.timeout, math.inf), or_else(self.rules.stall, math.inf)
        quiet_since = min(now, max(self.awake_since, self.launch.quiet_since()))
        too_long = f"not done after {show_duration(timeout)} (--timeout)"
        too_quiet = f"stalled: no output for {show_duration(stall)} (--stall)"
        return min((self.clock + timeout, too_long), (quiet_since + stall, too_quiet))

    def step_ending(self, now: float) -> None:
        assert self.ending
        self.remarks += self.ending.step(now)
        self.deadline = self.ending.deadline
        if self.ending.given_up:
            self.give_up()

    def step_lingering(self, now: float) -> None:
        left = self.group.members()
        if not left:
            if self.ending:
                self.ended_at = now  # a wrapper dies before what it has wrapped
            self.enter(Phase.DRAINING, now + self.patience)
            self.launch.drain()
        elif self.ending:  # the rest keeps the stop's time: a wrapper dies at once, and the trainer under it may save
            self.step_ending(now)
        elif now >= self.deadline and self.kill_left:
            self.give_up()
        elif now >= self.deadline:
            named = ", ".join(f"pid {pid} ({shorten(command_line(pid), 200)})" for pid in left)
            self.remark(f"killed what it left behind: {named}")
            self.group.kill()
            self.kill_left = True
            self.deadline = now + GIVE_UP

    def give_up(self) -> None:
        """Stuck in a dead GPU or file system: KILL ends it some day, or never; the batch goes on."""
        self.is_stuck = self.is_unkillable = True
        left = self.group.members() or [self.group.leader]  # a zombie, one of whose threads is stuck
        self.reason = f"can't be killed: pid {', '.join(map(str, left))}"
        self.launch.drain()
        self.enter(Phase.OVER, math.inf)

    def step_draining(self, now: float) -> None:
        if self.open and now < self.deadline:
            return
        for name in sorted(self.open):
            self.on_log_failure(LOGS[name], "the disk did not take all of it in time")
        self.is_stuck = bool(self.open)
        self.enter(Phase.OVER, math.inf)


class Guardian:
    """A process of its own that ends the trainings of a runner that was killed.

    It is forked before any thread is started and reads from a pipe which groups run. When the pipe ends without a
    goodbye, the runner is dead, and the guardian ends those groups as a stop would have, and then itself. Unlike a
    signal from the kernel at the death of a parent, it reaches whole groups, has patience, and needs no Linux."""

    def __init__(self, rules: StopRules) -> None:
        """Raises OSError where there can be none; the batch can do without."""
        self.token = f"{os.getpid()}-{time.time_ns()}"
        self.launches = 0
        with contextlib.ExitStack() as taken:
            source, self.pipe = open_pipe(taken)
            self.pid = os.fork()
            taken.pop_all()
        if self.pid == 0:
            run_guardian(source, f"{MARK}={self.token}:", rules)
        os.close(source)
        os.set_blocking(self.pipe, False)

    def mark_next(self) -> dict[str, str]:
        """What goes into the environment of the next training, so that it is found before it is told of."""
        return {MARK: f"{self.token}:{self.launches + 1}"}

    def tell_started(self, group: Group, folder: str) -> None:
        self.launches += 1
        self.tell(group.leader, group.started, self.launches, os.path.abspath(folder))

    def tell_ended(self, group: Group) -> None:
        self.tell(group.leader)

    def say_goodbye(self) -> None:
        """The runner ends by itself; no guardian is left behind."""
        self.tell(GOODBYE)
        os.close(self.pipe)
        self.has_died(flags=0)

    def has_died(self, flags: int = os.WNOHANG) -> bool:
        """Whether somebody has killed it; with 0 for the flags its end is waited for."""
        try:
            return os.waitpid(self.pid, flags)[0] != 0
        except ChildProcessError:
            return True

    def tell(self, *words: Union[int, str, None]) -> None:
        """A dead guardian is told of by `has_died`; a line is short enough to be written in one piece."""
        line = json.dumps(words, ensure_ascii=False) + "\n"
        with contextlib.suppress(OSError):
            os.write(self.pipe, line.encode(errors="surrogateescape"))


class OrphanedGroup(Group):
    """The group of a runner that is dead: with all that bears its mark, whatever session that has gone to."""

    def __init__(self, leader: int, mark: bytes) -> None:
        super().__init__(leader)
        self.mark = mark

    def owns(self, info: ProcessInfo) -> bool:
        return super().owns(info) or has_mark(info.pid, self.mark)

    def members(self) -> list[int]:
        self.remember_strays()
        living = [pid for pid, started in self.strays.items() if started_at(pid) == started]
        return [*super().members(), *living]

    def signal(self, number: int) -> None:
        super().signal(number)
        self.remember_strays()
        self.signal_strays(number)


def run_guardian(pipe: int, mark: str, rules: StopRules) -> NoReturn:
    """The guardian from its first step to its last; never returns to what the runner was doing."""
    try:
        detach(pipe)
        wards, launches = read_wards(pipe)
        endings = begin_endings(wards, mark, rules)
        end_all(endings, f"{mark}{launches + 1}".encode(), rules)
    finally:
        os._exit(0)


def detach(pipe: int) -> None:
    """Leave the runner's session, terminal, files and lock; a signal to the runner is none to its guardian."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    last = max([4096, *map(int, names_in("/dev/fd", r"\d+"))])
    os.closerange(0, pipe)
    os.closerange(pipe + 1, last + 1)
    os.chdir("/")


Ward = tuple[Optional[str], int, str]  # when its leader was started, the number of its launch, its directory


def read_wards(pipe: int) -> tuple[dict[int, Ward], int]:
    """What runs when the pipe ends, by its leader, and how many launches were told of. Raises SystemExit when the
    runner says goodbye."""
    wards: dict[int, Ward] = {}
    launches = 0
    with open(pipe, encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for leader, *told in map(json.loads, lines):
            if leader == GOODBYE:
                sys.exit()
            wards.pop(leader, None)
            if told:
                wards[leader] = tuple(told)
                launches = told[1]
    return wards, launches


def begin_endings(wards: Mapping[int, Ward], mark: str, rules: StopRules) -> list[Ending]:
    """Ask each group to end of which anything still runs."""
    endings = []
    for leader, (started, launch, folder) in wards.items():
        group = OrphanedGroup(leader, f"{mark}{launch}".encode())
        is_another = None not in (started, group.started) and started != group.started
        if group.members() and not is_another:
            endings.append(Ending(group, replace(rules, folder=folder), time.monotonic()))
    return endings


def find_untold(mark: bytes, rules: StopRules) -> list[Ending]:
    """The training that was launched as the runner was killed, and of which it could not tell any more."""
    leaders = [each.pid for each in processes() if each.group == each.pid and has_mark(each.pid, mark)]
    return [Ending(OrphanedGroup(leader, mark), rules, time.monotonic()) for leader in leaders]


def end_all(endings: list[Ending], untold: bytes, rules: StopRules) -> None:
    """End groups side by side, as a stop does: signal, grace, KILL. For some looks more of them may be found: for an
    instant after its fork a training has the runner's environment still."""
    for _ in range(UNTOLD_LOOKS):
        more = find_untold(untold, rules)
        endings = step_each(endings + more)
        if more:
            break
    while endings:
        endings = step_each(endings)


def step_each(endings: list[Ending]) -> list[Ending]:
    """A step of each, once it is due; returns those that have not come to their end."""
    time.sleep(POLL)  # none of them is a child of this process, so no event tells of their end
    for each in endings:
        each.step(time.monotonic())
    return [each for each in endings if not each.given_up and each.group.members()]


# --------------------------------------------------------------------------------------------------- views
# What people see of results: rows, the table, the time that is left, the lines on a console. Nothing here decides, and
# nothing that a console does (blocks, closes, is gone) may reach the loop.

Row = dict[str, Any]  # an experiment, or a group of them, as tables, page and JSON tell it
Column = list[str]  # of a table: its title, and a text for each row
SHORT_NAME = 16  # characters below which no name is cut
LONG = 24  # characters of a setting; of a longer one a part is shown
NO_LIMIT = 100_000  # columns of what is no terminal
FOLLOWED = 1 << 20  # bytes of the trainings' output that wait for a slow console; more is dropped
CHUNK = 4096  # bytes written to a console at a time
STUCK = 2.0  # seconds without progress after which a console is left alone at the end
NOT_COMPARED = ("seed", "device", "out_dir", "wandb_run_name")  # settings in which runs of one seed group may differ
LIKE_NUMBER = re.compile(r"-?\d|inf|nan|\?|$")  # `?`: it isn't known; nothing: it isn't set


def is_finite_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300  # no bool, nor an int beyond floats


def known_values(values: Iterable[Any]) -> list[float]:
    return list(filter(is_finite_number, values))


def grouped(items: Iterable[T], key: Callable[[T], Any]) -> defaultdict[Any, list[T]]:
    """The items of each key, all in their order."""
    groups: defaultdict[Any, list[T]] = defaultdict(list)
    for each in items:
        groups[key(each)].append(each)
    return groups


def elapsed(result: Result) -> Optional[float]:
    """Seconds that an attempt took, or has taken so far."""
    if result.status is Status.RUNNING:
        with contextlib.suppress(ValueError, OverflowError):  # of a damaged file
            return max(0.0, time.time() - datetime.fromisoformat(str(result.start_time)).timestamp())
    return result.duration_seconds


def total_elapsed(result: Result) -> Optional[float]:
    """Seconds of all attempts, those of a running one included."""
    if result.status is Status.RUNNING:
        return sum(known_values([result.total_seconds, elapsed(result)]))
    return or_else(result.total_seconds, result.duration_seconds)


def seconds_left(result: Result) -> Optional[float]:
    """Iterations left times the time per iteration of a running experiment, where both are known."""
    facts = known_values([result.max_iters, result.metrics.step, result.metrics.first_step, elapsed(result)])
    if result.status is not Status.RUNNING or len(facts) < 4:
        return None
    iterations, step, first, took = facts
    return max(0.0, iterations - step) * took / (step - first) if step > first else None


def seconds_needed(result: Result) -> float:
    """What the attempt of a running experiment will have taken; nan where that isn't known."""
    return or_else(seconds_left(result), math.nan) + or_else(elapsed(result), math.nan)


def batch_left(results: Sequence[Result], slots: int) -> Optional[float]:
    """Seconds until a batch is done: what is left of its running experiments, and the usual time for each other one.

    The usual time is the mean of the completed ones, else of what the running ones will have taken."""
    by_status = grouped(results, lambda each: each.status)
    running = by_status[Status.RUNNING]
    lefts = known_values(map(seconds_left, running))
    took = known_values(map(total_elapsed, by_status[Status.COMPLETED])) or known_values(map(seconds_needed, running))
    if not running or not took:  # nothing is on its way, or nothing is known yet
        return None
    others = len(by_status[Status.PENDING]) + len(running) - len(lefts)
    usual = sum(took) / len(took)
    return max([(sum(lefts) + others * usual) / max(1, slots), *lefts])


# ---- rows and tables


def rows_of(results: Sequence[Result]) -> list[Row]:
    """What the table, the page and --status --json tell of each experiment."""
    keys = "status error hint warnings stderr_tail attempts settings device last_line config_path".split()
    losses = known_values(each.metrics.best_val_loss for each in results)
    best = min(losses) if len(losses) > 1 else math.nan
    rows = []
    for each in results:
        row = {"name": each.config_name, "progress": show_progress(each), **to_json(each.metrics)}
        row.update((key, getattr(each, key)) for key in keys)
        row.update(duration_seconds=elapsed(each), total_seconds=total_elapsed(each), eta_seconds=seconds_left(each))
        row["best"] = each.metrics.best_val_loss == best
        rows.append(row)
    return rows


def show_progress(result: Result) -> str:
    step = result.metrics.step
    if step is None:
        return ""
    return f"{step}/{result.max_iters}" if result.max_iters else str(step)


def show_spread(mean: Optional[float], deviation: Optional[float]) -> str:
    return "" if mean is None else f"{show_loss(mean)} ± {show_loss(deviation)}"


FACTS: dict[str, Callable[[Row], str]] = {  # a column's title -> what stands in it
    "status": lambda row: str(row["status"]) + (" (!)" if row["warnings"] else ""),
    "step": lambda row: row["progress"],
    "train loss": lambda row: show_loss(row["train_loss"], ""),
    "val loss": lambda row: show_loss(row["val_loss"], ""),
    "best (*: of all)": lambda row: show_loss(row["best_val_loss"], "") + ("*" if row["best"] else ""),
    "at step": lambda row: "" if row["best_step"] is None else str(row["best_step"]),
    "duration": lambda row: show_duration(row["total_seconds"], ""),
    "ETA": lambda row: show_duration(row["eta_seconds"], ""),
    "completed": lambda row: f"{row['completed']} of {row['total']}",
    "best val loss": lambda row: show_spread(row["best_mean"], row["best_std"]),
    "last val loss": lambda row: show_spread(row["last_mean"], row["last_std"]),
}
TABLE = ("status", "step", "val loss", "best (*: of all)", "duration", "ETA")
GROUP_TABLE = ("completed", "best val loss", "last val loss")


def fact_columns(titles: Iterable[str], rows: Sequence[Row]) -> list[Column]:
    """A column for each of these facts of which something is known."""
    columns = [[title, *map(FACTS[title], rows)] for title in titles]
    return [column for column in columns if any(column[1:])]


def setting_columns(rows: Sequence[Row]) -> list[Column]:
    """A column for each setting in which the rows differ, and for the device; `?` is what isn't known."""
    settings = [{"device": or_else(row.get("device"), ""), **row["settings"]} for row in rows]
    columns = []
    for key in keys_of(settings):
        values = [or_else(each.get(key, ""), "?") for each in settings]
        texts = list(map(clean, map(str, values)))
        if len(set(texts)) > 1:
            columns.append([key, *texts])
    return columns


def keys_of(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys of all of these, as they come."""
    return list(dict.fromkeys(itertools.chain.from_iterable(settings)))


def differing_parts(texts: Sequence[str]) -> list[str]:
    """Values of a setting; of long ones a part that begins shortly before they differ."""
    long = {text for text in texts if len(text) > LONG}
    common = os.path.commonprefix(list(long)) if len(long) > 1 else ""
    start = max(0, len(common) - LONG // 2)
    parts = {text: text[start : start + LONG].strip() + "…" for text in long}
    return [parts.get(text, text) for text in texts]


def is_numeric(column: Sequence[str]) -> bool:
    return all(map(LIKE_NUMBER.match, column[1:]))


def result_lines(results: Sequence[Result], width: int = NO_LIMIT) -> list[str]:
    """The results as lines for people: one for each, which fits the width, and under it what went wrong with it; then
    one for each group of seeds."""
    rows = rows_of(results)
    settings = [[clean(key), *differing_parts(texts)] for key, *texts in setting_columns(rows)]
    names = ["experiment", *map(name_of, rows)]
    head, *lines = lay_out(names, [*fact_columns(TABLE, rows), *settings], width)
    told = [head]
    for row, line in zip(rows, lines):
        told += [line, *notes_of(row)]
    groups = seed_groups(results)
    if groups:
        told += lay_out(["over seeds", *map(name_of, groups)], fact_columns(GROUP_TABLE, groups), width)
    return told


def name_of(row: Row) -> str:
    return clean(row["name"])


def notes_of(row: Row) -> list[str]:
    """The lines under a row."""
    notes = [("error", error_of(row)), ("hint", row["hint"])]
    if row["status"] is Status.RUNNING:  # where no step is printed, its last line is what there is to show
        notes.append(("prints", shorten(row["last_line"], 70)))
    notes += zip(itertools.repeat("warning"), row["warnings"])
    return [f"    {label}: {clean(text)}" for label, text in notes if text]


def error_of(row: Row) -> str:
    """What went wrong, where that says more than the status does."""
    error: str = or_else(row["error"], "")
    return "" if error.startswith("stopped by") else error  # that is what `interrupted` says


def lay_out(names: Sequence[str], columns: Iterable[Sequence[str]], width: int) -> list[str]:
    """Names and columns, each with its title, as lines of at most this width: columns that don't fit are left out, and
    names are cut in the middle."""
    longest = max(map(len, names))
    room = width - min(SHORT_NAME, longest)
    kept = []
    for column in columns:
        wide = max(map(len, column))
        if wide + 2 <= room:
            room -= wide + 2
            to_side = str.rjust if is_numeric(column) else str.ljust
            kept.append([to_side(cell, wide) for cell in column])
    wide = min(longest, SHORT_NAME + max(0, room))
    cut = [shorten(name, wide).ljust(wide) for name in names]
    return ["  ".join(line).rstrip() for line in zip(cut, *kept)]


def seed_groups(results: Sequence[Result]) -> list[Row]:
    """The experiments of a config that differ in nothing but their seed, the best group first."""
    seeded = [each for each in results if "seed" in each.settings]
    alike = grouped(seeded, lambda each: json.dumps([each.config_path, compared(each.settings)], sort_keys=True))
    groups = [seed_group(members) for members in alike.values() if len(members) > 1]
    return sorted(groups, key=lambda group: or_else(group["best_mean"], math.inf))


def compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in which a seed group's experiments are alike."""
    return {key: value for key, value in settings.items() if key not in NOT_COMPARED}


def seed_group(members: Sequence[Result]) -> Row:
    """Its name is that of an experiment without the seed, or what the names begin with."""
    names = [re.sub(r"__seed_[^_]*|.*/", "", each.config_name) for each in members]
    done = grouped(members, lambda each: each.status)[Status.COMPLETED]
    row: Row = {"name": os.path.commonprefix(names), "settings": compared(members[0].settings)}
    row.update(completed=len(done), total=len(members))
    row["best_mean"], row["best_std"] = mean_and_deviation(each.metrics.best_val_loss for each in done)
    row["last_mean"], row["last_std"] = mean_and_deviation(each.metrics.val_loss for each in done)
    return row


def mean_and_deviation(losses: Iterable[Optional[float]]) -> tuple[Optional[float], Optional[float]]:
    """Mean and sample standard deviation of two or more losses that are known and finite."""
    import statistics  # some ms that only a sweep over seeds costs

    finite = known_values(losses)
    if len(finite) < 2:
        return None, None
    return statistics.fmean(finite), statistics.stdev(finite)


# ---- the live block


def live_lines(running: Sequence[Result], everyone: Sequence[Result], slots: int, size: tuple[int, int]) -> list[str]:
    """The block at the foot of a terminal: a line per running experiment, as many as fit, and one for the batch."""
    width, height = size
    seen = running[: max(1, height - 4)]
    names, *columns = zip([""] * 6, *map(live_cells, seen))
    lines = lay_out(names, columns, width - 1)[1:]
    for number, each in enumerate(seen):
        if each.metrics.step is None and each.last_line:  # it is what there is to show
            lines[number] = f"{shorten(each.config_name, SHORT_NAME)}  {clean(each.last_line)}"
    if len(seen) < len(running):
        lines.append(f"... and {len(running) - len(seen)} more")
    lines.append(show_counts(count_statuses(everyone)) + show_eta(batch_left(everyone, slots), "; "))
    return [line[: max(1, width - 1)] for line in lines]


def show_eta(left: Optional[float], before: str = "") -> str:
    return "" if left is None else f"{before}ETA {show_duration(round(left))}"


def live_cells(result: Result) -> list[str]:
    return [
        result.config_name,
        f"iter {show_progress(result) or 0}",
        f"loss {show_loss(result.metrics.train_loss)}",
        f"val {show_loss(result.metrics.val_loss)}",
        show_duration(round(or_else(elapsed(result), 0.0))),
        show_eta(seconds_left(result)),
    ]


# ---- consoles


def terminal_size() -> tuple[int, int]:
    """Columns and rows of the terminal that stderr is."""
    with contextlib.suppress(OSError):
        size = os.get_terminal_size(2)
        if all(size):  # zero is what nobody has set
            return size
    return 80, 24


def terminal_width() -> int:
    """The columns of the terminal that stdout is, or of $COLUMNS; no limit elsewhere."""
    return shutil.get_terminal_size((NO_LIMIT, 24)).columns or NO_LIMIT


def encoded(text: str) -> memoryview:
    return memoryview(text.encode(sys.getfilesystemencoding(), "backslashreplace"))


def print_whole(lines: Iterable[str]) -> None:
    """Print what was asked for, at the pace of its reader; raises UsageError where it can't be written."""
    data = encoded("\n".join([*lines, ""]))
    try:
        os.set_blocking(1, True)  # another program may have left the terminal otherwise
        while data:
            data = data[os.write(1, data) :]
    except BrokenPipeError:
        pass  # `head` has seen enough
    except OSError as error:
        raise UsageError(f"can't write to stdout: {error.strerror}") from None


def print_error(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, encoded(f"error: {clean(text)}\n"))


class Console(threading.Thread):
    """The runner's own output while a batch runs: lines, and under them on a terminal a live block.

    A thread of its own writes, so that a reader that is slow or gone costs lines of --follow, and no time of the loop
    or of a training. Until `start`, nothing is written."""

    def __init__(self, quiet: bool) -> None:
        super().__init__(name="console", daemon=True)
        self.quiet = quiet
        self.live = not quiet and is_for_blocks()
        self.changed = threading.Condition()
        self.waiting: list[tuple[str, bytes]] = []  # lines, and what to write before each of them
        self.waiting_bytes = 0
        self.unwritten = 0  # calls whose effect isn't on the screen yet
        self.dropped = 0  # lines of the trainings' for which there was no room
        self.block: list[str] = []  # the live block as it should stand
        self.drawn: list[str] = []  # and as it stands
        self.progress = 0.0  # when something was last written

    # ---- for the loop and the Tees; none of these waits for the console

    def line(self, text: str, even_if_quiet: bool = False) -> None:
        self.put("", text.encode(errors="backslashreplace"), even_if_quiet)

    def follow(self, name: str, lines: bytes) -> None:
        """Lines of a training, for --follow."""
        with self.changed:
            if self.waiting_bytes > FOLLOWED:
                self.dropped += lines.count(b"\n")
            else:
                self.put(name, lines)

    def draw(self, block: list[str]) -> None:
        """Put a block in the place of the one on the screen."""
        if self.live:
            self.block = block
            self.wake()

    def put(self, before: str, lines: bytes, even_if_quiet: bool = False) -> None:
        if self.quiet and not even_if_quiet:
            return
        with self.changed:
            self.waiting.append((before, lines))
            self.waiting_bytes += len(lines)
            self.wake()

    def wake(self) -> None:
        with self.changed:
            self.unwritten += 1
            self.changed.notify_all()

    def settle(self, patience: float) -> None:
        """Wait until all is written, or nothing has been for so many seconds."""
        self.progress = time.monotonic()
        with self.changed:
            while self.unwritten and time.monotonic() < self.progress + patience:
                self.changed.wait(0.1)

    # ---- the thread

    def run(self) -> None:
        done = 0
        while True:
            with self.changed:
                self.unwritten -= done
                self.changed.notify_all()
                self.changed.wait_for(lambda: self.unwritten)
                done = self.unwritten
                entries, dropped, block = self.waiting, self.dropped, self.block
                self.waiting, self.waiting_bytes, self.dropped = [], 0, 0
            text = "".join(itertools.starmap(shown_lines, entries))
            if dropped:
                text += f"... {dropped} lines dropped: the console is slow, the logs have them\n"
            if text:
                self.replace_block([])
                self.write(1, text)
            self.replace_block(block)

    def replace_block(self, block: list[str]) -> None:
        """In the background nothing is drawn over what the shell does."""
        if block == self.drawn or not is_in_front():
            return
        width = terminal_size()[0]
        rows = sum(max(1, -(-len(line) // width)) for line in self.drawn)  # a narrower window has wrapped them
        rest = "\x1b[J" if len(block) < rows else ""  # first: behind the lines it is too late for a tmux that shrank
        self.write(2, "\x1b[A" * rows + "\r" + rest + "\x1b[K\n".join([*block, ""]))
        self.drawn = block

    def write(self, descriptor: int, text: str) -> None:
        """What can't be written, to a pipe that is closed say, is left out."""
        data = encoded(text)
        with contextlib.suppress(OSError):
            os.set_blocking(descriptor, True)
            while data:
                data = data[os.write(descriptor, data[:CHUNK]) :]
                self.progress = time.monotonic()


def shown_lines(before: str, data: bytes) -> str:
    lines = data.decode(errors="replace").expandtabs().splitlines()
    return "".join(f"{before}{clean(line)}\n" for line in lines)


def is_for_blocks() -> bool:
    """Whether stderr is a terminal that can draw a block, and stdout is not a pipe to it."""
    if not os.isatty(2) or os.environ.get("TERM", "dumb") == "dumb":
        return False
    # With `| tee` its lines come to the same terminal at moments that can't be known.
    return not stat.S_ISFIFO(os.fstat(1).st_mode)


def is_in_front() -> bool:
    """Whether the terminal is this program's own just now, not that of the shell which put it in the background."""
    try:
        return os.tcgetpgrp(2) == os.getpgrp()
    except OSError:
        return True


# ---------------------------------------------------------------------------------------------------- page
# report.html: the template and what fills it, from data to HTML text. Nothing here reads or writes a file. Every text
# may come from a stranger's config, so it is escaped where it enters the HTML; the script gets it as JSON only.

MAX_CURVES = 100  # are drawn; more can't be told apart
MAX_LINKS = 6000  # to files, shared out among the rows, of which each has its first: 60,000 are a page of 10 MB
MAX_SHOWN = 500  # rows, until the reader asks for all; the style sheet has the number too
CELLS = {"name": "<th>", "n": "<td>", "s": '<td class="s">', "f": '<td class="f">'}  # name, number, text, files
PAGE_FACTS = ("step", "train loss", "val loss", "best (*: of all)", "at step", "duration", "ETA")
SIGN = "⚠\ufe0e"


@dataclass
class PageHead:
    """What stands at the top of a page."""

    title: str
    state: str  # the batch's: running, finished, ...
    counts: dict[str, int]  # as count_statuses gives them
    facts: dict[str, str] = field(default_factory=dict)  # title -> text; an empty one is left out
    batches: list[dict[str, str]] = field(default_factory=list)  # of several: name, href, state, started, command
    warnings: list[str] = field(default_factory=list)
    reload_seconds: Optional[float] = None  # None: nobody writes the page again


def to_html(text: str) -> str:
    return html.escape(clean(text))


def lines_html(text: Optional[str]) -> str:
    return "\n".join(map(to_html, or_else(text, "").expandtabs().splitlines()))


def element(tag: str, inside: str) -> str:
    """HTML in a tag, `p class="bad"` say; nothing where there is nothing inside."""
    return f"<{tag}>{inside}</{tag.split()[0]}>" if inside else ""


def link_html(label: str, href: str) -> str:
    """A link to a file; in its path a browser would take `?`, `#` and `%` for more than they are."""
    address = href.replace("%", "%25").replace("?", "%3F").replace("#", "%23")
    return f'<a href="{to_html(address)}">{to_html(label)}</a>'


def name_html(name: str) -> str:
    """A name that may wrap behind an underscore."""
    return re.sub("(_+)", r"\1<wbr>", to_html(name))


def dot_html(kind: str, inside: str) -> str:
    return element(f'span class="dot {to_html(kind)}"', inside)


def html_column(kind: str, title: str, cells: Iterable[str]) -> Column:
    """A column as HTML. The end tags that HTML lets go would be a megabyte at 10,000 rows."""
    return [f'<th scope="col" class="{kind}">{title}</th>', *(CELLS[kind] + cell for cell in cells)]


def table_html(columns: Sequence[Column], notes: Iterable[str] = itertools.repeat("")) -> str:
    """A table with a tbody for each row and its note."""
    titles, *rows = map("".join, zip(*columns))
    lines = [f"<table><thead><tr>{titles}</thead>"]
    for row, note in zip(rows, notes):
        cell = element(f'td colspan="{len(columns)}"', note)
        lines.append(f"<tbody><tr>{row}" + element('tr class="note"', cell))
    return "\n".join(lines) + "</table>"


def name_column(title: str, rows: Sequence[Row]) -> Column:
    return html_column("name", title, [f"<div>{name_html(row['name'])}</div>" for row in rows])


def fact_html(column: Column) -> Column:
    """Figures, titled as a sentence begins; a star for the best."""
    title, *cells = [to_html(text).replace("*", "<b>★</b>") for text in column]
    return html_column("n", title[0].upper() + title[1:], cells)


def setting_html(column: Column) -> Column:
    """A setting; of long values the part in which they differ, and the whole folded under it."""
    key, *texts = column
    cells = []
    for text, part in zip(texts, differing_parts(texts)):
        folded = f"<details><summary>{to_html(part)}</summary>{to_html(text)}</details>"
        cells.append(to_html(text) if part == text else folded)
    return html_column("n" if is_numeric(column) else "s", name_html(key), cells)


def status_html(row: Row) -> str:
    mark = f' <span class="warn">{SIGN}</span>' if row["warnings"] else ""
    attempts = f"<small>{row['attempts']} attempts</small>" if row["attempts"] > 1 else ""
    return dot_html(row["status"], to_html(row["status"]) + mark) + attempts


def note_html(row: Row) -> str:
    """The error of a row, with hint and end of stderr folded under it, and its warnings."""
    error = lines_html(error_of(row))
    more = element("p", lines_html(row["hint"])) + element("pre", lines_html(row["stderr_tail"]))
    told = element('p class="bad"', error)
    if error and more:
        told = f'<details><summary class="bad">{error}</summary>{more}</details>'
    return told + warnings_html(row["warnings"])


def warnings_html(texts: Iterable[str]) -> str:
    return "".join(f'<p class="warn">{SIGN} {lines_html(text)}</p>' for text in texts)


def experiments_html(rows: Sequence[Row]) -> str:
    """What a sweep has set stands next to the name."""
    swept = keys_of(row["sweep"] for row in rows)
    settings = grouped(setting_columns(rows), lambda column: column[0] in swept)
    beside, behind = map(setting_html, settings[True]), map(setting_html, settings[False])
    status = html_column("s", "Status", map(status_html, rows))
    facts = map(fact_html, fact_columns(PAGE_FACTS, rows))
    most_links = max(1, MAX_LINKS // max(1, len(rows)))
    links = [" ".join(itertools.starmap(link_html, row["files"][:most_links])) for row in rows]
    files = html_column("f", "Files", links)
    columns = [name_column("Experiment", rows), *beside, status, *facts, *behind, files]
    return table_html(columns, map(note_html, rows))


def groups_html(groups: Sequence[Row]) -> str:
    """The groups of experiments that differ in nothing but the seed."""
    settings = map(setting_html, setting_columns(groups))
    columns = [name_column("Group", groups), *settings, *map(fact_html, fact_columns(GROUP_TABLE, groups))]
    title = '<div class="bar"><h2>Over seeds</h2><span class="dim">mean ± standard deviation</span></div>'
    table = f'<div class="scroll">{table_html(columns)}</div>'
    return element('section id="groups"', title + table if groups else "")


def batches_html(batches: Sequence[Mapping[str, str]]) -> str:
    """What a page over several batches is made of."""
    names = [f"<div>{link_html(each['name'], each['href'])}</div>" for each in batches]
    columns = [html_column("name", "Batch", names)]
    for key in ("state", "started", "command"):
        columns.append(html_column("s", key.capitalize(), [to_html(each[key]) for each in batches]))
    return element('div class="scroll" id="batches"', table_html(columns) if batches else "")


def fact_of_head(title: str, text: str) -> str:
    forms = {"Changes": link_html(text, text), "Command": element("code", to_html(text))}
    inside = forms.get(title, to_html(text))
    return element("div", f"<dt>{title}</dt><dd>{inside}</dd>") if text else ""


def head_html(head: PageHead) -> str:
    counts = [dot_html(key, show_counts({key: count})) for key, count in head.counts.items()]
    state = dot_html(head.state, element("b", to_html(head.state)))
    lines = [f"<h1>{to_html(head.title)}</h1>", element('p class="bar counts"', state + "".join(counts))]
    facts = "".join(itertools.starmap(fact_of_head, head.facts.items()))
    lines += [warnings_html(head.warnings), element("dl", facts), batches_html(head.batches)]
    return "\n".join(lines)


def sweep_chart(rows: Sequence[Row]) -> Optional[dict[str, Any]]:
    """A line for each config, where one swept number tells all points apart but those of seeds."""
    key = next(iter(keys_of(compared(row["sweep"]) for row in rows)), "")
    told = [row for row in rows if is_finite_number(row["sweep"].get(key)) and row["best_val_loss"] is not None]
    told.sort(key=lambda row: row["sweep"][key])
    places = {str(compared(row["sweep"])): row["sweep"][key] for row in told}
    values = list(dict.fromkeys(places.values()))
    if not told or len(values) < len(places):
        return None
    lines = grouped(told, lambda row: row["config_path"])
    drawn = [sweep_line(path, key, members) for path, members in lines.items()]
    return {"key": key, "log": is_log_spaced(values), "values": values, "lines": drawn}


def sweep_line(path: str, key: str, rows: Sequence[Row]) -> dict[str, Any]:
    """The losses of a config, and their mean at each value; one that is nan or inf, a text, has no part in the mean."""
    points = []
    losses: defaultdict[float, list[float]] = defaultdict(list)  # by value, of which seeds give several
    for row in rows:
        value, loss = row["sweep"][key], row["best_val_loss"]
        points.append([value, loss, row["name"]])
        if is_finite_number(loss):
            losses[value].append(loss)
    return {"name": path, "points": points, "mean": [[value, sum(each) / len(each)] for value, each in losses.items()]}


def is_log_spaced(values: Sequence[float]) -> bool:
    """Whether ascending values are better drawn on a logarithmic axis."""
    low, middle, high = values[0], values[len(values) // 2], values[-1]
    return 0 < 10 * low <= high and middle < (low + high) / 3


def render_page(head: PageHead, rows: Sequence[Row], groups: Sequence[Row] = ()) -> str:
    """report.html, whole, from the rows of rows_of with `files`, `sweep` and `curve` besides.

    A loss that is nan or inf is a text already."""
    drawn = [{"name": row["name"], "best": row["best"], **row["curve"]} for row in rows if any(row["curve"].values())]
    note = f"the best {MAX_CURVES} of {len(rows):,} are drawn" if len(rows) > MAX_CURVES else ""
    data = {"curves": drawn, "sweep": sweep_chart(rows), "note": note, "reload": head.reload_seconds}
    more = f'<label><input type="checkbox" id="all"> show all {len(rows):,}</label>'
    parts = {
        "TITLE": to_html(head.title),
        "HEAD": head_html(head),
        "EMPTY": "" if drawn else "No experiment has printed an evaluation, so there are no curves.",
        "GROUPS": groups_html(groups),
        "MORE": more if len(rows) > MAX_SHOWN else "",
        "ROWS": experiments_html(rows),
        "DATA": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return re.sub("<!--([A-Z]+)-->", lambda mark: parts[mark[1]], PAGE)


PAGE = r"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
 style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title><!--TITLE--></title><link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; --page: #fff; --ink: #1c1e21; --dim: #656b73; --line: #e4e6e9;
  --good: #1a7f37; --bad: #cf222e; --warn: #9a5b00; --busy: #0a66c2; --first: #6d48c2; --last: #6cb947; --c0: #1a7fc2;
  --c1: #dc6413; --c2: #109c76; --c3: #c2619a; --c4: #55aee3; --c5: #d38f00; --c6: var(--dim) }
@media screen and (prefers-color-scheme: dark) { :root { --page: #131518; --ink: #e3e5e8; --dim: #959ca6;
  --line: #2b2f35; --good: #45b363; --bad: #f0645c; --warn: #e0962f; --busy: #5fabf5 } }
* { box-sizing: border-box }
body { max-width: 80rem; margin: 0 auto; padding: 2rem 1.5rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
section { margin-top: 2.5rem } h1 { margin: 0; font-size: 1.5rem } h2 { margin: 0 auto 0 0; font-size: 1.05rem }
h1, h2, b { font-weight: 600 } dd { margin: 0 } dt, label, .legend { font-size: .85rem }
a { color: var(--busy); text-decoration: none } summary { cursor: pointer }
button { font: inherit; color: inherit; text-align: inherit; background: none; border: 0; padding: 0; cursor: pointer }
code, pre { display: block; max-height: 20rem; margin: .4rem 0; font: .86em ui-monospace, monospace; overflow: auto }
.dim, dt, thead, small { color: var(--dim) } small { display: block } .bad { color: var(--bad) }
.warn { color: var(--warn) } .dot { white-space: nowrap; --dot: var(--dim) } .completed { --dot: var(--good) }
.running { --dot: var(--busy) } .failed, .error, .errors { --dot: var(--bad) }
.timeout, .timeouts, .interrupted { --dot: var(--warn) } .dot::before { content: "● "; color: var(--dot) }
.bar, dl, .legend, .legend > * { display: flex; flex-wrap: wrap; gap: .3rem 1.5rem; margin: .5rem 0 }
#sweep { max-width: 46rem } .plot { position: relative } .plot svg { display: block; width: 100%; height: auto }
#curves:not(:has(svg)) label { display: none } text { font-size: 12px; fill: var(--dim) }
.grid { stroke: var(--line) } .curve { fill: none; stroke-width: 1.6 } .best { stroke-width: 2.8 }
.faint { opacity: .4; stroke-width: 1.2 } svg:has(.on) g:not(.on) { opacity: .15 }
.tip { position: absolute; pointer-events: none; max-width: 16rem; padding: .3rem .6rem; font-size: .82rem;
  white-space: pre-line; background: var(--page); border: 1px solid var(--line); border-radius: 6px }
.legend { max-height: 8rem; overflow: auto } .legend > * { gap: .5em; align-items: center; margin: 0 }
.legend svg { width: 22px; height: 8px } [aria-pressed=false] { opacity: .4; text-decoration: line-through }
.scroll { overflow: auto; margin: 0 -1.5rem; padding: 0 1.5rem .5rem } #batches { max-height: 20rem }
table { border-collapse: collapse; min-width: 100%; font-size: .86rem; line-height: 1.4; overflow-wrap: break-word;
  --gap: .8rem; --name: 20rem; --files: 8.5rem }
table:has(th:nth-child(13)) { font-size: .75rem; --gap: .45rem; --name: 8rem; --files: 6.3rem }
tbody { border-top: 1px solid var(--line) } tr > :first-child { padding-left: 0 } th { font-weight: 500 }
th, td { padding: .45rem 0 .45rem var(--gap); text-align: right; vertical-align: baseline; white-space: nowrap }
tbody th, .name, .s, .f, .note td { text-align: left } th, .s, .f { white-space: normal }
td.s { max-width: 16rem } th div { width: max-content; max-width: var(--name) } .f { min-width: var(--files) }
.f a { white-space: nowrap } td b, th b { color: var(--good) }
.note td { padding: 0 0 .6rem; white-space: pre-line } .note p { margin: .4rem 0 }
.note td > * { position: sticky; left: 0; width: fit-content; max-width: min(75rem, 100vw - 2rem); margin: 0 }
[aria-sort^=a]::after { content: " ↑" } [aria-sort^=d]::after { content: " ↓" }
section:not(:has(#all:checked)) tbody:nth-of-type(n + 501) { display: none }
@media (max-width: 40rem) { .f { white-space: nowrap } }
@media print { body { max-width: none; padding: 0 } .scroll, .legend, code { overflow: visible; max-height: none }
  table, table:has(th) { font-size: 7pt; --gap: .5rem; --name: 9rem } label, .f, .tip { display: none }
  #curves, #sweep, tbody { break-inside: avoid } }
</style>
</head>
<body><header><!--HEAD--></header>
<section id="curves"><div class="bar"><h2>Validation loss</h2>
<label><input type="checkbox" id="train"> training loss</label>
<label><input type="checkbox" id="log"> log scale</label></div>
<noscript><p class="dim">The curves are drawn by JavaScript, which is off. The table is whole.</p></noscript>
<div class="plot"><p class="dim"><!--EMPTY--></p></div><div class="legend"></div></section>
<section id="sweep" hidden><div class="bar"><h2></h2></div><div class="plot"></div><div class="legend"></div></section>
<!--GROUPS-->
<section id="experiments"><div class="bar"><h2>Experiments</h2><!--MORE--></div>
<div class="scroll"><!--ROWS--></div></section><script type="application/json" id="data"><!--DATA--></script>
<script>"use strict";
const one = query => document.querySelector(query), isNumber = v => typeof v === "number";
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
  parent.append(node);
  node.append(text);
  return node;
}
// An axis maps values to 0..1, with some room at both ends; ticks are at even steps of 1, 2 or 5
function axis(values, log, room) {
  const f = log ? Math.log10 : v => v, back = log ? v => 10 ** v : v => v;
  const sorted = Float64Array.from(values, f).sort(), low = sorted[0] ?? 0, high = sorted.at(-1) ?? 1;
  const more = low < high ? room * (high - low) : Math.abs(low) / 2 || .5;
  const start = low - more, length = high - low + 2 * more;
  const ticks = count => {
    const least = length / count, power = 10 ** Math.floor(Math.log10(least));
    const step = power * [1, 2, 5, 10].find(m => m * power >= least * .999), steps = [];
    for (let n = Math.ceil(start / step); n * step <= start + length; n++) steps.push(n * step);
    return steps.map(v => Number(back(v).toPrecision(log ? 3 : 9)));
  };
  return { log, ticks, at: v => (f(v) - start) / length };
}
const short = v => v && Math.abs(v) < 1e-3 ? v.toExponential() : String(v);
// series: [{name, color, kind, dots, points: [[x, loss or "nan", name]]}]
function plot(host, series, xs, ys, xTitle, yTitle, xValues) {
  const width = Math.max(260, host.clientWidth), height = Math.min(430, Math.max(230, width >> 1));
  const left = 46, right = width - 16, top = 26, bottom = height - 42;
  const x = v => left + xs.at(v) * (right - left), y = v => bottom - ys.at(v) * (bottom - top);
  host.textContent = "";
  const root = add(host, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": yTitle });
  const write = (x, y, anchor, text) => add(root, "text", { x, y, "text-anchor": anchor }, text);
  const line = d => add(root, "path", { class: "grid", d });
  for (const v of ys.ticks(bottom / 42 | 0)) {
    line(`M${left} ${y(v)}H${right}`);
    write(left - 8, y(v) + 4, "end", short(v));
  }
  for (const v of xValues?.length < 9 ? xValues : xs.ticks((right - left) / 80 | 0)) {
    line(`M${x(v)} ${bottom}v5`);
    write(x(v), bottom + 20, "middle", short(v));
  }
  line(`M${left} ${bottom}H${right}`);
  write(0, 10, "start", yTitle);
  write(right, height - 4, "end", xTitle);
  const spots = series.flatMap(s => drawSeries(root, s, x, y, top, ys.log));
  const tip = add(host, "div", { class: "tip", hidden: "" });
  root.onpointerleave = () => { tip.hidden = true; light(); };
  root.onpointermove = event => {
    const box = root.getBoundingClientRect();
    const far = s => Math.hypot(s.px - event.clientX + box.left, s.py - event.clientY + box.top);
    const near = spots.reduce((a, s) => a && far(a) < far(s) ? a : s, null);
    if (!near) return;
    tip.hidden = false;
    tip.textContent = `${near.name}\n${xTitle} ${near.at}: ${near.loss}`;
    tip.style.top = near.py + 12 + "px";
    tip.style.left = Math.max(0, Math.min(near.px + 12, width - tip.offsetWidth)) + "px";
    light(near.group);
  };
}
function drawSeries(root, s, x, y, top, log) {  // a nan or inf is a cross; returns what the pointer can find
  const group = s.group = add(root, "g"), spots = [];
  let path = "", fitted, py = top;
  for (const [at, loss, name = s.name] of s.points) {
    const px = x(at), fits = isNumber(loss) && (loss > 0 || !log);
    if (fits) py = Math.max(-2000, y(loss));  // what diverges leaves at the top
    else if (s.dots) py = top;
    const seen = Math.max(top, py);
    if (!fits && (s.dots || fitted !== false)) path += `M${px - 4} ${seen - 4}l8 8m0-8l-8 8`;
    if (fits && !s.dots) path += `${fitted ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`;
    if (fits && (s.dots || s.points.length < 2))
      add(group, "circle", { cx: px, cy: py, r: s.dots || 3.5, style: "fill:" + s.color });
    spots.push({ px, py: seen, group, name, at, loss });
    fitted = fits;
  }
  add(group, "path", { class: "curve " + s.kind, d: path, style: "stroke:" + s.color });
  return spots;
}
const light = group => document.querySelectorAll(".plot g").forEach(g => g.classList.toggle("on", g === group));
function paint(lines) {  // up to seven in colours that the colour-blind tell apart, more on a scale
  lines.forEach((line, i) => {
    const mixed = `color-mix(in oklch, var(--last) ${100 * i / lines.length}%, var(--first))`;
    line.color = lines.length > 7 ? mixed : `var(--c${i})`;
    line.kind = line.best ? "best" : "";
  });
}
function addEntry(host, tag, line) {
  const entry = add(host, tag), svg = add(entry, "svg");
  add(svg, "path", { d: "M0 4H22", class: "curve " + line.kind, style: "stroke:" + line.color });
  entry.append(line.name + (line.best ? " ★" : ""));
  return entry;
}
function drawCurves() {
  const gone = kept.gone || [], log = !!kept.log, train = kept.train ?? !curves.some(c => c.val.length);
  for (const input of document.querySelectorAll("#curves input")) {
    input.checked = input.id === "log" ? log : train;
    input.onchange = () => keep({ [input.id]: input.checked }, drawCurves);
  }
  paint(curves);
  for (const c of curves) c.points = c.val;
  const here = curves.filter(c => !gone.includes(c.name)).sort((a, b) => a.best - b.best);
  const faint = here.map(c => ({ ...c, kind: "faint", points: c.train, name: c.name + ", training loss" }));
  const series = train ? [...faint, ...here] : here, points = series.flatMap(s => s.points);
  const losses = points.map(p => p[1]).filter(v => isNumber(v) && (v > 0 || !log));
  // A run that diverges must not flatten the others: the axis ends at twice what the runs began with
  const most = 2 * Math.max(...series.map(s => s.points.map(p => p[1]).find(isNumber) || 0)) || Infinity;
  const xs = axis(points.map(p => p[0]), false, 0), ys = axis(losses.map(v => Math.min(v, most)), log, .04);
  plot(one("#curves .plot"), series, xs, ys, "step", "loss");
  const legend = one("#curves .legend");
  legend.textContent = "";
  if (data.note) add(legend, "div", { class: "dim" }, data.note);
  for (const c of curves) {
    const off = gone.includes(c.name), button = addEntry(legend, "button", c);
    button.setAttribute("aria-pressed", !off);
    button.onclick = () => keep({ gone: off ? gone.filter(n => n !== c.name) : [...gone, c.name] }, drawCurves);
    button.onpointerenter = () => off || light(c.group);
    button.onpointerleave = () => light();
  }
}
function drawSweep() {
  const { key, lines, values } = sweep, legend = one("#sweep .legend");
  paint(lines);
  const points = lines.flatMap(line => line.points), dots = points.length > 40 ? 2.5 : 4;
  const xs = axis(values, sweep.log, .05), ys = axis(points.map(p => p[1]).filter(isNumber), false, .08);
  const means = lines.map(line => ({ ...line, kind: "faint", points: line.mean }));
  const series = [...means, ...lines.map(line => ({ ...line, dots }))];
  one("#sweep").hidden = false;
  one("#sweep h2").textContent = "Best validation loss by " + key;
  plot(one("#sweep .plot"), series, xs, ys, key, "best val loss", values);
  legend.textContent = "";
  for (const line of lines) addEntry(legend, "span", line);
}
// The table: a click sorts up, then down, then as in the batch
const table = one("#experiments table"), bodies = [...table.tBodies], heads = [...table.tHead.rows[0].cells];
const titles = heads.map(th => th.textContent), words = new Intl.Collator("en", { numeric: true });
function sortKey(body, column) {
  const text = body.rows[0].cells[column].textContent;
  if (!heads[column].classList.contains("n")) return text;
  const times = [...text.matchAll(/([\d.]+)([dhms])/g)], unit = { d: 86400, h: 3600, m: 60, s: 1 };
  return times.length ? times.reduce((sum, [, n, u]) => sum + n * unit[u], 0) : parseFloat(text);
}
function arrange() {
  const [title, way] = kept.sort || [], column = titles.indexOf(title);
  const keys = bodies.map(body => [column < 0 ? 0 : sortKey(body, column), body]);
  const isNone = v => v === "" || v !== v;  // nothing and nan come last, up and down
  keys.sort(([a], [b]) => isNone(a) - isNone(b) || way * (isNumber(a) ? a - b : words.compare(a, b)));
  table.append(...keys.map(pair => pair[1]));
  const sorted = way > 0 ? "ascending" : "descending";
  heads.forEach((th, i) => th.setAttribute("aria-sort", i === column ? sorted : "none"));
}
for (const th of heads.slice(0, -1)) {
  const title = th.textContent;
  th.innerHTML = `<button>${th.innerHTML}</button>`;
  th.onclick = () => {
    const way = kept.sort && kept.sort[0] === title ? kept.sort[1] : 0;
    keep({ sort: way < 0 ? null : [title, way ? -1 : 1] }, arrange);
  };
}
function drawAll() {
  if (curves.length) drawCurves();
  if (sweep) drawSweep();
}
window.onresize = drawAll;
drawAll();
arrange();
// Not while nobody looks, or somebody reads an error or marks a text
const busy = () => document.hidden || one("details[open]") || String(getSelection());
if (data.reload) setInterval(() => busy() || location.reload(), 1000 * data.reload);
</script></body></html>"""
# --------------------------------------------------------------------------------------------------- batch
# One batch, or several as one, for page, table and JSON; then the batch that runs: one loop decides, a recorder writes
# down, git is asked in the background. It must not know of argparse.

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ECHO = 0.3  # seconds in which the same signal again is no second one: `timeout` sends it to its child and to the group
PROGRESS = 1.0  # seconds between two summaries that tell nothing but how far trainings are
DRAW = 0.25  # seconds between two drawings of the live block
TICK = 1.0  # seconds: while deadlines count, the loop wakes so often that a suspension shows
ROOM = 100 << 20  # bytes that must be free on the disk for each slot, or twice the largest checkpoint of the batch
SHORT = 600.0  # seconds in which nothing could run, after which a shortage ends the batch
SHORTAGES = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT)
SLOW_DISK = 30.0  # seconds without progress after which the end no longer waits for the disk
RELOAD = 10  # seconds after which the page of a running batch reads itself anew
PACES = {SUMMARY: (0.05, 20.0), REPORT: (2.0, 50.0)}  # between two: seconds, or times what one takes if that is more
PAGE_BYTES = 64 << 20  # of each log, read for the page at a time while the batch runs
PATCH_BYTES = 10 << 20
DIFF = "diff --binary --no-ext-diff --no-textconv --no-color --src-prefix=a/ --dst-prefix=b/".split()
GIT_PATIENCE = 60.0  # seconds for one call of git
SLOW_GIT = 30.0  # seconds that the end waits for its last answer
MAX_FOLDERS = 10_000  # of a repository, that are watched
LONGEST_SLEEP = 3600.0  # seconds; a queue knows no infinite timeout
# What each metadata takes over from the summary.
IN_BOTH = "train_script options global_overrides python_executable python_version hostname working_directory".split()


# ---- the page of a batch, from its results and logs


class Overview:
    """One batch, or several as one: what the page, the table and --status --json tell of them."""

    def __init__(self, batches: Sequence[StoredBatch]) -> None:
        self.batches = batches
        self.place = os.path.commonpath([os.path.abspath(each.folder) for each in batches])
        self.results = joined_results(batches, self.place)
        self.state = max(each.facts.state for each in batches)  # "finished" < "interrupted" < "running"
        self.notes = shard_notes(batches) if len(batches) > 1 else []


def joined_results(batches: Sequence[StoredBatch], place: str) -> list[Result]:
    """The results of one batch, or of several as one, then with the settings in which these differ.

    A name that several have stands behind its batch's place below the directory that they have in common."""
    times: Counter[str] = Counter()
    shared: Counter[str] = Counter()  # a common setting with its value, as a text -> how many batches have it
    for batch in batches:
        times.update(batch.results.keys())
        shared.update(map(repr, batch.facts.common_settings.items()))
    joined = []
    for batch in batches:
        label = os.path.relpath(batch.folder, place)
        common = batch.facts.common_settings.items()
        apart = {key: value for key, value in common if shared[repr((key, value))] < len(batches)}
        for name, each in batch.results.items():
            full_name = f"{label}/{name}" if times[name] > 1 else name
            joined.append(replace(each, config_name=full_name, settings={**apart, **each.settings}))
    return joined


def shard_notes(batches: Sequence[StoredBatch]) -> list[str]:
    """What is wrong with shards that are looked at together."""
    plans, there, wanted = set(), set(), 0
    for batch in batches:
        shard = from_json(ShardFacts, batch.facts.shard)
        if shard.count:
            plans.add((shard.plan_digest, shard.count))
            there.add(shard.index)
            # Of more shards than there are experiments the last ones have nothing to do.
            wanted = min(shard.count, shard.experiments)
    if len(plans) > 1:
        return ["the shards are of differing plans"]
    missing = sorted({*range(1, wanted + 1)} - there)
    return [f"of {wanted} shards these are missing: {', '.join(map(str, missing))}"] if missing else []


def make_page(overview: Overview, curves: dict[str, Curve], limit: float = math.inf) -> bytes:
    """report.html, with what the logs hold by now; at most `limit` more bytes of each are read."""
    swept: set[str] = set()
    patterns: dict[str, Sequence[re.Pattern[bytes]]] = {}  # by the experiment's directory
    for batch in overview.batches:
        swept.update(",".join(batch.facts.sweep).split(","))
        folders = [each.experiment_dir for each in batch.results.values()]
        patterns.update(dict.fromkeys(folders, metrics_of(batch.summary)))
    drawn = {each.experiment_dir for each in sorted(overview.results, key=draw_rank)[:MAX_CURVES]}
    rows = rows_of(overview.results)
    for row, each in zip(rows, overview.results):
        folder = each.experiment_dir
        row["files"] = page_files(each, overview.place)
        row["sweep"] = {key: value for key, value in each.overrides.items() if key in swept}
        row["curve"] = read_curves(folder, curves, patterns[folder], limit) if folder in drawn else {}
    page = render_page(page_head(overview), rows, seed_groups(overview.results))
    return page.encode(errors="backslashreplace")


def read_curves(
    folder: str, curves: dict[str, Curve], patterns: Sequence[re.Pattern[bytes]], limit: float
) -> dict[str, list[list[Any]]]:
    """The losses in an experiment's logs, of each kind those of the stream that tells more: bars come on stderr."""
    drawn = []
    for stream in ("stdout", "stderr"):
        path = os.path.join(folder, LOGS[stream])
        if path not in curves:
            configs = glob.glob(os.path.join(glob.escape(folder), "config_used.*"))
            curves[path] = Curve(lines_like_metrics(*map(bytes_of, configs)), patterns)
        curves[path].update(path, limit)
        drawn.append(curves[path].drawn())
    return {kind: max((each[kind] for each in drawn), key=len) for kind in ("val", "train")}


def draw_rank(result: Result) -> tuple[bool, float]:
    """Of many experiments the running ones are drawn, then the best."""
    return result.status is not Status.RUNNING, or_else(result.metrics.best_val_loss, math.inf)


def page_files(result: Result, place: str) -> list[tuple[str, str]]:
    """The links of an experiment: a label and a relative address for each file that is there by now."""
    if not result.attempts:
        return []
    files = {**LOGS, "config": f"config_used{os.path.splitext(result.config_path)[1]}", "metadata": METADATA}
    if result.status is not Status.RUNNING:
        files["result"] = RESULT
    folder = os.path.relpath(result.experiment_dir, place)
    return [(label, f"./{folder}/{file}") for label, file in files.items()]


def page_head(overview: Overview) -> PageHead:
    title = os.path.basename(overview.place)
    head = PageHead(title, overview.state, count_statuses(overview.results), warnings=overview.notes)
    rows = [batch_row(each, overview.place) for each in overview.batches]
    if len(rows) > 1:
        head.batches = rows
        return head
    batch, facts = overview.batches[0], overview.batches[0].facts
    changes = " with changes" if facts.git.get("dirty") else ""
    head.facts = {
        "Host": facts.hostname,
        "Commit": str(facts.git.get("commit") or "")[:12] + changes,
        "Changes": PATCH if os.path.exists(os.path.join(batch.folder, PATCH)) else "",
        "Started": rows[0]["started"],
        "Updated": "",
        "Duration": show_duration(batch_seconds(batch), ""),
        "ETA": show_duration(batch_left(overview.results, facts.slots), ""),
        "Command": rows[0]["command"],
    }
    if head.state == "running":
        head.facts["Updated"] = time.strftime("%Y-%m-%d %H:%M:%S")
        head.reload_seconds = RELOAD
    return head


def batch_row(batch: StoredBatch, place: str) -> dict[str, str]:
    """A batch on a page over several."""
    folder = os.path.relpath(batch.folder, place)
    return {
        "name": folder,
        "href": f"./{folder}/{REPORT}",
        "state": batch.facts.state,
        "started": batch.facts.start_time[:19].replace("T", " "),
        "command": shell_line(batch.facts.command),
    }


def batch_seconds(batch: StoredBatch) -> Optional[float]:
    """Seconds that a batch took, or has taken so far."""
    return elapsed(from_json(Result, {**batch.summary, "status": batch.facts.state}))


# ---- writing down


class Scribe(threading.Thread):
    """Writes the batch's files in order: a slow disk costs the loop nothing."""

    def __init__(self) -> None:
        super().__init__(name="scribe", daemon=True)
        self.changed = threading.Condition()
        self.jobs: dict[object, Callable[[], object]] = {}  # in order; of one key the latest counts
        self.progress = time.monotonic()  # when something was last done

    def put(self, job: Callable[[], object], key: str = "") -> None:
        """Have something done; it takes the place of a job of the same key that still waits."""
        with self.changed:
            self.jobs[key or object()] = job
            self.changed.notify()

    def run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.jobs)
                job = self.jobs.pop(next(iter(self.jobs)))
            with contextlib.suppress(OSError):
                job()
            self.progress = time.monotonic()

    def flush(self) -> bool:
        """Wait until all is written; False where the disk has not moved for too long."""
        is_done = threading.Event()
        self.put(is_done.set)
        self.progress = time.monotonic()
        while not is_done.wait(0.5):
            if time.monotonic() > self.progress + SLOW_DISK:
                return False
        return True


class Recorder:
    """Master log, summary, results and page of a batch. Its methods are the loop's; the scribe does what they start."""

    def __init__(self, folder: str, names: Iterable[str], head: dict[str, Any], console: Console) -> None:
        """Raises OSError where the master log can't be opened."""
        self.folder, self.head, self.console = folder, head, console
        self.scribe = Scribe()
        self.began = time.monotonic()
        self.master_log = os.open(os.path.join(folder, MASTER_LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self.rows: dict[str, Any] = {}  # name -> its result as JSON has it
        self.copies: dict[str, Result] = {}  # and as the page takes it
        self.changed_names = dict.fromkeys(names)  # in the plan's order, which rows and copies take from it
        self.curves: dict[str, Curve] = {}  # the scribe's
        self.failed: dict[str, Callable[[], None]] = {}  # files that could not be written -> how to
        self.on_write_error: Callable[[str, Exception], None] = lambda path, error: None  # called by the scribe
        self.costs: defaultdict[str, float] = defaultdict(float)  # path -> seconds that its writing took the last time
        self.due = dict.fromkeys(PACES, math.inf)  # when a file is written anew
        self.earliest = dict.fromkeys(PACES, 0.0)

    def say(self, text: str, even_if_quiet: bool = False) -> None:
        """One line for the master log and the console."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {clean(text)}"
        self.log(line)
        self.console.line(line, even_if_quiet)

    def log(self, line: str) -> None:
        data = f"{line}\n".encode(errors="backslashreplace")
        self.scribe.put(functools.partial(os.write, self.master_log, data))  # a full disk is told elsewhere

    def save(self, path: str, write: Callable[[], object]) -> None:
        """Have a file written; a failure is told, and tried once more at the end."""

        def job() -> None:
            began = time.monotonic()
            try:
                write()
                self.failed.pop(path, None)
            except Exception as error:  # whatever it is, the scribe must go on
                if path not in self.failed:
                    self.on_write_error(path, error)
                self.failed[path] = job
            self.costs[path] = time.monotonic() - began

        self.scribe.put(job, path)

    def save_json(self, path: str, value: dict[str, Any], sync: bool = True) -> None:
        self.save(path, lambda: write_file(path, json_bytes(value), sync))

    def changed(self, result: Result, delay: float = 0.0) -> None:
        self.changed_names[result.config_name] = None
        self.renew(time.monotonic() + delay)

    def renew(self, wanted: float = 0.0) -> None:
        """Have summary and page written anew at this time, or as soon after it as their pace lets them."""
        for name, earliest in self.earliest.items():
            self.due[name] = min(self.due[name], max(earliest, wanted))

    def refresh(self, results: Mapping[str, Result], now: float) -> None:
        for name, due in self.due.items():
            if now >= due:
                self.write(name, results)

    def summary(self, results: Mapping[str, Result]) -> dict[str, Any]:
        """The summary as it stands now; what it holds isn't changed later."""
        for name in self.changed_names:
            result = results[name]
            self.rows[name] = to_json(result)
            self.copies[name] = replace(result, metrics=replace(result.metrics))
        self.changed_names.clear()
        self.head.update(count_statuses(results.values()))
        self.head["duration_seconds"] = round(time.monotonic() - self.began, 3)
        return {**self.head, "results": dict(self.rows)}

    def write(self, name: str, results: Mapping[str, Result], is_last: bool = False) -> None:
        """Have summary or page written; the next time, when that takes a small part of the time."""
        path = os.path.join(self.folder, name)
        least, times = PACES[name]
        self.due[name], self.earliest[name] = math.inf, time.monotonic() + max(least, times * self.costs[path])
        summary = self.summary(results)
        if name == SUMMARY:
            self.save_json(path, summary, sync=is_last)
            return
        batch = StoredBatch(self.folder, summary, dict(self.copies))
        limit = math.inf if is_last else PAGE_BYTES
        self.save(path, lambda: write_file(path, make_page(Overview([batch]), self.curves, limit), sync=False))

    def finish(self, results: Mapping[str, Result]) -> bool:
        """Write down how the batch ended; returns whether all of it, but for the page, is on the disk."""
        self.scribe.flush()
        for job in list(self.failed.values()):
            self.scribe.put(job)  # there may be room again
        self.write(SUMMARY, results, is_last=True)
        self.write(REPORT, results, is_last=True)
        return self.scribe.flush() and not self.failed.keys() - {os.path.join(self.folder, REPORT)}


# ---- the code that runs

Code = dict[str, str]  # path -> digest


@dataclass
class CodeState:
    """The code as it stands."""

    git: Optional[dict[str, Any]] = None  # what git tells of it, for the summary and the metadata
    changed: list[str] = field(default_factory=list)  # files that are not as when the batch began
    patch: bytes = b""  # how it differs from its commit
    note: str = ""


class CodeWatch(threading.Thread):
    """Knows the code as it was when the batch began, and what has changed since. git may be slow: it is asked in a
    thread of its own, and only where something has changed."""

    def __init__(self, place: str, script: str, frozen: Iterable[str]) -> None:
        """`place` is the working directory."""
        super().__init__(name="git", daemon=True)
        self.place = place
        self.root = repository_root(place)
        beside_script = os.path.dirname(os.path.normpath(os.path.join(place, script)))
        self.top, self.most = (self.root, MAX_FOLDERS) if self.root else (beside_script, 1)  # directories that are read
        self.frozen = {os.path.normpath(os.path.join(place, path)) for path in frozen}  # these run from their copies
        self.stamps: dict[str, tuple[int, int]] = {}  # what tells a change of the files, and of their directories
        self.code: Code = {}  # as it was when it was read last
        self.first: Code = {}  # when the batch began
        self.known: set[str] = set()  # the files that git tracks or would track
        self.questions: queue.SimpleQueue[tuple[Code, Callable[[CodeState], None]]] = queue.SimpleQueue()

    def ask(self, tell: Callable[[CodeState], None]) -> None:
        """Have this called, in the thread of the watch, with the code as it stands now; answers come in order.
        Where a stamp differs, the files are read anew here: the answer is about the code that the next launch gets."""
        if self.code and stamps_of(self.stamps) != self.stamps:
            self.read_files()
        self.questions.put((self.code, tell))

    def run(self) -> None:
        self.read_files()
        before = self.first = self.code
        state = self.read_state(before)
        while True:
            code, tell = self.questions.get()
            if code and code != before:  # there is none before the first look
                before, state = code, self.read_state(code)
            tell(state)
            state = CodeState(state.git, state.changed)  # the rest is kept and said once

    def read_files(self) -> None:
        """Read the *.py of the repository that holds the working directory, or else those beside the script."""
        files: list[str] = []
        folders: list[str] = []
        for folder, inner, names in itertools.islice(os.walk(self.top), self.most):
            inner[:] = [name for name in inner if is_source_folder(os.path.join(folder, name))]
            folders.append(folder)
            files += [os.path.join(folder, name) for name in fnmatch.filter(names, "*.py")]
        self.stamps = stamps_of([*files, *folders])
        self.code = {path: sha256(bytes_of(path)) for path in files}

    def read_state(self, code: Code) -> CodeState:
        try:
            state = self.ask_git()
        except (OSError, subprocess.SubprocessError):
            state = CodeState()
        changed = dict(self.first.items() ^ code.items()).keys() - self.frozen
        counting = changed & (self.known or changed)
        state.changed = sorted(os.path.relpath(path, self.place) for path in counting)
        return state

    def ask_git(self) -> CodeState:
        """The commit that is checked out, its branch, and what differs from it: tracked files, and new *.py. Raises
        OSError or SubprocessError where git can't say."""
        status = self.git("status", "--porcelain=v2", "--branch", "--untracked-files=no").decode(errors="replace")
        heads = dict(re.findall(r"(?m)^# branch\.(\w+) (?!\(initial\))(.*)$", status))
        is_dirty = re.search("(?m)^[^#]", status) is not None
        state = CodeState({"commit": heads.get("oid"), "branch": heads.get("head"), "dirty": is_dirty})
        listed = self.git("ls-files", "-t", "--cached", "--others", "--exclude-standard", "-z", "--", "*.py")
        files = [os.fsdecode(line).split(" ", 1) for line in listed.split(b"\0")[:-1]]
        self.known = {os.path.join(self.root, name) for _, name in files}
        if "oid" not in heads:
            return state
        state.patch = self.git(*DIFF, "HEAD")
        for tag, name in files:
            if tag == "?" and len(state.patch) <= PATCH_BYTES:  # an environment in the repository has thousands
                state.patch += self.git(*DIFF, "--no-index", "--", os.devnull, name)
        if len(state.patch) > PATCH_BYTES:
            state.note = f"the code differs from its commit by {len(state.patch) >> 20} MB, which aren't kept"
            state.patch = b""
        return state

    def git(self, *words: str) -> bytes:
        command = ["git", "--no-optional-locks", "-C", self.root, *words]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=GIT_PATIENCE)
        if done.returncode != 1:  # which tells of a difference
            done.check_returncode()
        return done.stdout


def repository_root(place: str) -> str:
    """The directory of the repository that holds another one; empty where there is none."""
    while not os.path.exists(os.path.join(place, ".git")):
        if place == os.path.dirname(place):
            return ""
        place = os.path.dirname(place)
    return place


def is_source_folder(path: str) -> bool:
    """Not the trainings' own directories, nor what git and Python keep for themselves."""
    is_hidden = os.path.basename(path).startswith((".", "__pycache__"))
    others = (LOCK, "latest", "pyvenv.cfg")
    return not is_hidden and not any(os.path.lexists(os.path.join(path, name)) for name in others)


def stamps_of(paths: Iterable[str]) -> dict[str, tuple[int, int]]:
    stamps = {}
    for path in paths:
        with contextlib.suppress(OSError):
            status = os.stat(path)
            stamps[path] = (status.st_size, status.st_mtime_ns)
    return stamps


def edits_since(git: Mapping[str, Any], patch: bytes, now: CodeState) -> CodeState:
    """In what the code has changed since git knew of this commit, from which it differed by this patch. What it
    differs by from its commit now is kept with the attempts; with the batch stays what it was at the beginning."""
    before = git.get("commit")
    if now.git and before != now.git["commit"]:
        return CodeState(changed=[f"commit {before} is {now.git['commit']}"], patch=now.patch)
    if now.git and patch != now.patch:
        return CodeState(changed=["what isn't committed"], patch=now.patch)
    return CodeState()


# ---- the loop


@dataclass
class Job:
    """All that it takes to run a batch, or to show what would be run."""

    options: Options
    planner: Planner
    slots: list[Slot]
    notes: list[str]  # what is said first
    folder: str = ""
    plan: list[Experiment] = field(default_factory=list)
    results: dict[str, Result] = field(default_factory=dict)  # so far
    to_run: list[str] = field(default_factory=list)  # names


@dataclass(eq=False)
class Attempt:
    """A training that runs, and what the batch knows of it."""

    result: Result
    slot: Slot
    take_up: TakeUp
    metadata: dict[str, Any]
    config_used: dict[str, bytes]  # name of its copy -> the config, where there is one
    readers: dict[str, LineReader]  # by stream
    stderr_start: int = 0  # the bytes before it are of earlier attempts
    stopped_as: Status = Status.TIMEOUT  # unless the batch has ended it for another reason
    process: Process = field(init=False)  # from its start on

    def stderr(self) -> str:
        """The end of what this attempt has written there."""
        path = os.path.join(self.result.experiment_dir, LOGS["stderr"])
        return read_tail(path, start=self.stderr_start).decode(errors="replace")

    def own_files(self) -> dict[str, bytes]:
        """What stands beside its logs from its start on."""
        return {METADATA: json_bytes(self.metadata), **self.config_used}


@dataclass
class Shortage:
    """There is no room for a launch just now; while there is, all of it is zero."""

    pause: float = 0.0  # seconds between two tries
    retry_at: float = 0.0  # when the next one is due
    ran_at: float = 0.0  # when something could run last, or the shortage began


def shortage_in(error: Exception) -> str:
    """What there is no room for just now; empty where an error is another one."""
    if isinstance(error, RuntimeError):
        return "no thread can be had"
    return str(error.strerror) if isinstance(error, OSError) and error.errno in SHORTAGES else ""


def next_result(before: Result, slot: Slot) -> Result:
    """The result of the attempt that comes next, as far as it is known before it begins."""
    kept = ("config_name", "config_path", "experiment_dir", "overrides", "settings", "max_iters", "log_files")
    result = Result(**{key: getattr(before, key) for key in kept}, status=Status.RUNNING, start_time=now_iso())
    result.attempts, result.total_seconds = before.attempts + 1, total_elapsed(before)
    if before.attempts:
        result.attempt_history = [*before.attempt_history, past(before)]
    result.device = slot.device or (f"gpu {slot.gpus}" if slot.gpus else None)
    return result


def judge(result: Result, stop: Optional[tuple[Status, str]], stderr: str, is_strict: bool) -> list[str]:
    """Tell from its return code, from its stderr, and from as what and why it was stopped, how an attempt ended.

    Returns warnings; a strict trainer is one that prints steps."""
    cautions = []
    # There is none of a training that can't be killed, of which `stop` tells.
    result.signal, ended = end_in_words(or_else(result.return_code, 0))
    result.status, result.error = stop or (Status.FAILED, ended)
    if not stop and result.return_code == 0:
        result.status, result.error = Status.COMPLETED, None
        cautions = doubt(result, is_strict)
    if result.status is not Status.COMPLETED:
        explain(result, stderr, is_stopped=stop is not None)
    return cautions


def explain(result: Result, stderr: str, is_stopped: bool) -> None:
    """What stderr says of the end of an attempt."""
    result.stderr_tail = "\n".join(stderr.splitlines()[-20:])
    if result.status is Status.INTERRUPTED or result.diverged:
        return
    said = error_line(stderr)
    is_answer = is_stopped and said == "KeyboardInterrupt"  # to the runner's own signal
    if said and not is_answer:
        result.error = f"{result.error}: {said}"
    if result.status is Status.FAILED:
        result.hint = hint_for(f"{stderr}\n{result.error}")


def doubt(result: Result, is_strict: bool) -> list[str]:
    """An exit code of 0 is no success where the loss says otherwise, and not all of the truth where steps lack."""
    metrics = result.metrics
    advice = "the loss is not finite: try a smaller --learning_rate"
    loss = sum(filter(None, (metrics.train_loss, metrics.val_loss)))  # nan or inf where one of them is
    if metrics.diverged_since is not None:
        result.status, result.diverged, result.hint = Status.FAILED, True, advice
        result.error = f"exit code 0, but the loss is {loss} since step {metrics.diverged_since}"
        return []
    if not math.isfinite(loss):
        return [advice]
    if metrics.first_step is None:
        return ["printed no step"] if is_strict else []
    reached = or_else(metrics.step, 0) + or_else(metrics.largest_gap, 0)
    is_early = reached < or_else(result.max_iters, 0)
    return [f"ended at step {metrics.step} of {result.max_iters}"] if is_early else []


def end_in_line(result: Result) -> str:
    """How an attempt ended, for the master log."""
    metrics = result.metrics
    parts = [f"{result.config_name}: {result.status} after {show_duration(result.duration_seconds)}"]
    if metrics.step is not None:
        parts.append(f"step {metrics.step}, val loss {show_loss(metrics.val_loss)}")
    return "; ".join([*parts, *filter(None, [result.error, result.hint and f"hint: {result.hint}"])])


def discard(log: Log) -> None:
    """A log of a training that there is not: gone where nothing is in it."""
    with contextlib.suppress(OSError):
        if not os.path.getsize(log.path):
            os.unlink(log.path)
    log.close()


def is_unreadable(checkpoint: str, stderr: str) -> bool:
    """Whether an error says that a checkpoint can't be read, or lacks one of its files."""
    lacks_part = rf"No such file or directory: .*{re.escape(os.path.basename(checkpoint))}/"
    return re.search(lacks_part, stderr) is not None or BROKEN_CHECKPOINT.search(stderr) is not None


def set_checkpoint_aside(checkpoint: str) -> str:
    """Rename a checkpoint that can't be read; its copy takes its place. Returns what was done; raises OSError."""
    remove_tree(copy_path(checkpoint))  # it can't be read, either
    os.rename(checkpoint, checkpoint + ASIDE)
    done = os.path.basename(checkpoint) + ASIDE
    for copy in older_copies(checkpoint)[-1:]:
        os.rename(copy, checkpoint)
        done += "; its kept copy is used"
    return done


def remove_copies(folder: str, pattern: str) -> None:
    """Those of the checkpoints of an experiment that has completed."""
    for copy in glob.glob(os.path.join(glob.escape(folder), os.path.dirname(pattern.rstrip("/")), ".kept_*")):
        remove_tree(copy)


def program() -> list[str]:
    """How this program was called, as far as a user would type it again."""
    if not sys.argv[0].endswith(".py") and shutil.which(sys.argv[0]):
        return [sys.argv[0]]
    short = os.path.basename(sys.executable)
    # By its place, not by where its link leads: an environment's Python is a link to the one that made it.
    is_found = shutil.which(short) == sys.executable
    is_lasting = "UV" not in os.environ  # `uv run` has the environment's Python found, but only for this call
    return [short if is_found and is_lasting else sys.executable, sys.argv[0]]


def stop_rules(options: Options) -> StopRules:
    launcher = shlex.split(options.launcher or options.command)
    if options.command and os.path.basename(launcher[0]).startswith("python"):
        launcher = []
    rules = StopRules(options.stop_signal, options.grace, tuple(launcher), checkpoints=options.checkpoints)
    return replace(rules, timeout=options.timeout, stall=options.stall)


class Batch:
    """The one loop: it owns all state, takes events from one queue, and decides."""

    def __init__(self, job: Job, recorder: Recorder) -> None:
        self.options, self.planner, self.results, self.recorder = job.options, job.planner, job.results, recorder
        self.folder, self.console, self.say = recorder.folder, recorder.console, recorder.say
        working_directory = recorder.head["working_directory"]
        self.place = os.path.normpath(os.path.join(working_directory, self.folder))
        self.plan = {each.name: each for each in job.plan}
        # No SimpleQueue: before Python 3.11 its `get` may wait for ever where the timeout is zero or nearly so.
        self.events: queue.Queue[Callable[[], object]] = queue.Queue()
        self.waiting = deque(self.plan[name] for name in job.to_run)
        self.free, self.slots = list(job.slots), len(job.slots)  # without those that what can't be killed holds
        self.preparing = 0  # experiments whose directory is made ready to be used again
        self.prepared: set[str] = set()  # those of which it is
        self.running: list[Attempt] = []
        self.retries: Counter[str] = Counter()
        self.failed: set[str] = set()  # in this run
        self.set_aside: dict[str, str] = {}  # experiment -> its newest checkpoint, which could not be read
        self.stopped_by = 0  # the signal that has stopped it
        self.echo_until: defaultdict[int, float] = defaultdict(float)  # signal -> until when another one is its echo
        self.obstacle = ""  # why nothing more is launched
        self.shortage = Shortage()
        self.largest_checkpoint = 0  # bytes
        self.draw_due = 0.0 if self.console.live else math.inf
        copied = [each.config for each in job.plan if each.launched_config != each.config]
        self.watch = CodeWatch(working_directory, job.options.train_script, copied)
        self.unanswered = 0  # questions to it
        self.edits = CodeState()  # of the code that the batch began with, where another run of it goes on
        self.share: dict[str, str] = {}  # of the cores, as variables for each training
        self.guardian: Optional[Guardian] = None
        self.rules = stop_rules(job.options)
        recorder.on_write_error = lambda path, error: self.events.put(lambda: self.on_write_error(path, error))

    def run(self) -> int:
        """Run what is waiting; returns the exit code."""
        self.start_helpers()
        self.say(f"batch {self.folder}: {len(self.waiting)} of {count_of(len(self.plan), 'experiment')} to run")
        self.share_cores()
        try:
            while self.running or (not self.obstacle and (self.waiting or self.preparing)):
                if time.monotonic() >= self.next_launch():
                    self.launch_next()
                    self.take_events(0.0)  # a stop is not kept waiting by many launches
                else:
                    self.wait()
                self.step_all()
                self.refresh_views()
            return self.end()
        finally:  # whatever this program's own mistake is, no training outlives it
            if not self.guardian:
                for attempt in self.running:
                    attempt.process.group.kill()
            elif not self.running:
                self.guardian.say_goodbye()  # else it ends them, once this process is gone

    def share_cores(self) -> None:
        """Trainings that run side by side and each take all cores are slower than one after another."""
        if self.slots < 2 or self.options.launcher or "OMP_NUM_THREADS" in os.environ:
            return
        has_affinity = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.sysconf("SC_NPROCESSORS_ONLN")
        threads = max(1, cores // self.slots)
        self.share = {"OMP_NUM_THREADS": str(threads)}
        self.say(f"each training gets OMP_NUM_THREADS={threads}: {count_of(cores, 'core')}, {self.slots} slots")

    # ---- signals and other events

    def start_helpers(self) -> None:
        """Fork the guardian, then start the threads; raises UsageError where these can't be had."""
        try:
            self.guardian = Guardian(self.rules)
        except OSError as error:
            self.say(f"no guardian: {error.strerror}; if the runner is killed, its trainings live on")
        try:
            self.catch_signals()
            self.recorder.scribe.start()
            self.watch.start()
            self.console.start()
        except (OSError, RuntimeError) as error:
            raise UsageError(f"no room for the runner's own pipe and threads: {error}") from None
        self.look_at_code(self.on_first_code)

    def catch_signals(self) -> None:
        """Have signals come as events, through a pipe that Python's own C handler writes and a thread reads.

        A handler in Python runs only once the main thread does, and a signal that the kernel gave to another thread
        doesn't wake it."""
        source, sink = os.pipe()
        os.set_blocking(sink, False)
        signal.set_wakeup_fd(sink, warn_on_full_buffer=False)
        events: dict[int, Callable[[], None]] = {signal.SIGCHLD: self.on_child}
        if self.console.live:
            events[signal.SIGTSTP] = self.on_suspend
        for number in STOP_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                events[number] = functools.partial(self.on_stop_signal, number)
            elif number != signal.SIGHUP:  # nohup's wish is kept, for the trainings too
                # Else a training would inherit that the signal is ignored, and not hear the runner's.
                events[number] = lambda: None

        def pass_on() -> None:
            while True:
                self.events.put(events[os.read(source, 1)[0]])

        threading.Thread(target=pass_on, name="signals", daemon=True).start()
        for each in events:
            signal.signal(each, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def on_stop_signal(self, number: int) -> None:
        now = time.monotonic()
        is_echo = now < self.echo_until[number]
        self.echo_until[number] = now + ECHO
        if not is_echo:
            self.stop(number, now)

    def on_child(self) -> None:
        """A child has ended: a training's leader, which its Process sees, the guardian, or an orphan of pid 1's."""
        if self.guardian and self.guardian.has_died():
            self.say("the guardian was killed: if the runner is killed too, its trainings live on")
            self.guardian = None
        if os.getpid() == 1:
            self.reap_orphans()

    def reap_orphans(self) -> None:
        """As pid 1 of a container the runner inherits what trainings leave behind. Leaders are waited for elsewhere,
        as is git, which is in the runner's own group."""
        others = {attempt.process.group.leader for attempt in self.running}
        for each in processes():
            if each.group != os.getpgrp() and each.pid not in others:
                with contextlib.suppress(ChildProcessError):  # it is no child
                    os.waitpid(each.pid, os.WNOHANG)

    def on_suspend(self) -> None:
        """Ctrl+Z stops the runner alone, the training goes on; the terminal is left clean."""
        self.console.draw([])
        self.console.settle(1.0)
        os.kill(os.getpid(), signal.SIGSTOP)
        self.draw_due = time.monotonic()

    def stop(self, number: int, now: float) -> None:
        """A signal asks all that runs to end, a second one ends it at once."""
        if self.stopped_by:
            for attempt in self.running:
                attempt.process.hurry(now)
            return
        self.stopped_by, self.obstacle = number, signal_name(number)
        for attempt in self.running:  # the signals leave before anything is said
            self.stop_attempt(attempt, Status.INTERRUPTED, f"stopped by {signal_name(number)}")
        self.say(f"{signal_name(number)}: {self.what_follows()}")

    def what_follows(self) -> str:
        """What a stop has done, and what happens next."""
        endings = list(filter(None, (attempt.process.ending for attempt in self.running)))
        sent = Counter(itertools.chain.from_iterable(ending.sent for ending in endings))
        told = [f"{signal_name(number)[3:]} sent to {count_of(times, 'training')}" for number, times in sent.items()]
        held_back = sum(not ending.sent for ending in endings)
        if held_back:
            told.append(f"{count_of(held_back, 'training')} asked once no checkpoint is being written")
        if not told:
            return "stopping"
        again = "Ctrl+C again" if self.stopped_by == signal.SIGINT else "once more"
        what = f"stopping {len(self.running)} running: {', '.join(told)}"
        return f"{what}; KILL in {show_duration(self.options.grace)} (--grace); {again} to kill now"

    def stop_attempt(self, attempt: Attempt, status: Status, reason: str) -> None:
        if attempt.process.ending is None:
            attempt.process.stop(reason, time.monotonic())
            if attempt.process.ending:
                attempt.stopped_as = status

    def on_write_error(self, path: str, error: Exception) -> None:
        number = getattr(error, "errno", None)
        if number in (errno.EMFILE, errno.ENFILE):
            return  # it is tried again at the end, and there are descriptors then
        why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        self.say(f"error: can't write {path}: {why}", even_if_quiet=True)
        if number == errno.EROFS:
            self.stop_launching(f"can't write {path}: {why}")

    def look_at_code(self, tell: Callable[[CodeState], None]) -> None:
        """Have this called, in the loop, with the code that runs now."""

        def on_answer(state: CodeState) -> None:
            self.unanswered -= 1
            if state.note:
                self.say(state.note)
            tell(state)

        self.unanswered += 1
        self.watch.ask(lambda state: self.events.put(lambda: on_answer(state)))

    def on_first_code(self, state: CodeState) -> None:
        """Note with which code the batch begins, or in what the code has changed since an earlier run of it did."""
        head = self.recorder.head
        if not isinstance(head.get("git"), dict):
            head["git"] = state.git
            self.recorder.renew()
            self.save_patch(self.folder, state.patch)
        else:
            self.edits = edits_since(head["git"], bytes_of(os.path.join(self.folder, PATCH)), state)

    def on_code(self, attempt: Attempt, state: CodeState) -> None:
        """Keep which code an attempt runs, or ran, and warn where the batch began with another."""
        result, metadata = attempt.result, attempt.metadata
        metadata["git"] = state.git
        if self.results[result.config_name] is not result:
            return  # the directory is a later attempt's by now
        self.save_patch(result.experiment_dir, state.patch or self.edits.patch)
        self.recorder.save_json(os.path.join(result.experiment_dir, METADATA), metadata)
        changed = [*self.edits.changed, *state.changed]
        if changed:
            self.warn(result, f"code has changed since the batch began: {', '.join(changed[:5])}")
            self.recorder.changed(result)
            if result.status is not Status.RUNNING:
                self.save_result(result)

    def save_patch(self, folder: str, patch: bytes) -> None:
        if patch:
            self.save_file(folder, PATCH, patch)

    def save_file(self, folder: str, name: str, data: bytes) -> None:
        path = os.path.join(folder, name)
        self.recorder.save(path, lambda: write_file(path, data, sync=False))

    def save_result(self, result: Result) -> None:
        self.recorder.save_json(os.path.join(result.experiment_dir, RESULT), to_json(result))

    def warn(self, result: Result, text: str) -> None:
        result.warnings.append(text)
        self.say(f"{result.config_name}: warning: {text}", even_if_quiet=True)

    # ---- the steps of the loop

    def wait(self) -> None:
        """Sleep until an event or the next deadline; then take the events that are there."""
        now = time.monotonic()
        due = min(*self.recorder.due.values(), self.draw_due, self.next_launch(), now + LONGEST_SLEEP)
        for attempt in self.running:
            due = min(due, attempt.process.next_look())
            if attempt.process.deadline < math.inf:
                due = min(due, now + TICK)
        self.take_events(max(0.0, due - now))
        self.note_suspension(max(due, now))

    def take_events(self, timeout: float) -> None:
        """Wait so long for an event, and take all that have come."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.events.get(timeout=timeout)()
                timeout = 0.0

    def note_suspension(self, expected: float) -> None:
        """The loop should have been awake by `expected`; where it was much later, all stood still (Ctrl+Z, a closed
        lid), and no deadline may count that time. The same for a training that was stopped by itself."""
        now = time.monotonic()
        for attempt in self.running:
            process = attempt.process
            if now - expected > TICK / 2:
                process.suspend(now - expected, now)
            elif process.phase is Phase.RUNNING and now >= process.deadline - TICK and process.group.is_suspended():
                process.suspend(TICK, now)

    def step_all(self) -> None:
        for attempt in list(self.running):
            process = attempt.process
            process.step(time.monotonic())
            if any(tee.announced for tee in process.launch.tees):
                self.take_news(attempt)
            for text in process.remarks:
                self.say(f"{attempt.result.config_name}: {text}", even_if_quiet=text in process.warnings)
            process.remarks.clear()
            if process.phase is Phase.OVER:
                self.running.remove(attempt)
                self.finish(attempt)

    def take_news(self, attempt: Attempt) -> None:
        """What the streams have said since the last time."""
        result = attempt.result
        had_no_step = result.metrics.first_step is None
        for tee in attempt.process.launch.tees:
            tee.announced = False  # before they are taken: what comes after that is announced again
            news = attempt.readers[tee.stream].take()
            add_metrics(result.metrics, news.metrics)
            for line in news.evaluations:
                self.say(f"{result.config_name}: {line.decode(errors='replace')}")
            if self.options.stop_on_nan and news.is_lost:
                self.stop_attempt(attempt, Status.FAILED, "the loss is not finite (--stop_on_nan)")
                result.diverged = attempt.stopped_as is Status.FAILED
        attempt.process.set_queued(attempt.readers["stderr"].queued, time.monotonic())
        if had_no_step and result.metrics.first_step is not None:
            self.check_config(result)
        self.recorder.changed(result, delay=PROGRESS)

    def check_config(self, result: Result) -> None:
        """At the first step: a trainer that reads the original config, not its copy, may have read an edited one."""
        planned = self.plan[result.config_name]
        source = self.planner.read(planned.source).source
        if planned.launched_config == planned.config and bytes_of(planned.config) != source:
            self.warn(result, f"{planned.config} was edited since the batch began, and may have been read so")

    def refresh_views(self) -> None:
        now = time.monotonic()
        self.recorder.refresh(self.results, now)
        if now < self.draw_due:
            return
        for attempt in self.running:
            if attempt.result.metrics.step is None:  # then the last line is what there is to show
                out, err = attempt.readers["stdout"], attempt.readers["stderr"]
                attempt.result.last_line = out.last_line() or err.last_line()
        running = [attempt.result for attempt in self.running]
        self.console.draw(live_lines(running, list(self.results.values()), self.slots, terminal_size()))
        self.draw_due = now + DRAW

    # ---- launching

    def next_launch(self) -> float:
        """When the next launch may be tried; never where nothing waits for one, or no slot is free."""
        return self.shortage.retry_at if self.waiting and self.free and not self.obstacle else math.inf

    def launch_next(self) -> None:
        """Begin an attempt of what waits first. What there is no room for goes on waiting; another failure ends it."""
        planned, slot = self.waiting.popleft(), min(self.free, key=lambda each: each.number)
        self.free.remove(slot)
        before = self.results[planned.name]
        result = next_result(before, slot)
        try:
            self.check_room()
            if planned.problem:
                raise UsageError(planned.problem)
            if before.attempts and planned.name not in self.prepared:
                self.prepare(planned, slot, before)
            else:
                self.start(on_device(self.options, self.planner, planned, slot), result, slot)
                self.shortage = Shortage()
        except Exception as error:
            self.free.append(slot)
            why = shortage_in(error)
            if why:
                self.waiting.appendleft(planned)
                self.wait_for_room(why)
            else:
                self.end_unstarted(planned, result, error)

    def prepare(self, planned: Experiment, slot: Slot, before: Result) -> None:
        """Before a directory is used again: what the scribe has yet to write there goes first, and a copy of an only
        checkpoint is kept, in a thread, as it may be large. Raises RuntimeError."""
        settled, folder = threading.Event(), before.experiment_dir

        def work() -> None:
            settled.wait()
            try:
                checkpoint = take_up(planned, folder, before.attempts, self.options).checkpoint
                is_only = checkpoints(folder, self.options.checkpoints) == [checkpoint]
                if is_only and not os.path.exists(copy_path(checkpoint)):
                    keep_copy(checkpoint)
            except Exception as error:
                problem = f"{planned.name}: no copy of its only checkpoint is kept: {error}"
                self.events.put(functools.partial(self.say, problem))
            self.events.put(functools.partial(self.on_prepared, planned, slot))

        threading.Thread(target=work, name="prepare", daemon=True).start()
        self.recorder.scribe.put(settled.set)
        self.preparing += 1

    def on_prepared(self, planned: Experiment, slot: Slot) -> None:
        self.preparing -= 1
        self.prepared.add(planned.name)
        self.free.append(slot)
        self.waiting.appendleft(planned)  # it is the next to be launched, if anything is

    def check_room(self) -> None:
        """Raises OSError where the disk has no room for what the trainings may write."""
        needed = max(ROOM, 2 * self.largest_checkpoint) * (len(self.running) + 1)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            told = f"only {free >> 20} MB free on the disk of {self.folder}, {needed >> 20} MB are wanted"
            raise OSError(errno.ENOSPC, told)

    def wait_for_room(self, why: str) -> None:
        """A passing shortage burns no plan: it is tried again when a training ends, or after 1, 2, 4 ... 60 s."""
        now, shortage = time.monotonic(), self.shortage
        if not shortage.pause:
            self.say(f"waiting: {why}; tried again until there is room")
            shortage.ran_at = now
        if self.running:
            shortage.ran_at = now
        if now >= shortage.ran_at + SHORT:
            self.stop_launching(f"{why}; nothing could run for {show_duration(SHORT)}")
        shortage.pause = min(60.0, max(1.0, 2 * shortage.pause))
        shortage.retry_at = now + shortage.pause

    def stop_launching(self, why: str) -> None:
        if not self.obstacle:
            self.obstacle = self.recorder.head["stopped_because"] = why
            self.say(f"error: {why}; nothing more is started", even_if_quiet=True)

    def start(self, experiment: Experiment, result: Result, slot: Slot) -> None:
        """Take what a launch needs, make the experiment's directory ready, start the training in it.

        Raises OSError, RuntimeError and UsageError; then nothing runs, and nothing of this attempt is left."""

        def post(message: Message) -> None:
            self.events.put(lambda: message(attempt.process))  # a Tee has nothing to tell before it begins

        logs: dict[str, Log] = {}
        with contextlib.ExitStack() as taken:
            launch = Launch(post)
            taken.callback(launch.abandon)
            attempt = self.make_ready(experiment, result, slot)
            for name, file in LOGS.items():
                users = 2 if name == "combined" else 1
                logs[name] = Log(os.path.join(result.experiment_dir, file), users)
                taken.callback(discard, logs[name])
            attempt.stderr_start = os.fstat(logs["stderr"].descriptor).st_size
            mark = self.guardian.mark_next() if self.guardian else {}
            added = {"PYTHONUNBUFFERED": "1", **attempt.metadata["environment_set"], **mark}
            group = launch.start(attempt.metadata["command"], {**os.environ, **added})
            taken.pop_all()
        # From here on there is a training: nothing below may fail before it is known to the loop.
        if self.guardian:
            self.guardian.tell_started(group, result.experiment_dir)
        rules = replace(self.rules, folder=result.experiment_dir)
        attempt.process = Process(group, launch, rules, time.monotonic())
        attempt.metadata.update(pid=group.leader, pid_started=group.started)
        self.running.append(attempt)
        self.begin(attempt, logs)

    def make_ready(self, experiment: Experiment, result: Result, slot: Slot) -> Attempt:
        """Make an experiment's directory ready for an attempt, and work out what that one is given."""
        before, folder = self.results[experiment.name], result.experiment_dir
        up = take_up(experiment, folder, before.attempts, self.options)
        os.makedirs(folder, exist_ok=True)
        if up.checkpoint:
            result.metrics = replace(before.metrics, first_step=None, largest_gap=None, diverged_since=None)
        elif os.listdir(folder):
            move_aside(folder, before.attempts)
        metadata = self.metadata(experiment, result, slot, up)
        config_used, planned = {}, self.planner.read(experiment.source).source
        if experiment.config:
            ending = os.path.splitext(experiment.config)[1]
            config_used[f"config_used{ending}"] = bytes_of(experiment.launched_config) or planned
        # A trainer that prints its own lines says nothing.
        own_lines = lines_like_metrics(bytes_of(self.options.train_script), planned)
        patterns = compile_metrics(self.options.metrics)
        was_finite = result.metrics.step is not None
        readers = {each: LineReader(own_lines, patterns, was_finite) for each in ("stdout", "stderr")}
        return Attempt(result, slot, up, metadata, config_used, readers)

    def begin(self, attempt: Attempt, logs: Mapping[str, Log]) -> None:
        """The training runs: write down as what, have its output read, and look whether the code is as it was."""
        result, metadata, up = attempt.result, attempt.metadata, attempt.take_up
        name = result.config_name
        self.results[name] = result
        self.recorder.changed(result)
        with contextlib.suppress(OSError):  # what is missing is written in the end
            for file, data in attempt.own_files().items():
                # Under a temporary name of its own: the scribe may be writing this file, too.
                write_file(os.path.join(result.experiment_dir, file), data, sync=False, is_holder=False)
        if up.checkpoint:  # so that attempts can be told apart in combined.log
            start = b"\n" if read_tail(logs["combined"].path, 1).strip(b"\n") else b""
            mark = f"attempt {result.attempts} {up.words}\n".encode()
            logs["combined"].write([start, stamp("RUNNER"), mark])
        shown_name = f"{name}: " if self.slots > 1 else ""
        follow = functools.partial(self.console.follow, shown_name) if self.options.follow else None
        for tee in attempt.process.launch.tees:
            tee.begin(logs[tee.stream], logs["combined"], attempt.readers[tee.stream].read, follow)
        self.look_at_code(functools.partial(self.on_code, attempt))
        begins = "started" if result.attempts == 1 else up.words
        self.say(f"{name}: {begins}, pid {metadata['pid']}: {metadata['command_line']}")

    def environment(self, experiment: Experiment, result: Result, slot: Slot) -> dict[str, str]:
        """What a training gets in its environment, unless the user's has a value of its own."""
        wanted = dict(self.share)
        if True in (experiment.settings.get("wandb_log"), experiment.settings.get("wandb_enabled")):
            wanted.update(self.wandb_variables(result))
        chosen = {key: value for key, value in wanted.items() if key not in os.environ}
        if slot.gpus:
            chosen["CUDA_VISIBLE_DEVICES"] = slot.gpus
        return chosen

    def wandb_variables(self, result: Result) -> dict[str, str]:
        """A batch is a group, and an attempt that continues goes on with the run of the one before: its metadata is
        there yet, while that of one that is started over has been moved aside."""
        batch, name = os.path.basename(self.place), result.config_name
        before = read_own(result.experiment_dir, METADATA).get("environment_set")
        run = before.get("WANDB_RUN_ID") if isinstance(before, dict) else None
        origin = f"{batch}/{name}/{result.attempts}/{self.recorder.head.get('start_time')}/{os.uname().nodename}"
        run_id = str(run or sha256(origin.encode())[:16])
        return {"WANDB_RUN_GROUP": batch, "WANDB_RUN_ID": run_id, "WANDB_RESUME": "allow"}

    def metadata(self, experiment: Experiment, result: Result, slot: Slot, up: TakeUp) -> dict[str, Any]:
        command = build_command(self.options, experiment, result.experiment_dir, slot, up.checkpoint)
        environment = self.environment(experiment, result, slot)
        system = os.uname()
        return {
            **{key: self.recorder.head.get(key) for key in IN_BOTH},
            "config_name": experiment.name,
            "config_path": experiment.config,
            "config_sha256": self.plan[experiment.name].config_sha256 or None,
            "command": command,
            "command_line": shell_line(command),
            "overrides": result.overrides,
            "attempt": result.attempts,
            "attempt_history": result.attempt_history,
            "start_time": result.start_time,
            "platform": f"{system.sysname} {system.release} {system.machine}",
            "git": None,  # until it has answered
            "cuda_visible_devices": {**os.environ, **environment}.get("CUDA_VISIBLE_DEVICES"),
            "environment_set": environment,
        }

    # ---- the end of an attempt, and of the batch

    def end_unstarted(self, planned: Experiment, result: Result, error: Exception) -> None:
        """An attempt could not be launched, and that is its end."""
        if planned.problem:  # no attempt has begun: what is known of the last one stays
            result = replace(self.results[planned.name], hint=None)
            self.retries[planned.name] = self.options.retries  # it would fail again
        self.results[planned.name] = result
        result.start_time = or_else(result.start_time, now_iso())
        result.duration_seconds = or_else(result.duration_seconds, 0.0)
        result.status, result.error = Status.FAILED, str(error)
        if not isinstance(error, UsageError):
            result.status, result.error = Status.ERROR, f"could not be started: {type(error).__name__}: {error}"
            result.traceback = traceback.format_exc()
        with contextlib.suppress(OSError):
            os.mkdir(result.experiment_dir)
        self.end_attempt(result)

    def finish(self, attempt: Attempt) -> None:
        """A training is over: tell how it ended, and give back what it held."""
        process = attempt.process
        if self.guardian:
            self.guardian.tell_ended(process.group)
        if process.is_stuck:
            self.slots -= 1
        else:
            process.launch.close()
            self.free.append(attempt.slot)
        if not self.slots:
            self.stop_launching("no slot is left: what ran in them can't be killed")
        if process.is_unkillable:  # no second one beside it
            self.retries[attempt.result.config_name] = self.options.retries
        self.take_news(attempt)
        self.conclude(attempt)
        self.put_back_files(attempt)
        self.end_attempt(attempt.result, self.sets_checkpoint_aside(attempt))

    def conclude(self, attempt: Attempt) -> None:
        """Tell from a training that is over how its attempt ended."""
        process, result = attempt.process, attempt.result
        result.duration_seconds = round(process.ended_at - process.began, 3)
        result.total_seconds = round(or_else(result.total_seconds, 0.0) + result.duration_seconds, 3)
        result.log_complete = not process.failed_logs
        result.warnings += process.warnings
        ended = process.group.exit
        if ended:
            result.return_code, result.cpu_seconds = ended.return_code, ended.cpu_seconds
            result.max_rss_bytes = ended.max_rss_bytes
        for text in judge(result, self.stop_of(attempt), attempt.stderr(), self.planner.script.strict):
            self.warn(result, text)
        for newest in checkpoints(result.experiment_dir, self.options.checkpoints)[:1]:
            result.final_checkpoint = newest
            self.largest_checkpoint = max(self.largest_checkpoint, look_at(newest)[0])

    def stop_of(self, attempt: Attempt) -> Optional[tuple[Status, str]]:
        """As what and why an attempt was ended; None where it has ended by itself, perhaps before it was asked to."""
        process = attempt.process
        if process.is_unkillable:
            return Status.FAILED, process.reason
        if process.ending and process.ending.sent:
            return attempt.stopped_as, process.reason
        died_of = signal_in(or_else(attempt.result.return_code, 0))
        if self.stopped_by and died_of in STOP_SIGNALS:  # it got the runner's signal, too
            return Status.INTERRUPTED, f"stopped by {signal_name(self.stopped_by)}"
        return None

    def put_back_files(self, attempt: Attempt) -> None:
        """What a trainer that remakes its directory has taken away; the logs have seen to themselves."""
        result, files = attempt.result, attempt.own_files()
        gone = sorted(files.keys() - names_in(result.experiment_dir, ".*"))
        for name in gone:
            self.save_file(result.experiment_dir, name, files[name])
        if gone:
            self.warn(result, f"put back what the training removed: {', '.join(gone)}")

    def sets_checkpoint_aside(self, attempt: Attempt) -> bool:
        """After a continued attempt whose error says that the checkpoint can't be read: whether it is tried again
        without that one, once. Where that fails as well, the checkpoint gets its name back."""
        name, result, checkpoint = attempt.result.config_name, attempt.result, attempt.take_up.checkpoint
        before = self.set_aside.pop(name, "")
        if result.status is not Status.FAILED or result.metrics.first_step is not None:
            return False
        is_broken = bool(checkpoint) and not before and is_unreadable(checkpoint, attempt.stderr())
        try:
            if is_broken:
                self.say(f"{name}: {result.error}; set aside: {set_checkpoint_aside(checkpoint)}")
                self.set_aside[name] = checkpoint
                self.waiting.appendleft(self.plan[name])
            elif before and not os.path.exists(before):
                os.rename(before + ASIDE, before)
                self.say(f"{name}: failed without {os.path.basename(before)} as well, which has its name back")
        except OSError as error:
            self.warn(result, f"a checkpoint can't be renamed: {error.filename}: {error.strerror}")
            return False
        return is_broken

    def end_attempt(self, result: Result, is_tried_again: bool = False) -> None:
        """The one place in which an attempt ends: it is recorded, counted, said, and perhaps taken up again."""
        result.end_time = now_iso()
        self.prepared.discard(result.config_name)  # its directory has been used again
        self.save_result(result)
        self.recorder.changed(result)
        for line in [end_in_line(result), *(result.traceback or "").splitlines()]:
            self.say(line)
        if result.status is Status.COMPLETED:
            remove_copies(result.experiment_dir, self.options.checkpoints)
        elif result.status in FAILURES and not is_tried_again:
            self.count_failure(result)
        self.shortage.retry_at = 0.0  # its end may have made room

    def count_failure(self, result: Result) -> None:
        name = result.config_name
        if self.retries[name] < self.options.retries and not (result.diverged or self.obstacle):
            self.retries[name] += 1
            self.say(f"{name}: retry {self.retries[name]} of {self.options.retries} follows")
            self.plan[name].starts_over = False  # once is enough
            self.waiting.append(self.plan[name])
            return
        self.failed.add(name)
        if len(self.failed) == self.options.max_failures:
            self.stop_launching(f"{len(self.failed)} experiments have failed (--max_failures)")

    def end(self) -> int:
        """Write and say how the batch ended; returns the exit code."""
        patience = time.monotonic() + SLOW_GIT
        while self.unanswered and not self.stopped_by and time.monotonic() < patience:
            self.take_events(1.0)
        counts = count_statuses(self.results.values())
        is_finished = not (self.stopped_by or self.waiting or self.preparing)
        self.recorder.head.update(state="finished" if is_finished else "interrupted", end_time=now_iso())
        is_saved = self.recorder.finish(self.results)
        self.take_events(0.0)  # what could not be written is said
        is_all_well = is_saved and is_finished and counts["completed"] == len(self.plan)
        self.say_end(is_all_well)
        return 128 + self.stopped_by if self.stopped_by else int(not is_all_well)

    def say_end(self, is_all_well: bool) -> None:
        """The table, for the master log and the console, which is then settled."""
        self.console.draw([])
        results = list(self.results.values())
        below = [show_counts(count_statuses(results))]
        if not is_all_well:
            below.append(f"continue with: {shell_line([*program(), '--resume', self.place])}")
        for line in [*result_lines(results), *below]:
            self.recorder.log(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")
        for line in [*result_lines(results, terminal_width()), *below]:
            self.console.line(line, even_if_quiet=not is_all_well)
        self.console.line(os.path.join(self.folder, REPORT))
        self.recorder.scribe.flush()
        self.console.settle(STUCK)


# -------------------------------------------------------------------------------------------- command line
# From words to what is done: the parser, the checks of what was asked for, the modes. Nothing above knows argparse, and
# nothing here decides while a batch runs.


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")


# ---- options: what parses a value raises ValueError with what is wrong with it


def a_duration(text: str, least: float = 1e-9) -> float:
    """Seconds from `90`, `30m`, `2h`, `1d12h`."""
    match = re.fullmatch(r"(?=.)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d*\.?\d+)s?)?", text)
    if match:
        seconds = sum(float(part) * unit for part, unit in zip(match.groups("0"), (86400, 3600, 60, 1)))
        if least <= seconds < 1e10:
            return seconds
    raise ValueError(f"not a duration such as 90, 30m, 2h or 1d12h: {text!r}")


def a_count(text: str, least: int = 1) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) < least:
        raise ValueError(f"not a whole number from {least}: {text!r}")
    return int(text)


def a_stop_signal(text: str) -> str:
    name = re.sub("^SIG", "", text.upper())
    if f"SIG{name}" not in {"SIGAUTO", *signal.Signals.__members__} - {"SIGKILL", "SIGSTOP"}:
        raise ValueError(f"not a signal that a trainer can handle: {text!r}")
    return "auto" if name == "AUTO" else name


def a_metric(text: str) -> str:
    compile_metrics([text])
    return text


def a_shard(text: str) -> str:
    parse_shard(text)
    return text


def option(metavar: str, text: str, parse_value: Callable[[str], Any] = str, **how: Any) -> dict[str, Any]:
    """An option with a value, as argparse wants it described."""

    def parse_for_argparse(word: str) -> Any:
        try:
            return parse_value(word)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return {"metavar": metavar, "help": text, "type": parse_for_argparse, **how}


def flag(text: str, action: str = "store_true", **how: Any) -> dict[str, Any]:
    return {"action": action, "help": text, **how}


GROUPS: dict[str, dict[str, dict[str, Any]]] = {  # a text of 54 columns fits on its option's line
    "what to run": {
        "configs": option("PATTERN", 'config files and patterns ("config/**/*.py")', nargs="+", action="extend"),
        "sweep": option("KEY=V1,V2", "every config with each of these; repeatable", parse_sweep, action="append"),
        "shard": option("I/N", "every N-th experiment, beginning with the I-th", a_shard),
        "train_script": option("PATH", "the training script (train_run.py)"),
        "launcher": option("CMD", "instead of Python; knows {name} {dir} {device} {slot}"),
        "command": option("CMD", "the whole command; knows {config} {overrides}, too"),
        "continue_with": option("ARGS", "when it continues (--init_from=resume); {checkpoint}"),
        "checkpoints": option("GLOB", "their names in an experiment's directory (ckpt*.pt)"),
        "base_out_dir": option("DIR", "where batches go (experiments)"),
        "metrics": option("REGEX", "how losses are printed, with named groups; repeatable", a_metric, action="append"),
        "resume": option("DIR", "continue this batch, or the newest with anything left", nargs="?", const=""),
        "again": option("NAME", "with --resume: run completed or diverged ones, too", nargs="+"),
    },
    "what to see": {
        "status": option("DIR", "the table of this batch, of several, or of the newest", nargs="*"),
        "json": flag("with --status: the same as JSON"),
        "report": option("DIR", "write report.html, of several as one; print its path", nargs="*"),
        "dry_run": flag("print each command and why; create nothing"),
        "follow": flag("copy the training's output to the console"),
        "quiet": flag("print nothing when all goes well"),
        "help": flag("print this and end", "help"),
        "version": flag("print the version and end", "version", version=f"run_experiments.py {__version__}"),
    },
    "how to run it": {
        "jobs": option("N", "experiments at a time (1)", a_count),
        "devices": option("D1,D2", "one at a time on each of these; auto: all GPUs", lambda text: text.split(",")),
        "gpus": option("N", "GPUs for each, as many at a time as there is room for", a_count),
        "timeout": option("TIME", "end an attempt after this time: 90, 30m, 2h, 1d12h", a_duration),
        "stall": option("TIME", "end one that has printed nothing for this time", a_duration),
        "stop_on_nan": flag("end one whose loss is no longer finite"),
        "retries": option("N", "take a failed one up again, at most N times (0)", functools.partial(a_count, least=0)),
        "max_failures": option("N", "start no more once N experiments have failed", a_count),
        "stop_signal": option("NAME", "what a training gets first when it is stopped (auto)", a_stop_signal),
        "grace": option("SECONDS", f"from there to KILL ({GRACE:.0f})", functools.partial(a_duration, least=0)),
    },
}
OPTIONS: Mapping[str, dict[str, Any]] = ChainMap(*GROUPS.values())
DESCRIPTION = """\
Run a nanoGPT-style training script once per config file, and lose nothing.
Exit codes: 0 all completed, 1 some did not, 2 usage error, nothing was started,
75 another runner holds the batch, 128+N stopped by signal N."""
SETTINGS = """\
--batch_size INT, --max_iters INT, --learning_rate FLOAT, --device STR,
--compile BOOL, --wandb_project STR, --wandb_enabled BOOL, and any other, for
all configs: --n_layer 4, --dropout=0.1; words behind a bare -- are handed on"""
DASHED = ("--command", "--continue_with", "--launcher", "--metrics")  # their values may look like options
ONE_OF = (  # of each line at most one can be given
    ("configs", "resume", "status", "report"),
    ("sweep", "resume", "status", "report"),
    ("gpus", "devices", "jobs"),  # each says how many run at a time
    ("gpus", "device"),
    ("device", "devices"),
)
ONLY_WITH = {"json": "status", "again": "resume"}


def build_parser() -> Parser:
    parser = Parser(
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,  # what isn't given leaves the batch's own on --resume
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="run_experiments.py --configs PATTERN ... [options] [-- ARGS ...]",
        description=DESCRIPTION,
    )
    for title, group in GROUPS.items():
        add = parser.add_argument_group(title).add_argument
        for name, how in group.items():
            add(f"--{name}", **how)
    parser.add_argument("-h", action="help", help=argparse.SUPPRESS)
    parser.add_argument_group("settings of the trainer", SETTINGS)
    return parser


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """What a command line gives, by the names of Options. Raises UsageError."""
    own, for_trainer = take_settings(argv)
    given = vars(build_parser().parse_args(own))
    sweeps = given.get("sweep", [])
    swept = ",".join(keys for keys, _ in sweeps).split(",")
    if len(set(swept)) < len(swept):
        raise UsageError(f"--sweep: a setting given twice: {', '.join(swept)}")
    names = {*given, *for_trainer["overrides"], *swept}
    for group in ONE_OF:
        both = sorted(names.intersection(group))
        if len(both) > 1:
            raise UsageError(f"--{both[0]}: not allowed with --{both[1]}")
    for one in ONLY_WITH.keys() & names:
        if ONLY_WITH[one] not in names:
            raise UsageError(f"--{one}: only with --{ONLY_WITH[one]}")
    return {**given, **for_trainer, "sweep": dict(sweeps)}


def take_settings(argv: Iterable[str]) -> tuple[list[str], dict[str, Any]]:
    """The words for the runner, and what is the trainer's: each option that is not the runner's is a setting."""
    rest = deque(argv)
    own: list[str] = []
    overrides: dict[str, str] = {}
    for_trainer: dict[str, Any] = {"overrides": overrides}
    while rest:
        word = rest.popleft()
        if word == "--":
            for_trainer["trainer_args"] = list(rest)
            break
        if word in DASHED and rest:
            word += f"={rest.popleft()}"
        name, equals, value = word[2:].partition("=")
        if value == "--":  # argparse drops it
            raise UsageError(f"--{name}: not a value: --")
        if not word.startswith("--") or name in OPTIONS:
            own.append(word)
        elif equals:
            overrides[name] = value
        elif rest and re.match(r"[^-]|-[\d.]|$", rest[0]):  # a number may be negative
            overrides[name] = rest.popleft()
        else:
            wanted = "true or false" if isinstance(USUAL.get(name), bool) else "a value"
            remedy = f"--{name} VALUE{suggestion(name, ())}"
            raise UsageError(f"--{name} is a setting of the trainer and wants {wanted}: {remedy}")
    return own, for_trainer


# ---- what a batch is run with


def make_job(given: Mapping[str, Any], options: Options, notes: list[str]) -> Job:
    """Read the trainer, and refuse what can't work before anything starts."""
    check_template(options)
    planner = Planner(read_trainer(options))
    modes = {"resume", "status", "report", "configs", "sweep"}
    # An option of this name: nobody could tell which is meant.
    for key in given.keys() & OPTIONS & planner.script.settings.keys() - modes:
        told = f"is an option of the runner and a setting of {planner.script.path}"
        raise UsageError(f"--{key} {told}; the trainer's is reached behind a bare --: -- --{key}=VALUE")
    options.overrides = {planner.setting(key): text for key, text in options.overrides.items()}
    options.sweep = {planner.setting(key): values for key, values in options.sweep.items()}
    check(options)
    return Job(options, planner, find_slots(options), notes)


def current_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        raise UsageError("the working directory has been removed; cd to another one") from None


def check(options: Options) -> None:
    current_directory()
    swept = ",".join(options.sweep).split(",")
    for key in options.overrides.keys() & swept:
        raise UsageError(f"--{key}: not allowed with --sweep {key}")
    if "out_dir" in (*options.overrides, *swept) and not options.command:
        raise UsageError("--out_dir: the runner sets it for each experiment, see --base_out_dir")
    if "=" in options.base_out_dir:
        raise UsageError(f"--base_out_dir holds '=': {options.base_out_dir}; the trainer's configurator splits on it")
    devices = [*options.devices, options.overrides.get("device", "cpu")]
    for wrong in {"", "gpu"}.intersection(devices):
        raise UsageError(f"no device: {wrong!r}; with torch it is called cpu, cuda or cuda:1, see --devices")
    program_name = build_command(options, Experiment(), "", Slot(0))[0]
    if not shutil.which(program_name):
        raise UsageError(f"program not found: {program_name}; see --command and --launcher")


def find_slots(options: Options) -> list[Slot]:
    """Raises UsageError where there are too few GPUs for what is asked for."""
    size = options.gpus
    if size:
        gpus = all_gpus(size)
        starts = range(0, len(gpus) - size + 1, size)
        return [Slot(number, gpus=",".join(gpus[start : start + size])) for number, start in enumerate(starts)]
    if options.devices == ["auto"]:
        options.devices = [f"cuda:{index}" for index in range(len(all_gpus(1)))]
    devices: Sequence[Optional[str]] = options.devices or [None] * options.jobs
    return [Slot(number, device) for number, device in enumerate(devices)]


def all_gpus(least: int) -> list[str]:
    """The GPUs that nvidia-smi lists, or those of them that CUDA_VISIBLE_DEVICES leaves, by what it calls them; raises
    UsageError for too few."""
    listed = ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).stdout
    numbers = re.findall(r"(?m)^GPU (\d+):", listed)
    words = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(numbers)).split(",")
    # CUDA stops at the first that isn't there.
    is_there = re.compile("|".join(["(GPU|MIG)-.*", *numbers])).fullmatch
    gpus = list(itertools.takewhile(is_there, map(str.strip, words)))
    if len(gpus) < least:
        found = f"only {count_of(len(gpus), 'GPU')} found by nvidia-smi and CUDA_VISIBLE_DEVICES"
        raise UsageError(f"--gpus, --devices auto: {found}; try --device cpu")
    return gpus


def complete_plan(job: Job) -> dict[str, bytes]:
    """Complete what is known of each experiment, now that all are planned. Returns what is to be frozen."""
    planner, keys, to_run = job.planner, differing(job.plan), set(job.to_run)
    originals = {each.source: each.config for each in job.plan}
    originals.pop("", None)  # of what can't be read
    names = frozen_names(job.folder, originals)
    for each in job.plan:
        each.frozen, each.launched_config = names.get(each.source, ""), each.config
        if gets_copy(planner, each):
            each.launched_config = os.path.join(job.folder, PLAN, each.frozen)
        result = job.results.setdefault(each.name, Result(config_name=each.name))
        settings = {key: in_words(each.settings[key]) for key in keys if key in each.settings}
        if each.name in to_run:
            iterations = each.settings.get("max_iters")
            result.config_path, result.overrides, result.settings = each.config, each.values, settings
            result.max_iters = iterations if isinstance(iterations, int) else None
        else:  # it ran with what the trainer's defaults were then
            result.settings = {**settings, **result.settings}
        relocate(result, os.path.join(job.folder, each.name))
    return {source: planner.read(source).source for source in originals}


def gets_copy(planner: Planner, planned: Experiment) -> bool:
    """Whether the frozen copy of a config is launched. A configurator gets it, unless it matters to either where they
    lie; and what was interrupted goes on with its copy, where its original was edited."""
    read_now = planner.read(planned.source)
    uses_file = planner.script.uses_file or read_now.uses_file
    was_edited = read_now.source != planner.read(planned.config).source
    return was_edited or (planner.script.strict and not uses_file)


def facts_of(job: Job) -> dict[str, Any]:
    """What the head of the summary says of a batch that begins or goes on."""
    own = {*differing(job.plan), *INVENTED}
    first = next(iter(job.plan), Experiment()).settings
    return {
        "experiment_dir": job.folder,
        "state": "running",
        "end_time": None,
        "train_script": job.options.train_script,
        "options": plan_options(job.options),
        "working_directory": os.getcwd(),
        "total_experiments": len(job.plan),
        "slots": len(job.slots),
        "common_settings": {key: in_words(value) for key, value in first.items() if key not in own},
        "hostname": os.uname().nodename,
        "python_executable": sys.executable,
        "python_version": sys.version.split()[0],
    }


def run_job(job: Job, head: dict[str, Any], lock: Optional[int]) -> int:
    """Freeze the plan, then run it."""
    if lock is None:
        job.notes.append(NO_LOCKS)
    try:
        freeze(job.folder, job.plan, complete_plan(job), head)
        recorder = Recorder(job.folder, job.results, head, Console(job.options.quiet))
        write_file(os.path.join(job.folder, SUMMARY), json_bytes(recorder.summary(job.results)))
    except OSError as error:
        raise UsageError(f"can't write to the batch: {error.filename or job.folder}: {error.strerror}") from None
    batch = Batch(job, recorder)
    for note in job.notes:
        recorder.say(note)
    return batch.run()


def show_job(job: Job) -> int:
    """Print what would be run and why, after some notes."""
    complete_plan(job)
    lines = [f"# {clean(note)}" for note in job.notes]
    free = itertools.cycle(job.slots)
    to_run = set(job.to_run)
    runs = 0
    for each in job.plan:
        result = job.results[each.name]
        if each.name not in to_run:
            lines.append(f"# {left_alone(result)}")
        elif each.problem:
            lines.append(f"# {each.name}: fails, {clean(each.problem)}")
        else:
            slot = next(free)
            up = take_up(each, result.experiment_dir, result.attempts, job.options)
            made = on_device(job.options, job.planner, each, slot)
            command = build_command(job.options, made, result.experiment_dir, slot, up.checkpoint)
            lines += [f"# {each.name}: {up.words}", shell_line(command)]
            runs += 1
    print_whole([*lines, f"# {runs} of {count_of(len(job.plan), 'experiment')} would run"])
    return 0


def say_nothing_to_do(options: Options, why: Sequence[str]) -> int:
    if not options.quiet:
        print_whole([*why[:-1], f"{why[-1]}: nothing to do"])
    return 0


# ---- a new batch


def new_batch(given: dict[str, Any]) -> int:
    options = Options(**given)
    if not options.configs and not options.command:
        raise UsageError("no configs; name them with --configs, or continue a batch with --resume; see --help")
    notes = []
    if not {"train_script", "command"} & given.keys() and default_script() != options.train_script:
        notes.append(f"the training script is {default_script()}: there is no {options.train_script}")
        options.train_script = default_script()
    job = make_job(given, options, notes)
    whole = plan_new(job)
    if not job.plan:  # an array may have more elements than there are experiments
        return say_nothing_to_do(options, [f"--shard {options.shard}: no experiment is left of {len(whole)}"])
    if options.dry_run:
        job.folder = os.path.join(options.base_out_dir, datetime.now().strftime("experiment_%Y%m%d_%H%M%S"))
        return show_job(job)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until the batch is there to take them
    job.folder, problems = create_folder(options.base_out_dir)
    job.notes += problems
    head = {
        "timestamp": os.path.basename(job.folder)[len("experiment_") :],
        "base_out_dir": options.base_out_dir,
        "start_time": now_iso(),
        "duration_seconds": 0.0,
        "command": [*program(), *sys.argv[1:]],
        "global_overrides": {key: job.planner.plain(key, text) for key, text in options.overrides.items()},
        "sweep": options.sweep,
        **facts_of(job),
    }
    if options.shard:
        index, count = parse_shard(options.shard)
        head["shard"] = {"index": index, "count": count, "plan_digest": plan_digest(whole), "experiments": len(whole)}
    return run_job(job, head, hold_batch(job.folder))


def plan_new(job: Job) -> list[Experiment]:
    """Plan all that is asked for, and take this shard of it. Returns the whole plan."""
    options, planner = job.options, job.planner
    configs = expand_configs(options.configs, planner, job.notes) if options.configs else []
    whole = planner.plan(options, configs)
    on_device(options, planner, whole[0], job.slots[0])  # raises where the trainer knows no device
    job.plan = take_shard(whole, options.shard or "1/1")
    told = []
    for each in job.plan:
        job.to_run.append(each.name)
        told += [f"warning: {each.config}: {text}" for text in planner.warnings(each)]
    job.notes += dict.fromkeys(told)
    return whole


# ---- a batch that goes on


def resume_batch(given: dict[str, Any]) -> int:
    folder = batch_to_resume(given)
    lock = None
    if "dry_run" not in given:
        lock = hold_batch(folder)
    elif is_held(folder):  # what is left of it changes as it runs
        raise BatchHeld(f"another runner holds this batch: {folder}; see --status")
    stored = read_batch(folder, is_holder=True)
    options = resumed_options(stored, given)
    here = current_directory()
    stored.folder = go_where(stored.summary, folder)
    notes = [f"resuming {folder}", *stored.notes]
    if current_directory() != here:
        notes.append(f"working in {current_directory()}, where the batch was started")
    job = make_job(given, options, notes)
    job.folder, job.results = stored.folder, stored.results
    plan_again(job, stored)
    before, facts = stored.summary, facts_of(job)
    for key in ("hostname", "python_executable", "python_version", "train_script"):
        if before.get(key, facts[key]) != facts[key]:
            job.notes.append(f"warning: {key.replace('_', ' ')} is {facts[key]}, the batch had {before[key]}")
    if options.dry_run:
        return show_job(job)
    if not job.to_run and stored.facts.state == "finished":
        counts = show_counts(count_statuses(job.results.values()))
        others = "" if given["resume"] else "; no other batch has anything left either"
        return say_nothing_to_do(options, [*job.notes, f"{job.folder}: {counts}{others}"])
    wait_for_trainings(job)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    resume = {"time": now_iso(), "command": [*program(), *sys.argv[1:]], "overrides": options.overrides}
    before["resumes"] = [*stored.facts.resumes, resume]
    before.pop("stopped_because", None)
    return run_job(job, {**before, **facts}, lock)


def batch_to_resume(given: Mapping[str, Any]) -> str:
    """The batch that is named, or the newest with anything left to do; without one the newest, which then says so."""
    if given["resume"]:
        folder: str = os.path.normpath(given["resume"])
        read_batch(folder)  # nothing is written to what is no batch
        return os.path.relpath(os.path.realpath(folder)) if os.path.islink(folder) else folder  # latest
    base: str = given.get("base_out_dir", Options.base_out_dir)
    newest = newest_batch(base)
    for folder in reversed(batches_in(base)):
        stored = read_batch(folder)
        if stored.facts.state != "finished" or "again" in given or left_of(stored, given["overrides"]):
            return folder
    return newest


def left_of(stored: StoredBatch, overrides: Mapping[str, str]) -> set[str]:
    """What isn't completed; what has diverged would diverge again, unless a setting is overridden."""
    left = set()
    for name, result in stored.results.items():
        is_hopeless = result.diverged and not overrides
        if result.status is not Status.COMPLETED and not is_hopeless:
            left.add(name)
    return left


def resumed_options(stored: StoredBatch, given: Mapping[str, Any]) -> Options:
    """The batch's own options, and over them those that are given now."""
    kept = options_from_json(stored.summary, stored.folder)
    for name, value in kept.items():
        parse_value = OPTIONS.get(name, {}).get("type", str)
        try:
            for each in value if isinstance(value, list) else [value]:
                parse_value(str(each))
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"{stored.folder}: {name} of its options: {error}; correct it in {SUMMARY}") from None
    # Slots given now replace those of the plan, in whatever way either were given.
    if {"device", "devices", "gpus", "jobs"} & {*given, *given["overrides"]}:
        kept.pop("devices", None)
        kept.pop("gpus", None)
    return Options(**{**kept, **given})


def go_where(summary: Mapping[str, Any], folder: str) -> str:
    """Work where the batch was started, where that directory is still there; but where the user is, if the batch was
    moved or copied, and its trainer is here. Returns the batch's path from there."""
    place, script = str(summary.get("working_directory")), str(summary.get("train_script"))
    began_as = os.path.join(place, str(summary.get("experiment_dir")))
    has_moved = not (os.path.exists(began_as) and os.path.samefile(began_as, folder))
    if has_moved and os.path.exists(script):
        return folder
    folder = os.path.abspath(folder)
    with contextlib.suppress(OSError, ValueError):  # it has gone, or can't be entered: then where the user is
        os.chdir(place)
    inside = os.path.relpath(folder)
    return folder if inside.startswith("..") else inside


def plan_again(job: Job, stored: StoredBatch) -> None:
    """Plan what is run now, with what is overridden now; what is left alone stays as it was."""
    again, overrides = job.options.again, job.options.overrides
    named: set[str] = set()
    for pattern in again:
        named.update(fnmatch.filter(job.results, pattern))
    if again and not named:
        raise UsageError(f"--again: no experiment of this name: {' '.join(again)}; see --status")
    to_run = left_of(stored, overrides) | named
    for before in stored.plan:
        result = job.results[before.name]
        source = choose_source(job, before, result)
        if before.name in to_run:
            now = {**before.overrides, **overrides}
            point = {key: text for key, text in before.point.items() if key not in overrides}
            job.to_run.append(before.name)
            job.plan.append(job.planner.experiment(before.name, before.config, now, point, source))
            job.plan[-1].starts_over = overrides.get("init_from") == "scratch"
        else:
            job.plan.append(plan_unchanged(job.planner, before, source))
            if result.diverged or overrides:
                job.notes.append(f"{left_alone(result)}; --again runs it all the same")


def left_alone(result: Result) -> str:
    return f"{result.config_name}: {'diverged' if result.diverged else 'completed'}, left alone"


def plan_unchanged(planner: Planner, before: Experiment, source: str) -> Experiment:
    """What isn't run is known as far as the trainer still knows it."""
    with contextlib.suppress(UsageError):
        return planner.experiment(before.name, before.config, before.overrides, before.point, source)
    return replace(before, source=source)


EDITED = {  # what is said of an experiment whose config was edited since; else it takes up the edit
    Status.COMPLETED: "completed, but its config has changed since: {config}",
    Status.INTERRUPTED: "warning: {config} was edited; what was interrupted goes on with {frozen}",
}


def choose_source(job: Job, planned: Experiment, result: Result) -> str:
    """The frozen copy of a config, or the original: what was interrupted continues with its copy, what failed or never
    started takes up an edited original."""
    config, read = planned.config, job.planner.read
    frozen = os.path.normpath(os.path.join(job.folder, PLAN, planned.frozen))
    if not os.path.isfile(frozen):
        return config
    if not os.path.isfile(config):
        job.notes.append(f"{planned.name}: config {config} has gone, its copy is used: {frozen}")
        return frozen
    before, now = read(frozen).source, read(config).source
    if before == now or same_code(before, now):
        return frozen
    told = EDITED.get(result.status, "takes up the edited {config}")
    job.notes.append(f"{planned.name}: " + told.format(config=config, frozen=frozen))
    return frozen if result.status in EDITED else config


def wait_for_trainings(job: Job) -> None:
    """A dead runner's training may still be about to end, by its guardian. Raises UsageError where one lives on."""
    deadline = time.monotonic() + 3 * min(job.options.grace, 60.0) + TERM_GAP + GIVE_UP
    for name in job.to_run:
        metadata = read_own(os.path.join(job.folder, name), METADATA)
        while is_alive_here(metadata):
            if time.monotonic() > deadline:
                pid = metadata["pid"]
                raise UsageError(f"training {name} outlived its runner as pid {pid}; end it with: kill -KILL -- -{pid}")
            time.sleep(POLL)  # no event tells of another's child


def is_alive_here(metadata: Mapping[str, Any]) -> bool:
    pid = metadata.get("pid")
    if not isinstance(pid, int) or not 1 < pid < 1 << 31 or metadata.get("hostname") != os.uname().nodename:
        return False
    group = Group(pid)  # started by whoever has this pid now
    if group.started is None:
        return bool(group.members())
    return group.started == metadata.get("pid_started")


# ---- batches as their files tell them, whether they run, are finished or their runner died


def show_batches(options: Options) -> int:
    """--status and --report."""
    named = options.status or options.report or [options.base_out_dir]
    overview = Overview(list(map(read_batch, batches_named(named))))
    if options.report is not None:
        path = os.path.join(overview.place, REPORT)
        try:
            write_file(path, make_page(overview, {}), sync=False, is_holder=False)
            print_whole([os.path.relpath(path)])
        except OSError as error:
            raise UsageError(f"can't write the report: {overview.place}: {error.strerror}") from None
    elif options.json:
        print_whole([json.dumps(status_json(overview))])
    else:
        print_whole(status_lines(overview))
    return 0


def batches_named(patterns: Iterable[str]) -> list[str]:
    """The batches that directories and quoted patterns name; of a directory of batches the newest one."""
    paths: list[str] = []
    for pattern in patterns:
        paths += sorted(glob.glob(pattern), key=natural) or [pattern]
    return list(dict.fromkeys(path if looks_like_batch(path) else newest_batch(path) for path in paths))


def status_json(overview: Overview) -> dict[str, Any]:
    """What --json prints: of one batch its summary, of several the list of them, and a row for each experiment."""
    results, summaries = overview.results, [each.summary for each in overview.batches]
    told: dict[str, Any] = {"state": overview.state, "batches": summaries, "notes": overview.notes}
    if len(summaries) == 1:
        told = {**summaries[0], "eta_seconds": batch_left(results, overview.batches[0].facts.slots)}
    return {**told, **count_statuses(results), "experiments": rows_of(results), "groups": seed_groups(results)}


def status_lines(overview: Overview) -> list[str]:
    lines = []
    for batch in overview.batches:
        lines += batch.notes
        facts, results = batch.facts, list(batch.results.values())
        eta = show_eta(batch_left(results, facts.slots), ", ")
        counts, took = show_counts(count_statuses(results)), show_duration(batch_seconds(batch))
        lines.append(f"{clean(batch.folder)}: {clean(facts.state)}, {counts}; {took}{eta}")
        if facts.stopped_because:
            lines.append(f"stopped because: {clean(facts.stopped_because)}")
    return [*lines, *overview.notes, *result_lines(overview.results, terminal_width())]


def main() -> int:
    warnings.simplefilter("ignore")  # a config with an odd escape is no business of the user's here
    number = 0
    while number < 3:  # started with one closed: no log may take its number
        number = os.open(os.devnull, os.O_RDWR)
    os.close(number)
    try:
        given = parse(sys.argv[1:])
        if given.keys() & {"status", "report"}:
            return show_batches(Options(**given))
        return resume_batch(given) if "resume" in given else new_batch(given)
    except UsageError as error:
        print_error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
