#!/usr/bin/env python3
"""How the runner compares with its peers: `python3 tests/benchmark.py [--json] [--only NAME] [--scale F]`.

Each row is measured side by side in one run: the runner, the peer, the runner, the peer, …; medians of the rounds.
Not a test: it never fails on a timing. A peer that is not installed is skipped, and that is said. The files go to
the directory for temporary files (TMPDIR chooses another disk), up to 25 GB of them, and are removed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Callable, Optional

RUNNER = Path(__file__).resolve().parent.parent / "run_experiments.py"
GB = 10**9
MB = 10**6
LINE = 80  # bytes, its end included
PATIENCE = 60.0  # seconds that a process gets for what it does at once

WRITER_IN_C = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void put(const char *data, size_t size) {
    while (size) {
        ssize_t done = write(1, data, size);
        if (done < 0) exit(1);
        data += done, size -= done;
    }
}

int main(int argc, char **argv) {
    const char *what = argc > 2 ? argv[1] : "";
    static char block[819 * 80], loss[128];
    memset(block, 'x', sizeof block);
    for (size_t i = 79; i < sizeof block; i += 80) block[i] = '\n';
    if (!strcmp(what, "bulk"))
        for (long long rest = atoll(argv[2]); rest > 0; rest -= sizeof block)
            put(block, rest < (long long)sizeof block ? rest : sizeof block);
    else if (!strcmp(what, "lines"))
        for (long count = atol(argv[2]); count > 0; count--) put(block, 80);
    else if (!strcmp(what, "losses")) {
        long long rest = atoll(argv[2]);
        for (long step = 0; rest > 0; step++) {
            size_t size = step % 250 ? 0 : sprintf(loss, "step %ld: train loss 1.0000, val loss 2.0000\n", step);
            size += sprintf(loss + size, "iter %ld: loss %.4f, time 12.34ms, mfu 5.67%%\n", step, 1 + 1e3 / (step + 1e3));
            put(loss, size);
            rest -= size;
        }
    } else if (!strcmp(what, "started")) {
        FILE *file = fopen(argv[2], "a");
        fprintf(file, "%lld\n", now());
        fclose(file);
    } else if (!strcmp(what, "delays") && argc > 5) {  /* count, period in us, log, where the delays in ns go */
        long long due = now();
        FILE *delays = fopen(argv[5], "w");
        int log;
        while ((log = open(argv[4], O_RDONLY)) < 0) usleep(100);
        for (long i = 1; i <= atol(argv[2]); i++) {
            struct stat there;
            struct timespec until = {(due += atol(argv[3]) * 1000) / 1000000000, due % 1000000000};
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
            long long before = now(), after;
            put(block, 80);
            do fstat(log, &there), after = now();
            while (there.st_size < i * 80 && after - before < 1000000000);
            fprintf(delays, "%lld\n", after - before);
        }
        fclose(delays);
    } else return 2;
    return 0;
}
"""

WRITER_IN_PYTHON = r"""
import os, sys, time

def put(data):
    while data:
        data = data[os.write(1, data):]

what, size = sys.argv[1], int(sys.argv[2]) if sys.argv[2].isdigit() else 0
line = b"x" * 79 + b"\n"
if what == "bulk":
    block = line * 819
    for _ in range(size // len(block)):
        put(block)
    put(block[: size % len(block)])
elif what == "lines":
    for _ in range(size):
        os.write(1, line)
elif what == "losses":
    step = 0
    while size > 0:
        lines = [f"iter {n}: loss {1 + 1e3 / (n + 1e3):.4f}, time 12.34ms, mfu 5.67%\n" for n in range(step, step + 250)]
        block = f"step {step}: train loss 1.0000, val loss 2.0000\n{''.join(lines)}".encode()
        step += 250
        size -= len(block)
        put(block)
elif what == "started":
    with open(sys.argv[2], "a") as file:
        print(time.monotonic_ns(), file=file)
elif what == "delays":
    while not os.path.exists(sys.argv[4]):
        time.sleep(0.0001)
    log, due = os.open(sys.argv[4], os.O_RDONLY), time.monotonic_ns()
    with open(sys.argv[5], "w") as delays:
        for number in range(1, size + 1):
            due += int(sys.argv[3]) * 1000
            time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
            before = after = time.monotonic_ns()
            os.write(1, line)
            while os.fstat(log).st_size < number * len(line) and after - before < 10**9:
                after = time.monotonic_ns()
            print(after - before, file=delays)
"""


