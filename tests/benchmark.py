#!/usr/bin/env python3
"""How the runner compares with its peers and with its goals: `python3 tests/benchmark.py [ROW ...] [--rounds N]`.

Prints one table. In each row the runner and what it is compared with are measured in the same run and in turns, and
the figures are medians of the rounds, with the lowest and the highest. ROW runs those rows whose names contain it;
`--small` takes a hundredth of each size, to see whether the benchmark works: its figures say nothing.

Throughput is that of the capture: bytes by the time from the training's start to its end, which the training notes by
itself. It is the same program (benchmark.c) whoever captures it, and can't end before all but a pipe is taken.

Not a test: a goal that is missed is said, and that is all. Needs Linux and `cc`; a peer that isn't installed is
skipped. Files go to the directory for temporary files (TMPDIR chooses another disk), up to 25 GB, and are removed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

RUNNER = Path(__file__).resolve().parent.parent / "run_experiments.py"
SOURCE = Path(__file__).resolve().with_suffix(".c")
GB = 10**9
MB = 10**6
PATIENCE = 120.0  # seconds until what must happen soon has failed
FIRST = "out/latest/run_00000"  # the first experiment's directory
IMPORTS = "import argparse, subprocess"

# Runs the runner with each sync taking so many seconds: SECONDS RUNNER ARGS... A signal doesn't end a real sync.
WITH_SLOW_SYNCS = """
import os, signal, sys, time

def slowed(sync):
    def slow(descriptor):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        time.sleep(seconds)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        sync(descriptor)
    return slow

seconds, runner = float(sys.argv[1]), sys.argv[2]
os.fsync, os.fdatasync = slowed(os.fsync), slowed(os.fdatasync)
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(runner))
del sys.argv[:2]
import run_experiments
sys.exit(run_experiments.main())
"""


class Skip(Exception):
    """Why a row can't be measured here."""


# ----------------------------------------------------------------------------------------------- the table


@dataclass
class Figures:
    """What the rounds of a row gave, in its unit: the runner's, and what it is compared with, if anything."""

    unit: str
    mine: list[float] = dataclasses.field(default_factory=list)
    theirs: list[float] = dataclasses.field(default_factory=list)
    note: str = ""

    @property
    def figure(self) -> float:
        return statistics.median(self.mine)

    @property
    def other(self) -> float:
        return statistics.median(self.theirs)

    @property
    def ratio(self) -> float:
        return self.figure / self.other if self.other else float("inf")


@dataclass(frozen=True)
class Goal:
    """In words, and as a test; without one a row is only told."""

    text: str
    met: Optional[Callable[[Figures], bool]] = None


Measure = Callable[["Bench"], Figures]


@dataclass(frozen=True)
class Row:
    name: str
    what: str
    against: str
    goal: Goal
    measure: Measure


ROWS: list[Row] = []


def row(name: str, what: str, against: str, goal: Goal) -> Callable[[Measure], Measure]:
    """Makes a row of the function that measures it."""

    def add(measure: Measure) -> Measure:
        ROWS.append(Row(name, what, against, goal, measure))
        return measure

    return add


TOLD = Goal("told")


def at_least(ratio: float) -> Goal:
    return Goal(f"≥ {ratio:g} ×", lambda figures: figures.ratio >= ratio)


def at_most(ratio: float) -> Goal:
    return Goal(f"≤ {ratio:g} ×", lambda figures: figures.ratio <= ratio)


def within(seconds: float) -> Goal:
    return Goal(f"≤ {show(seconds, 's')}", lambda figures: figures.figure <= seconds)


def little_more(seconds: float) -> Goal:
    return Goal(f"≤ {show(seconds, 's')} more", lambda figures: figures.figure - figures.other <= seconds)


def flat_memory(limit: float) -> Goal:
    """In MB (10^6 bytes)."""
    return Goal(
        f"same within 1 MB, ≤ {limit:g} MB",
        lambda figures: abs(figures.figure - figures.other) <= 1 and figures.figure <= limit,
    )


def show(value: float, unit: str) -> str:
    """A figure with its unit; seconds become milliseconds or microseconds where these are easier to read."""
    if unit != "s":
        return f"{value:.{0 if value >= 100 else 1}f} {unit}"
    for name, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value / 1e-6:.3g} µs"


