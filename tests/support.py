"""What the tests share: a directory of their own, the runner as a real process, waiting with a deadline."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import py_compile
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import unittest
from pathlib import Path
from typing import Any, Callable, Optional

import run_experiments as runner

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
RUNNER = ROOT / "run_experiments.py"
CHILD = (TESTS / "child.py").read_text(encoding="utf-8")
CHILD_TOOLS = CHILD.partition("config = ")[0]  # for code of another trainer
ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\x7f"  # a terminal's commands, which none must get
UNSHOWN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # what can paint a terminal
if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # as below `python3 -m unittest &` in a script: runners would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
PATIENCE = 60.0  # seconds: how long a test waits for what must come; never how long something may take


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """Wait until the condition is true and return its value; fail the test when patience ends."""
    deadline = time.monotonic() + PATIENCE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain for {what}")
        time.sleep(0.004)


def is_running(pid: int) -> bool:
    """Whether a process lives; a zombie that nobody has reaped yet does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return not Path("/proc/self").exists()


@functools.cache
def compiled_runner() -> str:
    """The runner as bytecode under its own name: Python compiles a file that it starts each time, for half of the time
    that the start takes."""
    folder = tempfile.mkdtemp(prefix="run_experiments_test_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(py_compile.compile(str(RUNNER), os.path.join(folder, RUNNER.name), doraise=True))


class RunnerCase(unittest.TestCase):
    """Each test has a directory of its own, in which the runner works; configs hold the code that `child.py` runs."""

    def setUp(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="run_experiments_test_"))
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        (self.dir / "train_run.py").write_text(CHILD, encoding="utf-8")
        self.runners: list[subprocess.Popen[str]] = []
        self.addCleanup(self.end_runners)

    def end_runners(self) -> None:
        for each in self.runners:
            if each.poll() is None:
                each.send_signal(signal.SIGINT)
                try:
                    each.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    each.kill()
            each.communicate()

    def config(self, name: str, code: str = "") -> Path:
        """A config file `name`.py whose code is the training."""
        path = self.dir / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")
        return path

    def start(self, *args: Any, **options: Any) -> subprocess.Popen[str]:
        """The runner as a process, its output captured; keyword arguments are Popen's."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": self.dir, **options}
        process = subprocess.Popen([sys.executable, compiled_runner(), *map(str, args)], **options)
        self.runners.append(process)
        return process

    def run_runner(self, *args: Any, expect: Optional[int] = None, **options: Any) -> subprocess.CompletedProcess[str]:
        """The runner from start to end; with `expect`, its exit code is checked."""
        if not options:
            return self.forked(*args, expect=expect)
        process = self.start(*args, **options)
        out, err = process.communicate(timeout=4 * PATIENCE)
        if expect is not None:
            self.assertEqual(process.returncode, expect, f"stdout:\n{out}\nstderr:\n{err}")
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def forked(self, *args: Any, expect: Optional[int] = 0) -> subprocess.CompletedProcess[str]:
        """The same in a fork of the tests, which is faster; with `expect=None`, any exit code is good."""
        done = Forked(self.dir, *args).ended()
        if expect is not None:
            self.assertEqual(done.returncode, expect, f"stdout:\n{done.stdout}\nstderr:\n{done.stderr}")
        return done

    def planned(self, *args: Any) -> dict[str, list[str]]:
        """Name -> command, of what a dry run would start."""
        lines = self.forked("--dry_run", *args).stdout.splitlines()
        pairs = [
            (line, lines[at]) for at, line in enumerate(lines[:-1], 1) if re.match(r"# \S+: (starts|continues)", line)
        ]
        return {line[2:].partition(":")[0]: shlex.split(command) for line, command in pairs}

    def strict_trainer(self, settings: str, body: str = "") -> None:
        """A trainer with these settings and a configurator as strict as the real ones."""
        source = f"import os, sys\nout_dir = 'out'\n{settings}\nexec(open('configurator.py').read())\n{body}\n"
        (self.dir / "train_run.py").write_text(source)
        (self.dir / "configurator.py").write_bytes((TESTS / "configurator.py").read_bytes())

    def batch(self) -> Path:
        """The newest batch."""
        return (self.dir / "experiments" / "latest").resolve(strict=True)

    def summary(self) -> dict[str, Any]:
        return self.json(self.batch() / "experiment_summary.json")

    def statuses(self) -> dict[str, str]:
        """Name -> status, of the newest batch."""
        return {name: result["status"] for name, result in self.summary()["results"].items()}

    def result(self, name: str) -> dict[str, Any]:
        return self.json(self.batch() / name / "experiment_result.json")

    def json(self, path: Path) -> dict[str, Any]:
        """A JSON object, read as strictly as other languages' parsers do."""

        def refuse(text: str) -> None:
            raise AssertionError(f"{path} holds {text}, which is not JSON")

        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
        assert isinstance(value, dict)
        return value

    def log(self, name: str, stream: str = "stdout") -> bytes:
        """A log's bytes so far; empty where there is none yet."""
        with contextlib.suppress(OSError):
            return (self.batch() / name / f"{stream}.log").read_bytes()
        return b""

    def wait_for_line(self, name: str, line: bytes, stream: str = "stdout") -> None:
        wait_for(lambda: line in self.log(name, stream), f"{line!r} in {name}/{stream}.log")

    def go(self, name: str) -> None:
        """Make the file that a child awaits."""
        (self.dir / name).touch()

    def pids(self, count: int) -> list[int]:
        """The processes that have noted their pid, once there are so many."""

        def noted() -> list[int]:
            with contextlib.suppress(FileNotFoundError):
                return [int(line) for line in (self.dir / "pids").read_text().split("\n")[:-1]]
            return []

        wait_for(lambda: len(noted()) >= count, f"{count} processes of the training")
        return noted()

    def master_log(self) -> str:
        with contextlib.suppress(OSError):
            return (self.batch() / "master_log.txt").read_text(encoding="utf-8")
        return ""

    def wait_for_event(self, pattern: str) -> None:
        """Wait until the master log of the newest batch tells of it."""
        wait_for(lambda: re.search(pattern, self.master_log()), f"{pattern!r} in the master log")

    def ended(self, process: subprocess.Popen[str], expect: Optional[int] = None) -> str:
        """Wait until the runner ends by itself; returns what it printed."""
        out, err = process.communicate(timeout=4 * PATIENCE)
        if expect is not None:
            self.assertEqual(process.returncode, expect, f"stdout:\n{out}\nstderr:\n{err}")
        return str(out or "")

    def assert_nothing_runs(self) -> None:
        """No process works in the test's directory any more (a zombie does not work)."""
        wait_for(lambda: not working_in(self.dir), f"the end of {working_in(self.dir)}")


