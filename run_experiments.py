#!/usr/bin/env python3
"""Run a nanoGPT-style training script once per config file, and lose nothing.

    python run_experiments.py --configs "config/*.py" --device cuda --batch_size 8
    python run_experiments.py --configs "config/*.py" --sweep seed=1,2,3 --devices cuda:0,cuda:1
    python run_experiments.py --resume

Exit codes: 0 all experiments completed; 1 some did not; 2 usage error, nothing was started;
75 another runner holds the batch; 128+N stopped by signal N.

How to read this file: it goes one way, from the words of a command line to what stands on a screen. `main`, at the
end, makes a plan of experiments, freezes it in the batch's directory, and hands it to `Batch.run`, the one loop that
decides. Each attempt is a `Process` with a phase; its `Tee`s copy the streams to the logs; `Batch.end_attempt` is where
every attempt ends, whatever became of it; the `Recorder` writes it down. A section uses only itself and those above it.
"""

from __future__ import annotations

import argparse
import ast
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
import sys
import termios
import threading
import time
import traceback
import warnings
from collections import Counter, defaultdict, deque
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
# What the program speaks of, as plain records: no parsing, no files, no processes.


class UsageError(Exception):
    """A mistake of the user's; its text is the one line that gets printed."""


class BatchHeld(Exception):
    """Another runner has the batch; its text says who."""


class Status(str, enum.Enum):
    """How an experiment stands; the values stand in JSON."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    ERROR = "error"  # the runner could not run it
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"  # the batch was stopped

    __str__ = str.__str__


FAILURES = (Status.FAILED, Status.ERROR, Status.TIMEOUT)
COUNT_KEYS = {  # in this order in the summary and in words
    Status.COMPLETED: "completed",
    Status.FAILED: "failed",
    Status.ERROR: "errors",
    Status.TIMEOUT: "timeouts",
    Status.INTERRUPTED: "interrupted",
    Status.PENDING: "pending",
    Status.RUNNING: "running",
}


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

    name: str
    config: str  # the original file
    overrides: dict[str, str]  # setting -> text as the user gave it
    point: dict[str, str] = field(default_factory=dict)  # those of the overrides that a sweep gave
    arguments: list[str] = field(default_factory=list)  # the overrides in the trainer's form
    values: dict[str, Any] = field(default_factory=dict)  # the overrides as JSON has them
    settings: dict[str, Any] = field(default_factory=dict)  # effective: defaults < config < overrides
    problem: Optional[str] = None  # why it can't be launched
    source: str = ""  # the file that was read in the place of `config`: a frozen copy
    launched_config: str = ""  # the path that the trainer gets: the frozen copy, or the original


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
    train_loss: Optional[float] = None
    val_loss: Optional[float] = None
    best_val_loss: Optional[float] = None
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
    return {key: times[status] for status, key in COUNT_KEYS.items()}


# --------------------------------------------------------------------------------------------------- words
# Values as people read them, and names that are safe: texts in, texts out.


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
    parts = [f"{days}d", f"{hours}h", f"{minutes}m", f"{left}s"]
    while parts[0][0] == "0":
        del parts[0]
    return "".join(part for part in parts[:2] if part[0] != "0")


def whole_seconds(seconds: Optional[float]) -> str:
    """A duration without tenths, for what is drawn anew all the time."""
    return show_duration(seconds if seconds is None else seconds // 1)


def show_loss(loss: Optional[float], unknown: str = "-") -> str:
    return unknown if loss is None else f"{float(loss):.4f}"


def show_value(value: Any, most: int = 20) -> str:
    text = clean(str(value))
    return text if len(text) <= most else text[: most - 1] + "…"


def shorten(text: str, most: int) -> str:
    """A name in so many columns; names of a sweep differ at both ends, so it is the middle that goes."""
    if len(text) <= most:
        return text
    head = most // 2 - 1
    tail = most - 2 - head
    return f"{text[:head]}..{text[-tail:]}"


def count_of(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def show_counts(counts: Mapping[str, int]) -> str:
    """`2 completed, 1 error`; of one the summary's key loses its plural."""
    return ", ".join(f"{number} {key.rstrip('s') if number == 1 else key}" for key, number in counts.items() if number)


def natural(text: str) -> list[Any]:
    """A sort key by which run_2 comes before run_10."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", text))]


def did_you_mean(name: str, candidates: Sequence[str]) -> str:
    """`; did you mean 'x'?` where something is near, else nothing."""
    import difflib  # 4 ms that only a mistake costs

    close = difflib.get_close_matches(name, candidates, 3, 0.6)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def shell_word(text: str) -> str:
    """A word as a shell would take it, with no control character in it."""
    if text.isprintable():
        return shlex.quote(text)
    try:
        data = text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # of a damaged file: no word of a command line
        data = text.encode(errors="replace")
    plain = set(range(32, 127)) - set(b"'\\")
    return "$'" + "".join(chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in data) + "'"


def shell_line(command: Sequence[str]) -> str:
    return " ".join(map(shell_word, command))


def now_iso() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


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
# nanoGPT's configurator.py takes it. Knows no batches and no experiments.


class Unknown:
    """Stands for the value of a setting that the source computes, or that another file may set."""

    def __repr__(self) -> str:
        return "?"


UNKNOWN = Unknown()
WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
JSON_WORDS = {"true": "True", "false": "False", "null": "None"}
JSON_WORD = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|\b(true|false|null)\b""", re.I)  # or what is quoted
USUAL: dict[str, Any] = {  # settings with an option of their own: an example of their type, where the trainer has none
    "batch_size": 8,
    "wandb_project": "",
    "wandb_enabled": False,
    "wandb_log": False,  # what the trainer calls it, and no option
    "device": "",
    "compile": False,
    "max_iters": 1000,
    "learning_rate": 1e-3,
}
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
LIKE_ENOUGH = 0.85  # of 1: `learning_rat` is near learning_rate, a helper such as `min_iters` isn't near max_iters
HARMLESS = {(int, float), (int, bool), (list, tuple), (tuple, list)}  # (a config's type, the default's)


@dataclass
class Script:
    """What reading the training script, or a config, tells."""

    path: str
    settings: dict[str, Any] = field(default_factory=dict)
    strict: bool = False  # it execs nanoGPT's configurator.py
    opaque: bool = False  # it may set any name: what isn't assigned after that is UNKNOWN
    uses_file: bool = False  # it, or for the training script its configurator, mentions __file__: a copy won't do
    free: bool = False  # it stands for a --command, which any key and value reaches as written
    imported: set[str] = field(default_factory=set)  # what an import binds: no setting, but the configurator takes it
    reads: set[str] = field(default_factory=set)  # names that it uses
    source: bytes = b""
    warnings: list[str] = field(default_factory=list)  # what in a config is probably a mistake
    problem: Optional[str] = None  # why it can't be used


class SourceReader(ast.NodeVisitor):
    """Collects the names that statements set, in order. What functions and classes set are no settings."""

    def __init__(self, found: Script) -> None:
        self.found = found

    def read(self, statement: ast.stmt) -> None:
        """Take in a top-level statement; what it sets is UNKNOWN, unless it assigns literals."""
        try:
            self.visit(statement)
        except RecursionError:  # nested too deeply to tell
            self.lose_all()
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            self.found.settings.update(dict.fromkeys(names, read_literal(statement.value)))

    def lose_all(self) -> None:
        self.found.opaque = True
        self.found.settings = dict.fromkeys(self.found.settings, UNKNOWN)

    def visit_FunctionDef(self, node: ast.AST) -> None:
        pass

    visit_AsyncFunctionDef = visit_ClassDef = visit_Lambda = visit_comprehension = visit_FunctionDef

    def visit_Name(self, node: ast.Name) -> None:
        # A list that is read may be changed in place, by `stages.append(...)` or through another name for it.
        may_change = isinstance(self.found.settings.get(node.id), (list, dict, set))
        is_read = isinstance(node.ctx, ast.Load)
        if is_read:
            self.found.reads.add(node.id)
        if may_change or not is_read:
            self.found.settings[node.id] = UNKNOWN
            self.found.imported.discard(node.id)

    def visit_alias(self, node: ast.alias) -> None:
        name = node.asname or node.name.partition(".")[0]
        if name == "*":
            self.lose_all()
        elif name in self.found.settings:
            self.found.settings[name] = UNKNOWN
        else:
            self.found.imported.add(name)

    def visit_Call(self, node: ast.Call) -> None:
        if ast.unparse(node.func) in ("exec", "globals().update"):
            self.lose_all()
        self.generic_visit(node)


def read_literal(node: ast.expr) -> Any:
    """The value of a literal or of plain arithmetic on numbers (`5 * 8`), else UNKNOWN."""
    try:
        value = fold(node)
        repr(value)  # raises ValueError for a number of thousands of digits
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError):
        return UNKNOWN
    return value


def fold(node: ast.expr) -> Any:
    if not isinstance(node, ast.BinOp):
        return ast.literal_eval(node)
    work = OPERATORS[type(node.op)]
    return work(+fold(node.left), +fold(node.right))  # the plus raises TypeError for what is no number


def uses_configurator(statement: ast.stmt) -> bool:
    """Whether its path stands in a statement that calls something; a docstring may name it, too."""
    nodes = list(ast.walk(statement))  # ast.dump would be shorter, and fails for deep nesting
    names_it = any(isinstance(node, ast.Constant) and str(node.value).endswith("configurator.py") for node in nodes)
    return names_it and any(isinstance(node, ast.Call) for node in nodes)


def read_source(path: str) -> bytes:
    """Raises OSError; a device might never end, so it is none."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "not a regular file", path)
    with open(path, "rb") as file:
        return file.read()


def read_code(path: str, source: bytes) -> Script:
    """What a source sets before it execs configurator.py; raises ValueError with place and text if it doesn't parse."""
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        text = f": {error.text.strip()}" if error.text else ""
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}{text}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path}: not Python: {error}") from None
    reader = SourceReader(Script(path, source=source, uses_file=b"__file__" in source))
    for statement in body:
        if uses_configurator(statement):
            reader.found.strict = True
            break
        reader.read(statement)
    return reader.found


def default_script() -> str:
    """The training script where none is named."""
    usual = Options().train_script
    return "train.py" if os.path.isfile("train.py") and not os.path.exists(usual) else usual


def read_script(path: str, launcher: str) -> Script:
    """Raises UsageError where there is no training script that could run."""
    # What a launcher starts need not be Python, or not this Python.
    script = read_config(path, Script(path, strict=True, free=bool(launcher)))
    if script.problem:
        raise UsageError(f"training script can't be used: {script.problem}; see --train_script")
    script.uses_file = False  # its own __file__ doesn't depend on the config
    for folder in (os.path.dirname(path), ""):  # the configurator lies beside it, or in the working directory
        with contextlib.suppress(OSError):
            script.uses_file |= b"__file__" in read_source(os.path.join(folder, "configurator.py"))
    return script


def read_trainer(options: Options) -> Script:
    """The training script that the options name, or what stands for it with --command."""
    return Script("", free=True) if options.command else read_script(options.train_script, options.launcher)


def read_config(path: str, trainer: Script) -> Script:
    """Never raises: `problem` says why it can't be used. What no configurator execs need not be Python."""
    unparsed = Script(path)
    try:
        unparsed.source = read_source(path)
        if trainer.strict or path.endswith(".py"):
            return read_code(path, unparsed.source)
    except OSError as error:
        unparsed.problem = f"{path}: {error.strerror}"
    except ValueError as error:
        unparsed.problem = None if trainer.free else str(error)
    return unparsed


def same_code(a: bytes, b: bytes) -> bool:
    """Whether two Python sources are the same program: comments and layout don't count."""
    with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.dump(ast.parse(a)) == ast.dump(ast.parse(b))
    return a == b


def all_known(trainer: Script, config: Script) -> bool:
    """Whether the two have no settings but those that were seen."""
    return trainer.strict and not (trainer.opaque or config.opaque or config.problem)


def effective_settings(trainer: Script, config: Script) -> dict[str, Any]:
    """The trainer's defaults below what the config sets."""
    untold = trainer.settings if config.opaque else config.imported & trainer.settings.keys()
    return {**trainer.settings, **dict.fromkeys(untold, UNKNOWN), **config.settings}


def nearest(name: str, candidates: Iterable[str], least: float = 0.6) -> list[str]:
    """Up to three candidates that are spelled alike, the nearest first; `least` is their likeness, of 1."""
    import difflib  # 4 ms that only a mistake costs

    return difflib.get_close_matches(name, list(candidates), 3, least)


def config_warnings(config: Script, trainer: Script) -> list[str]:
    """What a config sets that is probably a mistake: a name near to a setting's, a value of another type."""
    lines = []
    for key, value in config.settings.items():
        if key in trainer.settings:
            lines += type_warning(key, value, trainer.settings[key])
            continue
        # A name that the config reads again is a variable of its own.
        is_meant = trainer.opaque or key in trainer.imported or key in config.reads
        close = [] if is_meant else nearest(key, trainer.settings, LIKE_ENOUGH)
        if close:
            lines.append(f"config sets {key!r}, which {trainer.path} doesn't have; did you mean {close[0]!r}?")
    return lines


def type_warning(key: str, value: Any, default: Any) -> list[str]:
    kind, wanted = type(value), type(default)
    is_untold = {kind, wanted} & {Unknown, type(None)}
    if kind is wanted or is_untold or (kind, wanted) in HARMLESS:
        return []
    told = f"config sets {key} to {show_value(repr(value))}, of type {kind.__name__}"
    return [f"{told}; the trainer's default {show_value(repr(default))} is of type {wanted.__name__}"]


@functools.lru_cache(maxsize=4096)
def as_configurator(text: str) -> Any:
    """What the trainer's configurator makes of a text: a literal, or the text itself; UNKNOWN where it would die."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    except Exception:
        return UNKNOWN


def trainer_form(text: str, default: Any, strict: bool) -> str:
    """Write a value so that the trainer's configurator finds the type of `default` in it.

    Raises ValueError with what was wanted where the text can't be read as that type."""
    kind = type(default)
    if kind in (bool, int, float):
        return number_form(text, kind)
    if not strict:
        return text
    literal = text if kind is str else python_words(text)
    value = as_configurator(literal)
    fits = value is not UNKNOWN if kind is Unknown else type(value) is kind
    if fits:
        return quoted(value) if "=" in literal else literal
    if kind in (str, Unknown):
        return quoted(text)
    raise ValueError(f"a {kind.__name__}")


def number_form(text: str, kind: type) -> str:
    if kind is bool:
        word = text.strip().lower()
        if word not in WORDS:
            raise ValueError("true or false")
        return str(WORDS[word])
    number = read_number(text, kind)
    if kind is float:
        if math.isnan(number):
            raise ValueError("a number")
        return repr(float(number)).replace("inf", "1e999")  # the configurator reads a bare inf as a text
    if number % 1 != 0:  # as it is not for nan and inf either
        raise ValueError("a whole number")
    return str(int(number))


def python_words(text: str) -> str:
    """true, false and null, alone or in a list or dict, as Python's; any other text as it is."""
    words = JSON_WORD.sub(lambda match: match[1] or JSON_WORDS[match[2].lower()], text)
    return text if isinstance(as_configurator(words), str) else words


def quoted(value: Any) -> str:
    """A literal in which no `=` stands: the configurator splits at every one."""
    return repr(value).replace("=", "\\x3d")


def read_number(text: str, kind: type = float) -> Union[int, float]:
    """The number in a text, nan where there is none."""
    for read in (kind, float, ast.literal_eval):
        with contextlib.suppress(Exception):
            value = read(text)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return value if abs(value) < 10**300 else float(value)  # what a float can't hold is none
    return math.nan


def plain_value(form: str, strict: bool) -> Any:
    """What a value in the trainer's form means, for JSON and tables."""
    value = as_configurator(form)
    is_number = isinstance(value, (bool, int, float)) and repr(value) == form
    is_text = isinstance(value, str) and strict
    return value if is_number or is_text else form


# ---------------------------------------------------------------------------------------------------- plan
# Which experiments there are, under which names, and the command of each. Lists configs; knows no batch's directory and
# no processes.

# What people call settings elsewhere, where it isn't spelled alike.
ALIASES = {"lr": "learning_rate", "bs": "batch_size", "steps": "max_iters", "epochs": "max_iters"}
NO_SEED = "its code may have torch.manual_seed(1337): write seed = 1337 above the line that execs configurator.py"
NO_CHECKPOINT = "init_from = 'resume' needs a checkpoint in the experiment's directory, which is new and has none; "
NO_CHECKPOINT += "go on with a batch by --resume, or let a --launcher copy a checkpoint into {dir}"
INVENTED = ("out_dir", "wandb_run_name")  # settings that differ by the runner's own doing
BRACES = re.compile(r"\{\{|\}\}|\{[\w:]*\}|[{}]")
QUOTES = re.compile(r"""'[^']*'|"[^"]*\"""")


def expand_configs(
    patterns: Sequence[str], trainer: Script, say: Callable[[str], None], read: Callable[[str], Script]
) -> list[str]:
    """The config files that files and glob patterns name, in their order, each once; `say` gets what is left out."""
    matches = [(path, path == pattern) for pattern in patterns for path in matches_of(pattern)]
    programs = (os.path.realpath(__file__), os.path.realpath(trainer.path))
    configs: dict[str, str] = {}  # by the file that it really is
    left_out: list[str] = []
    for path, is_named in matches:
        real = os.path.realpath(path)
        is_module = os.path.basename(path) in ("configurator.py", "__init__.py")
        reason = ""
        if real in configs:
            reason = f"the same as {configs[real]}"
        elif is_module or real in programs or os.path.isdir(path):
            reason = "not a config"
        elif len(matches) > 1 and path.endswith(".py"):  # one name alone is meant; of an unquoted *.py there are many
            reason = why_not_meant(read(path), trainer, is_named)
        if reason:
            left_out.append(f"{path} ({reason})")
            say(f"left out, {reason}: {path}")
        else:
            configs[real] = os.path.join(".", path) if path.startswith("-") else path
    if not configs:
        why = f"; left out: {', '.join(left_out)}"
        raise UsageError(f"no config is left of: {' '.join(patterns)}; name config files with --configs{why}")
    return list(configs.values())


def matches_of(pattern: str) -> list[str]:
    """The paths that a pattern stands for; a name that looks like a pattern is itself where it exists."""
    if os.path.isdir(pattern):
        raise UsageError(f'config is a directory: {pattern}; name its files: "{os.path.join(pattern, "*.py")}"')
    matches = [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern, recursive=True), key=natural)
    if not matches:
        close = " or ".join(map(repr, near_paths(pattern)))
        raise UsageError(f"no config matches: {pattern}" + (f"; did you mean {close}?" if close else ""))
    return matches


def near_paths(path: str) -> list[str]:
    """What is spelled like a path that isn't there; where its directory isn't either, that is what is looked for."""
    folder, name = os.path.split(path)
    if folder and not os.path.isdir(folder):
        return [os.path.join(each, name) for each in near_paths(folder)]
    with contextlib.suppress(OSError):
        return [os.path.join(folder, each) for each in nearest(name, os.listdir(folder or "."))]
    return []


def why_not_meant(config: Script, trainer: Script, is_named: bool) -> str:
    """Why a match of a pattern is left out by what it holds: nanoGPT's root has bench.py, sample.py, model.py."""
    if config.strict:
        return "a script that uses configurator.py itself"
    is_baseline = not config.settings and not config.imported
    sets_some = config.settings.keys() & trainer.settings.keys()
    is_meant = is_named or is_baseline or sets_some or not all_known(trainer, config)
    return "" if is_meant else f"sets no setting of {trainer.path}"


def suggestion(key: str, settings: Iterable[str]) -> str:
    """`; did you mean 'x'?` for an unknown key: one of the options, or of the trainer's settings."""
    known = [*sorted(vars(Options()).keys() - {"overrides", "trainer_args"}), *settings]
    plain = key.replace("-", "_")
    meant = plain if plain in known else ALIASES.get(plain)
    return f"; did you mean {meant!r}?" if meant in known else did_you_mean(plain, known)


# Sweeps


def parse_sweep(text: str) -> tuple[str, list[str]]:
    """The key and the values of KEY=V1,V2 or of K1,K2=V1:W1,V2:W2; raises ValueError."""
    key, _, listed = text.partition("=")
    values = split_values(listed)
    names = key.split(",")
    if "" in values or not all(re.fullmatch(r"[^\W\d][\w.-]*", name) for name in names):
        raise ValueError(f"not of the form KEY=V1,V2,...: {text}")
    return key, values


def split_values(text: str, mark: str = ",") -> list[str]:
    """Split at the marks that stand outside brackets and quotes; a value in quotes loses them."""
    parts: list[str] = []
    for piece in text.split(mark):
        if parts and is_open(parts[-1]):
            parts[-1] += mark + piece
        else:
            parts.append(piece)
    return [str(as_configurator(part)) if part.startswith(("'", '"')) else part for part in parts]


def is_open(text: str) -> bool:
    """Whether a bracket or a quote in a text waits for its other half."""
    bare = QUOTES.sub("", text)
    opened = len(re.findall(r"[(\[{]", bare))
    closed = len(re.findall(r"[)\]}]", bare))
    return opened != closed or "'" in bare or '"' in bare