def show_rounds(values: list[float], unit: str) -> str:
    if not values:
        return "-"
    spread = f" ({show(min(values), unit)} to {show(max(values), unit)})" if len(values) > 1 else ""
    return show(statistics.median(values), unit) + spread


def cells(row: Row, figures: Figures) -> list[str]:
    ratio = f"{figures.ratio:.3g} ×" if figures.theirs else "-"
    met = "-"
    if row.goal.met:
        met = "met" if row.goal.met(figures) else "NOT met"
    mine, theirs = (show_rounds(values, figures.unit) for values in (figures.mine, figures.theirs))
    return [row.name, row.what, mine, row.against, theirs, ratio, row.goal.text, met, figures.note]


def table(rows: list[list[str]]) -> list[str]:
    """The rows as lines, in the form of Markdown."""
    titles = ["row", "what", "runner", "against", "its figure", "ratio", "goal", "met", "note"]
    widths = [max(map(len, column)) for column in zip(titles, *rows)]
    lines = [[text.ljust(width) for text, width in zip(row, widths)] for row in (titles, *rows)]
    lines.insert(1, ["-" * width for width in widths])
    return [f"| {' | '.join(line)} |" for line in lines]


# ------------------------------------------------------------------------------------- to run and time things


@dataclass(frozen=True)
class Bench:
    """A directory for configs, logs and batches, and the means to run and time things there."""

    folder: Path
    program: str  # the compiled benchmark.c
    scale: float
    rounds: int

    def scaled(self, number: int) -> int:
        return max(2, round(number * self.scale))

    def training(self, mode: str, *words: object) -> list[str]:
        """The command of a training of benchmark.c that notes what it measured in `marks`."""
        return [self.program, mode, str(self.folder / "marks"), *map(str, words)]

    def options(self, training: list[str], count: int = 1) -> list[str]:
        """What makes the runner run so many experiments, with this command standing before the training script."""
        (self.folder / "train.py").touch()
        configs = self.folder / f"configs_{count}"
        if not configs.exists():
            configs.mkdir()
            for number in range(count):
                (configs / f"run_{number:05}.py").touch()
        words = ["--quiet", "--train_script", "train.py", "--base_out_dir", "out", "--launcher", shlex.join(training)]
        return [*words, "--configs", f"{configs}/*.py"]

    def runner(self, training: list[str], count: int = 1, *more: str) -> list[str]:
        return [sys.executable, str(RUNNER), *self.options(training, count), *more]

    def pipeline(self, training: list[str], into: str) -> list[str]:
        """The same training with its output going into a line of shell."""
        return ["sh", "-c", f"{shlex.join(training)} | {into}"]

    @contextlib.contextmanager
    def running(self, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
        """A process that gets TERM, if it still runs at the end."""
        process = subprocess.Popen(command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()

    def run(self, command: list[str]) -> float:
        """Seconds from start to end."""
        began = time.monotonic()
        with self.running(command) as process:
            code = process.wait()
        seconds = time.monotonic() - began
        if code:
            raise RuntimeError(f"exit code {code} of {shlex.join(command)[:200]}")
        return seconds

    def marks(self) -> list[list[int]]:
        """The lines that trainings have noted so far."""
        try:
            text = (self.folder / "marks").read_text()
        except FileNotFoundError:
            return []
        return [[int(word) for word in line.split()] for line in text.splitlines()]

    def wait_for_marks(self, count: int, patience: float = PATIENCE) -> list[list[int]]:
        deadline = time.monotonic() + patience
        while len(self.marks()) < count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(self.marks())} of {count} trainings noted what they measured")
            time.sleep(0.002)
        return self.marks()

    def clear(self) -> None:
        """Remove what the measurement before has left, all but the configs."""
        for path in (*self.folder.glob("*.log"), self.folder / "marks", self.folder / "joblog"):
            path.unlink(missing_ok=True)
        for name in ("out", "results"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def in_turns(self, unit: str, mine: Callable[[], float], theirs: Optional[Callable[[], float]] = None) -> Figures:
        """What both give, measured one after the other in each round, from an empty directory each time."""
        figures = Figures(unit)
        for _ in range(self.rounds):
            self.clear()
            figures.mine.append(mine())
            if theirs:
                self.clear()
                figures.theirs.append(theirs())
        return figures


def need(program: str, package: str) -> str:
    path = shutil.which(program)
    if not path:
        raise Skip(f"{program} is not installed (Debian: {package})")
    return path


# ------------------------------------------------------------------------------------------------ throughput


def throughput(bench: Bench, command: list[str], *logs: str) -> float:
    """MB/s from the training's start to its end, by its own marks. What lost a byte is no comparison."""
    bench.run(command)
    began, ended, size = bench.wait_for_marks(1, patience=0)[0]
    for log in logs:
        there = (bench.folder / log).stat().st_size
        if there < size:
            raise RuntimeError(f"{log}: {there} of {size} bytes")
    return size / MB / ((ended - began) / 1e9)


def captured(bench: Bench, training: list[str]) -> float:
    """The runner's throughput."""
    return throughput(bench, bench.runner(training), f"{FIRST}/stdout.log", f"{FIRST}/combined.log")


def compared(bench: Bench, training: list[str], peer: list[str], *logs: str) -> Figures:
    return bench.in_turns("MB/s", lambda: captured(bench, training), lambda: throughput(bench, peer, *logs))


@row("bulk-c", "1 GB in bulk, all three logs", "the same job in C", at_least(0.55))
def bulk_against_c(bench: Bench) -> Figures:
    """Both read the same writes, and write stdout.log and the stamped combined.log."""
    training = bench.training("bulk", bench.scaled(GB))
    peer = bench.pipeline(training, f"{shlex.quote(bench.program)} capture")
    return compared(bench, training, peer, "stdout.log", "combined.log")


@row("bulk-shell", "1 GB in bulk, all three logs", "tee stdout.log | ts", at_least(15))
def bulk_against_shell(bench: Bench) -> Figures:
    """As above; the shell's way gets a tenth of the bytes, for it is slow."""
    into = f"{need('tee', 'coreutils')} stdout.log | {need('ts', 'moreutils')} '%F %H:%M:%.S [STDOUT]' > combined.log"
    peer = bench.pipeline(bench.training("bulk", bench.scaled(GB // 10)), into)
    return compared(bench, bench.training("bulk", bench.scaled(GB)), peer, "stdout.log", "combined.log")


@row("lines", "2 M writes of a line", "tee a.log b.log", at_least(1))
def single_lines(bench: Bench) -> Figures:
    """A write(2) for each line. tee writes as many logs as the runner, and stamps nothing."""
    training = bench.training("lines", bench.scaled(2 * MB))
    peer = bench.pipeline(training, f"{need('tee', 'coreutils')} a.log b.log > /dev/null")
    return compared(bench, training, peer, "a.log", "b.log")


@row("losses", "2 M lines with losses, in bulk", "itself without losses", TOLD)
def lines_with_losses(bench: Bench) -> Figures:
    """Lines as nanoGPT prints them, and others of the same length in which no loss can be read."""
    losses, words = (bench.training(mode, bench.scaled(2 * MB)) for mode in ("losses", "words"))
    return bench.in_turns("MB/s", lambda: captured(bench, losses), lambda: captured(bench, words))


# -------------------------------------------------------------------------------------------- an experiment's cost


def per_experiment(bench: Bench) -> Figures:
    """Seconds from the runner's start to its end by the number of experiments, each of them `true`."""
    count = bench.scaled(1000)
    words = ["--will-cite", "-j1", "--joblog", "joblog", "--results", "results", "true", ":::"]
    parallel = [need("parallel", "parallel"), *words, *map(str, range(count))]
    return bench.in_turns(
        "s", lambda: bench.run(bench.runner(["true"], count)) / count, lambda: bench.run(parallel) / count
    )


@row("cost-disk", "per experiment, 1,000 of `true`", "parallel -j1", at_most(0.75))
def per_experiment_on_disk(bench: Bench) -> Figures:
    if file_system(bench.folder) == "tmpfs":
        raise Skip("temporary files are on a tmpfs; set TMPDIR")
    return per_experiment(bench)


@row("cost-tmpfs", "per experiment, on a tmpfs", "parallel -j1", at_most(0.6))
def per_experiment_on_tmpfs(bench: Bench) -> Figures:
    if not os.access("/dev/shm", os.W_OK):
        raise Skip("no /dev/shm")
    with tempfile.TemporaryDirectory(prefix="run_experiments_bench_", dir="/dev/shm") as folder:
        return per_experiment(dataclasses.replace(bench, folder=Path(folder)))


@row("growth", "per experiment, 10,000 of `true`", "itself, 100 of them", at_most(1.2))
def growth(bench: Bench) -> Figures:
    """Seconds for each experiment of `true` after the first one, in a batch of 10,000 and in one of 100."""

    def each(count: int) -> float:
        first = bench.run(bench.runner(["true"]))
        return (bench.run(bench.runner(["true"], count)) - first) / (count - 1)

    return bench.in_turns("s", lambda: each(bench.scaled(10_000)), lambda: each(bench.scaled(100)))


def file_system(folder: Path) -> str:
    """The type of the file system that a directory is on, as the kernel calls it."""
    place = str(folder.resolve())
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    around = [(len(point), kind) for point, kind in mounts if f"{place}/".startswith(point.rstrip("/") + "/")]
    return max(around)[1]


# ------------------------------------------------------------------------------------------------ start, delays


def first_child(bench: Bench, command: list[str]) -> float:
    """Seconds from the runner's start until its first training is in its main()."""
    began = time.monotonic_ns()
    with bench.running(command):
        return (bench.wait_for_marks(1)[0][0] - began) / 1e9


@row("start", "start to first child running", f'python3 -c "{IMPORTS}"', at_most(2.4))
def start(bench: Bench) -> Figures:
    """Three configs; against a Python that imports what any such program must. Five times the rounds: it is short."""
    often = dataclasses.replace(bench, rounds=5 * bench.rounds)
    command = bench.runner(bench.training("started"), 3)
    imports = [sys.executable, "-c", IMPORTS]
    return often.in_turns("s", lambda: first_child(bench, command), lambda: bench.run(imports))


@row("plan", "start to first child, sweep of 10,000", "-", within(2))
def plan(bench: Bench) -> Figures:
    """One config, and the product of two settings with 100 values each."""
    values = ",".join(map(str, range(bench.scaled(100))))
    command = bench.runner(bench.training("started"), 1, "--sweep", f"seed={values}", "--sweep", f"n_layer={values}")
    return bench.in_turns("s", lambda: first_child(bench, command))


@row("delay", "write to stdout.log, p50", "tee a.log b.log", at_most(3))
def delay(bench: Bench) -> Figures:
    """The training writes a line each 5 ms and looks at the log without a pause until the line is there."""
    count = bench.scaled(2000)
    ours = bench.runner(bench.training("delays", count, f"{FIRST}/stdout.log"))
    tee = f"{need('tee', 'coreutils')} a.log b.log > /dev/null"
    theirs = bench.pipeline(bench.training("delays", count, "a.log"), tee)
    tails: dict[str, list[float]] = {"runner": [], "tee": []}

    def p50(command: list[str], who: str) -> float:
        bench.run(command)
        delays = sorted(line[0] / 1e9 for line in bench.marks())
        tails[who].append(delays[int(0.99 * (len(delays) - 1))])
        return statistics.median(delays)

    figures = bench.in_turns("s", lambda: p50(ours, "runner"), lambda: p50(theirs, "tee"))
    figures.note = "p99: " + ", ".join(f"{who} {show(statistics.median(each), 's')}" for who, each in tails.items())
    return figures


# --------------------------------------------------------------------------------------------------- slow syncs


def hold(bench: Bench, seconds: float) -> tuple[float, float]:
    """Seconds: the longest write of a long training, and from the runner's TERM to the last training's signal.

    Three long trainings write all the time, while short ones come and go in a fourth slot: each start and end of
    these is a sync. A moment after the end of the second one, while its result is synced, the runner gets TERM.
    """
    long, short = [1000, 1001, 1002], [1, 2, 3]  # seconds; different ones, so that each is an experiment
    lives = ",".join(map(str, long + short))
    options = [*bench.options(bench.training("steady")), "--jobs", "4", "--sweep", f"life={lives}"]
    with bench.running([sys.executable, "-c", WITH_SLOW_SYNCS, str(seconds), str(RUNNER), *options]) as process:
        bench.wait_for_marks(2)
        time.sleep(0.3 * max(0.2, bench.scale))
        sent = time.monotonic_ns()
        process.terminate()
        process.wait()
    ended = [mark for mark in bench.marks() if mark[0] in long and mark[2]]
    if len(ended) < len(long):
        raise RuntimeError(f"{len(ended)} of {len(long)} trainings were stopped by a signal")
    return max(mark[1] for mark in ended) / 1e9, (max(mark[2] for mark in ended) - sent) / 1e9


def held(bench: Bench, which: int) -> Figures:
    slow = max(0.2, bench.scale)
    return bench.in_turns("s", lambda: hold(bench, slow)[which], lambda: hold(bench, 0)[which])


@row("sync-write", "longest write, each sync takes 1 s", "quick syncs", little_more(0.1))
def sync_write(bench: Bench) -> Figures:
    return held(bench, 0)


@row("sync-stop", "TERM to the last training's signal, the same syncs", "quick syncs", little_more(0.1))
def sync_stop(bench: Bench) -> Figures:
    return held(bench, 1)


# ---------------------------------------------------------------------------------------- memory, CPU, big batches


def peak(bench: Bench, size: int) -> float:
    """The last VmHWM of the runner's own process, looked at each 5 ms until it ended, in MB (10^6 bytes)."""
    if shutil.disk_usage(bench.folder).free < 3 * size:
        raise Skip(f"needs {3 * size / GB:g} GB of disk")
    kilobytes = 0
    with bench.running(bench.runner(bench.training("bulk", size))) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)
            kilobytes = int(found[1]) if found else kilobytes
            time.sleep(0.005)
    if (bench.folder / FIRST / "stdout.log").stat().st_size < size:
        raise RuntimeError("stdout.log is not whole")
    return kilobytes * 1024 / MB


@row("memory", "peak memory, 10 GB of output", "itself, 10 MB", flat_memory(29))
def memory(bench: Bench) -> Figures:
    few, many = bench.scaled(10 * MB), bench.scaled(10 * GB)
    return bench.in_turns("MB", lambda: peak(bench, many), lambda: peak(bench, few))


@row("idle", "CPU in 30 silent seconds", "-", within(0.01))
def idle(bench: Bench) -> Figures:
    """Seconds of CPU of all threads of the runner, counted from a second after the training's start."""
    ready = bench.folder / "marks"
    command = bench.runner(["sh", "-c", f"echo 0 > {shlex.quote(str(ready))}; exec sleep 1000"])

    def used(pid: int) -> float:
        threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
        return sum(int(each.read_text().split()[0]) for each in threads) / 1e9

    def once() -> float:
        with bench.running([*command, "--grace", "1"]) as process:
            bench.wait_for_marks(1)
            time.sleep(1)
            before = used(process.pid)
            time.sleep(max(1, 30 * bench.scale))
            return used(process.pid) - before

    return bench.in_turns("s", once)


def shown(bench: Bench, option: str) -> Figures:
    """Seconds that `--status` or `--report` takes for the newest batch."""
    command = [sys.executable, str(RUNNER), option, str((bench.folder / "out" / "latest").resolve(strict=True))]
    return Figures("s", [bench.run(command) for _ in range(bench.rounds)])


@functools.cache
def large_batch(bench: Bench) -> Bench:
    """A place of its own, with a batch of 10,000 experiments that have run, kept for all rows that look at one."""
    kept = dataclasses.replace(bench, folder=bench.folder / "large")
    kept.folder.mkdir()
    kept.run(kept.runner(["true"], kept.scaled(10_000)))
    return kept


@row("status", "--status of 10,000 experiments", "-", within(1))
def status_of_many(bench: Bench) -> Figures:
    return shown(large_batch(bench), "--status")


@row("report", "--report of 10,000 experiments", "-", within(1))
def report_of_many(bench: Bench) -> Figures:
    return shown(large_batch(bench), "--report")


@row("page", "--report of 1 GB of logs", "-", within(5))
def page(bench: Bench) -> Figures:
    """Four experiments, with 250 MB of nanoGPT's lines each."""
    bench.run(bench.runner(bench.training("losses", bench.scaled(5_200_000)), 4))
    return shown(bench, "--report")


# ------------------------------------------------------------------------------------------------------- shards


@row("shard-plan", "planning one of 100 shards of 10,000", "-", within(2))
def shard_plan(bench: Bench) -> Figures:
    """Seconds of a dry run; the note has its peak memory, in MB (10^6 bytes), for which the goal is 60."""
    values = ",".join(map(str, range(bench.scaled(100))))
    command = bench.runner(["true"], 1, "--sweep", f"seed={values}", "--sweep", f"n_layer={values}")
    command += ["--shard", "2/100", "--dry_run"]
    peaks: list[float] = []

    def once() -> float:
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=bench.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        usage = os.wait4(process.pid, 0)[2]
        process.returncode = 0  # it is reaped
        peaks.append(usage.ru_maxrss * 1024 / MB)
        return time.monotonic() - began

    figures = bench.in_turns("s", once)
    figures.note = f"peak memory {statistics.median(peaks):.1f} MB"
    return figures


@functools.cache
def shards(bench: Bench) -> list[str]:
    """A hundred batches of a hundred experiments: one that has run, and its copies."""
    kept = dataclasses.replace(bench, folder=bench.folder / "shards")
    kept.folder.mkdir()
    kept.run(kept.runner(["true"], kept.scaled(100)))
    batch = (kept.folder / "out" / "latest").resolve(strict=True)
    places = [kept.folder / "job" / str(number) for number in range(kept.scaled(100))]
    for place in places:
        shutil.copytree(batch, place)
    return list(map(str, places))


@row("shards-status", "--status over 100 batches of 100", "-", within(1))
def shards_status(bench: Bench) -> Figures:
    command = [sys.executable, str(RUNNER), "--status", *shards(bench)]
    return Figures("s", [bench.run(command) for _ in range(bench.rounds)])


@row("shards-page", "--report over 100 batches of 100", "-", within(2))
def shards_page(bench: Bench) -> Figures:
    """The note has the page's size, for which the goal is 5 MB."""
    places = shards(bench)
    command = [sys.executable, str(RUNNER), "--report", *places]
    figures = Figures("s", [bench.run(command) for _ in range(bench.rounds)])
    figures.note = f"{Path(places[0]).parent.joinpath('report.html').stat().st_size / MB:.1f} MB"
    return figures


# -------------------------------------------------------------------------------------------------- the program


def measured(row: Row, bench: Bench) -> list[str]:
    """The row's cells; where it can't be measured, why."""
    try:
        return cells(row, row.measure(bench))
    except (Skip, RuntimeError, OSError) as reason:
        told = "skipped" if isinstance(reason, Skip) else "FAILED"
        return [row.name, row.what, "-", row.against, "-", "-", row.goal.text, told, str(reason)]
    finally:
        bench.clear()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], epilog=f"rows: {', '.join(row.name for row in ROWS)}"
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="only rows whose names contain this")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="measurements to take the median of (3)")
    parser.add_argument("--small", action="store_true", help="a hundredth of each size: does the benchmark work?")
    args = parser.parse_args()
    args.chosen = [row for row in ROWS if not args.rows or any(word in row.name for word in args.rows)]
    if args.rounds < 1 or not args.chosen:
        parser.error("--rounds: more than 0" if args.chosen else "no such row")
    return args


def main() -> int:
    args = parse()
    compiler = shutil.which("cc")
    if not compiler or sys.platform != "linux":
        sys.exit("error: the benchmark needs Linux and a C compiler (cc)")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the files are removed
    load, lines = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory(prefix="run_experiments_bench_") as folder:
        bench = Bench(Path(folder), f"{folder}/benchmark", 0.01 if args.small else 1.0, args.rounds)
        subprocess.run([compiler, "-O2", "-o", bench.program, str(SOURCE)], check=True)
        for each in args.chosen:
            print(f"{each.name} …", file=sys.stderr, flush=True)
            lines.append(measured(each, bench))
        facts = f"{os.cpu_count()} cores, files on {file_system(bench.folder)}"
    print("\n".join(table(lines)))
    facts += f", Python {sys.version.split()[0]}, load {load:.1f} to {os.getloadavg()[0]:.1f}"
    print(f"medians of {args.rounds} (lowest to highest); {facts}" + "; SMALL: figures say nothing" * args.small)
    return 1 if any("FAILED" in line for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
