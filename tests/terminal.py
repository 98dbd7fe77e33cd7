"""A terminal for the tests: a pty, and a model of the screen behind it."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from tests.support import wait_for

TOKEN = re.compile(r"\x1b\[[?\d;]*[@-~]|\x1b\][^\x07]*\x07|\x1b[^\[\]]|[\r\n\b\x07]|[^\x1b\r\n\b\x07]+")


class Screen:
    """What a terminal shows: text that wraps, \\r, \\n, cursor up, erase."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.lines: list[list[str]] = [[]]  # with those that have left the screen at its top
        self.top = self.row = self.column = 0
        self.strange: list[str] = []  # what a plain terminal need not know
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.rest = ""

    def feed(self, data: bytes) -> None:
        text, at = self.rest + self.decoder.decode(data), 0
        while match := TOKEN.match(text, at):
            at = match.end()
            self.act(match[0])
        self.rest = text[at:]  # half a sequence

    def act(self, token: str) -> None:
        if token == "\r":
            self.column = 0
        elif token == "\n":
            self.down()
        elif token == "\b":
            self.column = max(0, self.column - 1)
        elif token[0] not in "\x1b\x07":
            self.put(token)
        elif re.fullmatch(r"\x1b\[\d*A", token):
            self.row = max(self.top, self.row - int(token[2:-1] or 1))
        elif token == "\x1b[K":
            del self.lines[self.row][self.column :]
        elif token == "\x1b[J":
            del self.lines[self.row][self.column :]
            for line in self.lines[self.row + 1 :]:
                line.clear()
        else:
            self.strange.append(token)

    def put(self, text: str) -> None:
        for letter in text:
            wide = 2 if unicodedata.east_asian_width(letter) in "WF" else 1
            if self.column + wide > self.columns:
                self.column = 0
                self.down()
            line = self.lines[self.row]
            line += " " * (self.column + wide - len(line))
            line[self.column : self.column + wide] = [letter, *[""] * (wide - 1)]
            self.column += wide

    def down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append([])
        self.top = max(self.top, self.row - self.rows + 1)

    def text(self, since: int = 0) -> str:
        return "\n".join("".join(line).rstrip() for line in self.lines[since:]) + "\n"

    def visible(self) -> str:
        return self.text(self.top)


class Terminal:
    """A command whose controlling terminal is a pty, and what its screen shows."""

    def __init__(self, command: Sequence[str], folder: Path, rows: int = 24, columns: int = 120, **env: str) -> None:
        self.screen, self.raw = Screen(rows, columns), b""
        self.end, other = pty.openpty()
        os.set_blocking(self.end, False)
        fcntl.ioctl(self.end, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        # The first terminal that the leader of a session opens is its controlling terminal.
        take_it = ["sh", "-c", 'tty=$1; shift; exec "$@" <>"$tty" >&0 2>&0', "sh", os.ttyname(other), *command]
        environment = {**os.environ, "TERM": "xterm", **env}
        self.process = subprocess.Popen(take_it, cwd=folder, env=environment, start_new_session=True)
        self.other = other  # kept open, so that the screen is there after the command's end

    def close(self) -> None:
        for each in (self.end, self.other):
            os.close(each)

    def type(self, keys: bytes) -> None:
        os.write(self.end, keys)

    def take(self) -> str:
        """Take in what has been written by now; returns what the screen shows."""
        with contextlib.suppress(BlockingIOError):
            while select.select([self.end], [], [], 0)[0]:
                data = os.read(self.end, 1 << 16)
                self.raw += data
                self.screen.feed(data)
        return self.screen.visible()

    def wait(self, pattern: str) -> str:
        """The screen, once it shows this."""
        try:
            wait_for(lambda: re.search(pattern, self.take()), f"{pattern!r} on the screen")
        except AssertionError as error:
            raise AssertionError(f"{error}; it shows:\n{self.take()}") from None
        return self.screen.visible()

    def ended(self) -> int:
        """The exit code, once all that was written is on the screen."""
        wait_for(lambda: (self.take(), self.process.poll() is not None)[1], "the end of the command")
        self.take()
        return self.process.returncode