def working_in(folder: Path) -> list[int]:
    """The processes whose working directory this is, as far as /proc knows; the caller excepted."""
    found, real = [], os.path.realpath(folder)
    for each in Path("/proc").glob("[0-9]*"):
        pid = int(each.name)
        with contextlib.suppress(OSError):
            if pid != os.getpid() and os.readlink(each / "cwd") == real and is_running(pid):
                found.append(pid)
    return found


class Forked:
    """The runner in a fork of this process: it parses, plans and runs as one that was started, but at once."""

    def __init__(self, folder: Path, *args: Any, first: Callable[[], None] = lambda: None) -> None:
        """Before the runner, the fork does what comes first."""
        self.args, self.code = list(map(str, args)), -1
        self.streams = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            code = 70
            try:
                for number, stream in enumerate(self.streams, 1):
                    os.dup2(stream.fileno(), number)
                first()
                os.chdir(folder)
                sys.argv = ["run_experiments.py", *self.args]
                code = runner.main()
                sys.stdout.flush()
            except SystemExit as ended:  # --help and --version
                sys.stdout.flush()
                code = int(ended.code or 0)
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(code)

    def has_ended(self) -> bool:
        if self.pid:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid, self.code = 0, os.waitstatus_to_exitcode(status)
        return not self.pid

    def ended(self) -> subprocess.CompletedProcess[str]:
        wait_for(self.has_ended, f"the end of a runner with {self.args}")
        texts = []
        for stream in self.streams:
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
            stream.close()
        self.streams = []
        return subprocess.CompletedProcess(self.args, self.code, *texts)
