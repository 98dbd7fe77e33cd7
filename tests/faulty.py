"""The runner with a fault of the test's choice: chosen calls of its own are slow, or fail, on chosen files."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path
from typing import Any, Optional

from tests.support import CHILD_TOOLS, PATIENCE, RUNNER, RunnerCase, is_running, wait_for, working_in

DRIVER = r"""
import builtins, errno, os, re, signal, subprocess, sys, threading, time

sys.path.insert(0, os.path.dirname(sys.argv[1]))
import run_experiments

real_close, real_open, real_write, exists = os.close, os.open, os.write, os.path.exists

def note(name, text=""):
    # a line in a file of the test's directory
    file = real_open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    real_write(file, f"{text}\n".encode())
    real_close(file)

def hold(name):
    # note that a call is held up, and hold it up until the test makes the file
    note(f"{name}_held")
    while not exists(name):
        time.sleep(0.01)

def fail(code):
    raise OSError(code, os.strerror(code))

def path_of(what):
    # of a descriptor or a path
    if not isinstance(what, int):
        return os.fsdecode(what)
    try:
        return os.readlink(f"/proc/self/fd/{what}")
    except OSError:
        return ""

def before(names, fault, module=os):
    # each call of these functions goes through the fault first, which may take its time or raise
    for name in names.split():
        def called(*args, call=getattr(module, name), **kwargs):
            fault(*args)
            return call(*args, **kwargs)
        setattr(module, name, called)

exec(sys.argv[2])
sys.argv[:] = [sys.argv[1], *sys.argv[3:]]
sys.exit(run_experiments.main())
"""
HIDE_PROC = """
def hidden(path=".", *_):
    if isinstance(path, (str, bytes)) and os.fsdecode(path).startswith("/proc"):
        fail(errno.ENOENT)

before("listdir scandir readlink open stat", hidden)
before("open", hidden, builtins)
"""  # a fault: a Linux without /proc
QUICK = "run_experiments.LINGER, run_experiments.TERM_GAP, run_experiments.STUCK = 0.4, 0.2, 0.3\n"  # it waits less
DEAF = (
    CHILD_TOOLS
    + """
def deaf():
    for name in ("INT", "TERM", "HUP"):
        signal.signal(getattr(signal, f"SIG{name}"), lambda *_: open("asked", "w").close())
    note_pid()
    live_on()
"""
)  # what a config's code may begin with: a process that only notes that it is asked to end


def stat_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, parent, group, session …; empty where it has gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def children(parent: int) -> list[int]:
    """The living children of a process."""
    pids = [int(each.name) for each in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids for stat in [stat_of(pid)] if stat[1:2] == [str(parent)] and stat[0] not in "ZX"]


@unittest.skipUnless(Path("/proc/self/fd").exists(), "faults find their files, and tests processes, in /proc")
class FaultyCase(RunnerCase):
    """Where a test fails, no process of it is left, whatever has become of the runner."""

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self.end_all)

    def end_all(self) -> None:
        while left := working_in(self.dir):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def start_faulty(self, faults: str, *args: Any, **options: Any) -> subprocess.Popen[str]:
        """The runner as a process that has run this code first, with the driver's functions at hand."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": self.dir, **options}
        command = [sys.executable, "-c", DRIVER, str(RUNNER), faults, *map(str, args)]
        process = subprocess.Popen(command, **options)
        self.runners.append(process)
        return process

    def said(self, runner: subprocess.Popen[str], expect: Optional[int] = None) -> str:
        """Wait until the runner ends by itself; returns all that it printed, no traceback among it."""
        out, err = runner.communicate(timeout=4 * PATIENCE)
        said = f"{out}\n{err}"
        self.assertNotIn("Traceback", said)
        if expect is not None:
            self.assertEqual(runner.returncode, expect, said)
        return said

    def lines(self, name: str) -> int:
        """How many lines a training or the driver has noted in a file by now."""
        with contextlib.suppress(FileNotFoundError):
            return (self.dir / name).read_bytes().count(b"\n")
        return 0

    def await_file(self, name: str) -> None:
        """Wait until a training or the driver has made a file."""
        wait_for((self.dir / name).exists, name)

    def assert_ended(self, pids: list[int]) -> None:
        wait_for(lambda: not any(map(is_running, pids)), f"the end of {pids}")
        self.assert_nothing_runs()
