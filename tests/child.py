"""A trainer for the tests: it runs the config's own code, with `out_dir`, `overrides` and what is defined here at hand."""

import os
import signal
import sys
import time
from typing import Any


def await_file(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.01)


def note_pid() -> None:
    with open("pids", "a") as file:
        file.write(f"{os.getpid()}\n")


def live_on() -> None:
    while True:
        time.sleep(60)


def fork_off(what: Any, *args: Any) -> None:
    if not os.fork():
        try:
            what(*args)
        finally:
            os._exit(0)


def deaf(number: int = signal.SIGTERM) -> None:
    signal.signal(number, signal.SIG_IGN)


config = next(arg for arg in sys.argv[1:] if not arg.startswith("--"))
overrides = dict(arg[2:].split("=", 1) for arg in sys.argv[1:] if arg.startswith("--"))
out_dir = overrides.pop("out_dir", "")
with open(config, encoding="utf-8") as file:
    exec(compile(file.read(), config, "exec"))