class Skip(Exception):
    """Why a row can't be measured here."""


@dataclass
class Row:
    """One line of the table. The ratio is the one that its goal speaks of."""

    name: str
    what: str
    against: str
    goal: str
    runner: str = ""
    peer: str = ""
    ratio: Optional[float] = None
    met: Optional[bool] = None
    note: str = ""


def show_seconds(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def show_speed(size: float, seconds: float) -> str:
    return f"{size / MB / seconds:.0f} MB/s"


def need(program: str, package: str) -> str:
    """The path of a peer; Skip where it is not installed."""
    path = shutil.which(program)
    if not path:
        raise Skip(f"{program} is not installed (Debian: {package})")
    return path


def need_linux() -> None:
    if sys.platform != "linux":
        raise Skip("is read from /proc, which only Linux has")


class Bench:
    """A directory with the writer in it, and the means to run and time things there."""

    def __init__(self, folder: Path, scale: float, rounds: int) -> None:
        self.folder, self.scale, self.rounds = folder, scale, rounds
        (folder / "train.py").touch()
        self.writer, self.in_c = self.make_writer(), (folder / "writer").exists()
        self.rows: list[Row] = []

    def row(self, name: str, what: str, against: str, goal: str) -> Row:
        """A row of the table, to be filled in with what is measured."""
        self.rows.append(Row(name, what, against, goal))
        return self.rows[-1]

    def make_writer(self) -> list[str]:
        source = self.folder / "writer.c"
        source.write_text(WRITER_IN_C)
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler:
            command = [compiler, "-O2", "-o", str(self.folder / "writer"), str(source)]
            if subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0:
                return [str(self.folder / "writer")]
        (self.folder / "writer.py").write_text(WRITER_IN_PYTHON)
        return [sys.executable, "-I", "-S", str(self.folder / "writer.py")]

    def scaled(self, number: float, unit: int = 1) -> int:
        """A size or count by the scale, a multiple of the unit."""
        return max(1, round(number * self.scale / unit)) * unit

    def configs(self, count: int) -> str:
        """A pattern that so many config files match."""
        place = self.folder / f"configs_{count}"
        if not place.exists():
            place.mkdir()
            for number in range(count):
                (place / f"run_{number:05}.py").touch()
        return str(place / "*.py")

    def runner_command(self, launcher: list[str], count: int = 1) -> list[str]:
        words = [sys.executable, str(RUNNER), "--quiet", "--train_script", "train.py", "--base_out_dir", "out"]
        return [*words, "--launcher", shlex.join(launcher), "--configs", self.configs(count)]

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def run(self, command: list[str]) -> float:
        """Seconds from start to end."""
        began = time.monotonic()
        status = self.start(command).wait()
        if status:
            raise Skip(f"exit code {status} of: {shlex.join(command)[:200]}")
        return time.monotonic() - began

    def capture(self, *what: str) -> float:
        """Seconds that the runner takes for what the writer writes."""
        return self.run(self.runner_command([*self.writer, *what]))

    def pipe(self, what: list[str], into: str) -> float:
        """Seconds that a shell pipeline takes for it."""
        return self.run(["sh", "-c", f"{shlex.join([*self.writer, *what])} | {into}"])

    def batch(self) -> Path:
        return (self.folder / "out" / "latest").resolve(strict=True)

    def check_size(self, size: int, *files: Path) -> None:
        """What lost a byte is no comparison."""
        for each in files:
            if each.stat().st_size < size:
                raise Skip(f"only {each.stat().st_size} of {size} bytes are in {each.name}")

    def clear(self) -> None:
        for each in (*self.folder.glob("*.log"), *self.folder.glob("*.txt")):
            each.unlink()
        for name in ("out", "results"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def side_by_side(self, *works: Callable[[], float]) -> list[float]:
        """The median of what each one measures, taken in turns."""
        measured: list[list[float]] = [[] for _ in works]
        for _ in range(self.rounds):
            for work, values in zip(works, measured):
                self.clear()
                values.append(work())
        self.clear()
        return [statistics.median(values) for values in measured]


# ------------------------------------------------------------------------------------------------- the rows


def captured(bench: Bench, row: Row, mode: str, amount: int, size: int, goal: float, into: str, logs: int) -> None:
    """Throughput of the runner against a pipeline that writes so many logs."""

    def by_runner() -> float:
        seconds = bench.capture(mode, str(amount))
        files = (bench.batch() / "run_00000" / f"{name}.log" for name in ("stdout", "combined"))
        bench.check_size(size, *files)
        return seconds

    def by_peer() -> float:
        seconds = bench.pipe([mode, str(amount)], into)
        bench.check_size(size, *[bench.folder / name for name in ("a.log", "b.log")[:logs]])
        return seconds

    mine, theirs = bench.side_by_side(by_runner, by_peer)
    row.runner, row.peer, row.ratio = show_speed(size, mine), show_speed(size, theirs), theirs / mine
    row.met = row.ratio >= goal


def bulk(bench: Bench) -> None:
    size = bench.scaled(GB, LINE)
    row = bench.row(
        "bulk", f"throughput, {size / MB:.0f} MB in bulk writes, all three logs", "tee a.log b.log", "≥ 1.5 ×"
    )
    captured(bench, row, "bulk", size, size, 1.5, f"{need('tee', 'coreutils')} a.log b.log > /dev/null", 2)


def lines(bench: Bench) -> None:
    count = bench.scaled(2 * MB)
    row = bench.row("lines", f"throughput, {count:,} single-line writes", "tee a.log b.log", "≥ 1.0 ×")
    captured(bench, row, "lines", count, count * LINE, 1.0, f"{need('tee', 'coreutils')} a.log b.log > /dev/null", 2)


def ts(bench: Bench) -> None:
    count = bench.scaled(2 * MB)
    row = bench.row("ts", f"throughput, {count:,} single-line writes", "ts '%F %H:%M:%.S'", "≥ 8 ×")
    captured(bench, row, "lines", count, count * LINE, 8.0, f"{need('ts', 'moreutils')} '%F %H:%M:%.S' > a.log", 1)


def memory(bench: Bench) -> None:
    few, many = bench.scaled(10 * MB, LINE), bench.scaled(10 * GB, LINE)
    row = bench.row(
        "memory", f"peak memory, {many / MB:,.0f} MB of output", f"itself, {few / MB:,.0f} MB", "≤ 1.1 ×, ≤ 30 MB"
    )
    need_linux()

    def peak(size: int) -> float:
        """Bytes, children included; what the benchmark itself uses counts as the least."""
        process = bench.start(bench.runner_command([*bench.writer, "bulk", str(size)]))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        bench.check_size(size, bench.batch() / "run_00000" / "stdout.log")
        bench.clear()
        return usage.ru_maxrss * 1024.0

    bench.clear()
    smallest, largest = statistics.median([peak(few) for _ in range(bench.rounds)]), peak(many)
    row.runner, row.peer, row.ratio = f"{largest / MB:.1f} MB", f"{smallest / MB:.1f} MB", largest / smallest
    row.met = row.ratio <= 1.1 and largest <= 30 * MB
    row.note = "largest: one run"


def delay(bench: Bench) -> None:
    count, tee = bench.scaled(2000), need("tee", "coreutils")
    row = bench.row("delay", f"write to stdout.log, p99 of {count:,} at 200 lines/s", "tee a.log b.log", "≤ 2 ×")

    def p99() -> float:
        delays = sorted(map(int, (bench.folder / "delays.txt").read_text().split()))
        if len(delays) < count:
            raise Skip(f"only {len(delays)} of {count} delays were measured")
        return delays[int(0.99 * (len(delays) - 1))] / 1e9

    def by_runner() -> float:
        bench.capture("delays", str(count), "5000", "{dir}/stdout.log", str(bench.folder / "delays.txt"))
        return p99()

    def by_tee() -> float:
        bench.pipe(["delays", str(count), "5000", "a.log", "delays.txt"], f"{tee} a.log b.log > /dev/null")
        return p99()

    mine, theirs = bench.side_by_side(by_runner, by_tee)
    row.runner, row.peer, row.ratio = show_seconds(mine), show_seconds(theirs), mine / theirs
    row.met = row.ratio <= 2


def cost(bench: Bench) -> None:
    count = bench.scaled(1000)
    row = bench.row(
        "cost", f"per experiment, {count:,} of `true`", "parallel -j1 --joblog J --results D true", "≤ 0.5 ×"
    )
    parallel = [need("parallel", "parallel"), "--will-cite", "-j1", "--joblog", "jobs.txt", "--results", "results"]
    names = [f"run_{number:05}" for number in range(count)]
    bench.configs(count)

    def by_parallel() -> float:
        return bench.run([*parallel, "true", ":::", *names]) / count

    mine, theirs = bench.side_by_side(lambda: bench.run(bench.runner_command(["true"], count)) / count, by_parallel)
    row.runner, row.peer, row.ratio = show_seconds(mine), show_seconds(theirs), mine / theirs
    row.met = row.ratio <= 0.5


def growth(bench: Bench) -> None:
    few, many = bench.scaled(100), bench.scaled(10_000)
    row = bench.row("growth", f"per experiment, {many:,} of `true`", f"itself, {few:,}", "≤ 1.2 ×")
    bench.configs(few), bench.configs(many)
    base = bench.run(bench.runner_command(["true"], 1))
    works = [lambda count=count: bench.run(bench.runner_command(["true"], count)) / count for count in (many, few)]
    mine, theirs = bench.side_by_side(*works)
    row.runner, row.peer, row.ratio = show_seconds(mine), show_seconds(theirs), mine / theirs
    row.met = row.ratio <= 1.2
    row.note = f"start and end of a batch of one: {show_seconds(base)}"


def start(bench: Bench) -> None:
    imports = "import argparse, subprocess"
    row = bench.row("start", "start to first child running, 3 configs", f'python3 -c "{imports}"', "≤ 2 ×")
    if not bench.in_c:
        raise Skip("needs a C compiler: a child in Python takes as long to start")

    def to_first_child() -> float:
        marks = bench.folder / "marks.txt"
        command = bench.runner_command([*bench.writer, "started", str(marks)], 3)
        began = time.monotonic_ns()
        bench.run(command)
        return (int(marks.read_text().split()[0]) - began) / 1e9

    rounds, bench.rounds = bench.rounds, 5 * bench.rounds  # they are short, and noisy
    bench.run([sys.executable, "-c", imports])
    mine, theirs = bench.side_by_side(to_first_child, lambda: bench.run([sys.executable, "-c", imports]))
    bench.rounds = rounds
    row.runner, row.peer, row.ratio = show_seconds(mine), show_seconds(theirs), mine / theirs
    row.met = row.ratio <= 2


def idle(bench: Bench) -> None:
    seconds = max(1.0, 30 * bench.scale)
    row = bench.row("idle", f"CPU while a training is silent for {seconds:.0f} s, no terminal", "-", "≤ 10 ms")
    need_linux()

    def cpu(pid: int) -> float:
        tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
        return sum(int(each.read_text().split()[0]) for each in tasks) / 1e9

    def used() -> float:
        ready = bench.folder / "ready.txt"
        code = f"echo > {shlex.quote(str(ready))}; exec sleep 1000"
        process = bench.start([*bench.runner_command(["sh", "-c", code]), "--grace", "0"])
        try:
            deadline = time.monotonic() + PATIENCE
            while not ready.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(1.0)  # what starting a training leaves to do is not the waiting for it
            before = cpu(process.pid)
            time.sleep(seconds)
            return cpu(process.pid) - before
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()

    (mine,) = bench.side_by_side(used)
    row.runner, row.met = show_seconds(mine) if mine else "0 s", mine <= 0.010


def many(bench: Bench) -> None:
    count = bench.scaled(10_000)
    rows = [
        bench.row("many", f"{option} of {count:,} experiments", "-", "≤ 1 s") for option in ("--status", "--report")
    ]
    bench.clear()
    bench.run(bench.runner_command(["true"], count))
    folder = str(bench.batch())
    times: dict[str, list[float]] = {"--status": [], "--report": []}
    for _ in range(bench.rounds):
        for option, values in times.items():
            values.append(bench.run([sys.executable, str(RUNNER), option, folder]))
    for row, values in zip(rows, times.values()):
        mine = statistics.median(values)
        row.runner, row.met = show_seconds(mine), mine <= 1


def page(bench: Bench) -> None:
    logs = 4
    size = bench.scaled(GB) // logs
    row = bench.row("page", f"--report of {logs * size / MB:,.0f} MB of logs", "-", "≤ 5 s")
    bench.clear()
    bench.run(bench.runner_command([*bench.writer, "losses", str(size)], logs))
    command = [sys.executable, str(RUNNER), "--report", str(bench.batch())]
    mine = statistics.median([bench.run(command) for _ in range(bench.rounds)])
    row.runner, row.met = show_seconds(mine), mine <= 5


BENCHMARKS = (bulk, lines, ts, memory, delay, cost, growth, start, idle, many, page)


# ---------------------------------------------------------------------------------------------- the program


def measure(bench: Bench, which: Callable[[Bench], None]) -> None:
    """Add the rows of a benchmark; one that can't be measured says why."""
    first = len(bench.rows)
    try:
        which(bench)
    except (Skip, OSError) as reason:
        for row in bench.rows[first:]:
            row.note = f"skipped: {reason}"
    bench.clear()


def table(rows: list[Row]) -> list[str]:
    """The rows as lines, in the form of Markdown."""
    cells = [["what", "against", "runner", "peer", "ratio", "goal", "met", "note"]]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} ×"
        met = {True: "met", False: "NOT met", None: "-"}[row.met]
        cells.append([row.what, row.against, row.runner, row.peer, ratio, row.goal, met, row.note])
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def machine() -> dict[str, object]:
    facts: dict[str, object] = {"cores": os.cpu_count(), "python": sys.version.split()[0], "system": os.uname().release}
    with contextlib.suppress(OSError):
        facts["load"] = [round(load, 2) for load in os.getloadavg()]
    return facts


def main() -> int:
    names = [each.__name__ for each in BENCHMARKS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument("--scale", type=float, default=1.0, metavar="F", help="sizes and counts times this (1)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="measurements to take the median of (3)")
    args = parser.parse_args()
    if not args.scale > 0 or args.rounds < 1:
        parser.error("--scale and --rounds: more than 0")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the files are removed
    before = machine()
    with tempfile.TemporaryDirectory(prefix="run_experiments_bench_") as folder:
        bench = Bench(Path(folder), args.scale, args.rounds)
        for each in BENCHMARKS:
            if not args.only or each.__name__ in args.only:
                print(f"{each.__name__} …", file=sys.stderr, flush=True)
                measure(bench, each)
    after = machine()
    if args.json:
        facts = {**before, "load_after": after.get("load"), "scale": args.scale, "rounds": args.rounds}
        facts["writer"] = "C" if bench.in_c else "Python"
        print(json.dumps({**facts, "rows": [asdict(row) for row in bench.rows]}, indent=1, ensure_ascii=False))
    else:
        print("\n".join(table(bench.rows)))
        print(f"medians of {args.rounds}; {before}; load after: {after.get('load')}; scale {args.scale:g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