def sweep_points(sweep: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
    """The product of all sweeps, the last one fastest; one empty point without any."""
    keys = ",".join(sweep).split(",")
    twice = Counter(keys) - Counter(set(keys))
    if twice:
        raise UsageError(f"--sweep: {next(iter(twice))} given twice; name each setting once")
    axes = [[pair_values(key, value) for value in values] for key, values in sweep.items()]
    for parts in itertools.product(*axes):
        yield dict(zip(keys, itertools.chain.from_iterable(parts)))


def pair_values(joined: str, text: str) -> list[str]:
    """The values that settings swept together have at one point; raises UsageError for too few or too many."""
    count = joined.count(",") + 1
    values = split_values(text, ":") if count > 1 else [text]
    if len(values) != count or "" in values:
        raise UsageError(f"--sweep {joined}: {text!r} holds {len(values)} values for {count} settings; quote a ':'")
    return values


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


# Names


def config_names(paths: Sequence[str]) -> list[str]:
    """A telling name per config: its stem, with as many of its directories as it takes to tell it from others."""
    parts = [os.path.splitext(path)[0].split(os.sep) for path in paths]
    names = [""] * len(paths)
    for depth in range(max(map(len, parts), default=0), 0, -1):
        shorter = [clean_name("__".join(part[-depth:])) for part in parts]
        times = Counter(name.casefold() for name in shorter)
        for place, name in enumerate(shorter):
            if times[name.casefold()] == 1 or not names[place]:
                names[place] = name
    return names


def unique(names: Iterable[str]) -> list[str]:
    """The same names, the second of two equal ones numbered (also equal where case doesn't count)."""
    taken: set[str] = set()
    numbers: defaultdict[str, Iterator[int]] = defaultdict(lambda: itertools.count(2))
    done = []
    for name in names:
        candidate = name
        while candidate.casefold() in taken:
            ending = f"_{next(numbers[name])}"
            candidate = name[: 200 - len(ending)] + ending
        taken.add(candidate.casefold())
        done.append(candidate)
    return done


# Experiments


class Planner:
    """Turns configs and overrides into experiments, by what the trainer and the configs set themselves."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.configs: dict[str, Script] = {}
        has_own = "wandb_enabled" in script.settings and "wandb_log" not in script.settings
        self.renamed = {} if script.free or has_own else {"wandb_enabled": "wandb_log"}

    def setting(self, key: str) -> str:
        """The trainer's name of a setting: the runner's wandb_enabled is nanoGPT's wandb_log. Takes a sweep's pair."""
        return ",".join(self.renamed.get(each, each) for each in key.split(","))

    def read(self, path: str) -> Script:
        """A config as it was when it was read first; without a path, of a --command, one that sets nothing."""
        if path not in self.configs:
            self.configs[path] = read_config(path, self.script) if path else Script(path)
            self.configs[path].warnings = config_warnings(self.configs[path], self.script)
        return self.configs[path]

    def plan(self, options: Options, configs: Sequence[str]) -> list[Experiment]:
        """Every config at every point of the sweep, in that order; raises UsageError, as `experiment` does."""
        points = list(sweep_points(options.sweep))
        endings = ["".join(f"__{key}_{self.plain(key, text)}" for key, text in point.items()) for point in points]
        pairs = itertools.product(config_names(configs) or ["run"], endings)
        names = unique(clean_name(stem + ending) for stem, ending in pairs)
        experiments = []
        for name, (config, point) in zip(names, itertools.product(configs or [""], points)):
            overrides = {**options.overrides, **point}
            if point and "wandb_run_name" in self.script.settings:
                overrides.setdefault("wandb_run_name", name)
            experiments.append(self.experiment(name, config, overrides, point))
        return experiments

    def plain(self, key: str, text: str) -> Any:
        """A value as the trainer will read it; what doesn't fit is told by `experiment`."""
        with contextlib.suppress(ValueError):
            return self.written(key, text, UNKNOWN)[1]
        return text

    def experiment(
        self, name: str, config: str, overrides: Mapping[str, str], point: Mapping[str, str] = {}, source: str = ""
    ) -> Experiment:
        """An experiment of a config, read from `source` where there is one: the config's frozen copy.

        Raises UsageError for an override that the trainer would die of."""
        if "=" in config and not self.script.free:
            raise UsageError(f"config path holds '=': {config}; the trainer would take it for an override, rename it")
        found = self.read(source or config)
        made = Experiment(name, config, dict(overrides), dict(point), source=source)
        made.settings = effective_settings(self.script, found)
        if found.problem:
            made.problem = f"config can't be used: {found.problem}"
        for key, text in overrides.items():
            self.check_key(key, made, found)
            try:
                form, value = self.written(key, text, made.settings.get(key, UNKNOWN))
            except ValueError as wanted:
                raise UsageError(f"value of --{key}: {text!r}; {config} wants {wanted}") from None
            made.arguments.append(f"--{key}={form}")
            made.settings[key] = made.values[key] = value
        return made

    def check_key(self, key: str, made: Experiment, found: Script) -> None:
        """Raises UsageError for a key that the trainer doesn't know."""
        script = self.script
        is_name = script.free or key.isidentifier()
        is_known = key in made.settings or key in script.imported or not all_known(script, found)
        if is_name and is_known:
            return
        remedy = f"; {NO_SEED}" if key == "seed" else suggestion(key, made.settings)
        raise UsageError(f"unknown setting '{key}' of {script.path} with {made.config}{remedy}")

    def written(self, key: str, text: str, default: Any) -> tuple[str, Any]:
        """A value in the trainer's form, and what it means; raises ValueError with what was wanted."""
        if self.script.free:
            return text, plain_value(text, False)
        # A config hardly ever changes the type that a setting has in the script.
        examples = (default, self.script.settings.get(key, UNKNOWN), USUAL.get(key, UNKNOWN))
        example = next((each for each in examples if each is not UNKNOWN), UNKNOWN)
        form = trainer_form(text, example, self.script.strict)
        return form, plain_value(form, self.script.strict)

    def warnings(self, experiment: Experiment) -> list[str]:
        """What to say before an experiment's first attempt."""
        known = self.read(experiment.config).warnings
        needs_checkpoint = self.script.strict and experiment.settings.get("init_from") == "resume"
        return [*known, NO_CHECKPOINT] if needs_checkpoint else known


def differing(experiments: Sequence[Experiment]) -> list[str]:
    """The settings in which the experiments differ, in the order of the trainer."""
    values: defaultdict[str, set[str]] = defaultdict(set)
    for each in experiments:
        for key, value in each.settings.items():
            values[key].add(repr(value))
    return [key for key, texts in values.items() if len(texts) > 1 and key not in INVENTED]


# Commands


def template_words(template: str, names: Mapping[str, Union[str, list[str]]], what: str) -> list[str]:
    """A command split as a shell would, {name}, {dir}, … filled in; a list takes the place of a whole word.

    `what` names the template in messages; raises UsageError for a brace that means nothing."""
    values = {"{{": "{", "}}": "}", **{f"{{{name}}}": value for name, value in names.items()}}

    def fill(match: re.Match[str]) -> str:
        value = values.get(match[0])
        if isinstance(value, list):
            raise UsageError(f"{what} holds {match[0]} within a word: {template}; make it a word of its own")
        if value is None:
            raise UsageError(f"{what} holds {match[0]}: {template}; it knows {', '.join(values)}")
        return value

    try:
        words = shlex.split(template)
    except ValueError as error:
        raise UsageError(f"{what} can't be split: {template}: {error}") from None
    filled: list[str] = []
    for word in words:
        whole = values.get(word)
        filled += whole if isinstance(whole, list) else [BRACES.sub(fill, word)]
    return filled


def launcher_words(launcher: str, names: Mapping[str, str]) -> list[str]:
    """What stands before the training script."""
    return template_words(launcher, names, "launcher") or [sys.executable]


def names_for(experiment: Experiment, folder: str, slot: Slot) -> dict[str, str]:
    """What a template may hold."""
    config = experiment.launched_config or experiment.config
    device = slot.device or ""
    return {"name": experiment.name, "dir": folder, "device": device, "slot": str(slot.number), "config": config}


def build_command(
    options: Options, experiment: Experiment, folder: str, slot: Slot, continuing: Sequence[str] = ()
) -> list[str]:
    """The command of an attempt; `continuing` is what one that continues gets besides."""
    names = names_for(experiment, folder, slot)
    # What is given for continuing takes the place of the experiment's own, --init_from=scratch say.
    replaced = {word.partition("=")[0] for word in continuing}
    arguments = [word for word in experiment.arguments if word.partition("=")[0] not in replaced]
    if options.command:
        hydra = [word[2:] for word in arguments]  # without the dashes
        several = {"overrides": arguments, "overrides:hydra": hydra}
        return [*template_words(options.command, {**names, **several}, "--command"), *continuing]
    command = [*launcher_words(options.launcher, names), options.train_script, names["config"], f"--out_dir={folder}"]
    return [*command, *arguments, *continuing, *options.trainer_args]


def continuing_words(
    options: Options, experiment: Experiment, folder: str, slot: Slot, checkpoint: str
) -> Optional[list[str]]:
    """What an attempt that continues from a checkpoint gets besides; None where the trainer can't continue."""
    if options.continue_with is not None:
        names = {**names_for(experiment, folder, slot), "checkpoint": checkpoint}
        return template_words(options.continue_with, names, "--continue_with")
    can_resume = not options.command and "init_from" in experiment.settings
    return ["--init_from=resume"] if can_resume else None


def check_template(options: Options) -> None:
    """Raises UsageError for a --command, --launcher or --continue_with that can't be filled in, or drops something.

    To be called before a training script that wasn't named is looked for."""
    nothing, slot = Experiment("", "", {}), Slot(0)
    continuing_words(options, nothing, "", slot, "")
    if not build_command(options, nothing, "", slot):
        raise UsageError("--command is empty; write the training's command")
    if not options.command:
        return
    for name in ("launcher", "train_script"):
        if getattr(options, name) != getattr(Options(), name):
            raise UsageError(f"--{name}: not allowed with --command, which is the whole command")
    if options.trainer_args:
        raise UsageError(f"words after --: {shell_line(options.trainer_args)}; write them into the --command")
    taken = [
        ("{config", "--configs", options.configs),
        ("{device", "--devices", options.devices),
        ("{overrides", "--" + next(iter(options.overrides), ""), options.overrides),
        ("{overrides", "--sweep", options.sweep),
    ]
    for brace, name, given in taken:
        if given and brace not in options.command:
            raise UsageError(f"--command holds no {brace}}}: {options.command}; {name} would be dropped")
    if "{config}" in options.command and not options.configs and options.resume is None:
        raise UsageError(f"no configs for the {{config}} of --command: {options.command}; name them with --configs")
    if "{device}" in options.command and not options.devices:
        raise UsageError(f"--command holds {{device}}: {options.command}; name the --devices")


# -------------------------------------------------------------------------------------------------- output
# What a training's output and its directory tell: metrics, errors and hints, checkpoints, curves. Bytes and files in,
# facts out. Knows nothing of processes, batches and screens.
#
# A metric is a line that tells a step and a loss. nanoGPT's own two forms are tried first; the general form takes the
# names that public trainers give these two, in any order, wherever in the line they stand.

CROWD = 1 << 12  # bytes of a block of which each loss is read; of a larger one only samples
SAMPLE = 128  # bytes after its first loss, and before its last, that are read then
MAX_EVALUATIONS = 1000  # kept between two takes; a flood loses its oldest
LAST_LINE = 1024  # bytes at the end of what came in which the last line is looked for
LOSS_WORDS = (b"oss", b"trl:", b"tel:")  # one of these stands in each line that tells a loss; the last two are llm.c's
EVALUATION_WORDS = (b"val", b"Val", b"test", b"Test", b"tel:")  # and one of these, if it is an evaluation's

# A number with a unit is no loss (`loss: 0.00ms`), nor is one that goes on as a word.
NUMBER = rb"[-+]?(?i:nan|inf(?:inity)?|(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?)(?!\w|\.\d| ?(?:%|[mu]?s\b))"
EVALUATION = re.compile(rb"\bstep (\d{1,15}): train loss (%b), val loss (%b)" % (NUMBER, NUMBER))
ITERATION = re.compile(rb"iter (\d{1,15}): loss (%b)" % NUMBER)
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
COLOUR = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")
SPECIAL = re.compile(rb"[\x1b#\"'`]")
# A key of JSON, or of a printed dictionary, and its value where that is one word in quotes.
KEY = re.compile(rb"[\"'](\w[\w /.-]*)[\"']\s*:(?:\s*[\"']([-+.\w]+)[\"'])?")
# Others' words, or code: what stands in quotes, or behind a `#` (but `|####5     |` is a bar).
QUOTED = re.compile(rb"\"[^\"]*\"|(?<!\w)[fbrFBR]{0,2}'[^']*'|`[^`]*`|(?<![|#])#.*")

QUEUED = b"queued and waiting for resources"  # srun, on stderr
ALLOCATED = b"has been allocated"
Known = TypeVar("Known")


@dataclass
class Said:
    """What one line has said; a `Said()` stands where lines were left out."""

    step: Optional[int] = None
    train: Optional[float] = None
    val: Optional[float] = None
    text: bytes = b""
    by_epoch: bool = False  # it tells no step but an epoch's number, or none


@dataclass
class News:
    """What one stream has said since the last time."""

    metrics: Metrics = field(default_factory=Metrics)
    evaluations: list[bytes] = field(default_factory=list)
    queued: bool = False  # srun waits for its resources
    not_finite_in_a_row: int = 0  # the longest row of train losses
    evaluation_not_finite: bool = False


def said_in(line: bytes) -> Optional[Said]:
    """What a line says, None where it tells no step or no loss."""
    plain = line
    if SPECIAL.search(line):
        plain = QUOTED.sub(b" ", KEY.sub(rb"\1: \2", COLOUR.sub(b"", line)))
    # nanoGPT's own two forms first: these stay as they are, and fast.
    own = (EVALUATION if b"val" in plain else ITERATION).search(plain)
    if own:
        val = float(own[3]) if own.lastindex == 3 else None
        return Said(int(own[1]), float(own[2]), val, own[0])
    return said_in_words(plain.lower(), line)


def said_in_words(plain: bytes, line: bytes) -> Optional[Said]:
    """The general form: `Epoch 1/9 | Step 20/900 | train_loss: 2.1 | val_loss: 2.2`, or JSON without its quotes."""
    told: dict[str, bytes] = {}
    for match in FIELD.finditer(plain):
        told.setdefault(str(match.lastgroup), match[int(match.lastindex or 0) + 1])
    if "loss" in told and EVALUATING.match(plain):
        told.setdefault("val_loss", told.pop("loss"))
    for kind, pattern in (("step", COLUMN), ("epoch", BAR)):
        found = pattern.search(plain) if told.keys().isdisjoint(("step", kind)) else None
        if found:
            told[kind] = found[1]
    return None if told.keys().isdisjoint(("step", "epoch")) else said_by(told, line)


def said_by(told: Mapping[str, Optional[bytes]], line: bytes) -> Optional[Said]:
    """What named values say; an epoch counts as the step where no other is told."""
    step = number_in(int, told.get("step", told.get("epoch")))
    train = number_in(float, told.get("train_loss", told.get("loss")))
    val = number_in(float, told.get("val_loss"))
    if or_else(train, val) is None:
        return None
    return Said(step, train, val, line.strip()[:200], by_epoch="step" not in told)


def number_in(kind: Callable[[bytes], Known], text: Optional[bytes]) -> Optional[Known]:
    try:
        return kind(text or b"")
    except ValueError:
        return None


def or_else(value: Optional[Known], otherwise: Known) -> Known:
    return otherwise if value is None else value


def words_in(words: Iterable[bytes], data: bytes, start: int, end: int) -> list[bytes]:
    return [word for word in words if data.rfind(word, start, end) >= 0]  # `rfind` is twice as fast as `find`


def lines_with(words: Iterable[bytes], data: bytes, start: int, end: int) -> list[bytes]:
    """The lines that hold one of the words, in their order; `find` is some times faster than a pattern."""
    found: dict[int, bytes] = {}
    for word in words:
        at = data.find(word, start, end)
        while at >= 0:
            first = data.rfind(b"\n", start, at) + 1 or start
            last = line_end(data, at, end)
            found[first] = data[first:last]
            at = data.find(word, last, end)
    return list(map(found.__getitem__, sorted(found)))


def line_end(data: bytes, at: int, end: int) -> int:
    found = data.find(b"\n", at, end)
    return end if found < 0 else found


def loss_lines(data: bytes, start: int, end: int, most: float) -> list[bytes]:
    """The lines of a block that may tell a loss; where it has more than so many bytes, those at both ends and all that
    may be evaluations, with b"" where others are left out."""
    if end - start <= most:
        return lines_with(LOSS_WORDS, data, start, end)
    # Most blocks tell none, and two searches say so: both of llm.c's words end in `l:`.
    likely = LOSS_WORDS if data.rfind(b"l:", start, end) >= 0 else LOSS_WORDS[:1]
    words = words_in(likely, data, start, end)
    if not words:
        return []
    head = line_end(data, data.find(words[0], start, end) + SAMPLE, end)
    tail = max(head, data.rfind(b"\n", head, data.rfind(words[0], start, end) - SAMPLE))
    # Beside nanoGPT's own lines an evaluation says `val`: one search will do.
    is_own = ITERATION.match(data, tail + 1)
    wanted = words_in(EVALUATION_WORDS[:1] if is_own else EVALUATION_WORDS, data, head, tail)
    lines = [*lines_with(words, data, start, head), b"", *lines_with(wanted, data, head, tail), b""]
    lines += lines_with(words, data, tail, end)
    return lines if head < tail else list(filter(None, lines))


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
    total.largest_gap = max(total.largest_gap or 0, news.largest_gap or 0) or None
    if or_else(news.train_loss, news.val_loss) is not None:
        total.diverged_since = news.diverged_since


class Watch:
    """Whether one kind of loss stays finite."""

    def __init__(self) -> None:
        self.was_finite = False
        self.broken_since: Optional[int] = None
        self.in_a_row = 0  # losses that aren't finite

    def see(self, loss: Optional[float], step: int) -> None:
        if loss is None:
            return
        if math.isfinite(loss):
            self.was_finite, self.broken_since, self.in_a_row = True, None, 0
            return
        self.in_a_row += 1
        if self.was_finite:
            self.broken_since = or_else(self.broken_since, step)


class LineReader:
    """Reads the lines of one stream of one attempt. `read` is called by the thread that has the stream, `take` by any
    other."""

    def __init__(self, ignored: Collection[bytes] = (), patterns: Sequence[re.Pattern[bytes]] = ()) -> None:
        self.ignored = ignored  # lines of the config and the script: their echo tells nothing
        self.patterns = patterns
        self.lock = threading.Lock()
        self.news = News()
        self.queued = False
        self.tail = b""
        self.last_step: Optional[int] = None
        self.counts_steps = False  # not only epochs
        self.previous: Optional[int] = None  # the step of the metric before, unless there is a hole between
        self.train, self.val = Watch(), Watch()

    def read(self, data: bytes, start: int = 0, end: Optional[int] = None) -> bool:
        """Take in whole lines, ended by line feeds; True where there is news to take (a last line alone is none)."""
        stop = or_else(end, len(data))
        tail = data[max(start, stop - LAST_LINE) : stop].strip()
        self.tail = tail or self.tail
        was_queued = self.queued
        if was_queued or QUEUED in tail:  # nothing comes behind that message until the wait ends
            self.queued = data.rfind(ALLOCATED, start, stop) <= data.rfind(QUEUED, start, stop)
        found = self.find(data, start, stop)
        if found:
            with self.lock:
                for said in found:
                    self.note(said)
        return bool(found) or self.queued != was_queued

    def find(self, data: bytes, start: int, end: int, most: float = CROWD) -> list[Said]:
        """What the lines say, in their order; of losses that crowd only samples."""
        if self.patterns:
            lines = list(filter(None, data[start:end].splitlines()))
        else:
            lines = loss_lines(data, start, end, most)
        return list(filter(None, map(self.said_in, lines)))

    def said_in(self, line: bytes) -> Optional[Said]:
        if not line:
            return Said()
        if line.strip() in self.ignored:
            return None
        said = self.said_as_told(line) if self.patterns else said_in(line)
        if said is None:
            return None
        # Where steps are told as well, an epoch's number is no step.
        self.counts_steps |= not said.by_epoch
        if said.by_epoch and self.counts_steps:
            said.step = self.last_step
        self.last_step = said.step
        return said

    def said_as_told(self, line: bytes) -> Optional[Said]:
        """By the patterns of the user."""
        line = COLOUR.sub(b"", line)
        for match in filter(None, [pattern.search(line) for pattern in self.patterns]):
            said = said_by(match.groupdict(), line)
            if said:
                return said
        return None

    def note(self, said: Said) -> None:
        news = self.news
        step = or_else(said.step, 0)
        gap = step - or_else(self.previous, step)
        self.previous = said.step
        self.train.see(said.train, step)
        self.val.see(said.val, step)
        since = or_else(self.train.broken_since, self.val.broken_since)
        add_metrics(news.metrics, Metrics(said.step, said.train, said.val, said.val, said.step, said.step, gap, since))
        news.not_finite_in_a_row = max(news.not_finite_in_a_row, self.train.in_a_row)
        if said.val is not None:
            news.evaluations.append(said.text)
            del news.evaluations[:-MAX_EVALUATIONS]
            news.evaluation_not_finite |= not math.isfinite(said.val + or_else(said.train, 0.0))

    def last_line(self) -> str:
        """The last line that was printed, whatever it says."""
        return clean(COLOUR.sub(b"", self.tail.rpartition(b"\n")[2]).decode(errors="replace"))

    def take(self) -> News:
        """What has come since the last time."""
        with self.lock:
            news, before = self.news, self.news.metrics
            metrics = Metrics(first_step=before.first_step, largest_gap=before.largest_gap)
            news.queued = self.queued
            self.news = News(metrics, not_finite_in_a_row=self.train.in_a_row)
        return news


# What the end of a training says of its cause.

RANK = re.compile(r"(?m)^\[\w*?\d+\]: ?")  # torch's `[rank1]: `, torchrun's `[default1]:`
ROOT_CAUSE = re.compile(r"Root Cause[^\n]*\n(?:.*\n){0,4}? *rank *: (\d+).*\n *exitcode *: (-?\d+)")  # torchrun's
# The frames, which stand farther in than the head, and the exception: its further lines stand in or follow a colon.
TRACEBACK = re.compile(
    r"(?m)^([ \t]*)Traceback \(most recent call last\).*\n((?:\1[ \t].*\n|\n)*)"
    r"\1((?!.*ChildFailedError|KeyboardInterrupt)\S.*(?:(?:(?<=:)\n\1|\n\1[ \t]+)\S.*)*)"
)
FRAME = re.compile(r'(?m)^ *File "([^"]+)", line (\d+).*(?:\n(?! *File)(.*))?')
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
    told = []
    cause = ROOT_CAUSE.search(stderr)
    if cause:
        # The other ranks only miss the one that failed first.
        rank, exit_code = cause[1], int(cause[2])
        told.append(last_exception("\n".join(re.findall(rf"(?m)^\[\w*?{rank}\]: ?(.*)", stderr))))
        if exit_code < 0:
            told.append(f"rank {rank} died of {signal_name(-exit_code)}")
    plain = RANK.sub("", stderr)  # what a worker says may come without its rank
    told += [last_exception(plain), *REFUSED.findall(plain)[-1:], *BARE_ERROR.findall(plain)[-1:]]
    told += re.findall(r"(?m)^KeyboardInterrupt$", plain)  # mostly that of a stop, so what else is said counts first
    if cause:
        told.append(f"rank {cause[1]} ended with exit code {cause[2]}")
    return next(filter(None, told), "").strip()[:300]


def last_exception(stderr: str) -> str:
    """The last Python traceback's exception; a bare one with its source: `AssertionError: x > 0 (a.py, line 1)`."""
    found = TRACEBACK.findall(stderr)
    if not found:
        return ""
    _, frames, lines = found[-1]
    said = " ".join(lines.split())
    for path, line, source in FRAME.findall(frames)[-1:]:
        if source and re.fullmatch(r"[\w.]+(?:Error|Exception)", said):
            said += f": {source.strip()} ({os.path.basename(path)}, line {line})"
    return said


def hint_for(text: str) -> Optional[str]:
    return next((hint for pattern, hint in HINTS.items() if re.search(pattern, text)), None)


def says_broken_checkpoint(stderr: str) -> bool:
    """Whether an error says that a checkpoint can't be read."""
    return BROKEN_CHECKPOINT.search(stderr) is not None


def read_tail(path: str, size: int = 1 << 16, start: int = 0) -> bytes:
    """The end of a file, but nothing before the offset `start`; nothing where it can't be read."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        end = os.fstat(file.fileno()).st_size
        file.seek(max(start, end - size))
        return file.read(size)
    return b""


# Checkpoints: files or directories by a glob.

TEMPORARY = re.compile(r"(?i)^\.|^tmp|~$|(?:^|[._-])(?:tmp|temp|part|partial|incomplete|set_aside)(?:[._-]|$)")


def checkpoints(folder: str, pattern: str = "ckpt*.pt") -> list[str]:
    """The trainer's checkpoints, the newest first."""
    found = looks_at(paths_like(folder, pattern))
    return sorted(found, key=lambda path: (found[path][1], natural(path)), reverse=True)


def being_written(folder: str, pattern: str) -> dict[str, tuple[int, int]]:
    """Size and time (ns) of what is, or may become, a checkpoint; what changes between two looks is being written."""
    parent, name = os.path.split(pattern.rstrip("/"))
    stem = glob.escape(re.split(r"[*?[]", name)[0].strip("._-"))
    # `ckpt.pt.tmp`, `tmpckpt.pt`, `ckpt_tmp.pt`, `.ckpt.pt.Xy12`: a star leaves out what begins with a dot.
    written = paths_like(folder, os.path.join(parent, f"*{stem}*"), temporary=True)
    written += paths_like(folder, os.path.join(parent, f".*{stem}*"), temporary=True)
    looks = looks_at(paths_like(folder, pattern) + written)
    return {os.path.relpath(path, folder): look for path, look in looks.items()}


def paths_like(folder: str, pattern: str, temporary: bool = False) -> list[str]:
    paths = [path.rstrip("/") for path in glob.glob(os.path.join(glob.escape(folder), pattern))]
    return [path for path in paths if bool(TEMPORARY.search(os.path.basename(path))) is temporary]


def looks_at(paths: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Bytes and time of the last change in ns; of a directory the sum and the latest of what is in it."""
    looks = {}
    for path in paths:
        with contextlib.suppress(OSError):  # gone meanwhile
            states = [os.stat(path)]
            for place, _, names in os.walk(path):
                states += [os.stat(os.path.join(place, each)) for each in names]
            looks[path] = sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)
    return looks


# Curves for the page.

EXACT = 1 << 20  # bytes of a log of which each loss is read
Point = tuple[int, float]  # the step and the loss


class Points:
    """The points of one curve, steps ascending; of many, as many as a plot can show."""

    def __init__(self, has_best: bool = False) -> None:
        self.has_best = has_best  # the lowest loss of each span of steps is kept
        self.points: list[Point] = []

    def add(self, step: Optional[int], loss: Optional[float]) -> None:
        if step is None or loss is None:
            return
        # A resumed run does these steps again, and what it says of them counts.
        while self.points and self.points[-1][0] >= step:
            self.points.pop()
        self.points.append((step, loss))
        if len(self.points) > 1200:
            self.points = self.thinned(300)

    def thinned(self, spans: int) -> list[Point]:
        """Of each of so many equal spans of steps the first point, and the lowest."""
        if len(self.points) <= 2 * spans:
            return self.points
        width = (self.points[-1][0] - self.points[0][0] + 1) / spans
        kept = {self.points[-1]}
        for _, group in itertools.groupby(self.points, lambda point: point[0] // width):
            span = list(group)
            kept.add(span[0])
            if self.has_best:
                kept.add(min(span, key=lambda point: (not math.isfinite(point[1]), point[1])))
        return sorted(kept)

    def drawn(self, spans: int) -> list[list[Any]]:
        """In a form that every JSON parser takes: losses that are not finite become texts."""
        return [[step, loss if math.isfinite(loss) else str(loss)] for step, loss in self.thinned(spans)]


class Curve:
    """The losses in one log, read as it grows; of millions of lines enough to draw, and in seconds."""

    def __init__(self, ignored: Collection[bytes] = (), patterns: Sequence[re.Pattern[bytes]] = ()) -> None:
        self.reader = LineReader(ignored, patterns)
        self.start_over((0, 0))

    def start_over(self, file: tuple[int, int]) -> None:
        self.file, self.offset = file, 0
        self.val, self.train = Points(has_best=True), Points()

    def update(self, path: str, limit: float = math.inf) -> None:
        """Read what was added since the last call, `limit` bytes at most; a log that shrank counts as new."""
        try:
            with open(path, "rb", buffering=0) as log:
                status = os.fstat(log.fileno())
                file = (status.st_dev, status.st_ino)
                if file != self.file or status.st_size < self.offset:
                    self.start_over(file)
                end = min(status.st_size, self.offset + limit)  # a trainer that writes faster can't hold this up
                while self.offset < end and self.take(os.pread(log.fileno(), BLOCK, self.offset)):
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
        for said in self.reader.find(lines, 0, size, most):
            self.train.add(said.step, said.train)
            self.val.add(said.step, said.val)
        self.offset += size
        return size

    def drawn(self, spans: int = 300) -> dict[str, list[list[Any]]]:
        """The [step, loss] that the page draws."""
        return {"val": self.val.drawn(spans), "train": self.train.drawn(spans)}


# --------------------------------------------------------------------------------------------------- store
# The batch on disk: where its files are, how they are written so that a crash leaves the old or the new one, and what
# they tell when they are read back. It must not know of processes and views.

ASIDE = ".set_aside"  # the ending of a checkpoint that can't be read
FICLONE = 0x40049409  # Linux's ioctl by which two files share their bytes
NO_LOCKS = "the file system knows no locks: nothing keeps a second runner off this batch"
PLAN_JSON = os.path.join(PLAN, "plan.json")
OF_ONE_START = "configs overrides sweep base_out_dir resume dry_run status json report follow quiet again".split()
T = TypeVar("T")


# ---- files


def write_file(path: str, data: bytes, sync: bool = True, is_holder: bool = True) -> None:
    """Replace a file whole: a reader or a crash sees the old one or the new one. Raises OSError.

    Who holds the batch's lock uses one temporary name for each file, so that a crash leaves few; others add their
    pid, so that two writers never share one."""
    folder, name = os.path.split(path)
    writer = "" if is_holder else f".{os.getpid()}"
    short = os.fsdecode(os.fsencode(name)[:200])  # a file's name has 255 bytes at the most
    temporary = os.path.join(folder, f".{short}{writer}.tmp")
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
        if not writer or not pid_exists(int(writer[1])):
            remove_tree(os.path.join(folder, name))


def pid_exists(pid: int) -> bool:
    with contextlib.suppress(OSError):
        os.kill(pid, 0)
        return True
    return False


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


def write_json(path: str, value: dict[str, Any], sync: bool = True) -> None:
    write_file(path, json_bytes(value), sync)


def read_json(path: str) -> Optional[dict[str, Any]]:
    """A JSON object from a file, None where there is no file; raises ValueError where it holds anything else."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(), parse_constant=str)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object")
    return value


def read_own(folder: str, name: str) -> dict[str, Any]:
    """One of an experiment's own JSON files; empty where there is none that can be read."""
    with contextlib.suppress(ValueError):
        return read_json(os.path.join(folder, name)) or {}
    return {}


def to_json(value: Any) -> Any:
    """A form that every JSON parser takes: losses that are not finite become texts."""
    if isinstance(value, (Metrics, Result)):
        return {key: to_json(each) for key, each in vars(value).items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def in_words(value: Any) -> Any:
    """A setting's value for JSON: itself where JSON has it, null where it isn't known, else as Python writes it."""
    if value is UNKNOWN:
        return None
    return to_json(value) if isinstance(value, (bool, int, float, str, type(None))) else repr(value)


def a_value_of(*kinds: type) -> Callable[[Any], Any]:
    """A reader of values of these types; it raises ValueError for others, and for numbers beyond reason."""

    def read(value: Any) -> Any:
        is_too_large = isinstance(value, (int, float)) and abs(value) >= 1e15
        if is_too_large or not isinstance(value, kinds):
            raise ValueError
        return value

    return read


def read_float(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else a_value_of(int, float)(value)


def are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


READERS: dict[str, Callable[[Any], Any]] = {  # by the types of the records' fields
    "str": a_value_of(str),
    "int": a_value_of(int),
    "bool": a_value_of(bool),
    "float": read_float,
    "list[str]": lambda value: a_value_of(list)(value if are_texts(value) else None),
    "list[Any]": a_value_of(list),
    "dict[str, str]": a_value_of(dict),
    "dict[str, Any]": a_value_of(dict),
    "Status": Status,
    "Metrics": lambda value: from_json(Metrics, a_value_of(dict)(value)),
}


@functools.cache
def readers_of(cls: Any) -> dict[str, Callable[[Any], Any]]:
    """The readers of the fields of a record, by their names."""
    kinds = {item.name: re.sub(r"^Optional\[(.*)\]$", r"\1", str(item.type)) for item in fields(cls)}
    return {name: READERS[kind] for name, kind in kinds.items() if kind in READERS}


def from_json(cls: Callable[[], T], data: Mapping[str, Any]) -> T:
    """A record from what was read from a file; a value of a wrong type stays at its default."""
    made = cls()
    for name, read in readers_of(cls).items():
        if name in data:
            with contextlib.suppress(ValueError):
                setattr(made, name, read(data[name]))
    return made


def check_read(made: Any, data: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    """Raises ValueError where a value that counts was of a wrong type, and so was not taken from the data."""
    for key in keys:
        if key in data and data[key] != getattr(made, key):
            raise ValueError(f"{where}: not a value of {key}: {clean(repr(data[key]))[:100]}")


def names_in(folder: str, pattern: str) -> list[str]:
    """The names in a directory that match; none where there is no directory."""
    with contextlib.suppress(OSError):
        return [name for name in os.listdir(folder) if re.fullmatch(pattern, name)]
    return []


def file_sha256(path: str) -> Optional[str]:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return sha256(file.read())
    return None


def free_bytes(folder: str) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


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
    return folder, point_latest(base, folder)


def point_latest(base: str, folder: str) -> list[str]:
    latest = os.path.join(base, "latest")
    link = os.path.join(base, f".latest.{os.getpid()}")
    try:
        os.symlink(os.path.basename(folder), link)
        os.replace(link, latest)
    except OSError as error:  # a copied batch may have made a directory of it
        remove_tree(link)
        return [f"'latest' can't be set to this batch: {latest}: {error.strerror}"]
    return []


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
        raise BatchHeld(os.read(lock, 1000).decode(errors="replace").strip() or "unknown runner")
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
    with contextlib.suppress(OSError):
        paths = [each.path for each in os.scandir(base) if not each.is_symlink() and looks_like_batch(each.path)]
        return sorted(paths, key=lambda path: (began_at(path), natural(path)))
    return []


def looks_like_batch(folder: str) -> bool:
    """Whether a directory is a batch, whatever its name is by now: not one of a runner that died at its very start."""
    return any(os.path.exists(os.path.join(folder, name)) for name in (SUMMARY, PLAN_JSON))


def began_at(folder: str) -> float:
    """When a batch began, in seconds of the epoch, as its own files tell; they may be large, but say it early."""
    for name in (SUMMARY, PLAN_JSON):
        with contextlib.suppress(OSError, ValueError, OverflowError), open(os.path.join(folder, name), "rb") as file:
            told = re.search(r'"start_time": "([^"]+)"', file.read(1 << 14).decode(errors="replace"))
            if told:
                return datetime.fromisoformat(told[1]).timestamp()
    return os.stat(folder).st_mtime


def newest_batch(base: str) -> str:
    """Raises UsageError where there is none."""
    found = batches_in(base)
    if not found:
        raise UsageError(f"no batch in: {base}; name one, or its --base_out_dir")
    return found[-1]


# ---- the plan, as it was when the batch began


@dataclass
class PlannedExperiment:
    """A line of plan.json."""

    name: str = ""
    config_path: str = ""
    frozen: str = ""  # the config's copy in plan/; empty where there is none
    config_sha256: str = ""
    overrides: dict[str, str] = field(default_factory=dict)  # texts, as a user gives them
    sweep: dict[str, str] = field(default_factory=dict)


@dataclass
class PlanFile:
    """plan.json: what was planned, written before the first launch and never again but by --resume."""

    head: dict[str, Any]
    experiments: list[PlannedExperiment]


def frozen_names(folder: str, paths: Iterable[str], plan: Iterable[Experiment]) -> dict[str, str]:
    """A name below plan/ for each config: its own, the second of two equal ones in a directory; what lies there
    already keeps its name, and what is read from config_used.py (a batch of 1.0.0) gets that of its original."""
    originals = {each.source: each.config for each in plan}
    place = os.path.join(folder, PLAN)
    taken = {"plan.json"}
    names = {}
    for path in paths:
        numbers = itertools.count(2)
        name = own = os.path.basename(originals.get(path, path))
        is_there = path.startswith(place + os.sep)
        while not is_there and (name.casefold() in taken or os.path.lexists(os.path.join(place, name))):
            name = os.path.join(str(next(numbers)), own)
        taken.add(name.casefold())
        names[path] = os.path.relpath(path, place) if is_there else name
    return names


def freeze(folder: str, plan: Sequence[Experiment], sources: Mapping[str, bytes], head: dict[str, Any]) -> PlanFile:
    """Write plan/: what each config holds, once, under its own file name, and plan.json; synced. Raises OSError.

    What is frozen already keeps its copy, and no copy is ever written over: plan.json changes last, and whole."""
    names = frozen_names(folder, sources, plan)
    for path, data in sources.items():
        target = os.path.join(folder, PLAN, names[path])
        if not os.path.exists(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            write_file(target, data)
    os.makedirs(os.path.join(folder, PLAN), exist_ok=True)
    digests = {path: sha256(data) for path, data in sources.items()}
    made = PlanFile(head, [])
    for each in plan:
        line = PlannedExperiment(each.name, each.config, names.get(each.source, ""), digests.get(each.source, ""))
        line.overrides = {key: text for key, text in each.overrides.items() if key not in each.point}
        line.sweep = each.point
        made.experiments.append(line)
    write_json(os.path.join(folder, PLAN_JSON), {**head, "experiments": list(map(vars, made.experiments))})
    return made


def read_plan(folder: str) -> Optional[PlanFile]:
    """plan.json, None where there is none that can be used."""
    head = read_own(folder, PLAN_JSON)
    try:
        experiments = [from_json(PlannedExperiment, dict(line)) for line in head.pop("experiments")]
    except (KeyError, TypeError, ValueError):
        return None
    are_names = all(each.name == clean_name(each.name) for each in experiments)
    return PlanFile(head, experiments) if are_names else None


# ---- the options of a batch, as its files have them


def plan_options(options: Options) -> dict[str, Any]:
    """The options that the batch's plan keeps, where they are not the defaults."""
    usual = vars(Options())
    return {key: value for key, value in vars(options).items() if key not in OF_ONE_START and value != usual[key]}


def options_from_json(data: Any, where: str) -> dict[str, Any]:
    """The options that a batch has kept, for --resume; raises ValueError where one is none."""
    if not isinstance(data, dict):
        raise ValueError(f"{where}: not options: {clean(repr(data))[:100]}")
    kept = vars(Options()).keys() - set(OF_ONE_START)
    known = {key: value for key, value in data.items() if key in kept}
    check_read(from_json(Options, known), known, known, where)
    return known


# ---- reading a batch back


@dataclass
class StoredBatch:
    """A batch as its files tell it."""

    folder: str
    summary: dict[str, Any]  # without the results
    results: dict[str, Result]
    plan: PlanFile
    notes: list[str]  # what was wrong with the files


def read_batch(folder: str, held: Optional[bool] = None) -> StoredBatch:
    """Raises UsageError for what is no batch, or is damaged beyond what its other files can make good."""
    if not looks_like_batch(folder):
        raise UsageError(f"no batch there: {folder}")
    plan, notes, results = read_plan(folder), [], {}
    try:
        summary, stored = read_summary(folder)
    except ValueError as error:
        if plan is None:
            raise UsageError(f"summary is damaged: {error}") from None
        notes.append(f"summary is damaged, its plan and the experiments' own files are read: {error}")
        summary, stored = {}, {}
    plan = plan or PlanFile({}, lines_of(stored))
    summary = summary or plan.head
    held = is_held(folder) if held is None else held
    if summary.get("state") == "running" and not held:
        summary["state"] = "interrupted"
    patterns = metrics_of(summary)
    for line in plan.experiments:
        place = os.path.join(folder, line.name)
        result = stored.get(line.name, Result(config_name=line.name, config_path=line.config_path))
        if result.status is not Status.COMPLETED and summary.get("state") != "finished":
            result = catch_up(result, place, held, patterns)
        relocate(result, place)
        results[line.name] = result
    return StoredBatch(folder, summary, results, plan, notes)


def relocate(result: Result, place: str) -> None:
    """A batch may have been renamed or moved since: its paths are where it is."""
    if result.final_checkpoint and result.experiment_dir:
        inside = os.path.relpath(result.final_checkpoint, result.experiment_dir)
        result.final_checkpoint = os.path.join(place, inside)
    result.experiment_dir = place
    result.log_files = {name: os.path.join(place, file) for name, file in LOGS.items()}


def read_summary(folder: str) -> tuple[dict[str, Any], dict[str, Result]]:
    """The summary and its results, nothing where there is none. Raises ValueError for a damaged one."""
    path = os.path.join(folder, SUMMARY)
    summary = read_json(path)
    if summary is None:
        return {}, {}
    stored = summary.pop("results", None)
    if not isinstance(stored, dict):
        raise ValueError(f"{path}: no results in it")
    options_from_json(summary.get("options", {}), path)
    check_read(from_json(Options, summary), summary, ["train_script"], path)
    return summary, {name: read_result(name, data, path) for name, data in stored.items()}


def read_result(name: str, data: Any, path: str) -> Result:
    """A result as a summary has it; raises ValueError where what a resume builds on is of a wrong type."""
    if name != clean_name(name) or not isinstance(data, dict):
        raise ValueError(f"{path}: not an experiment: {clean(name)}")
    result = from_json(Result, {**data, "config_name": name})
    result.attempts = max(0, result.attempts)
    check_read(result, data, ("config_path", "overrides", "status", "attempts"), f"{path}: {name}")
    return result


def lines_of(results: Mapping[str, Result]) -> list[PlannedExperiment]:
    """The plan of a batch of version 1.0.0, which froze none."""
    return [
        PlannedExperiment(name, each.config_path, overrides=override_texts(each.overrides))
        for name, each in results.items()
    ]


def override_texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Overrides as they are kept in JSON, in the form in which a user gives them."""
    return {key: value if isinstance(value, str) else repr(value) for key, value in values.items()}


def metrics_of(summary: Mapping[str, Any]) -> list[re.Pattern[bytes]]:
    """The patterns by which the trainings of a batch are read; none where they can't be used any more."""
    options = summary.get("options")
    told = options.get("metrics") if isinstance(options, dict) else None
    with contextlib.suppress(ValueError):
        return compile_metrics(map(str, told)) if isinstance(told, list) else []
    return []


def catch_up(result: Result, folder: str, held: bool, patterns: Sequence[re.Pattern[bytes]]) -> Result:
    """A result as the experiment's own files tell it, which may be newer than the summary."""
    own = from_json(Result, {**read_own(folder, RESULT), "config_name": result.config_name})
    if own.attempts and own.attempts >= result.attempts:
        result = own
    metadata = read_own(folder, METADATA)
    begun = from_json(Result, {**metadata, "attempts": metadata.get("attempt")})
    if begun.attempts > result.attempts:
        result.status, result.attempts = Status.RUNNING, begun.attempts
        result.start_time, result.attempt_history = begun.start_time, begun.attempt_history
    if result.status is Status.RUNNING:
        lines = []
        for stream in ("stdout", "stderr"):
            reader = LineReader(patterns=patterns)
            reader.read(read_tail(os.path.join(folder, LOGS[stream])).replace(b"\r", b"\n"))
            add_metrics(result.metrics, reader.take().metrics)
            lines.append(reader.last_line())
        result.last_line = next(filter(None, lines), "") if result.metrics.step is None else ""
        if not held:
            result.status, result.error = Status.INTERRUPTED, "its runner died"
    return result


# ---- attempts


class How(enum.Enum):
    """How an attempt begins."""

    STARTS = "starts"
    CONTINUES = "continues"
    STARTS_OVER = "starts over"


@dataclass(frozen=True)
class TakeUp:
    """How the next attempt of an experiment begins, and why."""

    how: How
    why: str
    checkpoint: str = ""  # from which it continues

    def __str__(self) -> str:
        between = " " if self.how is How.CONTINUES else ": "
        return f"{self.how.value}{between}{self.why}"


def take_up(experiment: Experiment, folder: str, attempts: int, options: Options) -> TakeUp:
    """How an experiment that has had so many attempts begins its next one."""
    if not attempts:
        return TakeUp(How.STARTS, "first attempt")
    if experiment.overrides.get("init_from") == "scratch":
        return TakeUp(How.STARTS_OVER, "--init_from=scratch")
    if continuing_words(options, experiment, folder, Slot(0), "") is None:
        is_free = bool(options.command)
        return TakeUp(How.STARTS_OVER, "no --continue_with" if is_free else "the trainer has no setting init_from")
    found = checkpoints(folder, options.checkpoints)
    if not found:
        return TakeUp(How.STARTS_OVER, "no checkpoint")
    return TakeUp(How.CONTINUES, f"from {os.path.relpath(found[0], folder)}", found[0])


def on_device(options: Options, planner: Planner, planned: Experiment, slot: Slot) -> Experiment:
    """The experiment with the device of its slot; a --command has that filled in."""
    if slot.device is None or options.command:
        return planned
    overrides = {**planned.overrides, "device": slot.device}
    made = planner.experiment(planned.name, planned.config, overrides, planned.point, planned.source)
    return replace(made, launched_config=planned.launched_config)


def attempt_command(options: Options, planned: Experiment, folder: str, slot: Slot, up: TakeUp) -> list[str]:
    continuing = []
    if up.how is How.CONTINUES:
        continuing = continuing_words(options, planned, folder, slot, up.checkpoint) or []
    return build_command(options, planned, folder, slot, continuing)


def move_aside(folder: str, attempt: int) -> None:
    """Move all that an earlier attempt left to attempt_N/; its metadata last, so that a crash half-way is seen."""
    target = os.path.join(folder, f"attempt_{attempt}")
    os.makedirs(target, exist_ok=True)
    names = names_in(folder, r"(?!attempt_\d+$).*")
    for name in sorted(names, key=METADATA.__eq__):
        place = os.path.join(target, name)
        while os.path.lexists(place):
            place += "_"
        os.rename(os.path.join(folder, name), place)


def past(result: Result) -> dict[str, Any]:
    """What the history keeps of an attempt."""
    keys = ("start_time", "end_time", "status", "return_code", "error", "duration_seconds")
    return {"attempt": result.attempts, **{key: getattr(result, key) for key in keys}}


# ---- copies of an attempt's only checkpoint


def kept_path(checkpoint: str, ending: str = "") -> str:
    """Where a copy is kept: beside its original, under a name that no pattern of checkpoints matches."""
    folder, name = os.path.split(checkpoint)
    return os.path.join(folder, f".kept_{name}{ending}")


def looks_of_copies(checkpoint: str) -> tuple[object, dict[str, tuple[int, int]]]:
    """Size and time of a checkpoint, and of its copies that are there, the older one first: a copy keeps both."""
    looks = looks_at([checkpoint, kept_path(checkpoint), kept_path(checkpoint, ".new")])
    return looks.pop(checkpoint, None), looks


def needs_copy(checkpoint: str) -> bool:
    """Before an attempt continues from its only checkpoint: whether a copy of that one is still to be made."""
    now, copies = looks_of_copies(checkpoint)
    return now not in copies.values()


def kept_copy(checkpoint: str) -> str:
    """A copy that can stand in for a checkpoint that can't be read; empty where there is none."""
    now, copies = looks_of_copies(checkpoint)
    return next((path for path, look in copies.items() if look != now), "")


def keep_copy(checkpoint: str) -> None:
    """Keep a copy of an attempt's only checkpoint beside it, where there is room; raises OSError.

    A newer copy takes the older one's place only once its original has been written over, for then an attempt has
    read it, and has gone on from it."""
    kept, new, part = (kept_path(checkpoint, ending) for ending in ("", ".new", ".part"))
    if os.path.exists(new):
        remove_tree(kept)
        os.rename(new, kept)
    remove_tree(part)
    if os.path.isdir(checkpoint):
        shutil.copytree(checkpoint, part)
    elif not reflink(checkpoint, part):
        if free_bytes(os.path.dirname(checkpoint)) < 3 * os.path.getsize(checkpoint):
            return
        shutil.copyfile(checkpoint, part)
    shutil.copystat(checkpoint, part)
    os.rename(part, new)


def reflink(path: str, copy: str) -> bool:
    """Have the file system share the bytes of two files; few can."""
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
LOOK = 0.25  # seconds between two looks at a checkpoint that may be being written
QUICK_LOOK = 0.05  # the same, where each look so far has found another save, and none that goes on
POLL = 0.05  # seconds between two looks at a group whose leader has gone: no event tells of its end
UNTOLD_LOOKS = 30  # at all processes, POLL apart, for a training that was launched but not told of
GIVE_UP = 10.0  # seconds after KILL: what lives on then can't be killed
MARK = "RUN_EXPERIMENTS_ATTEMPT"  # in a training's environment: which launch of which runner it is
HANDS_ON_NOTHING = ("srun", "docker", "podman")  # launchers that end their task on TERM, and ignore or swallow INT


@dataclass
class ProcessInfo:
    pid: int
    state: str
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


def process_info(pid: int) -> Optional[ProcessInfo]:
    words = about(pid, "stat").rpartition(b")")[2].decode().split()
    return ProcessInfo(pid, words[0], int(words[1]), int(words[2]), words[19]) if words else None


def processes() -> list[ProcessInfo]:
    """All of this machine; none where there is no /proc."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    found = [process_info(int(name)) for name in names if name.isdigit()]
    return [each for each in found if each]


def started_at(pid: int) -> Optional[str]:
    """When a process was started, in a form that tells it from a later one of the same pid; None if it is gone."""
    if os.path.exists("/proc/self/stat"):
        found = process_info(pid)
        return found.started if found and found.state not in "ZX" else None
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


class Group:
    """The process group of a training, and what its leader has started in sessions of their own.

    The leader is reaped as soon as it has exited; its number stays the group's as long as the group has members."""

    def __init__(self, leader: int) -> None:
        self.leader = leader
        self.started = started_at(leader)
        self.strays: dict[int, str] = {}  # pid -> when it was started: descendants outside the group
        self.exit: Optional[Exit] = None

    def poll(self) -> Optional[Exit]:
        """How the leader ended; None while it runs."""
        if self.exit is None:
            pid, status, usage = os.wait4(self.leader, os.WNOHANG)
            if pid:
                unit = 1 if sys.platform == "darwin" else 1024
                code = os.waitstatus_to_exitcode(status)
                self.exit = Exit(code, round(usage.ru_utime + usage.ru_stime, 3), usage.ru_maxrss * unit)
        return self.exit

    def members(self) -> list[int]:
        """The living processes of the group; zombies are none. Without /proc its number stands for them all."""
        try:
            os.killpg(self.leader, 0)
        except (ProcessLookupError, PermissionError):
            return []  # none, or none that could be signalled
        known = processes()
        if not known:
            return [self.leader]
        return [each.pid for each in known if each.group == self.leader and each.state not in "ZX"]

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.leader, number)

    def owns(self, info: ProcessInfo) -> bool:
        """Whether a process is the training's, whoever its parent is."""
        return info.group == self.leader

    def remember_strays(self) -> None:
        """Find them while their parents live: later nothing tells whose they are."""
        known = processes()
        family: set[int] = set()
        found = {each.pid for each in known if self.owns(each)}
        while not found <= family:  # one more generation
            family |= found
            found = {each.pid for each in known if each.parent in family}
        outside = [each for each in known if each.pid in family and each.group != self.leader]
        self.strays.update((each.pid, each.started) for each in outside)

    def signal_strays(self, number: int) -> None:
        for pid, started in self.strays.items():
            if started_at(pid) == started:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)

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

    def is_suspended(self) -> bool:
        """Whether the leader is stopped (SIGSTOP, Ctrl+Z, Slurm's suspend)."""
        found = process_info(self.leader)
        return found is not None and found.state == "T"


@dataclass
class StopRules:
    """When a training is asked to end, and how."""

    signal: str = "auto"  # a name without SIG, or auto
    grace: float = GRACE  # seconds
    launcher: tuple[str, ...] = ()  # the words that stand before the training script, if it isn't Python itself
    folder: str = ""  # where the training writes its checkpoints
    checkpoints: str = ""  # the pattern of their names
    timeout: Optional[float] = None  # seconds that it may take
    stall: Optional[float] = None  # seconds that it may print nothing

    def choose(self, group: Group) -> int:
        """The first signal. A person's Ctrl+C is INT, and Python cleans up on it; TERM cleans up only where a program
        handles it. So it is TERM for one that does, INT for others."""
        if self.signal != "auto":
            return int(getattr(signal, f"SIG{self.signal}"))
        if self.launcher and os.path.basename(self.launcher[0]) in HANDS_ON_NOTHING:
            # `srun -X` hands INT on; that its helper process catches TERM says nothing of the trainer.
            hands_on = {"-X", "--disable-status"} & set(self.launcher)
            return signal.SIGINT if hands_on else signal.SIGTERM
        asked = [group.leader]
        if self.launcher:  # what a launcher catches says nothing of the trainer behind it
            group.remember_strays()  # torchrun's workers have sessions of their own
            behind = [pid for pid in (*group.members(), *group.strays) if pid != group.leader]
            asked = behind or asked  # `nice` becomes the trainer
        return signal.SIGTERM if any(catches(pid, signal.SIGTERM) for pid in asked) else signal.SIGINT


class Ending:
    """The end of a group, step by step: the stop signal, TERM if it has had none, KILL, each when the one before has
    not helped; none while a checkpoint is being written, within bounds."""

    def __init__(self, group: Group, rules: StopRules, now: float) -> None:
        """Begin: with the signal where there is no checkpoint that could be cut off, else with a first look at it."""
        self.group, self.rules = group, rules
        self.sent: list[int] = []  # the signals so far
        self.sent_at = -math.inf
        self.hurried = self.given_up = self.has_waited = self.has_looked_round = False
        self.wait_until = now + 2 * rules.grace  # for a checkpoint, at the longest
        self.look: dict[str, tuple[int, int]] = {}  # at checkpoints, since the latest signal
        self.short_saves = 0  # looks in a row that found a new file, or a rewritten one, but none that grows
        self.deadline = now
        self.step(now)

    def step(self, now: float) -> str:
        """Do what is due; returns what there is to say of it."""
        if self.sent and not self.has_looked_round:
            self.has_looked_round = True  # not before the signal: of many trainings each is to get its own at once
            self.group.remember_strays()
        if now < self.deadline:
            return ""
        if signal.SIGKILL in self.sent:
            self.given_up = True
            self.deadline = math.inf
            return ""
        may_wait = now < self.wait_until and not self.hurried
        name = self.being_written() if may_wait else None
        if name is None:
            return self.send_next(now)
        self.deadline = now + (LOOK if self.short_saves < 3 else QUICK_LOOK)
        if self.has_waited or not name:
            return ""
        self.has_waited = True
        return f"waiting for {name} to be written (at most {whole_seconds(self.wait_until - now + 0.5)})"

    def being_written(self) -> Optional[str]:
        """The name of a checkpoint that has changed between two looks; "" where a second look is yet to come, None
        where nothing is being written. Sizes and times are only compared with each other: NFS has its own clock."""
        before = self.look
        self.look = being_written(self.rules.folder, self.rules.checkpoints) if self.rules.folder else {}
        if self.look and not before:
            return ""
        changed = [name for name, look in self.look.items() if look != before.get(name)]
        grows = any(name in before and self.look[name][0] != before[name][0] for name in changed)
        self.short_saves = 0 if grows else self.short_saves + 1
        return changed[0] if changed else None

    def send_next(self, now: float) -> str:
        last = signal_name(self.sent[-1]) if self.sent else ""
        if not self.sent:
            number, said = self.rules.choose(self.group), ""
            patience = KILL_GAP if self.hurried else max(KILL_GAP, self.rules.grace)
        elif signal.SIGTERM not in self.sent:
            number, patience, said = signal.SIGTERM, TERM_GAP, f"did not end on {last}, gets SIGTERM"
        else:
            number, patience, said = signal.SIGKILL, GIVE_UP, f"did not end on {last}, killed"
        if number == signal.SIGKILL:
            self.group.kill()
        else:
            self.group.signal(number)
        self.sent.append(number)
        self.sent_at, self.deadline = now, now + patience
        self.look = {}  # what has been saved meanwhile is not being written
        return said

    def hurry(self, now: float) -> None:
        """The next signal as soon as may be, whatever is being written."""
        self.hurried = True
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
        except OSError as error:
            return str(error.strerror)
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
        """`wake` is at its end once `is_draining` was set."""
        super().__init__(name=f"tee {stream}", daemon=True)
        self.stream, self.source, self.post = stream, source, post
        self.begun: queue.SimpleQueue[bool] = queue.SimpleQueue()  # whether there is a training
        self.label = stream.upper()
        self.rest = b""  # the unfinished line
        self.after_return = False  # the last block ended with \r: a \n that follows belongs to it
        self.announced = False  # the loop has been told of news, and has not taken them yet
        self.failed: set[str] = set()  # the logs of which it was told
        self.is_draining = False  # the group is gone: only what the pipe holds now is still read
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
            self.take(block)
        is_at_end = bool(dict(self.poll.poll(0)).get(self.source, 0) & select.POLLHUP)  # nobody holds its other end
        if self.rest:
            self.take(b"\n", is_end=True)
        os.close(self.source)
        for log in (self.log, self.combined):
            if log.leave():
                self.finish(log)
        self.quiet_since = time.monotonic()
        self.post(lambda process: process.on_end(self.stream, is_at_end))

    def next_block(self) -> bytes:
        """Some bytes of the stream; none at its end, or when all is read that a group has left."""
        while True:
            if self.is_draining and self.left == math.inf:
                waiting = fcntl.ioctl(self.source, termios.FIONREAD, bytes(4))
                self.left = int.from_bytes(waiting, sys.byteorder)
            if not self.left:
                return b""
            try:
                size = os.readv(self.source, [self.buffer[: int(min(BLOCK, self.left))]])
            except BlockingIOError:
                self.quiet_since = time.monotonic()
                self.poll.poll()
                self.quiet_since = math.inf
                continue
            self.left -= size
            return bytes(self.buffer[:size])

    def take(self, block: bytes, is_end: bool = False) -> None:
        """Whatever goes wrong (there is no memory), the training must not be held up by a pipe that nobody reads."""
        try:
            if not is_end:
                self.tell(self.log, self.log.write([block]))
            self.take_lines(block)
        except Exception as error:
            self.rest = b""
            self.tell(self.combined, f"{type(error).__name__}: {error}")

    def take_lines(self, block: bytes) -> None:
        """Hand on the lines that have come to their end; the rest is kept until there is more."""
        if self.after_return and block[:1] == b"\n":
            block = block[1:]
        self.after_return = block[-1:] == b"\r"
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        end = block.rfind(b"\n") + 1
        if not end and len(self.rest) + len(block) > LINE_LIMIT:
            block += b"\n"  # an endless line is broken here, in combined.log only
            end = len(block)
        if not end:
            self.rest += block
            return
        lines = self.rest + block[:end]
        self.rest = block[end:]
        mark = stamp(self.label)
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
            tee.is_draining = True
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
        self.is_hurried = False
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
        self.is_hurried = True
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
            # After a stop the rest keeps the stop's time: a wrapper dies at once, and the trainer under it may save.
            self.enter(Phase.LINGERING, self.ending.deadline if self.ending else now + LINGER)

    def next_limit(self, now: float) -> tuple[float, str]:
        """When it is to be stopped, and why."""
        ends = [(math.inf, "")]
        timeout, stall = self.rules.timeout, self.rules.stall
        if timeout is not None and not self.is_queued:
            ends.append((self.clock + timeout, f"not done after {show_duration(timeout)} (--timeout)"))
        if stall is not None and not self.is_queued:
            quiet_since = min(now, max(self.awake_since, self.launch.quiet_since()))
            ends.append((quiet_since + stall, f"stalled: no output for {show_duration(stall)} (--stall)"))
        return min(ends)

    def step_ending(self, now: float) -> None:
        assert self.ending
        said = self.ending.step(now)
        if said:
            self.remarks.append(said)
        self.deadline = self.ending.deadline
        if self.ending.given_up:
            self.give_up()

    def step_lingering(self, now: float) -> None:
        left = self.group.members()
        if not left:
            self.enter(Phase.DRAINING, now + GIVE_UP if self.is_hurried else math.inf)
            self.launch.drain()
        elif self.ending:
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
        told = (group.leader, group.started or "?", self.launches, os.path.abspath(folder))
        self.tell("+" + "\t".join(map(str, told)))  # `ps` writes a start with blanks

    def tell_ended(self, group: Group) -> None:
        self.tell(f"-{group.leader}")

    def say_goodbye(self) -> None:
        """The runner ends by itself; no guardian is left behind."""
        self.tell("bye")
        os.close(self.pipe)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def has_died(self) -> bool:
        """Whether somebody has killed it."""
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            return True

    def tell(self, line: str) -> None:
        """A dead guardian is told of by `has_died`; a line is short enough to be written in one piece."""
        with contextlib.suppress(OSError):
            os.write(self.pipe, f"{line}\n".encode(errors="surrogateescape"))


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
        end_all(endings, lambda: find_untold(f"{mark}{launches + 1}".encode(), rules))
    finally:
        os._exit(0)


def detach(pipe: int) -> None:
    """Leave the runner's session, terminal, files and lock; a signal to the runner is none to its guardian."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    last = 4096
    with contextlib.suppress(OSError):
        last = max(map(int, os.listdir("/dev/fd")))
    os.closerange(0, pipe)
    os.closerange(pipe + 1, last + 1)
    os.chdir("/")


def read_wards(pipe: int) -> tuple[dict[int, list[str]], int]:
    """What runs when the pipe ends (leader -> when it was started, the number of its launch, its directory), and how
    many launches were told of. Raises SystemExit when the runner says goodbye."""
    wards: dict[int, list[str]] = {}
    launches = 0
    with open(pipe, encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for line in lines:
            if line == "bye\n":
                sys.exit()
            leader, *told = line[1:].rstrip("\n").split("\t", 3)
            if line.startswith("+"):
                wards[int(leader)] = told
                launches = int(told[1])
            elif line.startswith("-"):  # else it is the rest of a directory's name
                wards.pop(int(leader), None)
    return wards, launches


def begin_endings(wards: Mapping[int, Sequence[str]], mark: str, rules: StopRules) -> list[Ending]:
    """Ask each group to end of which anything still runs."""
    endings = []
    for leader, (started, launch, folder) in wards.items():
        group = OrphanedGroup(leader, f"{mark}{launch}".encode())
        is_another = group.started is not None and started not in ("?", group.started)
        if group.members() and not is_another:
            endings.append(Ending(group, replace(rules, folder=folder), time.monotonic()))
    return endings


def find_untold(mark: bytes, rules: StopRules) -> list[Ending]:
    """The training that was launched as the runner was killed, and of which it could not tell any more."""
    leaders = [each.pid for each in processes() if each.group == each.pid and has_mark(each.pid, mark)]
    return [Ending(OrphanedGroup(leader, mark), rules, time.monotonic()) for leader in leaders]


def end_all(endings: list[Ending], find_more: Callable[[], list[Ending]]) -> None:
    """End groups side by side, as a stop does: signal, grace, KILL. For some looks more of them may be found: for an
    instant after its fork a training has the runner's environment still."""
    looks = UNTOLD_LOOKS
    while endings or looks:
        if looks:
            more = find_more()
            endings += more
            looks = 0 if more else looks - 1
        time.sleep(POLL)  # none of them is a child of this process, so no event tells of their end
        for each in endings:
            each.step(time.monotonic())
        endings = [each for each in endings if not each.given_up and each.group.members()]


# --------------------------------------------------------------------------------------------------- views
# What people see of results: rows, the table, the time that is left, the lines on a console. Nothing here decides, and
# nothing that a console does (blocks, closes, is gone) may reach the loop.

TITLES = ("experiment", "status", "step", "val loss", "best val loss", "duration", "ETA")
STAR = "best (*: of all)"  # the title where one of the losses is marked
NUMBERS = (*TITLES[2:], STAR)  # the columns that are set to the right
SHORT_NAME = 16  # columns below which no name is cut
LONG = 24  # characters of a setting; of a longer one a part is shown
NO_LIMIT = 100_000  # columns of what is no terminal
FOLLOWED = 1 << 20  # bytes of the trainings' output that wait for a slow console; more is dropped
CHUNK = 4096  # bytes written to a console at a time
STUCK = 2.0  # seconds without progress after which a console is left alone at the end
NOT_COMPARED = ("seed", "device", "out_dir", "wandb_run_name")  # settings in which runs of one seed group may differ


def known_values(values: Iterable[Optional[float]]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def elapsed(result: Result) -> Optional[float]:
    """Seconds that an attempt took, or has taken so far."""
    if result.status is Status.RUNNING and result.start_time:
        with contextlib.suppress(ValueError, TypeError, OverflowError, OSError):
            return max(0.0, time.time() - datetime.fromisoformat(result.start_time).timestamp())
    return result.duration_seconds


def total_elapsed(result: Result) -> Optional[float]:
    """Seconds of all attempts, those of a running one included."""
    if result.status is Status.RUNNING:
        return sum(known_values([result.total_seconds, elapsed(result)]))
    return result.duration_seconds if result.total_seconds is None else result.total_seconds


def seconds_left(result: Result) -> Optional[float]:
    """Iterations left times the time per iteration of a running experiment, where both are known."""
    facts = known_values([result.max_iters, result.metrics.step, result.metrics.first_step, elapsed(result)])
    if result.status is not Status.RUNNING or len(facts) < 4:
        return None
    iterations, step, first, took = facts
    return max(0.0, iterations - step) * took / (step - first) if step > first else None


def seconds_needed(result: Result) -> Optional[float]:
    """What the attempt of a running experiment will have taken."""
    left = seconds_left(result)
    return None if left is None else sum(known_values([left, elapsed(result)]))


def batch_left(results: Sequence[Result], slots: int) -> Optional[float]:
    """Seconds until a batch is done: what its running experiments need, and the usual time for each of the others.

    The usual time is the mean of the completed ones, else of what the running ones will have taken."""
    by_status: defaultdict[Status, list[Result]] = defaultdict(list)
    for each in results:
        by_status[each.status].append(each)
    running = by_status[Status.RUNNING]
    lefts = known_values(map(seconds_left, running))
    others = len(by_status[Status.PENDING]) + len(running) - len(lefts)
    took = known_values(map(total_elapsed, by_status[Status.COMPLETED])) or known_values(map(seconds_needed, running))
    if not running or (others and not took):  # nothing is on its way, or nothing is known yet
        return None
    usual = sum(took) / max(1, len(took))
    return max([(sum(lefts) + others * usual) / max(1, slots), *lefts])


# ---- rows and tables


def rows_of(results: Sequence[Result]) -> list[dict[str, Any]]:
    """What the table, the page and --status --json show of each experiment."""
    keys = ("status", "error", "hint", "warnings", "stderr_tail", "attempts", "settings", "device", "last_line")
    losses = [each.metrics.best_val_loss for each in results]
    finite = known_values(losses)
    best = losses.index(min(finite)) if len(finite) > 1 else None
    rows = []
    for number, each in enumerate(results):
        row = {"name": each.config_name, "progress": show_progress(each), **to_json(each.metrics)}
        row.update((key, getattr(each, key)) for key in keys)
        row.update(duration_seconds=elapsed(each), total_seconds=total_elapsed(each), eta_seconds=seconds_left(each))
        row.update(config_path=each.config_path, best=number == best)
        rows.append(row)
    return rows


def show_progress(result: Result) -> str:
    step = result.metrics.step
    if step is None:
        return ""
    return f"{step}/{result.max_iters}" if result.max_iters else str(step)


def result_lines(results: Sequence[Result], width: int = NO_LIMIT) -> list[str]:
    """The results as lines for people: one for each, which fits the width, and under it what went wrong with it."""
    rows = rows_of(results)
    titles = list(TITLES)
    if any(row["best"] for row in rows):
        titles[4] = STAR
    columns = [*zip(titles, *map(table_cells, rows)), *setting_columns(rows)]
    head, *lines = lay_out(columns, width)
    told = [head]
    for row, line in zip(rows, lines):
        told += [line, *notes_of(row)]
    return told


def table_cells(row: dict[str, Any]) -> list[str]:
    return [
        clean(row["name"]),
        f"{row['status']} (!)" if row["warnings"] else str(row["status"]),
        row["progress"],
        show_loss(row["val_loss"], ""),
        show_loss(row["best_val_loss"], "") + ("*" if row["best"] else ""),
        show_duration(row["total_seconds"]),
        show_duration(row["eta_seconds"], ""),
    ]


def setting_columns(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A column for each setting in which the rows differ, and for the device."""
    settings = [{"device": row["device"] or "", **row["settings"]} for row in rows]
    columns = []
    for key in keys_of(settings):
        texts = [show_setting(each, key) for each in settings]
        if len(set(texts)) > 1:
            columns.append([clean(key), *differing_parts(texts)])
    return columns


def keys_of(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys of all of these, as they come."""
    return list(dict.fromkeys(itertools.chain.from_iterable(settings)))


def show_setting(settings: Mapping[str, Any], key: str) -> str:
    """A setting's value; `?` for None: it isn't known."""
    value = settings.get(key, "")
    return "?" if value is None else clean(str(value))


def differing_parts(texts: Sequence[str]) -> list[str]:
    """Values of a setting, of long ones what begins with the list item, or some characters, before they differ."""
    long = [text for text in texts if len(text) > LONG]
    common = os.path.commonprefix(long) if len(set(long)) > 1 else ""
    item = re.sub(r"[^,\[{(]*\Z", "", common)
    start = max(len(item), len(common) - LONG // 2)
    return [text[start : start + LONG].strip() + "…" if len(text) > LONG else text for text in texts]


def lay_out(columns: Sequence[Sequence[str]], width: int) -> list[str]:
    """Columns, each with its title, as lines of at most this width: those that are empty or don't fit are left out, and
    the names, which stand in the first one, are cut in the middle."""
    longest = max(map(len, columns[0]))
    room = width - min(SHORT_NAME, longest)
    kept = []
    for title, *cells in columns[1:]:
        wide = max(map(len, [title, *cells]))
        if any(cells) and wide + 2 <= room:
            room -= wide + 2
            to_side = str.rjust if title in NUMBERS else str.ljust
            kept.append([to_side(cell, wide) for cell in (title, *cells)])
    wide = min(longest, SHORT_NAME + max(0, room))
    names = [shorten(name, wide).ljust(wide) for name in columns[0]]
    return ["  ".join(line).rstrip() for line in zip(names, *kept)]


def notes_of(row: dict[str, Any]) -> list[str]:
    """The lines under a row."""
    notes = [("error", row["error"]), ("hint", row["hint"])]
    if row["status"] is Status.RUNNING and not row["progress"]:
        notes.append(("prints", show_value(row["last_line"], 70)))
    notes += [("warning", text) for text in row["warnings"]]
    return [f"    {label}: {clean(text)}" for label, text in notes if text]


@dataclass
class SeedGroup:
    """Experiments that differ in nothing but their seed."""

    name: str
    settings: dict[str, Any]
    completed: int
    total: int
    best_mean: Optional[float]
    best_std: Optional[float]
    last_mean: Optional[float]
    last_std: Optional[float]


def seed_groups(results: Sequence[Result]) -> list[SeedGroup]:
    """The groups of a batch in which seeds differ, the best first; none in another."""
    members: defaultdict[str, list[Result]] = defaultdict(list)
    for each in results:
        settings = compared(each)
        # Of an unknown value nobody knows, and a config beside which a seed is given need not even be Python.
        is_told = None not in settings.values() and "seed" not in each.overrides
        path = "" if is_told else each.config_path
        if "seed" in each.settings:
            members[json.dumps([settings, path], sort_keys=True)].append(each)
    groups = [seed_group(group) for group in members.values() if len(group) > 1]
    return sorted(groups, key=lambda group: math.inf if group.best_mean is None else group.best_mean)


def compared(result: Result) -> dict[str, Any]:
    return {key: value for key, value in result.settings.items() if key not in NOT_COMPARED}


def seed_group(group: Sequence[Result]) -> SeedGroup:
    """Its name is that of an experiment without the seed, or what the names begin with."""
    bare = [re.sub(r"__seed_[^_]*", "", each.config_name) for each in group]
    name = os.path.commonprefix(bare)
    done = [each.metrics for each in group if each.status is Status.COMPLETED]
    best = mean_and_deviation([each.best_val_loss for each in done])
    last = mean_and_deviation([each.val_loss for each in done])
    return SeedGroup(name, compared(group[0]), len(done), len(group), *best, *last)


def mean_and_deviation(losses: Sequence[Optional[float]]) -> tuple[Optional[float], Optional[float]]:
    """Mean and sample standard deviation of two or more losses that are known and finite."""
    finite = known_values(losses)
    if len(finite) < 2:
        return None, None
    mean = math.fsum(finite) / len(finite)
    variance = math.fsum((loss - mean) ** 2 for loss in finite) / (len(finite) - 1)
    return mean, math.sqrt(variance)


def group_lines(groups: Sequence[SeedGroup], width: int = NO_LIMIT) -> list[str]:
    """The groups as lines for people; none where there are no groups."""
    cells = [["over seeds", "completed", "best val loss", "last val loss"]]
    for group in groups:
        best = show_spread(group.best_mean, group.best_std)
        last = show_spread(group.last_mean, group.last_std)
        cells.append([clean(group.name), f"{group.completed} of {group.total}", best, last])
    return lay_out(list(zip(*cells)), width) if groups else []


def show_spread(mean: Optional[float], deviation: Optional[float]) -> str:
    return "" if mean is None or deviation is None else f"{mean:.4f} ± {deviation:.4f}"


# ---- the live block


def live_lines(running: Sequence[Result], everyone: Sequence[Result], slots: int, size: tuple[int, int]) -> list[str]:
    """The block at the foot of a terminal: a line per running experiment, as many as fit, and one for the batch."""
    width, height = size
    seen = running[: max(1, height - 4)]
    columns = list(zip([""] * 6, *map(live_cells, seen)))
    lines = [f"{line}  {last_words(each)}".rstrip() for line, each in zip(lay_out(columns, width - 1)[1:], seen)]
    if len(seen) < len(running):
        lines.append(f"... and {len(running) - len(seen)} more")
    left = batch_left(everyone, slots)
    counts = show_counts(count_statuses(everyone))
    lines.append(counts if left is None else f"{counts}; ETA {whole_seconds(left)}")
    return [line[: max(1, width - 1)] for line in lines]


def last_words(result: Result) -> str:
    """Of a trainer that prints no step its last line is what there is to show."""
    return clean(result.last_line) if result.metrics.step is None else ""


def live_cells(result: Result) -> list[str]:
    if last_words(result):
        return [result.config_name, *[""] * 5]
    left = seconds_left(result)
    return [
        result.config_name,
        f"iter {show_progress(result) or 0}",
        f"loss {show_loss(result.metrics.train_loss)}",
        f"val {show_loss(result.metrics.val_loss)}",
        whole_seconds(elapsed(result)),
        "" if left is None else f"ETA {whole_seconds(left)}",
    ]


# ---- consoles


def terminal_width() -> int:
    """The columns of the terminal that stdout is, or of $COLUMNS; no limit elsewhere."""
    return shutil.get_terminal_size((NO_LIMIT, 24)).columns or NO_LIMIT


def encoded(text: str) -> memoryview:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return memoryview(text.encode(encoding, "backslashreplace"))


def write_some(descriptor: int, data: memoryview) -> int:
    """Returns how many bytes were written. Raises OSError."""
    try:
        return os.write(descriptor, data)
    except BlockingIOError:  # another program left the terminal so
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        poll.poll()
        return 0


def print_whole(lines: Iterable[str]) -> None:
    """Print all of what was asked for, at the pace of its reader. Raises UsageError where it can't be written."""
    data = encoded("".join(f"{line}\n" for line in lines))
    try:
        while data:
            data = data[write_some(1, data) :]
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
        self.waiting: list[tuple[str, bytes]] = []  # (line of the runner's, or prefix and lines of a training)
        self.followed = 0  # bytes of the trainings' that wait
        self.dropped = 0  # lines of theirs that did not fit
        self.block: Optional[list[str]] = None  # the block as it should stand, where that is new
        self.drawn: list[str] = []  # and as it stands
        self.is_broken = self.is_idle = False
        self.progress = 0.0  # when something was last written

    # ---- for the loop and the Tees; none of these waits for the console

    def line(self, text: str, even_if_quiet: bool = False) -> None:
        if not self.quiet or even_if_quiet:
            with self.changed:
                self.waiting.append((f"{text}\n", b""))
                self.changed.notify_all()

    def follow(self, name: str, lines: bytes) -> None:
        """Lines of a training, for --follow."""
        if self.is_broken or self.quiet:
            return
        with self.changed:
            if self.followed > FOLLOWED:
                self.dropped += lines.count(b"\n")
                return
            self.followed += len(lines)
            self.waiting.append((name, lines))
            self.changed.notify_all()

    def draw(self, block: list[str]) -> None:
        """Put a block in the place of the one on the screen."""
        if self.live:
            with self.changed:
                self.block = block
                self.changed.notify_all()

    def settle(self, patience: float) -> None:
        """Wait until all is written, or nothing has been for so many seconds."""
        self.progress = time.monotonic()
        with self.changed:
            while not self.is_idle or self.has_news():
                if time.monotonic() > self.progress + patience:
                    break
                self.changed.wait(0.1)

    def has_news(self) -> bool:
        return bool(self.waiting) or self.block is not None

    # ---- the thread

    def run(self) -> None:
        block: list[str] = []
        while True:
            with self.changed:
                self.is_idle = True
                self.changed.notify_all()
                self.changed.wait_for(self.has_news)
                self.is_idle = False
                entries, dropped = self.waiting, self.dropped
                self.waiting, self.dropped, self.followed = [], 0, 0
                if self.block is not None:
                    block, self.block = self.block, None
            text = "".join(itertools.starmap(console_text, entries))
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
        up = f"\x1b[{rows}A\r" if rows else ""
        rest = "\x1b[J" if len(block) < rows else ""
        self.write(2, up + rest + "".join(f"{line}\x1b[K\n" for line in block))
        self.drawn = block

    def write(self, descriptor: int, text: str) -> None:
        data = encoded(text)
        try:
            while data and not self.is_broken:
                data = data[write_some(descriptor, data[:CHUNK]) :]
                self.progress = time.monotonic()
        except OSError:
            self.is_broken = True


def console_text(name: str, lines: bytes) -> str:
    if not lines:
        return name
    texts = lines.decode(errors="replace").expandtabs().splitlines()
    return "".join(f"{name}{clean(text)}\n" for text in texts)


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


def terminal_size() -> tuple[int, int]:
    try:
        columns, rows = os.get_terminal_size(2)
    except OSError:
        columns, rows = 0, 0
    return columns or 80, rows or 24


# ---------------------------------------------------------------------------------------------------- page
# report.html: the template and what fills it, from data to HTML text. Nothing here reads or writes a file. Every text
# may come from a stranger's config, so it is escaped where it enters the HTML; the script gets it as JSON only.

MAX_CURVES = 100  # are drawn; more can't be told apart
MAX_LINKED = 1000  # experiments; of more each has its first link only: six links make 10,000 rows a page of 10 MB
MAX_SHOWN = 500  # rows, until the reader asks for all; the style sheet has the number too
NUMBER_TEXT = re.compile(r"\??|-?(\d[\d.]*(e[-+]?\d+)?|inf|nan)")  # `?`: it isn't known; nothing: it isn't set
CELLS = {"name": "<th>", "n": "<td>", "s": '<td class="s">', "f": '<td class="f">'}  # name, number, text, files
SIGN = "⚠\ufe0e"
EMPTY = {  # by whether the batch runs
    True: "The curves begin with the first evaluation.",
    False: "No experiment printed an evaluation, so there are no curves.",
}


@dataclass
class PageHead:
    """What stands at the top of a page."""

    title: str
    state: str  # the batch's: running, finished, ...
    counts: dict[str, int]  # as count_statuses gives them
    host: Optional[str] = None
    commit: Optional[str] = None  # as it is to be read
    patch: Optional[str] = None  # link to uncommitted.patch
    started: Optional[str] = None
    updated: Optional[str] = None
    duration: Optional[float] = None  # seconds
    eta: Optional[float] = None  # seconds
    command: Optional[str] = None
    batches: list[dict[str, Any]] = field(default_factory=list)  # of several: name, href, state, started, command
    warnings: list[str] = field(default_factory=list)
    reload_seconds: Optional[float] = None  # None: nobody writes the page again


@dataclass
class Column:
    """A column of a table."""

    title: str
    kind: str  # one of CELLS
    show: Callable[[dict[str, Any]], str]  # a row's HTML


def to_html(value: Any) -> str:
    return "" if value is None else html.escape(clean(str(value)))


def lines_html(text: Optional[str]) -> str:
    return "\n".join(map(to_html, (text or "").expandtabs().splitlines()))


def element(tag: str, inside: str) -> str:
    """HTML in a tag, `p class="bad"` say; nothing where there is nothing inside."""
    return f"<{tag}>{inside}</{tag.split()[0]}>" if inside else ""


def link_html(label: str, href: str) -> str:
    """A link to a file; in its path a browser would take `?`, `#` and `%` for more than they are."""
    address = re.sub("[%?#]", lambda mark: f"%{ord(mark[0]):02X}", href)
    return f'<a href="{to_html(address)}">{to_html(label)}</a>'


def name_html(name: str) -> str:
    """A name that may wrap behind an underscore."""
    return re.sub("(_+)", r"\1<wbr>", to_html(name))


def is_finite_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300  # no bool, nan or inf, nor an int beyond floats


def loss_html(loss: Any, deviation: Any = None) -> str:
    if deviation is not None:
        return f"{loss_html(loss)} ± {loss_html(deviation)}"
    if not is_finite_number(loss):
        return to_html(loss)  # a nan is a text by now
    return f"{loss:.4f}" if 1e-3 <= abs(loss) < 1e5 else f"{loss:.4g}"


def dot_html(kind: str, inside: str) -> str:
    return f'<span class="dot {to_html(kind)}">{inside}</span>'


def warnings_html(texts: Iterable[str]) -> str:
    return "".join(f'<p class="warn">{SIGN} {lines_html(text)}</p>' for text in texts)


def table_html(columns: Sequence[Column], rows: Sequence[dict[str, Any]]) -> str:
    """A table with a tbody for each row. End tags that HTML lets go are a megabyte at 10,000 rows."""
    titles = [f'<th scope="col" class="{column.kind}">{name_html(column.title)}</th>' for column in columns]
    lines = [f"<table><thead><tr>{''.join(titles)}</thead>"]
    for row in rows:
        cells = [CELLS[column.kind] + column.show(row) for column in columns]
        notes = error_html(row) + warnings_html(row.get("warnings", ()))
        lines.append("<tbody><tr>" + "".join(cells))
        if notes:
            lines.append(f'<tr class="note"><td colspan="{len(columns)}">{notes}')
    return "\n".join(lines) + "</table>"


def error_html(row: dict[str, Any]) -> str:
    """The error of a row, with hint and end of stderr folded under it."""
    if not row.get("error"):
        return ""
    error = lines_html(row["error"])
    more = element("p", lines_html(row["hint"])) + element("pre", lines_html(row["stderr_tail"]))
    return f'<details><summary class="bad">{error}</summary>{more}</details>' if more else f'<p class="bad">{error}</p>'


def status_html(row: dict[str, Any]) -> str:
    mark = f' <span class="warn">{SIGN}</span>' if row["warnings"] else ""
    attempts = f"<small>{row['attempts']} attempts</small>" if row["attempts"] > 1 else ""
    return dot_html(row["status"], to_html(row["status"]) + mark) + attempts


def best_html(row: dict[str, Any]) -> str:
    loss = loss_html(row["best_val_loss"])
    return element("b", loss) if row["best"] else loss


def setting_column(key: str, rows: Sequence[dict[str, Any]]) -> Column:
    """A setting; of long values the part in which they differ, and the whole folded under it."""
    texts = [show_setting(row["settings"], key) for row in rows]
    parts = dict(zip(texts, differing_parts(texts)))

    def show(row: dict[str, Any]) -> str:
        text = show_setting(row["settings"], key)
        part, whole = to_html(parts[text]), to_html(text)
        return whole if part == whole else f"<details><summary>{part}</summary>{whole}</details>"

    return Column(key, "n" if all(map(NUMBER_TEXT.fullmatch, texts)) else "s", show)


def experiments_html(rows: Sequence[dict[str, Any]], running: bool) -> str:
    """What a sweep has set stands next to the name; of the facts those of which something is known."""
    most_links = None if len(rows) <= MAX_LINKED else 1
    facts = [
        Column("Progress", "n", lambda row: to_html(row["progress"])),
        Column("Train loss", "n", lambda row: loss_html(row["train_loss"])),
        Column("Val loss", "n", lambda row: loss_html(row["val_loss"])),
        Column("Best val loss", "n", best_html),
        Column("At step", "n", lambda row: to_html(row["best_step"])),
        Column("Duration", "n", lambda row: show_duration(row["total_seconds"], "")),
        Column("ETA", "n", lambda row: show_duration(row["eta_seconds"], "") if running else ""),
    ]
    files = Column("Files", "f", lambda row: " ".join(itertools.starmap(link_html, row["files"][:most_links])))
    settings = {key: setting_column(key, rows) for key in keys_of(row["settings"] for row in rows)}
    swept = [settings.pop(key) for key in keys_of(row["sweep"] for row in rows) if key in settings]
    facts = [column for column in facts if any(map(column.show, rows))]
    status = Column("Status", "s", status_html)
    name = Column("Experiment", "name", lambda row: element("div", name_html(row["name"])))
    return table_html([name, *swept, status, *facts, *settings.values(), files], rows)


def groups_html(groups: Sequence[dict[str, Any]]) -> str:
    """The groups of experiments that differ in nothing but the seed."""
    columns = [
        Column("Group", "name", lambda row: element("div", name_html(row["name"]))),
        *[setting_column(key, groups) for key in keys_of(row["settings"] for row in groups)],
        Column("Completed", "n", lambda row: f"{row['completed']} of {row['total']}"),
        Column("Best val loss", "n", lambda row: loss_html(row["best_mean"], row["best_std"])),
        Column("Last val loss", "n", lambda row: loss_html(row["last_mean"], row["last_std"])),
    ]
    title = '<div class="bar"><h2>Over seeds</h2><span class="dim">mean ± standard deviation</span></div>'
    table = f'<div class="scroll">{table_html(columns, groups)}</div>'
    return element('section id="groups"', title + table if groups else "")


def batches_html(batches: Sequence[dict[str, Any]]) -> str:
    """What a page over several batches is made of."""
    columns = [
        Column("Batch", "name", lambda row: f"<div>{link_html(row['name'], row['href'])}</div>"),
        Column("State", "s", lambda row: to_html(row["state"])),
        Column("Started", "s", lambda row: to_html(row["started"])),
        Column("Command", "s", lambda row: element("code", to_html(row["command"]))),
    ]
    return element('div class="scroll" id="batches"', table_html(columns, batches) if batches else "")


def head_html(head: PageHead) -> str:
    running = head.state == "running"
    words = {key: show_counts({key: count}) for key, count in head.counts.items() if count}
    only = next(iter(words)) if len(words) == 1 else "interrupted"
    states = [dot_html("running" if running else only, element("b", to_html(head.state)))]
    states += itertools.starmap(dot_html, words.items())
    facts = {
        "Host": to_html(head.host),
        "Commit": to_html(head.commit),
        "Changes": link_html("uncommitted.patch", head.patch) if head.patch else "",
        "Started": to_html(head.started),
        "Updated": to_html(head.updated),
        "Duration": show_duration(head.duration, ""),
        "ETA": show_duration(head.eta, "") if running else "",
        "Command": element("code", to_html(head.command)),
    }
    told = [f"<div><dt>{title}</dt><dd>{fact}</dd></div>" for title, fact in facts.items() if fact]
    lines = [f"<h1>{to_html(head.title)}</h1>", element('p class="bar counts"', "".join(states))]
    lines += [warnings_html(head.warnings), element("dl", "".join(told)), batches_html(head.batches)]
    return "\n".join(lines)


def swept_setting(rows: Sequence[dict[str, Any]]) -> Optional[str]:
    """The setting along which a sweep can be drawn: its numbers tell the points apart, seeds aside."""
    key = next((key for key in keys_of(row["sweep"] for row in rows) if key != "seed"), "")
    points = {str({**row["sweep"], "seed": None}): row["sweep"].get(key) for row in rows}
    if not all(map(is_finite_number, points.values())):
        return None
    return key if len(set(points.values())) == len(points) else None


def sweep_chart(rows: Sequence[dict[str, Any]]) -> Optional[dict[str, Any]]:
    """A line for each config: its points, and their mean at each value, of which seeds give several."""
    told = [row for row in rows if row["sweep"] and row["best_val_loss"] is not None]
    key = swept_setting(told)
    if not key:
        return None
    lines: defaultdict[str, list[list[Any]]] = defaultdict(list)
    for row in sorted(told, key=lambda row: float(row["sweep"][key])):
        lines[row["config_path"]].append([row["sweep"][key], row["best_val_loss"], row["name"]])
    values = sorted({row["sweep"][key] for row in told})
    drawn = [{"name": path, "points": points, "mean": means(points)} for path, points in lines.items()]
    return {"key": key, "log": is_log_spaced(values), "values": values, "lines": drawn}


def means(points: Sequence[list[Any]]) -> list[list[Any]]:
    """The mean loss at each value, in order; a loss that is nan or inf has no part in it."""
    losses: defaultdict[float, list[float]] = defaultdict(list)
    for value, loss, _ in points:
        if is_finite_number(loss):
            losses[value].append(loss)
    return [[value, sum(each) / len(each)] for value, each in losses.items()]


def is_log_spaced(values: Sequence[float]) -> bool:
    """Whether ascending values are better drawn on a logarithmic axis."""
    low, middle, high = values[0], values[len(values) // 2], values[-1]
    return len(values) > 2 and 0 < low <= high / 10 and middle < (low + high) / 3


def render_page(
    head: PageHead,
    rows: Sequence[dict[str, Any]],
    curves: Sequence[dict[str, Any]],
    groups: Sequence[dict[str, Any]] = (),
) -> str:
    """report.html, whole. A loss that is nan or inf is a text already."""
    running = head.state == "running"
    wait = head.reload_seconds if running else None
    best = {row["name"]: row["best"] for row in rows}
    drawn = [{**curve, "best": best[curve["name"]]} for curve in curves if curve["val"] + curve["train"]]
    note = f"the best {MAX_CURVES} of {len(rows):,} are drawn" if len(rows) > MAX_CURVES else ""
    data = {"curves": drawn, "sweep": sweep_chart(rows), "note": note, "reload": wait}
    refresh = f'<noscript><meta http-equiv="refresh" content="{wait}"></noscript>'
    more = f'<label><input type="checkbox" id="all"> show all {len(rows):,}</label>'
    parts = {
        "TITLE": to_html(head.title),
        "REFRESH": refresh if wait else "",
        "HEAD": head_html(head),
        "EMPTY": "" if drawn else EMPTY[running],
        "GROUPS": groups_html(groups),
        "MORE": more if len(rows) > MAX_SHOWN else "",
        "ROWS": experiments_html(rows, running),
        "DATA": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return re.sub("<!--([A-Z]+)-->", lambda mark: parts[mark[1]], PAGE)


PAGE = r"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
 style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title><!--TITLE--></title><link rel="icon" href="data:,"><!--REFRESH-->
<style>
:root { color-scheme: light dark; --page: #fff; --ink: #1c1e21; --dim: #656b73; --line: #e4e6e9; --box: #f5f6f7;
  --good: #1a7f37; --bad: #cf222e; --warn: #9a5b00; --busy: #0a66c2; --first: #6d48c2; --last: #6cb947; --c0: #1a7fc2;
  --c1: #dc6413; --c2: #109c76; --c3: #c2619a; --c4: #55aee3; --c5: #d38f00; --c6: var(--dim) }
@media screen and (prefers-color-scheme: dark) { :root { --page: #131518; --ink: #e3e5e8; --dim: #959ca6;
  --line: #2b2f35; --box: #1d2024; --good: #45b363; --bad: #f0645c; --warn: #e0962f; --busy: #5fabf5 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
main { max-width: 80rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem } section { margin-top: 2.5rem }
h1, h2, b { font-weight: 600 } h1 { margin: 0; font-size: clamp(1.2rem, 5vw, 1.6rem); line-height: 1.25 }
h2 { margin: 0 auto 0 0; font-size: 1.05rem } dt { font-size: .8rem } dd { margin: 0 } label { font-size: .88rem }
a { color: var(--busy); text-decoration: none } input { margin: 0; vertical-align: -.1em } summary { cursor: pointer }
button { font: inherit; color: inherit; text-align: inherit; background: none; border: 0; padding: 0; cursor: pointer }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .86em; overflow: auto }
pre { padding: .8rem 1rem; max-height: 24rem; background: var(--box); border-radius: 6px }
code { display: block; max-height: 9rem } .dim, dt, thead, small { color: var(--dim) } .wide { flex-basis: 100% }
.bad { color: var(--bad) } .warn { color: var(--warn) } .dot { white-space: nowrap; --dot: var(--dim) }
.completed { --dot: var(--good) } .running { --dot: var(--busy) } .failed, .error, .errors { --dot: var(--bad) }
.timeout, .timeouts, .interrupted { --dot: var(--warn) }
.dot::before { content: ""; display: inline-block; width: .55em; height: .55em; margin-right: .5em; border-radius: 50%;
  background: var(--dot); vertical-align: .1em; print-color-adjust: exact }
.bar, dl, .legend, .legend > * { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; margin: 0 0 .6rem }
.counts { margin: .5rem 0 1.2rem } dl { gap: .7rem 2.2rem } #sweep { max-width: 46rem } .plot { position: relative }
.plot svg { display: block; width: 100%; height: auto; touch-action: pan-y } text { font-size: 12px; fill: var(--dim) }
#curves:not(:has(svg)) label { display: none } .grid { stroke: var(--line); shape-rendering: crispEdges }
.curve { fill: none; stroke-width: 1.6; stroke-linejoin: round } .best { stroke-width: 2.8 }
.faint { opacity: .4; stroke-width: 1.2 } svg:has(.on) g:not(.on) { opacity: .15 }
.tip { position: absolute; pointer-events: none; max-width: 16rem; padding: .3rem .6rem; font-size: .82rem;
  white-space: pre-line; background: var(--page); border: 1px solid var(--line); border-radius: 6px }
.legend { gap: 0; max-height: 8.2rem; overflow: auto; margin: .5rem 0 0 -.5rem; font-size: .85rem }
.legend > * { flex-wrap: nowrap; align-items: center; gap: .5em; padding: .15rem .5rem; margin: 0 }
.legend svg { flex: none; width: 22px; height: 8px } [aria-pressed=false] { opacity: .4; text-decoration: line-through }
.scroll { overflow: auto; margin: 0 -1.5rem; padding: 0 1.5rem .5rem } #batches { max-height: 20rem }
table { border-collapse: collapse; min-width: 100%; font-size: .86rem; line-height: 1.4; overflow-wrap: break-word;
  --gap: .8rem; --name: 20rem; --files: 8.5rem }
table:has(th:nth-child(13)) { font-size: .75rem; --gap: .45rem; --name: 8rem; --files: 6.3rem }
tbody { border-top: 1px solid var(--line) } tr > :first-child { padding-left: 0 } th { font-weight: 500 }
th, td { padding: .45rem 0 .45rem var(--gap); text-align: right; vertical-align: baseline; white-space: nowrap }
tbody th, .name, .s, .f, .note td { text-align: left } th, .s, .f { white-space: normal }
td.s { max-width: 16rem } th div { width: max-content; max-width: var(--name) } .f { min-width: var(--files) }
.f a { white-space: nowrap; font-size: .93em } .s details { min-width: 7rem } .s details[open] { width: 16rem }
td b { font-weight: 700 } td b::before { content: "★ "; color: var(--good) } thead th { font-size: .92em }
.note td { padding: 0 0 .6rem; white-space: pre-line } .note p, pre { margin: .4rem 0 }
.note td > * { position: sticky; left: 0; width: fit-content; max-width: min(75rem, 100vw - 2rem); margin: 0 }
[aria-sort^=a]::after { content: " ↑" } [aria-sort^=d]::after { content: " ↓" } small { display: block }
section:not(:has(#all:checked)) tbody:nth-of-type(n + 501) { display: none }
@media (max-width: 40rem) { main { padding: 1.4rem 1rem 3rem } h2 { flex-basis: 100% }
  .scroll { margin: 0 -1rem; padding: 0 1rem .5rem } .f { white-space: nowrap } }
@media print { main { max-width: none; padding: 0 } .scroll, .legend, code { overflow: visible; max-height: none }
  table, table:has(th) { font-size: 7pt; --gap: .5rem; --name: 9rem } label, .f, .tip { display: none }
  #curves, #sweep, tbody { break-inside: avoid } }
</style>
</head>
<body><main><header><!--HEAD--></header>
<section id="curves"><div class="bar"><h2>Validation loss</h2>
<label><input type="checkbox" id="train"> training loss</label>
<label><input type="checkbox" id="log"> log scale</label></div>
<noscript><p class="dim">The curves are drawn by JavaScript, which is off. The table is whole.</p></noscript>
<div class="plot"><p class="dim"><!--EMPTY--></p></div><div class="legend"></div></section>
<section id="sweep" hidden><div class="bar"><h2></h2></div><div class="plot"></div><div class="legend"></div></section>
<!--GROUPS-->
<section id="experiments"><div class="bar"><h2>Experiments</h2><!--MORE--></div>
<div class="scroll"><!--ROWS--></div></section></main><script type="application/json" id="data"><!--DATA--></script>
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
// An axis maps values to 0..1, with some room at both ends
function axis(values, log, room) {
  const f = log ? Math.log10 : v => v, back = log ? v => 10 ** v : v => v;
  const sorted = Float64Array.from(values, f).sort(), low = sorted[0] ?? 0, high = sorted.at(-1) ?? 1;
  const more = low < high ? room * (high - low) : Math.abs(low) / 2 || .5;
  const at = v => (f(v) - low + more) / (high - low + 2 * more);
  return { log, at, low: back(low - more), high: back(high + more) };
}
function ticks({ low, high, log }, count) {
  if (log) {  // even steps, rounded to as many digits as tell them apart
    const digits = 1 + Math.ceil(Math.log10(high / (high - low)) - .05);
    const even = Array.from({ length: count }, (_, i) => low * (high / low) ** ((i + .5) / count));
    return [...new Set(even.map(v => Number(v.toPrecision(digits))))].filter(v => v >= low && v <= high);
  }
  const least = (high - low) / count, power = 10 ** Math.floor(Math.log10(least));
  const step = power * [1, 2, 5, 10].find(m => m * power >= least * .999);
  const first = Math.ceil(low / step), length = Math.floor(high / step) - first + 1;
  return Array.from({ length }, (_, i) => Number(((first + i) * step).toPrecision(9)));
}
function short(v) {
  const rounded = Number(v.toPrecision(4));
  return v && Math.abs(v) < 1e-3 ? rounded.toExponential() : String(rounded);
}
// series: [{name, color, kind, dots, points: [[x, loss or "nan", name]]}]
function plot(host, series, xs, ys, xTitle, yTitle, xValues) {
  const width = Math.max(260, host.clientWidth), height = Math.min(430, Math.max(230, width >> 1));
  const left = 46, right = width - 16, top = 26, bottom = height - 42;
  const x = v => left + xs.at(v) * (right - left), y = v => bottom - ys.at(v) * (bottom - top);
  host.textContent = "";
  const root = add(host, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": yTitle });
  const write = (x, y, anchor, text) => add(root, "text", { x, y, "text-anchor": anchor }, text);
  const line = d => add(root, "path", { class: "grid", d });
  for (const v of ticks(ys, bottom / 42 | 0)) {
    line(`M${left} ${y(v)}H${right}`);
    write(left - 8, y(v) + 4, "end", short(v));
  }
  const apart = (v, i) => !i || x(v) - x(xValues[i - 1]) > 44;
  for (const v of xValues && xValues.every(apart) ? xValues : ticks(xs, (right - left) / 80 | 0)) {
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
  let path = "", crosses = "", broken = false, py = top;
  for (const [at, loss, name = s.name] of s.points) {
    const px = x(at), fits = isNumber(loss) && (loss > 0 || !log), isDot = s.dots || s.points.length < 2;
    if (fits) py = Math.max(-2000, y(loss));  // what diverges leaves at the top
    else py = s.dots ? top : Math.max(top, py);
    if (!fits && (s.dots || !broken)) crosses += `M${px - 4} ${py - 4}l8 8m0-8l-8 8`;
    if (fits) path += (path && !broken ? "L" : "M") + px.toFixed(1) + " " + py.toFixed(1);
    if (fits && isDot) add(group, "circle", { cx: px, cy: py, r: s.dots || 3.5, style: "fill:" + s.color });
    spots.push({ px, py: Math.max(top, py), group, name, at, loss: fits ? +loss.toPrecision(6) : loss });
    broken = !fits;
  }
  const d = s.dots ? crosses : path + crosses;
  add(group, "path", { class: "curve " + s.kind, d, style: "stroke:" + s.color });
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
function draw() {
  paint(curves);
  const gone = kept.gone || [], log = !!kept.log, train = kept.train ?? !curves.some(c => c.val.length);
  for (const input of document.querySelectorAll("#curves input")) {
    input.checked = input.id === "log" ? log : train;
    input.onchange = () => keep({ [input.id]: input.checked }, draw);
  }
  const here = curves.filter(c => !gone.includes(c.name)).sort((a, b) => a.best - b.best);
  for (const c of here) c.points = c.val;
  const faint = here.map(c => ({ ...c, kind: "faint", points: c.train, name: c.name + ", training loss" }));
  const series = train ? [...faint, ...here] : here, points = series.flatMap(s => s.points);
  const losses = points.map(p => p[1]).filter(v => isNumber(v) && (v > 0 || !log));
  // A run that diverges must not flatten the others: the axis ends not far above where the runs began
  const first = Math.max(...series.map(s => (s.points.find(p => isNumber(p[1])) || [0, 0])[1]));
  const most = first > 0 && losses.some(v => v > 2 * first) ? 1.2 * first : Infinity;
  const xs = axis(points.map(p => p[0]), false, 0), ys = axis(losses.map(v => Math.min(v, most)), log, .04);
  plot(one("#curves .plot"), series, xs, ys, "step", "loss");
  const legend = one("#curves .legend");
  legend.textContent = "";
  if (data.note) add(legend, "div", { class: "wide dim" }, data.note);
  for (const c of curves) {
    const off = gone.includes(c.name), button = addEntry(legend, "button", c);
    button.setAttribute("aria-pressed", !off);
    button.onclick = () => keep({ gone: off ? gone.filter(n => n !== c.name) : [...gone, c.name] }, draw);
    button.onpointerenter = () => off || light(c.group);
    button.onpointerleave = () => light();
  }
}
function drawSweep() {
  paint(sweep.lines);
  const points = sweep.lines.flatMap(line => line.points);
  const finite = points.filter(p => isNumber(p[1])).sort((a, b) => a[1] - b[1]);
  const means = sweep.lines.map(line => ({ ...line, kind: "faint", points: line.mean }));
  const dots = sweep.lines.map(line => ({ ...line, dots: points.length > 40 ? 2.5 : 4 }));
  const best = { color: "var(--good)", kind: "", dots: 6, points: finite.slice(0, 1) };
  const xs = axis(sweep.values, sweep.log, .05), ys = axis(finite.map(p => p[1]), false, .08);
  const legend = one("#sweep .legend");
  one("#sweep").hidden = false;
  one("#sweep h2").textContent = "Best validation loss by " + sweep.key;
  plot(one("#sweep .plot"), [...means, ...dots, best], xs, ys, sweep.key, "best val loss", sweep.values);
  legend.textContent = "";
  if (sweep.lines.length > 1) for (const line of sweep.lines) addEntry(legend, "span", line);
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
  if (curves.length) draw();
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
# The batch that runs: one loop decides, a recorder writes down, git is asked in the background. It must not know of
# argparse.

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
PAGE_BYTES = 64 << 20  # of each log, read for the page at a time while the batch runs
PATCH_BYTES = 10 << 20
GIT_PATIENCE = 60.0  # seconds for one call of git
SLOW_GIT = 30.0  # seconds that the end waits for its last answer
MAX_WATCHED = 20_000  # files


# ---- the page of a batch, from its results and logs


@dataclass
class PageSource:
    """One batch of those that a page shows."""

    folder: str
    summary: dict[str, Any]
    results: Sequence[Result]


def write_report(
    place: str,
    sources: Sequence[PageSource],
    curves: dict[str, Curve],
    limit: float = math.inf,
    is_holder: bool = False,
) -> str:
    """Write report.html into a directory, with what the logs hold by now; returns its path. Raises OSError.

    At most `limit` bytes of each log are read."""
    results = joined_results(sources)
    patterns = {each.experiment_dir: metrics_of(source.summary) for source in sources for each in source.results}
    drawn = sorted(results, key=draw_rank)[:MAX_CURVES]
    told = {
        each.experiment_dir: read_curves(each.experiment_dir, curves, patterns[each.experiment_dir], limit)
        for each in drawn
        if each.attempts
    }
    rows = rows_of(results)
    swept = {key for source in sources for joined in source.summary.get("sweep") or () for key in joined.split(",")}
    for row, each in zip(rows, results):
        row["files"] = page_files(each, place)
        row["sweep"] = {key: value for key, value in each.overrides.items() if key in swept}
    lines = [{"name": each.config_name, **told[each.experiment_dir]} for each in results if each.experiment_dir in told]
    groups = [vars(group) for group in seed_groups(results)]
    text = render_page(page_head(place, sources), rows, lines, groups)
    path = os.path.join(place, REPORT)
    write_file(path, text.encode(errors="backslashreplace"), sync=False, is_holder=is_holder)
    return path


def read_curves(
    folder: str, curves: dict[str, Curve], patterns: Sequence[re.Pattern[bytes]], limit: float
) -> dict[str, list[list[Any]]]:
    """The losses in an experiment's logs, of each kind those of the stream that tells more: bars come on stderr."""
    drawn = []
    for stream in ("stdout", "stderr"):
        path = os.path.join(folder, LOGS[stream])
        curve = curves.setdefault(path, Curve(patterns=patterns))
        curve.update(path, limit)
        drawn.append(curve.drawn())
    return {kind: max((each[kind] for each in drawn), key=len) for kind in ("val", "train")}


def joined_results(sources: Sequence[PageSource]) -> list[Result]:
    """The results of one batch, or of several as one, then with the settings in which these differ."""
    if len(sources) == 1:
        return list(sources[0].results)
    times = Counter(each.config_name for source in sources for each in source.results)
    joined = []
    for source, label in zip(sources, batch_labels([source.folder for source in sources])):
        common = source.summary.get("common_settings")
        below = common if isinstance(common, dict) else {}
        for each in source.results:
            name = each.config_name
            if times[name] > 1:
                name = f"{label}/{name}"
            joined.append(replace(each, config_name=name, settings={**below, **each.settings}))
    drop_common(joined)
    return joined


def batch_labels(folders: Sequence[str]) -> list[str]:
    """The names of batches, with their place where two have begun in the same second in two directories."""
    paths = list(map(os.path.abspath, folders))
    names = list(map(os.path.basename, paths))
    if len(set(names)) == len(names):
        return names
    return [os.path.relpath(path, os.path.commonpath(paths)) for path in paths]


def drop_common(results: Sequence[Result]) -> None:
    """Leave the settings in which results differ."""
    keys = dict.fromkeys(key for each in results for key in each.settings)
    values = {key: {repr(each.settings.get(key)) for each in results} for key in keys}
    for each in results:
        each.settings = {key: value for key, value in each.settings.items() if len(values[key]) > 1}


def shard_notes(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """What is wrong with shards that are looked at together: some are missing, or are of another plan."""
    shards = [each["shard"] for each in summaries if isinstance(each.get("shard"), dict)]
    if not shards:
        return []
    notes = []
    if len({(shard.get("plan_digest"), shard.get("count")) for shard in shards}) > 1:
        notes.append("the shards are of differing plans")
    there = {shard.get("index") for shard in shards}
    count = shards[0].get("count")
    missing = [str(number) for number in range(1, count + 1) if number not in there] if isinstance(count, int) else []
    if missing:
        notes.append(f"of {count} shards these are missing: {', '.join(missing)}")
    return notes


def draw_rank(result: Result) -> tuple[bool, float]:
    """Of many experiments the running ones are drawn, then the best."""
    loss = result.metrics.best_val_loss
    return result.status is not Status.RUNNING, math.inf if loss is None else loss


def page_files(result: Result, place: str) -> list[tuple[str, str]]:
    """The links of an experiment: a label and a relative address for each file that is there by now."""
    if not result.attempts:
        return []
    files = {**LOGS, "config": f"config_used{os.path.splitext(result.config_path)[1]}", "metadata": METADATA}
    if result.status is not Status.RUNNING:
        files["result"] = RESULT
    folder = os.path.relpath(result.experiment_dir, place)
    return [(label, f"./{folder}/{file}") for label, file in files.items()]


def page_head(place: str, sources: Sequence[PageSource]) -> PageHead:
    first = sources[0]
    results = [each for source in sources for each in source.results]
    notes = shard_notes([source.summary for source in sources]) if len(sources) > 1 else []
    head = PageHead(os.path.basename(os.path.abspath(place)), joint_state(sources), count_statuses(results))
    if len(sources) > 1:
        head.batches = [batch_facts(source, place) for source in sources]
        head.warnings = notes
        return head
    summary = first.summary
    git, command = summary.get("git"), summary.get("command")
    if isinstance(git, dict) and git.get("commit"):
        head.commit = str(git["commit"])[:12] + (" with changes" if git.get("dirty") else "")
    if os.path.exists(os.path.join(first.folder, PATCH)):
        head.patch = PATCH
    if isinstance(command, list):
        head.command = shell_line(list(map(str, command)))
    head.host = clean(str(summary.get("hostname") or "")) or None
    head.started = str(summary.get("start_time"))[:19].replace("T", " ")
    head.duration = summary_duration(summary)
    head.eta = batch_left(first.results, slot_count(summary))
    if head.state == "running":
        head.updated = time.strftime("%Y-%m-%d %H:%M:%S")
        head.reload_seconds = RELOAD
    return head


def joint_state(sources: Sequence[PageSource]) -> str:
    states = {str(source.summary.get("state")) for source in sources}
    return states.pop() if len(states) == 1 else next(each for each in ("running", "interrupted") if each in states)


def batch_facts(source: PageSource, place: str) -> dict[str, Any]:
    command = source.summary.get("command")
    return {
        "name": os.path.basename(os.path.abspath(source.folder)),
        "href": f"./{os.path.relpath(source.folder, place)}/{REPORT}",
        "state": str(source.summary.get("state")),
        "started": str(source.summary.get("start_time"))[:19].replace("T", " "),
        "command": shell_line(list(map(str, command))) if isinstance(command, list) else "",
    }


def summary_duration(summary: dict[str, Any]) -> Optional[float]:
    """Seconds that a batch took, or has taken so far."""
    return elapsed(from_json(Result, {**summary, "status": summary.get("state")}))


def slot_count(summary: dict[str, Any]) -> int:
    options = summary.get("options")
    if isinstance(summary.get("slots"), int):
        return int(summary["slots"])
    if not isinstance(options, dict):
        return 1
    devices, jobs = options.get("devices"), options.get("jobs")
    if isinstance(devices, list):
        return max(1, len(devices))
    return jobs if isinstance(jobs, int) else 1


# ---- writing down


class Scribe(threading.Thread):
    """Writes the batch's files, in the order in which it was asked to: a slow disk costs the loop nothing."""

    def __init__(self) -> None:
        super().__init__(name="scribe", daemon=True)
        self.changed = threading.Condition()
        self.jobs: dict[object, Callable[[], None]] = {}  # in order; of one key the latest counts
        self.is_writing = False
        self.progress = time.monotonic()

    def put(self, job: Callable[[], None], key: object = None) -> None:
        """Have something written; it takes the place of a job of the same key that still waits."""
        with self.changed:
            self.jobs[object() if key is None else key] = job
            self.changed.notify_all()

    def forget(self, key: object) -> None:
        with self.changed:
            self.jobs.pop(key, None)

    def run(self) -> None:
        while True:
            with self.changed:
                self.is_writing = False
                self.changed.notify_all()
                while not self.jobs:
                    self.changed.wait()
                job = self.jobs.pop(next(iter(self.jobs)))
                self.is_writing = True
            job()
            self.progress = time.monotonic()

    def flush(self) -> bool:
        """Wait until all is written; False where the disk has not moved for too long."""
        with self.changed:
            self.progress = time.monotonic()
            while self.jobs or self.is_writing:
                if time.monotonic() > self.progress + SLOW_DISK:
                    return False
                self.changed.wait(0.5)
        return True


class Recorder:
    """Master log, summary, results and page of a batch. Its methods are the loop's; the scribe does what they start."""

    def __init__(self, folder: str, names: Sequence[str], head: dict[str, Any], console: Console) -> None:
        """Raises OSError where the master log can't be opened."""
        self.folder, self.names, self.head, self.console = folder, names, head, console
        self.scribe = Scribe()
        self.began = time.monotonic()
        self.master_log = os.open(os.path.join(folder, MASTER_LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self.rows: dict[str, Any] = {}  # name -> its result as JSON has it
        self.copies: dict[str, Result] = {}  # and as the page takes it
        self.changed_names: set[str] = set(names)
        self.curves: dict[str, Curve] = {}  # the scribe's
        self.failed: dict[str, Callable[[], None]] = {}  # files that could not be written -> how to
        self.on_write_error: Callable[[str, Exception], None] = lambda path, error: None  # called by the scribe
        self.costs: defaultdict[object, float] = defaultdict(float)  # key -> seconds that its file took the last time
        self.summary_due = self.page_due = math.inf
        self.summary_earliest = self.page_earliest = self.progress_earliest = 0.0

    def say(self, text: str, even_if_quiet: bool = False) -> None:
        """One line for the master log and the console."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {clean(text)}"
        self.log(line)
        self.console.line(line, even_if_quiet)

    def log(self, line: str) -> None:
        data = (line + "\n").encode(errors="backslashreplace")

        def write() -> None:
            with contextlib.suppress(OSError):  # a full disk is told elsewhere
                os.write(self.master_log, data)

        self.scribe.put(write)

    def save(self, path: str, write: Callable[[], object], key: object = None) -> None:
        """Have a file written; a failure is told, and tried once more at the end."""

        def job() -> None:
            began = time.monotonic()
            try:
                write()
                self.failed.pop(path, None)
            except Exception as error:  # whatever it is, the scribe must go on
                self.failed[path] = job
                self.on_write_error(path, error)
            self.costs[key] = time.monotonic() - began

        self.scribe.put(job, key)

    def save_json(self, path: str, value: dict[str, Any]) -> None:
        self.save(path, lambda: write_json(path, value), path)

    def save_now(self, path: str, value: dict[str, Any]) -> None:
        """Write a file at once, but don't wait until it is on the disk; what waits for its place is out of date."""
        self.scribe.forget(path)
        write_file(path, json_bytes(value), sync=False, is_holder=False)

    def changed(self, result: Result, is_progress: bool = False) -> None:
        """Have summary and page written anew, but so that the writing takes a small part of the time."""
        self.changed_names.add(result.config_name)
        earliest = self.progress_earliest if is_progress else 0.0
        self.summary_due = min(self.summary_due, max(self.summary_earliest, earliest))
        self.page_due = min(self.page_due, self.page_earliest)

    def renew(self) -> None:
        """Have the summary written anew, as its head has changed."""
        self.summary_due = min(self.summary_due, self.summary_earliest)

    def next_due(self) -> float:
        return min(self.summary_due, self.page_due)

    def refresh(self, results: Mapping[str, Result], now: float) -> None:
        if now >= self.summary_due:
            self.write_summary(results)
        if now >= self.page_due:
            self.write_page(results, PAGE_BYTES)

    def summary(self, results: Mapping[str, Result]) -> dict[str, Any]:
        """The summary as it stands now; what it holds isn't changed later."""
        for name in self.changed_names:
            self.rows[name] = to_json(results[name])
            self.copies[name] = replace(results[name], metrics=replace(results[name].metrics))
        self.changed_names.clear()
        self.head.update(count_statuses(results.values()))
        self.head["duration_seconds"] = round(time.monotonic() - self.began, 3)
        return {**self.head, "results": {name: self.rows[name] for name in self.names}}

    def write_summary(self, results: Mapping[str, Result], sync: bool = False) -> None:
        value = self.summary(results)
        path = os.path.join(self.folder, SUMMARY)
        self.save(path, lambda: write_json(path, value, sync), SUMMARY)
        self.summary_due = math.inf
        now = time.monotonic()
        self.summary_earliest = now + max(0.05, 20 * self.costs[SUMMARY])
        self.progress_earliest = now + PROGRESS

    def write_page(self, results: Mapping[str, Result], limit: float) -> None:
        summary = self.summary(results)
        source = PageSource(self.folder, summary, [self.copies[name] for name in self.names])
        path = os.path.join(self.folder, REPORT)
        self.save(path, lambda: write_report(self.folder, [source], self.curves, limit, is_holder=True), REPORT)
        self.page_due = math.inf
        self.page_earliest = time.monotonic() + max(2.0, 50 * self.costs[REPORT])

    def finish(self, results: Mapping[str, Result]) -> bool:
        """Write down how the batch ended; returns whether all of it is on the disk."""
        self.scribe.flush()
        for job in list(self.failed.values()):
            self.scribe.put(job)  # there may be room again
        self.write_summary(results, sync=True)
        self.write_page(results, math.inf)
        return self.scribe.flush() and not set(self.failed) - {os.path.join(self.folder, REPORT)}


# ---- the code that runs


@dataclass
class CodeState:
    """What git tells of the code: for the summary and the metadata, and how it differs from its commit."""

    git: Optional[dict[str, Any]]
    patch: bytes = b""
    note: str = ""


def run_git(*words: str) -> bytes:
    """What a git command prints; raises OSError where it can't say."""
    command = ["git", "--no-optional-locks", *words]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=GIT_PATIENCE)
    except subprocess.TimeoutExpired:
        raise OSError(errno.ETIMEDOUT, "git does not answer") from None
    is_difference = "--no-index" in words and done.returncode == 1
    if done.returncode and not is_difference:
        raise OSError(errno.EINVAL, "no git repository")
    return done.stdout


def read_code_state() -> CodeState:
    """The commit that is checked out here, its branch, and what differs from it: tracked files, and new *.py."""
    try:
        lines = run_git("status", "--porcelain=v2", "--branch", "--untracked-files=no").decode(errors="replace")
        heads = dict(line[2:].split(" ", 1) for line in lines.splitlines() if line.startswith("# "))
        is_dirty = any(not line.startswith("# ") for line in lines.splitlines())
        commit = heads.get("branch.oid", "(initial)")
        is_initial = commit == "(initial)"
        git = {"commit": None if is_initial else commit, "branch": heads.get("branch.head"), "dirty": is_dirty}
        patch = b"" if is_initial else run_git("diff", "HEAD", "--binary")
        for name in run_git("ls-files", "--others", "--exclude-standard", "-z", "--", "*.py").split(b"\0")[:-1]:
            if len(patch) <= PATCH_BYTES:
                patch += run_git("diff", "--binary", "--no-index", "--", os.devnull, os.fsdecode(name))
    except (OSError, ValueError):
        return CodeState(None)
    if len(patch) > PATCH_BYTES:
        return CodeState(git, b"", f"the code differs from its commit by {len(patch) >> 20} MB, which aren't kept")
    return CodeState(git, patch)


@dataclass
class CodeFiles:
    """The *.py below a directory, as they were at one moment."""

    files: dict[str, tuple[int, int]]  # path -> size and time, which tell a change
    folders: dict[str, tuple[int, int]]  # the same of directories, which tell of new files
    digests: dict[str, Optional[str]]


def find_code(script: str) -> CodeFiles:
    """The *.py of the repository that holds the working directory, or else those beside the script."""
    root = os.getcwd()
    while not os.path.exists(os.path.join(root, ".git")) and os.path.dirname(root) != root:
        root = os.path.dirname(root)
    is_repository = os.path.exists(os.path.join(root, ".git"))
    start = root if is_repository else os.path.dirname(os.path.abspath(script))
    files: list[str] = []
    seen: list[str] = []
    for folder, inner, names in os.walk(start):
        inner[:] = [name for name in inner if is_repository and is_source_folder(os.path.join(folder, name))]
        seen.append(folder)
        files += [os.path.join(folder, name) for name in names if name.endswith(".py")]
        if len(files) + len(seen) > MAX_WATCHED:
            break
    return CodeFiles(stamps_of(files), stamps_of(seen), {path: file_sha256(path) for path in files})


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


class CodeWatch:
    """Knows the code as it was when the batch began, and tells what has changed since. git may be slow: it is asked
    in threads of its own, and only where something has changed."""

    def __init__(self, script: str, frozen: Iterable[str], tell: Callable[[int, CodeState], None]) -> None:
        self.script, self.tell = script, tell  # tell is called in a thread, with the number of the question
        self.frozen = set(map(os.path.abspath, frozen))  # configs that run from their copies: no code of this batch
        self.first: Optional[CodeFiles] = None  # once it has been looked at
        self.latest: Optional[CodeFiles] = None
        self.known: set[str] = set()  # the files that git tracks or would track
        self.asked = 0

    def ask(self) -> None:
        """Have git asked in the background."""
        question = self.asked + 1
        try:
            threading.Thread(target=self.run, args=(question,), name="git", daemon=True).start()
            self.asked = question
        except RuntimeError:  # no thread can be had: then it isn't known
            pass

    def run(self, question: int) -> None:
        if self.first is None:
            self.first = self.latest = find_code(self.script)
        state = read_code_state()
        with contextlib.suppress(OSError):
            listed = run_git("ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", ":/*.py")
            names = map(os.fsdecode, listed.split(b"\0"))
            self.known = {os.path.abspath(name) for name in names if name}
        self.tell(question, state)

    def look(self) -> bool:
        """Whether anything has changed since the last look. No process is started, and nothing read that stands."""
        if self.latest is None:
            return False
        latest = self.latest
        if stamps_of(latest.files) == latest.files and stamps_of(latest.folders) == latest.folders:
            return False
        self.latest = find_code(self.script)
        return self.latest.digests != latest.digests

    def changed(self, code: Optional[CodeFiles]) -> list[str]:
        """The files that were not as when the batch began; which ones count is known once git has answered."""
        if self.first is None or code is None:
            return []
        before, now = self.first.digests, code.digests
        paths = [path for path in {**before, **now} if before.get(path) != now.get(path) and path not in self.frozen]
        return sorted(os.path.relpath(path) for path in paths if not self.known or path in self.known)


# ---- the loop


@dataclass
class Attempt:
    """A training that runs, and what the batch knows of it."""

    planned: Experiment
    result: Result
    slot: Slot
    folder: str
    process: Process
    tees: list[Tee]
    readers: dict[str, LineReader]  # by stream
    take_up: TakeUp
    kept: dict[str, bytes]  # the runner's own files, which are put back where the training removes them
    stderr_start: int  # the bytes before it are of earlier attempts
    stopped_as: Optional[Status] = None  # where the batch has ended it
    is_config_checked: bool = False


@dataclass
class Launched:
    """An attempt of which git has not told yet which code it runs."""

    result: Result
    path: str  # of its metadata
    metadata: dict[str, Any]
    code: Optional[CodeFiles]  # as they were at its launch
    question: int  # the number of the one that git is to answer


class Shortage(Exception):
    """There is no room just now; its text says for what."""


def as_shortage(error: Exception) -> Exception:
    """A passing shortage, or the error itself."""
    if isinstance(error, RuntimeError):
        return Shortage("no thread can be had")
    if isinstance(error, OSError) and error.errno in SHORTAGES:
        return Shortage(f"{error.strerror}")
    return error


class Undo:
    """Puts a directory back as it was before a launch that failed for lack of room."""

    def __init__(self, folder: str, paths: Sequence[str]) -> None:
        self.before = {path: read_or_none(path) for path in paths}
        self.new_logs = [path for path in log_paths(folder) if not os.path.exists(path)]
        self.logs: dict[str, Log] = {}

    def run(self, is_shortage: bool) -> None:
        for log in self.logs.values():
            log.close()
        if not is_shortage:
            return  # what was tried, and failed for good, is to be seen
        for path, data in self.before.items():
            with contextlib.suppress(OSError):
                if data is None:
                    os.unlink(path)
                else:
                    write_file(path, data, sync=False)
        for path in self.new_logs:
            with contextlib.suppress(OSError):
                os.unlink(path)


def read_or_none(path: str) -> Optional[bytes]:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read()
    return None


def log_paths(folder: str) -> list[str]:
    return [os.path.join(folder, file) for file in LOGS.values()]


def slots_of(options: Options, gpus: Sequence[str] = ()) -> list[Slot]:
    """`gpus` are those of this machine that may be used, for --gpus."""
    if options.gpus:
        groups = [gpus[start : start + options.gpus] for start in range(0, len(gpus) - options.gpus + 1, options.gpus)]
        return [Slot(number, gpus=",".join(group)) for number, group in enumerate(groups)]
    devices: Sequence[Optional[str]] = options.devices or [None] * options.jobs
    return [Slot(number, device) for number, device in enumerate(devices)]


def next_result(before: Result, slot: Slot) -> Result:
    """The result of the attempt that comes next, as far as it is known before it begins."""
    kept = ("config_name", "config_path", "experiment_dir", "overrides", "settings", "max_iters", "log_files")
    result = Result(**{key: getattr(before, key) for key in kept})
    result.attempts, result.total_seconds = before.attempts, total_elapsed(before)
    result.device = slot.device or (f"gpu {slot.gpus}" if slot.gpus else None)
    result.attempt_history = list(before.attempt_history)
    return result


def mark_attempt(log: Log, text: str) -> None:
    """A line of the runner's own in combined.log, so that attempts can be told apart."""
    start = b"" if read_tail(log.path, 1) in (b"", b"\n") else b"\n"
    log.write([start, stamp("RUNNER"), text.encode(), b"\n"])


def program() -> list[str]:
    """How this program was called, as far as a user would type it again."""
    if not sys.argv[0].endswith(".py"):
        return [sys.argv[0]]
    short = os.path.basename(sys.executable)
    found = shutil.which(short)
    # By its place, not by where its link leads: an environment's Python is a link to the one that made it.
    is_same = found is not None and os.path.abspath(found) == os.path.abspath(sys.executable)
    return [short if is_same else sys.executable, sys.argv[0]]


class Batch:
    """The one loop: it owns all state, takes events from one queue, and decides."""

    def __init__(
        self,
        options: Options,
        planner: Planner,
        plan: Sequence[Experiment],
        results: dict[str, Result],
        recorder: Recorder,
        frozen: PlanFile,
        to_run: Iterable[str],
        slots: Sequence[Slot],
    ) -> None:
        self.options, self.planner, self.results, self.recorder = options, planner, results, recorder
        self.folder, self.console = recorder.folder, recorder.console
        self.plan = {each.name: each for each in plan}
        self.frozen = {each.name: each for each in frozen.experiments}
        self.events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.waiting = deque(self.plan[name] for name in to_run)
        self.free = list(slots)
        self.slots = len(slots)
        self.running: dict[int, Attempt] = {}  # by the number of their launch
        self.launches = 0
        self.preparing = 0  # attempts that wait for the scribe, or for the copy of their only checkpoint
        self.launched: set[str] = set()  # experiments that have had an attempt in this run
        self.retries: Counter[str] = Counter()
        self.failed: set[str] = set()  # in this run
        self.set_aside: dict[str, str] = {}  # experiment -> its newest checkpoint, which could not be read
        self.stopped_by: Optional[int] = None
        self.signalled = (0, -math.inf)  # the latest signal, and when it came
        self.ignored: list[int] = []  # signals that the runner was started to ignore
        self.obstacle = ""  # why nothing more is launched
        self.short_since: Optional[float] = None  # since when there is no room for a launch
        self.retry_at, self.pause = 0.0, 1.0  # when it is tried again, and the seconds until the time after that
        self.largest_checkpoint = 0  # bytes
        self.draw_due = 0.0 if self.console.live else math.inf
        self.code, self.answers = CodeState(None), 0
        copied = [each.config for each in plan if each.launched_config != each.config]
        self.watch = CodeWatch(options.train_script, copied, self.post_code)
        self.without_code: list[Launched] = []  # those that wait for git's answer
        self.script_lines = lines_like_metrics(read_or_none(options.train_script) or b"")
        self.patterns = compile_metrics(options.metrics)
        self.threads = 0  # what a training may use of the cores; 0: not said
        self.guardian: Optional[Guardian] = None
        recorder.on_write_error = lambda path, error: self.events.put(lambda: self.on_write_error(path, error))

    def run(self) -> int:
        """Run what is waiting; returns the exit code."""
        self.start_helpers()
        self.say(f"batch {self.folder}: {len(self.waiting)} of {count_of(len(self.plan), 'experiment')} to run")
        self.share_cores()
        try:
            while self.running or self.may_launch() or (self.preparing and self.stopped_by is None):
                if self.fill_slot():
                    self.take_events(0.0)  # a stop is not kept waiting by many launches
                else:
                    self.wait()
                self.step_all()
                self.refresh_views()
            return self.end()
        finally:  # whatever this program's own mistake is, no training outlives it
            if self.guardian and not self.running:
                self.guardian.say_goodbye()  # else it ends them, once this process is gone
            elif not self.guardian:
                for attempt in self.running.values():
                    attempt.process.group.kill()

    def share_cores(self) -> None:
        """Trainings that run side by side and each take all cores are slower than one after another."""
        if self.slots < 2 or self.options.launcher or "OMP_NUM_THREADS" in os.environ:
            return
        has_affinity = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        self.threads = max(1, cores // self.slots)
        self.say(f"each training gets OMP_NUM_THREADS={self.threads}: {count_of(cores, 'core')}, {self.slots} slots")

    # ---- signals and other events

    def start_helpers(self) -> None:
        """Fork the guardian, then start the threads; raises UsageError where these can't be had."""
        try:
            self.guardian = Guardian(self.stop_rules(""))
        except OSError as error:
            self.say(f"no guardian: {error.strerror}; if the runner is killed, its trainings live on")
        try:
            self.catch_signals()
            self.recorder.scribe.start()
            self.console.start()
        except (OSError, RuntimeError) as error:
            raise UsageError(f"no room for the runner's own pipe and threads: {error}") from None
        self.watch.ask()

    def stop_rules(self, folder: str) -> StopRules:
        launcher = tuple(shlex.split(self.options.launcher or self.options.command))
        if self.options.command and os.path.basename(launcher[0]).startswith("python"):
            launcher = ()
        place = os.path.abspath(folder) if folder else ""
        options = self.options
        return StopRules(
            options.stop_signal, options.grace, launcher, place, options.checkpoints, options.timeout, options.stall
        )

    def catch_signals(self) -> None:
        """Have signals come as events, through a pipe that Python's own C handler writes and a thread reads.

        A handler in Python runs only once the main thread does, and a signal that the kernel gave to another thread
        doesn't wake it."""
        source, sink = os.pipe()
        os.set_blocking(sink, False)
        signal.set_wakeup_fd(sink, warn_on_full_buffer=False)

        def pass_on() -> None:
            while True:
                for number in os.read(source, 1):
                    self.events.put(functools.partial(self.on_signal, number))

        threading.Thread(target=pass_on, name="signals", daemon=True).start()
        suspend = [signal.SIGTSTP] if self.console.live else []
        for number in (*STOP_SIGNALS, *suspend):
            if signal.getsignal(number) == signal.SIG_IGN:
                self.ignored.append(number)
                if number == signal.SIGHUP:
                    continue  # nohup's wish is kept, for the trainings too
            # Else a training would inherit that the signal is ignored, and not hear the runner's.
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def on_signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self.on_child()
        elif number == signal.SIGTSTP:
            self.on_suspend()
        elif number not in self.ignored:
            self.on_stop_signal(number)

    def on_child(self) -> None:
        """A child has ended: a training's leader, which its Process sees, the guardian, or an orphan of pid 1's."""
        if self.guardian and self.guardian.has_died():
            self.say("the guardian was killed: if the runner is killed too, its trainings live on")
            self.guardian = None
        if os.getpid() != 1:
            return
        own = {attempt.process.group.leader for attempt in self.running.values()}
        for each in processes():
            if each.parent == 1 and each.state == "Z" and each.pid not in own:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(each.pid, os.WNOHANG)

    def on_stop_signal(self, number: int) -> None:
        now, before = time.monotonic(), self.signalled
        self.signalled = (number, now)
        if before[0] == number and now < before[1] + ECHO:
            return
        if self.stopped_by is not None:
            for attempt in self.running.values():
                attempt.process.hurry(now)
            return
        self.stopped_by = number
        name = signal_name(number)
        for attempt in self.running.values():  # the signals leave before anything is said
            self.stop_attempt(attempt, Status.INTERRUPTED, f"stopped by {name}")
        self.say(f"{name}: {self.what_follows()}")

    def what_follows(self) -> str:
        """What a stop has done, and what happens next."""
        endings = [attempt.process.ending for attempt in self.running.values()]
        asked = Counter(signal_name(each.sent[0])[3:] for each in endings if each and each.sent)
        told = [f"{name} sent to {count_of(number, 'training')}" for name, number in asked.items()]
        held_back = sum(1 for each in endings if each and not each.sent)
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

    def on_suspend(self) -> None:
        """Ctrl+Z stops the runner alone, the training goes on; the terminal is left clean."""
        self.console.draw([])
        self.console.settle(1.0)
        os.kill(os.getpid(), signal.SIGSTOP)
        self.draw_due = time.monotonic()

    def on_write_error(self, path: str, error: Exception) -> None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return  # it is tried again at the end, and there are descriptors then
        why = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        self.say(f"error: can't write {path}: {why}", even_if_quiet=True)
        if isinstance(error, OSError) and error.errno == errno.EROFS:
            self.stop_launching(f"can't write {path}: {why}")

    def post_code(self, question: int, state: CodeState) -> None:
        self.events.put(lambda: self.on_code(question, state))

    def on_code(self, question: int, state: CodeState) -> None:
        """git has answered: keep what it says with the batch, or with the attempts that have waited for it."""
        self.answers += 1
        if question == self.watch.asked:
            self.code = state
        waiting = [each for each in self.without_code if each.question == question]
        self.without_code = [each for each in self.without_code if each.question != question]
        folders = [os.path.dirname(each.path) for each in waiting]
        if question == 1:
            folders = [self.folder]
            self.recorder.head["git"] = state.git
            self.recorder.renew()
        for each in waiting:
            each.metadata["git"] = state.git
            self.recorder.save_json(each.path, each.metadata)
            self.compare_code(each)
        if state.note:
            self.say(state.note)
        for folder in folders if state.patch else ():
            path = os.path.join(folder, PATCH)
            self.recorder.save(path, functools.partial(write_file, path, state.patch), path)

    def compare_code(self, launched: Launched) -> None:
        """Warn where an attempt ran other code than the batch began with; it may have ended meanwhile."""
        result, changed = launched.result, []
        with contextlib.suppress(OSError):  # the working directory has gone
            changed = self.watch.changed(launched.code)
        if not changed:
            return
        self.warn(result, f"code has changed since the batch began: {', '.join(changed[:5])}")
        self.recorder.changed(result)
        if result.status is not Status.RUNNING:
            self.recorder.save_json(os.path.join(os.path.dirname(launched.path), RESULT), to_json(result))

    def say(self, text: str, even_if_quiet: bool = False) -> None:
        self.recorder.say(text, even_if_quiet)

    def warn(self, result: Result, text: str) -> None:
        result.warnings.append(text)
        self.say(f"{result.config_name}: warning: {text}")

    # ---- the steps of the loop

    def wait(self) -> None:
        """Sleep until an event or the next deadline; then take the events that are there."""
        if not self.running and not self.preparing and not self.is_short():
            return
        processes_now = [attempt.process for attempt in self.running.values()]
        due = min([self.recorder.next_due(), self.draw_due, *(each.next_look() for each in processes_now)])
        if self.is_short():
            due = min(due, self.retry_at)
        now = time.monotonic()
        counts_time = any(each.deadline < math.inf for each in processes_now)
        if counts_time:
            due = min(due, now + TICK)
        self.take_events(None if due == math.inf else max(0.0, due - now))
        if counts_time:
            self.note_suspension(max(due, now))

    def take_events(self, timeout: Optional[float]) -> None:
        """Wait so long (None: as long as it takes) for an event, and take all that have come."""
        with contextlib.suppress(queue.Empty):
            event = self.events.get(timeout=timeout) if timeout != 0.0 else self.events.get_nowait()
            while True:
                event()
                event = self.events.get_nowait()

    def note_suspension(self, expected: float) -> None:
        """The loop should have been awake by `expected`; where it was much later, all stood still (Ctrl+Z, a closed
        lid), and no deadline may count that time. The same for a training that was stopped by itself."""
        now = time.monotonic()
        late = now - expected
        for attempt in self.running.values():
            process = attempt.process
            if late > TICK / 2:
                process.suspend(late, now)
            elif process.phase is Phase.RUNNING and now >= process.deadline - TICK and process.group.is_suspended():
                process.suspend(TICK, now)

    def step_all(self) -> None:
        for number, attempt in list(self.running.items()):
            process = attempt.process
            process.step(time.monotonic())
            if any(tee.announced for tee in attempt.tees):
                self.take_news(attempt)
            for text in process.remarks:
                self.say(f"{attempt.planned.name}: {text}")
            process.remarks.clear()
            if process.phase is Phase.OVER:
                del self.running[number]
                self.finish(attempt)

    def take_news(self, attempt: Attempt) -> None:
        """What the streams have said since the last time."""
        for tee in attempt.tees:
            tee.announced = False  # before they are taken: what comes after that is announced again
            news = attempt.readers[tee.stream].take()
            if tee.stream == "stderr":
                attempt.process.set_queued(news.queued, time.monotonic())
            self.take_stream(attempt, news)
        self.recorder.changed(attempt.result, is_progress=True)

    def take_stream(self, attempt: Attempt, news: News) -> None:
        result = attempt.result
        add_metrics(result.metrics, news.metrics)
        for line in news.evaluations:
            self.say(f"{result.config_name}: {line.decode(errors='replace')}")
        if self.options.stop_on_nan and (news.not_finite_in_a_row >= 3 or news.evaluation_not_finite):
            self.stop_attempt(attempt, Status.FAILED, "the loss is not finite (--stop_on_nan)")
            result.diverged = attempt.stopped_as is Status.FAILED
        if result.metrics.first_step is not None and not attempt.is_config_checked:
            attempt.is_config_checked = True
            self.check_config(attempt)

    def check_config(self, attempt: Attempt) -> None:
        """A trainer that reads the original config, not the frozen copy, may have read an edited one."""
        planned = attempt.planned
        reads_original = planned.config and planned.launched_config in ("", planned.config)
        if reads_original and file_sha256(planned.config) != self.frozen[planned.name].config_sha256:
            self.warn(attempt.result, f"{planned.config} was edited since the batch began, and may have been read so")

    def refresh_views(self) -> None:
        now = time.monotonic()
        self.recorder.refresh(self.results, now)
        if now >= self.draw_due:
            for attempt in self.running.values():
                self.note_last_line(attempt)
            running = [attempt.result for attempt in self.running.values()]
            self.console.draw(live_lines(running, list(self.results.values()), self.slots, terminal_size()))
            self.draw_due = now + DRAW

    def note_last_line(self, attempt: Attempt) -> None:
        """Of a trainer that prints no step the last line is what there is to show."""
        if attempt.result.metrics.step is None:
            lines = [reader.last_line() for reader in attempt.readers.values()]
            attempt.result.last_line = next(filter(None, lines), "")

    # ---- launching

    def may_launch(self) -> bool:
        return bool(self.waiting) and self.stopped_by is None and not self.obstacle

    def is_short(self) -> bool:
        return self.short_since is not None and self.may_launch()

    def fill_slot(self) -> bool:
        """Launch what is next in the plan, if there is room; returns whether it was tried."""
        is_too_soon = self.is_short() and time.monotonic() < self.retry_at
        if not self.free or not self.may_launch() or is_too_soon:
            return False
        self.try_launch(self.waiting.popleft(), self.free.pop(0))
        return True

    def try_launch(self, experiment: Experiment, slot: Slot, is_settled: bool = False, has_copy: bool = False) -> None:
        if experiment.name in self.launched and not is_settled:
            self.settle_first(experiment, slot)
            return
        try:
            self.check_room()
            checkpoint = "" if has_copy else self.checkpoint_to_copy(experiment)
            if checkpoint:
                self.copy_first(checkpoint, experiment, slot)
            else:
                self.launch(experiment, slot)
            self.short_since, self.pause = None, 1.0
        except Shortage as shortage:
            self.give_back(experiment, slot)
            self.wait_for_room(str(shortage))

    def settle_first(self, experiment: Experiment, slot: Slot) -> None:
        """Before a directory is used again: what the scribe still has to write of the attempt before goes first."""
        self.preparing += 1
        self.recorder.scribe.put(lambda: self.events.put(lambda: self.on_prepared(experiment, slot, is_settled=True)))

    def on_prepared(self, experiment: Experiment, slot: Slot, is_settled: bool, has_copy: bool = False) -> None:
        self.preparing -= 1
        if self.stopped_by is None and not self.obstacle:
            self.try_launch(experiment, slot, is_settled, has_copy)
        else:
            self.give_back(experiment, slot)

    def give_back(self, experiment: Experiment, slot: Slot) -> None:
        self.waiting.appendleft(experiment)
        self.free.insert(0, slot)

    def checkpoint_to_copy(self, experiment: Experiment) -> str:
        """The only checkpoint from which an attempt would continue, where no copy of it is kept yet."""
        folder = os.path.join(self.folder, experiment.name)
        up = take_up(experiment, folder, self.results[experiment.name].attempts, self.options)
        is_only = up.how is How.CONTINUES and len(checkpoints(folder, self.options.checkpoints)) == 1
        return up.checkpoint if is_only and needs_copy(up.checkpoint) else ""

    def copy_first(self, checkpoint: str, experiment: Experiment, slot: Slot) -> None:
        """Keep a copy of a checkpoint, in a thread, as it may be large; the launch follows. Raises Shortage."""

        def copy() -> None:
            try:
                keep_copy(checkpoint)
            except (OSError, shutil.Error) as error:
                problem = f"{experiment.name}: no copy of its only checkpoint is kept: {error}"
                self.events.put(lambda: self.say(problem))
            self.events.put(lambda: self.on_prepared(experiment, slot, is_settled=True, has_copy=True))

        try:
            threading.Thread(target=copy, name="copy", daemon=True).start()
        except RuntimeError as error:
            raise as_shortage(error) from None
        self.preparing += 1

    def check_room(self) -> None:
        """Raises Shortage where the disk has no room for what the trainings may write."""
        needed = max(ROOM, 2 * self.largest_checkpoint) * (len(self.running) + 1)
        with contextlib.suppress(OSError):
            free = free_bytes(self.folder)
            if free < needed:
                raise Shortage(f"only {free >> 20} MB free on the disk of {self.folder}, {needed >> 20} MB are wanted")

    def wait_for_room(self, why: str) -> None:
        """A passing shortage burns no plan: it is tried again when a training ends, or after 1, 2, 4 ... 60 s."""
        now = time.monotonic()
        if self.short_since is None:
            self.short_since = now
            self.say(f"waiting: {why}; tried again until there is room")
        if self.running:
            self.short_since = now
        elif now >= self.short_since + SHORT:
            self.stop_launching(f"{why}; nothing could run for {show_duration(SHORT)}")
        self.retry_at = now + self.pause
        self.pause = min(60.0, 2 * self.pause)

    def stop_launching(self, why: str) -> None:
        if not self.obstacle:
            self.obstacle = self.recorder.head["stopped_because"] = why
            self.say(f"error: {why}; nothing more is started", even_if_quiet=True)

    def launch(self, planned: Experiment, slot: Slot) -> None:
        """Begin the next attempt of an experiment; where that fails, that is its end.

        Raises Shortage where there is no room for it now, and then nothing has happened."""
        result = next_result(self.results[planned.name], slot)
        try:
            if planned.problem:
                raise UsageError(planned.problem)
            self.start(on_device(self.options, self.planner, planned, slot), result, slot)
            return
        except Shortage:
            raise
        except UsageError as error:
            result.status, result.error = Status.FAILED, str(error)
        except Exception as error:
            result.status, result.error = Status.ERROR, f"could not be started: {type(error).__name__}: {error}"
            result.traceback = traceback.format_exc()
        self.free.insert(0, slot)
        self.results[planned.name] = result
        result.start_time = now_iso()
        result.duration_seconds = 0.0
        self.end_attempt(planned, result)

    def start(self, experiment: Experiment, result: Result, slot: Slot) -> None:
        """Take what a launch needs, lay out the experiment's directory, start its process."""
        number = self.launches = self.launches + 1
        folder = os.path.join(self.folder, experiment.name)
        is_new = not os.path.exists(folder)
        try:
            launch = Launch(lambda message: self.events.put(lambda: self.hear(number, message)))
        except (OSError, RuntimeError) as error:
            raise as_shortage(error) from None
        try:
            attempt, command, metadata = self.lay_out(experiment, result, slot, folder, launch)
        except Exception as error:
            launch.abandon()
            reason = as_shortage(error)
            if is_new and isinstance(reason, Shortage):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
            raise reason from error
        self.running[number] = attempt
        self.launched.add(experiment.name)
        self.results[experiment.name] = result
        self.recorder.changed(result)
        self.say_launch(attempt, command, metadata)

    def hear(self, number: int, message: Message) -> None:
        if number in self.running:
            message(self.running[number].process)

    def lay_out(
        self, experiment: Experiment, result: Result, slot: Slot, folder: str, launch: Launch
    ) -> tuple[Attempt, list[str], dict[str, Any]]:
        """Make the directory ready and start the training in it; returns what runs, its command and its metadata.

        Raises OSError and UsageError, and then nothing runs."""
        before = self.results[experiment.name]
        up = take_up(experiment, folder, before.attempts, self.options)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        has_remains = bool(names_in(folder, r".*\.log")) and up.how is How.STARTS
        if up.how is How.STARTS_OVER or has_remains:
            move_aside(folder, before.attempts)
        self.begin_result(result, before, up)
        continuing = self.words_to_continue(experiment, folder, slot, up)
        command = build_command(self.options, experiment, folder, slot, continuing)
        metadata = self.metadata(experiment, result, command, self.environment(experiment, result, slot, up))
        readers = {name: LineReader(self.own_lines(experiment), self.patterns) for name in ("stdout", "stderr")}
        rules = self.stop_rules(folder)
        undo = Undo(folder, self.own_files(experiment, folder))
        try:
            kept = self.keep_files(experiment, folder, metadata)
            logs = undo.logs = open_logs(folder)
            stderr_start = os.fstat(logs["stderr"].descriptor).st_size
            mark = self.guardian.mark_next() if self.guardian else {}
            environment = {**os.environ, "PYTHONUNBUFFERED": "1", **metadata["environment_set"], **mark}
            group = launch.start(command, environment)
        except Exception as error:
            undo.run(isinstance(as_shortage(error), Shortage))
            raise
        # From here on there is a training: nothing below may fail before it is known to the loop.
        if self.guardian:
            self.guardian.tell_started(group, folder)
        if up.how is How.CONTINUES:
            mark_attempt(logs["combined"], f"attempt {result.attempts} {up}")
        process = Process(group, launch, rules, time.monotonic())
        for tee in launch.tees:
            tee.begin(logs[tee.stream], logs["combined"], readers[tee.stream].read, self.follower(experiment))
        metadata.update(pid=group.leader, pid_started=group.started)
        attempt = Attempt(experiment, result, slot, folder, process, launch.tees, readers, up, kept, stderr_start)
        return attempt, command, metadata

    def begin_result(self, result: Result, before: Result, up: TakeUp) -> None:
        result.status = Status.RUNNING
        result.start_time = now_iso()
        if before.attempts:
            result.attempt_history.append(past(before))
        result.attempts = before.attempts + 1
        if up.how is How.CONTINUES:
            result.metrics = replace(before.metrics, first_step=None, largest_gap=None, diverged_since=None)

    def words_to_continue(self, experiment: Experiment, folder: str, slot: Slot, up: TakeUp) -> list[str]:
        if up.how is not How.CONTINUES:
            return []
        return continuing_words(self.options, experiment, folder, slot, up.checkpoint) or []

    def own_files(self, experiment: Experiment, folder: str) -> list[str]:
        """The paths of the runner's own files for an attempt: the metadata, and the config if there is one."""
        paths = [os.path.join(folder, METADATA)]
        if experiment.config:
            paths.append(os.path.join(folder, f"config_used{os.path.splitext(experiment.config)[1]}"))
        return paths

    def keep_files(self, experiment: Experiment, folder: str, metadata: dict[str, Any]) -> dict[str, bytes]:
        """Write config_used and the metadata; returns what they hold, by their paths."""
        path, *used = self.own_files(experiment, folder)
        kept = {path: json_bytes(metadata)}
        for each in used:
            kept[each] = self.config_source(experiment)
            write_file(each, kept[each], sync=False)
        self.recorder.save_now(path, metadata)
        return kept

    def config_source(self, experiment: Experiment) -> bytes:
        """The config as the trainer will read it; raises UsageError where it can't be read."""
        path = experiment.launched_config or experiment.config
        if not path:
            return b""
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            if error.errno in SHORTAGES:
                raise
            raise UsageError(f"config can't be used: {path}: {error.strerror}") from None

    def own_lines(self, experiment: Experiment) -> frozenset[bytes]:
        """Lines of the config and the script that look like metrics: a trainer that prints its source says nothing."""
        config = self.planner.read(experiment.source or experiment.config)
        return self.script_lines | lines_like_metrics(config.source)

    def follower(self, experiment: Experiment) -> Optional[Callable[[bytes], None]]:
        if not self.options.follow:
            return None
        name = f"{experiment.name}: " if self.slots > 1 else ""
        return functools.partial(self.console.follow, name)

    def say_launch(self, attempt: Attempt, command: Sequence[str], metadata: dict[str, Any]) -> None:
        """The training runs: write down as what, and look whether the code is as it was."""
        path = os.path.join(attempt.folder, METADATA)
        with contextlib.suppress(OSError):  # the working directory has gone
            if self.watch.look():
                self.watch.ask()
        launched = Launched(attempt.result, path, metadata, self.watch.latest, self.watch.asked)
        if self.answers < self.watch.asked:
            self.without_code.append(launched)
        else:
            self.compare_code(launched)
        self.recorder.save_json(path, metadata)
        attempt.kept[path] = json_bytes(metadata)
        begins = "started" if attempt.take_up.how is How.STARTS else str(attempt.take_up)
        self.say(f"{attempt.planned.name}: {begins}, pid {metadata['pid']}: {shell_line(command)}")

    def environment(self, experiment: Experiment, result: Result, slot: Slot, up: TakeUp) -> dict[str, str]:
        """What a training gets in its environment, unless the user's has a value of its own."""
        wanted = {}
        if self.threads:
            wanted["OMP_NUM_THREADS"] = str(self.threads)
        if experiment.settings.get("wandb_log") is True or experiment.settings.get("wandb_enabled") is True:
            wanted.update(self.wandb_variables(experiment.name, result, up))
        chosen = {key: value for key, value in wanted.items() if key not in os.environ}
        return {**chosen, "CUDA_VISIBLE_DEVICES": slot.gpus} if slot.gpus else chosen

    def wandb_variables(self, name: str, result: Result, up: TakeUp) -> dict[str, str]:
        """A batch is a group, and an attempt that continues goes on with the run of the one before."""
        kept = read_own(os.path.join(self.folder, name), METADATA).get("environment_set")
        run = kept.get("WANDB_RUN_ID") if isinstance(kept, dict) and up.how is How.CONTINUES else None
        batch = os.path.basename(os.path.abspath(self.folder))
        origin = f"{batch}/{name}/{result.attempts}/{self.recorder.head.get('start_time')}/{os.uname().nodename}"
        run_id = run if isinstance(run, str) else sha256(origin.encode())[:16]
        return {"WANDB_RUN_GROUP": batch, "WANDB_RUN_ID": run_id, "WANDB_RESUME": "allow"}

    def metadata(
        self, experiment: Experiment, result: Result, command: list[str], environment: dict[str, str]
    ) -> dict[str, Any]:
        system = os.uname()
        return {
            "config_name": experiment.name,
            "config_path": experiment.config,
            "config_sha256": self.frozen[experiment.name].config_sha256 or None,
            "command": command,
            "command_line": shell_line(command),
            "train_script": self.options.train_script,
            "options": plan_options(self.options),
            "global_overrides": self.recorder.head.get("global_overrides", {}),
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
            "pid_started": None,
            "git": self.code.git,
            "cuda_visible_devices": environment.get("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES")),
            "environment_set": environment,
        }

    # ---- the end of an attempt, and of the batch

    def finish(self, attempt: Attempt) -> None:
        """A training is over: tell how it ended, and give back what it held."""
        process, result = attempt.process, attempt.result
        if self.guardian:
            self.guardian.tell_ended(process.group)
        if not process.is_stuck:
            process.launch.close()
            self.free.append(attempt.slot)
            self.free.sort(key=lambda slot: slot.number)
        elif not self.free and not self.running:
            self.stop_launching("no slot is left: what ran in them can't be killed")
        self.take_news(attempt)
        self.conclude(attempt)
        self.put_back_files(attempt)
        if not self.sets_checkpoint_aside(attempt):
            self.end_attempt(attempt.planned, result)

    def conclude(self, attempt: Attempt) -> None:
        """Tell from a training that is over how its attempt ended."""
        process, result = attempt.process, attempt.result
        result.duration_seconds = round(process.ended_at - process.began, 3)
        result.total_seconds = round((result.total_seconds or 0.0) + result.duration_seconds, 3)
        result.log_complete = not process.failed_logs
        result.warnings += process.warnings
        ended = process.group.exit
        error = ""
        if ended:
            result.return_code, result.cpu_seconds = ended.return_code, ended.cpu_seconds
            result.max_rss_bytes = ended.max_rss_bytes
            result.signal, error = end_in_words(ended.return_code)
        self.set_status(attempt)
        if result.status is Status.COMPLETED:
            self.doubt(attempt)
        self.note_checkpoints(attempt)
        if result.status is not Status.COMPLETED:
            self.explain(attempt, error)

    def set_status(self, attempt: Attempt) -> None:
        process, result = attempt.process, attempt.result
        died_of = signal_in(result.return_code or 0)
        if process.is_unkillable:
            result.status, result.error = Status.FAILED, process.reason
        elif process.ending and process.ending.sent:  # else it has ended before it was asked to
            result.status, result.error = attempt.stopped_as or Status.TIMEOUT, process.reason
        elif self.stopped_by is not None and died_of in STOP_SIGNALS:  # it got the runner's signal, too
            result.status, result.error = Status.INTERRUPTED, f"stopped by {signal_name(self.stopped_by)}"
        elif result.return_code == 0:
            result.status = Status.COMPLETED
        else:
            result.status = Status.FAILED

    def doubt(self, attempt: Attempt) -> None:
        """An exit code of 0 is no success where the loss says otherwise, and not all of the truth where steps lack."""
        result, metrics = attempt.result, attempt.result.metrics
        losses = [loss for loss in (metrics.train_loss, metrics.val_loss) if loss is not None]
        if metrics.diverged_since is not None:
            bad = next((loss for loss in losses if not math.isfinite(loss)), math.nan)
            result.status, result.diverged = Status.FAILED, True
            result.error = f"exit code 0, but the loss is {bad} since step {metrics.diverged_since}"
            result.hint = "the loss is not finite: try a smaller --learning_rate"
        elif any(not math.isfinite(loss) for loss in losses):
            self.warn(result, "the loss is not finite: try a smaller --learning_rate")
        elif metrics.step is None or metrics.first_step is None:
            if self.planner.script.strict:
                self.warn(result, "printed no step")
        elif result.max_iters is not None and metrics.step + (metrics.largest_gap or 0) < result.max_iters:
            self.warn(result, f"ended at step {metrics.step} of {result.max_iters}")

    def explain(self, attempt: Attempt, ended: str) -> None:
        """What stderr says of this attempt's end; what it says of earlier ones doesn't count."""
        result = attempt.result
        path = os.path.join(attempt.folder, LOGS["stderr"])
        stderr = read_tail(path, start=attempt.stderr_start).decode(errors="replace")
        result.stderr_tail = "\n".join(stderr.splitlines()[-20:])
        said = error_line(stderr)
        if result.status is Status.INTERRUPTED or attempt.process.is_unkillable or result.diverged:
            return
        if attempt.process.ending and said == "KeyboardInterrupt":
            said = ""  # the answer to the runner's own signal
        first = result.error or ended
        result.error = f"{first}: {said}" if said else first
        result.hint = hint_for(f"{stderr}\n{result.error}") if result.status is Status.FAILED else None

    def note_checkpoints(self, attempt: Attempt) -> None:
        found = checkpoints(attempt.folder, self.options.checkpoints)
        attempt.result.final_checkpoint = found[0] if found else None
        if attempt.result.status is Status.COMPLETED:
            for name in names_in(attempt.folder, r"\.kept_.*"):
                remove_tree(os.path.join(attempt.folder, name))
        for size, _ in looks_at(found[:1]).values():
            self.largest_checkpoint = max(self.largest_checkpoint, size)

    def put_back_files(self, attempt: Attempt) -> None:
        """What a trainer that remakes its directory has taken away; the logs have seen to themselves."""
        gone = [path for path in attempt.kept if not os.path.exists(path)]
        if not os.path.isdir(attempt.folder):
            return
        for path in gone:
            self.recorder.save(path, functools.partial(write_file, path, attempt.kept[path]), path)
        if gone:
            self.warn(attempt.result, f"put back what the training removed: {', '.join(map(os.path.basename, gone))}")

    def sets_checkpoint_aside(self, attempt: Attempt) -> bool:
        """After a continued attempt whose error says that the checkpoint can't be read: whether it is tried again
        without that one, once. Where that fails as well, the checkpoint gets its name back."""
        name, result = attempt.planned.name, attempt.result
        aside = self.set_aside.pop(name, "")
        at_once = result.status is Status.FAILED and result.metrics.first_step is None
        try:
            if aside:
                if at_once and os.path.exists(aside + ASIDE) and not os.path.exists(aside):
                    os.rename(aside + ASIDE, aside)
                    self.say(f"{name}: failed without {os.path.basename(aside)} as well, which has its name back")
                return False
            checkpoint = attempt.take_up.checkpoint
            if not (at_once and checkpoint and says_broken_checkpoint(result.stderr_tail)):
                return False
            copy = kept_copy(checkpoint)
            os.rename(checkpoint, checkpoint + ASIDE)
            if copy:
                os.rename(copy, checkpoint)
        except OSError as error:
            self.warn(result, f"a checkpoint can't be renamed: {error.filename}: {error.strerror}")
            return False
        self.set_aside[name] = checkpoint
        instead = "; its kept copy is used" if copy else ""
        self.say(f"{name}: {result.error}; set aside: {os.path.basename(checkpoint)}{ASIDE}{instead}")
        self.waiting.appendleft(self.plan[name])
        return self.may_launch()

    def end_attempt(self, planned: Experiment, result: Result) -> None:
        """The one place in which an attempt ends, whatever became of it: it is recorded, counted, said, and perhaps
        taken up again."""
        name = planned.name
        result.end_time = now_iso()
        self.record(result)
        if result.status in FAILURES:
            self.failed.add(name)
        may_pass = result.status in FAILURES and not planned.problem and not result.diverged
        if may_pass and self.retries[name] < self.options.retries and self.stopped_by is None:
            self.retries[name] += 1
            self.failed.discard(name)
            self.say(f"{name}: retry {self.retries[name]} of {self.options.retries} follows")
            self.waiting.append(self.plan[name])
        if self.options.max_failures and len(self.failed) >= self.options.max_failures:
            self.stop_launching(f"{len(self.failed)} experiments have failed (--max_failures)")
        self.retry_at = 0.0  # its end may have made room

    def record(self, result: Result) -> None:
        """Write down a result that is final for now, and say it."""
        folder = os.path.join(self.folder, result.config_name)
        path = os.path.join(folder, RESULT)
        value = to_json(result)

        def write() -> None:
            with contextlib.suppress(OSError):  # it is there, unless the experiment could not be started
                os.mkdir(folder)
            write_json(path, value)

        self.recorder.save(path, write, path)
        parts = [f"{result.config_name}: {result.status} after {show_duration(result.duration_seconds)}"]
        if result.metrics.step is not None:
            parts.append(f"step {result.metrics.step}, val loss {show_loss(result.metrics.val_loss)}")
        if result.error:
            parts.append(result.error)
        if result.hint:
            parts.append(f"hint: {result.hint}")
        self.say("; ".join(parts))
        for line in (result.traceback or "").splitlines():
            self.say(f"    {line}")
        self.recorder.changed(result)

    def end(self) -> int:
        """Write and say how the batch ended; returns the exit code."""
        patience = time.monotonic() + SLOW_GIT
        while self.answers < self.watch.asked and self.stopped_by is None and time.monotonic() < patience:
            self.take_events(1.0)
        for each in self.without_code:
            self.compare_code(each)
        counts = count_statuses(self.results.values())
        is_cut_short = self.stopped_by is not None or counts["pending"] > 0
        self.recorder.head.update(state="interrupted" if is_cut_short else "finished", end_time=now_iso())
        is_saved = self.recorder.finish(self.results)
        is_all_well = is_saved and counts["completed"] == len(self.plan) and self.stopped_by is None
        self.say_end(counts, is_all_well)
        if self.stopped_by is not None:
            return 128 + self.stopped_by
        return 0 if is_all_well else 1

    def say_end(self, counts: dict[str, int], is_all_well: bool) -> None:
        """The table, for the master log and the console, which is then settled; even a quiet one if not all is well."""
        self.console.draw([])
        results = [self.results[name] for name in self.plan]
        for line in [*result_lines(results), *group_lines(seed_groups(results)), show_counts(counts)]:
            self.recorder.log(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")
        width = terminal_width()
        lines = [*result_lines(results, width), *group_lines(seed_groups(results), width), show_counts(counts)]
        is_silent = self.options.quiet and is_all_well
        if is_silent:
            lines = [f"{each.config_name}: warning: {text}" for each in results for text in each.warnings]
        for line in lines:
            self.console.line(line, even_if_quiet=True)
        if not is_all_well:
            again = f"continue with: {self.line_to_continue()}"
            self.recorder.log(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {again}")
            self.console.line(again, even_if_quiet=True)
        self.console.line(os.path.join(self.folder, REPORT))
        self.recorder.scribe.flush()
        self.console.settle(STUCK)

    def line_to_continue(self) -> str:
        """A command line that works where the user is, whatever directory the batch works in."""
        python_or_name, *script = program()
        is_elsewhere = working_directory() != START_DIRECTORY
        place = os.path.abspath(self.folder) if is_elsewhere else self.folder
        script = [os.path.join(START_DIRECTORY, each) if is_elsewhere else each for each in script]
        return shell_line([python_or_name, *script, "--resume", place])


def working_directory() -> str:
    """Where this process works; it may have been removed."""
    with contextlib.suppress(OSError):
        return os.getcwd()
    return "/"


START_DIRECTORY = working_directory()  # the user's; --resume works in the batch's own


def open_logs(folder: str) -> dict[str, Log]:
    """The three logs of an attempt; combined.log has two users. Raises OSError."""
    logs: dict[str, Log] = {}
    try:
        for name, file in LOGS.items():
            logs[name] = Log(os.path.join(folder, file), users=2 if name == "combined" else 1)
    except OSError:
        for log in logs.values():
            log.close()
        raise
    return logs


# -------------------------------------------------------------------------------------------- command line
# From words to what is done: the parser, the checks of what was asked for, the modes.


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")


# ---- options: what parses a value raises ValueError with what is wrong with it


def a_duration(text: str) -> float:
    """Seconds from `90`, `30m`, `2h`, `1d12h`."""
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text)
    parts = match.groups("0") if match else ()
    value = sum(float(part) * unit for part, unit in zip(parts, (86400, 3600, 60, 1)))
    if not 0 < value < 1e10:
        raise ValueError(f"not a duration such as 90, 30m, 2h or 1d12h: {text!r}")
    return value


def a_number_of_seconds(text: str) -> float:
    if not re.fullmatch(r"\d{1,9}(\.\d+)?|\.\d+", text):
        raise ValueError(f"not a number of seconds: {text!r}")
    return float(text)


def a_count(least: int) -> Callable[[str], int]:
    def parse_count(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) < least:
            raise ValueError(f"not a whole number from {least}: {text!r}")
        return int(text)

    return parse_count


def a_stop_signal(text: str) -> str:
    name = re.sub("^SIG", "", text.upper())
    known = {each.name[3:] for each in signal.Signals} - {"KILL", "STOP"}
    if name not in {"AUTO", *known}:
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


def flag(text: str) -> dict[str, Any]:
    return {"action": "store_true", "help": text}


GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "what to run": {
        "configs": option("PATTERN", 'config files and patterns ("config/**/*.py")', nargs="+", action="extend"),
        "sweep": option("KEY=V1,V2", "run every config with each of these; repeatable", parse_sweep, action="append"),
        "train_script": option("PATH", "the training script (train_run.py)"),
        "base_out_dir": option("DIR", "where batches go (experiments)"),
        "shard": option("I/N", "every N-th experiment of the plan, beginning with the I-th", a_shard),
        "resume": option("DIR", "continue this batch, or the newest with anything left to do", nargs="?", const=""),
        "again": option("NAME", "with --resume: run completed or diverged ones, too (patterns)", nargs="+"),
    },
    "what to see": {
        "status": option("DIR", "the table of this batch, of several as one, or of the newest one", nargs="*"),
        "json": flag("with --status: the same as JSON"),
        "report": option("DIR", "write report.html of a batch, or of several, and print its path", nargs="*"),
        "metrics": option(
            "REGEX",
            "how losses are printed: a regular expression with groups step, train_loss, val_loss; repeatable",
            a_metric,
            action="append",
        ),
        "follow": flag("copy the training's output to the console"),
        "quiet": flag("print nothing when all goes well"),
        "dry_run": flag("print each command and why it would run; create nothing"),
    },
    "how to run it": {
        "jobs": option("N", "experiments at a time (1)", a_count(1)),
        "devices": option("D1,D2", "one at a time on each of these; auto: all GPUs", lambda text: text.split(",")),
        "gpus": option("N", "GPUs for each experiment, as many at a time as there is room for", a_count(1)),
        "command": option(
            "CMD", "the whole command instead; {config}, {dir}, {name}, {device}, {slot}, {overrides} are filled in"
        ),
        "continue_with": option(
            "ARGS", "what an attempt that continues gets besides (--init_from=resume); {checkpoint} is filled in"
        ),
        "checkpoints": option("GLOB", "their names in an experiment's directory (ckpt*.pt)"),
        "launcher": option(
            "CMD", "stands before the training script instead of Python; {name}, {dir}, {device}, {slot} are filled in"
        ),
        "timeout": option("TIME", "end an attempt after this time: 90, 30m, 2h, 1d12h", a_duration),
        "stall": option("TIME", "end an attempt that has printed nothing for this time", a_duration),
        "stop_on_nan": flag("end an attempt whose loss is no longer finite"),
        "retries": option("N", "take a failed experiment up again, at most N times (0)", a_count(0)),
        "max_failures": option("N", "start no more once N experiments have failed", a_count(1)),
        "grace": option("SECONDS", f"from the stop signal to KILL ({GRACE:.0f})", a_number_of_seconds),
        "stop_signal": option("NAME", "what a training gets first when it is stopped (auto)", a_stop_signal),
    },
}
OPTIONS = functools.reduce(lambda one, other: {**one, **other}, GROUPS.values())
SETTINGS = "These and any other, for all configs: --n_layer 4, --dropout=0.1"
DASHED = ("--command", "--continue_with", "--launcher", "--metrics")  # their values may look like options
NOT_WITH = {
    "configs": ("resume", "status", "report"),
    "sweep": ("resume", "status", "report"),
    "resume": ("status", "report"),
    "status": ("report",),
    "gpus": ("devices", "jobs", "device"),  # as many run at a time as there are GPUs for
    "jobs": ("devices",),  # which gives one slot to each device
    "device": ("devices",),
}
ONLY_WITH = {"json": "status", "again": "resume"}


def build_parser() -> Parser:
    parser = Parser(
        prog="run_experiments.py",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # what isn't given leaves the batch's own on --resume
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s --configs PATTERN [PATTERN ...] [options]\n         [--any_setting value ...] [-- ARGS ...]",
        description="Run a nanoGPT-style training script once per config file, and lose nothing.",
        epilog="\n".join(__doc__.splitlines()[1:13]),
    )
    for title, group in GROUPS.items():
        add = parser.add_argument_group(title).add_argument
        for name, how in group.items():
            add(f"--{name}", **how)
    settings = parser.add_argument_group("settings of the trainer", SETTINGS)  # shown only: parse takes them out
    for key, example in USUAL.items():
        if key == "wandb_log":
            continue  # what the trainer calls --wandb_enabled
        settings.add_argument(f"--{key}", metavar=type(example).__name__.upper())
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """What a command line gives, by the names of Options. Raises UsageError."""
    words = list(argv)
    end = words.index("--") if "--" in words else len(words)
    own, overrides = take_settings(words[:end])
    given = vars(build_parser().parse_args(own))
    if overrides:
        given["overrides"] = overrides
    if "sweep" in given:
        given["sweep"] = joined_sweep(given["sweep"])
    if end < len(words):
        given["trainer_args"] = words[end + 1 :]
    check_together(given)
    return given


def take_settings(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The words for the runner, and the settings of the trainer: each option that is not the runner's is one."""
    is_free = any(word.startswith("--command") for word in words)
    rest = deque(words)
    own: list[str] = []
    overrides: dict[str, str] = {}
    while rest:
        word = rest.popleft()
        name, equals, value = word[2:].partition("=")
        if value == "--":  # argparse drops it
            raise UsageError(f"--{name}: not a value: --")
        if word in DASHED and rest:
            own.append(f"{word}={rest.popleft()}")
        elif not word.startswith("--") or name in ("help", "version", *OPTIONS):
            own.append(word)
        else:
            if not name.isidentifier() and not is_free:
                raise UsageError(f"not an option, and no setting's name: --{name}{suggestion(name, USUAL)}")
            overrides[name] = value if equals else next_value(name, rest)
    if not is_free:
        check_usual(overrides)
    return own, overrides


def next_value(key: str, rest: deque[str]) -> str:
    """The word behind a setting of the trainer; a number may be negative."""
    if not rest or not re.match(r"[^-]|-[\d.]|$", rest[0]):
        wanted = "true or false" if isinstance(USUAL.get(key), bool) else f"a value: --{key} VALUE"
        raise UsageError(f"--{key} is a setting of the trainer and wants {wanted}")
    value = rest.popleft()
    if rest and not rest[0].startswith("-"):
        raise UsageError(f"unrecognized argument behind --{key} {value}: {rest[0]}; see --help")
    return value


def joined_sweep(pairs: Iterable[tuple[str, list[str]]]) -> dict[str, list[str]]:
    sweep: dict[str, list[str]] = {}
    for key, points in pairs:
        if key in sweep:
            raise UsageError(f"argument --sweep: {key} given twice; see --help")
        sweep[key] = points
    return sweep


def check_usual(overrides: Mapping[str, str]) -> None:
    """By the names that the user knows: the trainer's own may be others."""
    for key in overrides.keys() & USUAL.keys():
        try:
            trainer_form(overrides[key], USUAL[key], True)
        except ValueError as wanted:
            raise UsageError(f"--{key} wants {wanted}, not {overrides[key]!r}; see --help") from None


def check_together(given: Mapping[str, Any]) -> None:
    names = {*given, *given.get("overrides", ()), *",".join(given.get("sweep", ())).split(",")}
    for one, others in NOT_WITH.items():
        if one in names and names & set(others):
            raise UsageError(f"--{one}: not allowed with --{' or --'.join(others)}")
    for one, other in ONLY_WITH.items():
        if one in names and other not in names:
            raise UsageError(f"--{one}: only with --{other}")


# ---- what a batch is run with


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


def prepare(given: Mapping[str, Any], options: Options, notes: list[str]) -> Job:
    """Read the trainer, and refuse what can't work before anything starts."""
    check_template(options)
    if not options.command and default_script() != options.train_script == Options().train_script:
        options.train_script = default_script()
        notes.append(f"the training script is {options.train_script}: there is no {Options().train_script}")
    planner = Planner(read_trainer(options))
    modes = {"resume", "status", "report", "configs", "sweep"}
    # An option of this name: nobody could tell which is meant.
    for key in given.keys() & OPTIONS.keys() & planner.script.settings.keys() - modes:
        told = f"is an option of the runner and a setting of {planner.script.path}"
        raise UsageError(f"--{key} {told}; the trainer's is reached behind a bare --: -- --{key}=VALUE")
    check(options, planner)
    return Job(options, planner, find_slots(options), notes)


def check(options: Options, planner: Planner) -> None:
    options.overrides = {planner.setting(key): text for key, text in options.overrides.items()}
    options.sweep = {planner.setting(key): values for key, values in options.sweep.items()}
    swept = ",".join(options.sweep).split(",")
    for key in options.overrides.keys() & set(swept):
        raise UsageError(f"--{key}: not allowed with --sweep {key}")
    if "out_dir" in (*options.overrides, *swept) and not options.command:
        raise UsageError("--out_dir: the runner sets it for each experiment, see --base_out_dir")
    if "=" in options.base_out_dir:
        raise UsageError(f"--base_out_dir holds '=': {options.base_out_dir}; the trainer's configurator splits on it")
    devices = [*options.devices, options.overrides.get("device")]
    if "gpu" in devices:
        raise UsageError("--device gpu: torch knows no 'gpu'; it is called 'cuda', see --devices")
    if "" in devices:
        raise UsageError(f"--devices: an empty one: {','.join(options.devices)}")
    if options.command:
        what, words = "--command", shlex.split(options.command)
    else:
        names = dict.fromkeys(("name", "dir", "device", "slot"), "")
        what, words = "--launcher", launcher_words(options.launcher, names)
    if not shutil.which(words[0]):
        raise UsageError(f"program of {what} not found: {words[0]}")


def find_slots(options: Options) -> list[Slot]:
    """Raises UsageError where there are too few GPUs for what is asked for."""
    is_auto = options.devices == ["auto"]
    if not is_auto and not options.gpus:
        return slots_of(options)
    gpus = all_gpus()
    if len(gpus) < (options.gpus or 1):
        wanted = f"--gpus {options.gpus}" if options.gpus else "--devices auto"
        found = count_of(len(gpus), "GPU")
        raise UsageError(f"{wanted}: only {found} found by nvidia-smi and CUDA_VISIBLE_DEVICES; try --device cpu")
    if is_auto:
        options.devices = [f"cuda:{index}" for index in range(len(gpus))]
    return slots_of(options, gpus)


def all_gpus() -> list[str]:
    """The GPUs that nvidia-smi lists, or those of them that CUDA_VISIBLE_DEVICES leaves, by what it calls them."""
    listed = ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).stdout
    numbers = [str(index) for index, _ in enumerate(re.findall(r"(?m)^GPU \d+:", listed))]
    words = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(numbers)).split(",")
    # CUDA stops at the first that isn't there.
    is_there = re.compile("|".join(["(GPU|MIG)-.*", *numbers])).fullmatch
    return list(itertools.takewhile(is_there, map(str.strip, words)))


def first_results(plan: Sequence[Experiment], folder: str, before: Mapping[str, Result]) -> dict[str, Result]:
    """What is known of experiments before they run, or run again."""
    keys = differing(plan)
    results = {}
    for each in plan:
        result = results[each.name] = before.get(each.name, Result(config_name=each.name))
        result.config_path = each.config
        result.overrides = each.values or result.overrides
        result.settings = {key: in_words(each.settings[key]) for key in keys if key in each.settings}
        iterations = each.settings.get("max_iters")
        result.max_iters = iterations if isinstance(iterations, int) else None
        relocate(result, os.path.join(folder, each.name))
    return results


def common_settings(plan: Sequence[Experiment]) -> dict[str, Any]:
    """The settings that all experiments share, by which one batch is told from another."""
    own = {*differing(plan), *INVENTED}
    first = plan[0].settings if plan else {}
    return {key: in_words(value) for key, value in first.items() if key not in own}


def place_facts() -> dict[str, str]:
    version = sys.version.split()[0]
    return {"hostname": os.uname().nodename, "python_executable": sys.executable, "python_version": version}


def facts_of(job: Job) -> dict[str, Any]:
    """What the head of the summary says of a batch that begins or goes on."""
    return {
        "experiment_dir": job.folder,
        "state": "running",
        "end_time": None,
        "train_script": job.options.train_script,
        "options": plan_options(job.options),
        "working_directory": os.getcwd(),
        "total_experiments": len(job.plan),
        "slots": len(job.slots),
        "common_settings": common_settings(job.plan),
        **place_facts(),
    }


def choose_launched(job: Job) -> dict[str, bytes]:
    """A configurator gets the frozen copy of a config, unless it matters to it where the config lies; other trainers
    get the original, or its copy where it has gone. Returns what is to be frozen."""
    script, read = job.planner.script, job.planner.read
    for each in job.plan:
        each.source = each.source or each.config
        each.launched_config = each.config
    sources = {each.source: read(each.source).source for each in job.plan if each.source and not each.problem}
    names = frozen_names(job.folder, sources, job.plan)
    for each in job.plan:
        is_bound = not script.strict or script.uses_file or read(each.source).uses_file
        if each.source in names and (not is_bound or not os.path.exists(each.config)):
            each.launched_config = os.path.join(job.folder, PLAN, names[each.source])
    return sources


def run_job(job: Job, head: dict[str, Any], lock: Optional[int]) -> int:
    """Freeze the plan, then run it."""
    job.notes += [NO_LOCKS] if lock is None else []
    try:
        frozen = freeze(job.folder, job.plan, choose_launched(job), head)
        recorder = Recorder(job.folder, [each.name for each in job.plan], head, Console(job.options.quiet))
        write_json(os.path.join(job.folder, SUMMARY), recorder.summary(job.results))
    except OSError as error:
        raise UsageError(f"can't write to the batch: {error.filename or job.folder}: {error.strerror}") from None
    batch = Batch(job.options, job.planner, job.plan, job.results, recorder, frozen, job.to_run, job.slots)
    for note in job.notes:
        recorder.say(note)
    return batch.run()


def show_job(job: Job) -> int:
    """Print what would be run and why, after some notes."""
    choose_launched(job)
    lines = [f"# {clean(note)}" for note in job.notes]
    free = itertools.cycle(job.slots)
    to_run = set(job.to_run)
    runs = 0
    for each in job.plan:
        if each.name not in to_run:
            lines.append(f"# {each.name}: {'diverged' if job.results[each.name].diverged else 'completed'}, left alone")
        elif each.problem:
            lines.append(f"# {each.name}: fails, {clean(each.problem)}")
        else:
            lines += command_lines(job, each, next(free))
            runs += 1
    lines.append(f"# {runs} of {count_of(len(job.plan), 'experiment')} would run")
    print_whole(lines)
    return 0


def command_lines(job: Job, planned: Experiment, slot: Slot) -> list[str]:
    folder = os.path.join(job.folder, planned.name)
    up = take_up(planned, folder, job.results[planned.name].attempts, job.options)
    made = on_device(job.options, job.planner, planned, slot)
    return [f"# {planned.name}: {up}", shell_line(attempt_command(job.options, made, folder, slot, up))]


# ---- the modes


def new_batch(given: dict[str, Any], argv: Sequence[str]) -> int:
    options = Options(**given)
    if not options.configs and not options.command:
        raise UsageError("no configs; name them with --configs, or continue a batch with --resume; see --help")
    job = prepare(given, options, [])
    planner = job.planner
    configs = expand_configs(options.configs, planner.script, job.notes.append, planner.read) if options.configs else []
    whole = planner.plan(options, configs)
    job.plan = take_shard(whole, options.shard) if options.shard else whole
    if not job.plan:  # an array may have more elements than there are experiments
        nothing = f"--shard {options.shard}: no experiment is left of {len(whole)}, nothing to do"
        print_whole([] if options.quiet else [nothing])
        return 0
    job.to_run = [each.name for each in job.plan]
    job.notes += dict.fromkeys(
        f"warning: {each.config}: {text}" for each in job.plan for text in planner.warnings(each)
    )
    if options.dry_run:
        job.folder = os.path.join(options.base_out_dir, datetime.now().strftime("experiment_%Y%m%d_%H%M%S"))
        job.results = first_results(job.plan, job.folder, {})
        return show_job(job)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until the batch is there to take them
    job.folder, problems = create_folder(options.base_out_dir)
    job.notes += problems
    job.results = first_results(job.plan, job.folder, {})
    head = {
        "timestamp": os.path.basename(job.folder)[len("experiment_") :],
        "base_out_dir": options.base_out_dir,
        "start_time": now_iso(),
        "duration_seconds": 0.0,
        "command": [*program(), *argv],
        "global_overrides": {key: planner.plain(key, text) for key, text in options.overrides.items()},
        "sweep": options.sweep,
        **facts_of(job),
    }
    if options.shard:
        index, count = parse_shard(options.shard)
        head["shard"] = {"index": index, "count": count, "plan_digest": plan_digest(whole)}
    return run_job(job, head, hold_batch(job.folder))


def resume_batch(given: dict[str, Any], argv: Sequence[str]) -> int:
    notes: list[str] = []
    folder = batch_to_resume(given, notes)
    if not folder:
        print_whole([] if given.get("quiet") else notes)
        return 0
    read_batch(folder)  # nothing is written to what is no batch
    lock = None if given.get("dry_run") else hold_batch(folder)
    stored = read_batch(folder, held=False)  # but by this runner
    options = resumed_options(stored, given)
    folder = stored.folder = go_where(stored.summary.get("working_directory"), folder)
    job = prepare(given, options, [*notes, *stored.notes])
    job.folder = folder
    job.notes += changes_of_place(stored, options)
    plan_again(job, stored)
    job.results = first_results(job.plan, folder, stored.results)
    if options.dry_run:
        return show_job(job)
    if not job.to_run and stored.summary.get("state") == "finished":
        nothing = f"{folder}: nothing to do, {show_counts(count_statuses(job.results.values()))}"
        print_whole([] if options.quiet else [*job.notes, nothing])
        return 0
    wait_for_trainings(stored, options)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    before = {key: value for key, value in stored.summary.items() if key not in ("git", "stopped_because")}
    resume = {"time": now_iso(), "command": [*program(), *argv], "overrides": options.overrides}
    resumes = before.get("resumes")
    before["resumes"] = [*(resumes if isinstance(resumes, list) else []), resume]
    return run_job(job, {**before, **facts_of(job)}, lock)


def batch_to_resume(given: Mapping[str, Any], notes: list[str]) -> str:
    """The batch that is named, or the newest one with anything left to do; empty where there is none."""
    base = given.get("base_out_dir", Options().base_out_dir)
    named = given["resume"]
    if not named:
        named = newest_batch(base) if given.get("again") else newest_unfinished(base, notes)
    folder = os.path.normpath(named) if named else ""
    if os.path.islink(folder):  # latest
        return os.path.relpath(os.path.realpath(folder))
    return folder


def newest_unfinished(base: str, notes: list[str]) -> str:
    """The newest batch with anything left to do; empty where there is none. Raises UsageError without any batch."""
    newest_batch(base)
    for folder in reversed(batches_in(base)):
        stored = read_batch(folder)
        if stored.summary.get("state") != "finished" or any(map(is_left, stored.results.values())):
            notes.append(f"resuming {folder}: the newest batch with anything left to do")
            return folder
    notes.append(f"nothing is left to do in any batch of {base}")
    return ""


def is_left(result: Result) -> bool:
    """What has diverged would diverge again."""
    return result.status is not Status.COMPLETED and not result.diverged


def resumed_options(stored: StoredBatch, given: Mapping[str, Any]) -> Options:
    """The batch's own options, and over them those that are given now."""
    script = stored.summary.get("train_script", Options().train_script)
    try:
        kept = options_from_json(stored.summary.get("options", {}), stored.folder)
        kept = options_from_json({"train_script": script, **kept}, stored.folder)
        for key, value in kept.items():
            if isinstance(value, (int, float, str)) and value and "type" in OPTIONS[key]:
                OPTIONS[key]["type"](str(value))
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UsageError(f"summary is damaged: {error}") from None
    # Slots given now replace those of the plan, in whatever way either were given.
    if given.keys() & {"devices", "gpus", "jobs"}:
        kept.pop("jobs", None)
    if {"device", "devices", "gpus", "jobs"} & {*given, *given.get("overrides", ())}:
        kept.pop("devices", None)
        kept.pop("gpus", None)
    return Options(**{**kept, **given})


def go_where(place: Any, folder: str) -> str:
    """Work where the batch was started, where that directory is still there; returns the batch's path from there."""
    if not isinstance(place, str) or not os.path.isdir(place):
        return folder
    folder = os.path.abspath(folder)
    os.chdir(place)
    inside = os.path.relpath(folder)
    return folder if inside.startswith("..") else inside


def changes_of_place(stored: StoredBatch, options: Options) -> list[str]:
    """What is not as it was when the batch was run last."""
    now = {**place_facts(), "train_script": options.train_script}
    before = {key: stored.summary.get(key, value) for key, value in now.items()}
    changed = [key for key, value in now.items() if before[key] != value]
    return [f"warning: {key.replace('_', ' ')} is {now[key]}, the batch had {before[key]}" for key in changed]


def plan_again(job: Job, stored: StoredBatch) -> None:
    """Plan what is run now, all that isn't completed and what --again names; what is left alone stays as it was.

    Overrides given now are laid over an experiment's own."""
    again = job.options.again
    named = {name for pattern in again for name in fnmatch.filter(stored.results, pattern)}
    if again and not named:
        raise UsageError(f"--again: no experiment of this name: {' '.join(again)}; see --status")
    for line in stored.plan.experiments:
        result = stored.results[line.name]
        source = choose_source(job, line, result)
        own = {**line.overrides, **line.sweep}
        now = {**own, **job.options.overrides}
        may_do_better = result.diverged and job.options.overrides
        if line.name in named or is_left(result) or may_do_better:
            job.to_run.append(line.name)
            job.plan.append(job.planner.experiment(line.name, line.config_path, now, line.sweep, source))
            continue
        if result.diverged:
            job.notes.append(f"{line.name}: diverged, left alone; override a setting, or name it with --again")
        elif now != own:
            job.notes.append(f"{line.name}: completed, left alone by what is overridden now; see --again")
        job.plan.append(plan_unchanged(job.planner, line, own, source))


def plan_unchanged(planner: Planner, line: PlannedExperiment, overrides: dict[str, str], source: str) -> Experiment:
    """What isn't run is known as far as the trainer still knows it."""
    with contextlib.suppress(UsageError):
        return planner.experiment(line.name, line.config_path, overrides, line.sweep, source)
    return Experiment(line.name, line.config_path, overrides, line.sweep, source=source)


def choose_source(job: Job, line: PlannedExperiment, result: Result) -> str:
    """The frozen copy of a config, or nothing where the original is read: what was interrupted continues with its
    copy, what failed or never started takes up an edited original."""
    ending = os.path.splitext(line.config_path)[1]
    used = os.path.join(job.folder, line.name, f"config_used{ending}")  # all that version 1.0.0 kept
    frozen = os.path.join(job.folder, PLAN, line.frozen) if line.frozen else used
    if not line.config_path or not os.path.isfile(frozen):
        return ""
    if not os.path.isfile(line.config_path):
        job.notes.append(f"{line.name}: config {line.config_path} has gone, its copy is used: {frozen}")
        return frozen
    before, now = job.planner.read(frozen).source, job.planner.read(line.config_path).source
    if before == now or same_code(before, now):
        return frozen
    if result.status is Status.COMPLETED:
        job.notes.append(f"{line.name}: completed, but its config has changed since: {line.config_path}")
    elif result.status in (Status.INTERRUPTED, Status.RUNNING):
        told = f"warning: {line.config_path} was edited; what was interrupted goes on with {frozen}"
        job.notes.append(f"{line.name}: {told}")
    else:
        job.notes.append(f"{line.name}: takes up the edited {line.config_path}")
        return ""
    return frozen


def wait_for_trainings(stored: StoredBatch, options: Options) -> None:
    """A training of a dead runner may still be about to end, by the hand of its guardian. Raises UsageError where one
    lives on."""
    deadline = time.monotonic() + 3 * min(options.grace, 60.0) + TERM_GAP + GIVE_UP
    for name, result in stored.results.items():
        if result.status in (Status.COMPLETED, Status.PENDING):
            continue  # neither has a training
        metadata = read_own(os.path.join(stored.folder, name), METADATA)
        while is_alive_here(metadata):
            if time.monotonic() > deadline:
                pid = metadata["pid"]
                raise UsageError(f"training {name} outlived its runner as pid {pid}; end it with: kill -KILL -- -{pid}")
            time.sleep(POLL)  # no event tells of another's child


def is_alive_here(metadata: Mapping[str, Any]) -> bool:
    pid = metadata.get("pid")
    if not isinstance(pid, int) or not 1 < pid < 1 << 31 or metadata.get("hostname") != os.uname().nodename:
        return False
    now = started_at(pid)
    return now == metadata.get("pid_started") if now else bool(Group(pid).members())


def show_batches(options: Options) -> int:
    """--status and --report: batches as their files tell them, whether they run, are finished or their runner died."""
    named = [*(options.status or ()), *(options.report or ())]
    stored = [read_batch(folder) for folder in batches_named(named or [options.base_out_dir])]
    sources = [PageSource(each.folder, each.summary, list(each.results.values())) for each in stored]
    if options.report is not None:
        common = os.path.commonpath([os.path.abspath(each.folder) for each in stored])
        place = stored[0].folder if len(stored) == 1 else os.path.relpath(common)
        try:
            print_whole([write_report(place, sources, {})])
        except OSError as error:
            raise UsageError(f"can't write the report: {place}: {error.strerror}") from None
    elif options.json:
        print_whole([json.dumps(status_json(sources))])
    else:
        print_whole(itertools.chain(*(each.notes for each in stored), status_lines(sources)))
    return 0


def batches_named(patterns: Iterable[str]) -> list[str]:
    """The batches that directories and quoted patterns name; of a directory of batches the newest one."""
    paths = [path for pattern in patterns for path in sorted(glob.glob(pattern), key=natural) or [pattern]]
    return list(dict.fromkeys(path if looks_like_batch(path) else newest_batch(path) for path in paths))


def status_json(sources: Sequence[PageSource]) -> dict[str, Any]:
    """What --json prints: of one batch its summary, of several the list of them, and a row for each experiment."""
    results = joined_results(sources)
    summaries = [source.summary for source in sources]
    if len(sources) == 1:
        told = {**summaries[0], "eta_seconds": batch_left(results, slot_count(summaries[0]))}
    else:
        told = {"state": joint_state(sources), "batches": summaries, "notes": shard_notes(summaries)}
    groups = list(map(vars, seed_groups(results)))
    return {**told, **count_statuses(results), "experiments": rows_of(results), "groups": groups}


def status_lines(sources: Sequence[PageSource]) -> list[str]:
    results, width = joined_results(sources), terminal_width()
    lines = [line for source in sources for line in batch_lines(source)]
    if len(sources) > 1:
        lines += shard_notes([source.summary for source in sources])
    return [*lines, *result_lines(results, width), *group_lines(seed_groups(results), width)]


def batch_lines(source: PageSource) -> list[str]:
    summary, results = source.summary, source.results
    left = batch_left(results, slot_count(summary))
    took = show_duration(summary_duration(summary))
    eta = "" if left is None else f", ETA {show_duration(left)}"
    state = clean(str(summary.get("state")))
    lines = [f"{clean(source.folder)}: {state}, {show_counts(count_statuses(results))}; {took}{eta}"]
    if summary.get("stopped_because"):
        lines.append(f"stopped because: {clean(str(summary['stopped_because']))}")
    return lines


def main(argv: Optional[Sequence[str]] = None) -> int:
    warnings.simplefilter("ignore")  # a config with an odd escape is no business of the user's here
    for descriptor in (0, 1, 2):  # started with one closed: no log may take its number
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        given = parse(words)
        if "status" in given or "report" in given:
            return show_batches(Options(**given))
        return resume_batch(given, words) if "resume" in given else new_batch(given, words)
    except UsageError as error:
        print_error(str(error))
        return 2
    except BatchHeld as error:
        print_error(f"another runner holds this batch: {error}")
        return 75
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
