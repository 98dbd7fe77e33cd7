"""The console: a live block on a terminal, plain lines elsewhere, and none of it ever stops a batch."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import unittest
from typing import Any

from tests.support import PATIENCE, RUNNER, RunnerCase, wait_for
from tests.terminal import Terminal

STEPS = (
    "max_iters = 100\nprint('iter 0: loss 4.0, time 1ms', flush=True)\nawait_file('on')\n"
    + "print('iter 50: loss 3.5, time 1ms\\nstep 50: train loss 3.5, val loss 3.25', flush=True)\nawait_file('go')"
)
OF_BLOCK = re.compile(r"(?m)^\S+ +iter \d.*$|^\.\.\. and \d+ more$|^(?:\d+ [a-z]+, )*\d+ running\b.*$")


class TerminalTest(RunnerCase):
    def on_terminal(self, *words: Any, rows: int = 24, columns: int = 120, **env: str) -> Terminal:
        """A command on a terminal of its own; the runner, where the words begin with an option."""
        command = [str(word) for word in words]
        if command[0].startswith("--"):
            command = [sys.executable, str(RUNNER), *command]
        terminal = Terminal(command, self.dir, rows, columns, **env)
        self.addCleanup(terminal.close)
        self.runners.append(terminal.process)  # type: ignore[arg-type]
        return terminal

    def shell(self) -> Terminal:
        terminal = self.on_terminal("bash", "--norc", "--noprofile", "-i", PS1="$ ", HISTFILE="")
        terminal.wait(r"(?m)^\$")
        return terminal

    def end_in_shell(self, terminal: Terminal) -> None:
        """Let the training end, see the shell's prompt behind the runner's last line, and leave the shell."""
        self.go("go")
        terminal.wait(r"1 completed\n.*report\.html\n\$")
        terminal.type(b"exit\n")
        self.assertEqual(terminal.ended(), 0)

    def assert_one_block(self, text: str, running: int) -> None:
        """The screen ends with so many lines for experiments and one for the batch, and has no others."""
        found = OF_BLOCK.findall(text)
        self.assertEqual(len(found), running + 1, text)
        self.assertEqual(text.rstrip("\n").split("\n")[-running - 1 :], found, text)

    def test_the_block_stands_under_the_events_at_every_moment(self) -> None:
        for name in "ab":
            self.config(name, STEPS)
        self.config("c", "await_file('last')")
        terminal = self.on_terminal("--configs", "a.py", "b.py", "c.py", "--jobs", 2)
        self.assert_one_block(terminal.wait(r"a +iter 0/100.*\nb +iter 0/100.*\n1 pending, 2 running"), 2)
        self.go("on")
        text = terminal.wait(r"a +iter 50/100 .* 3\.2500.*\nb +iter 50/100 .* 3\.2500.*\n1 pending, 2 running")
        self.assert_one_block(text, 2)
        self.assertRegex(text, r"a: step 50: train loss 3\.5, val loss 3\.25\n")
        self.go("go")
        self.assert_one_block(terminal.wait(r"\nc +iter 0 .*\n2 completed, 1 running"), 1)
        self.go("last")
        self.assertEqual(terminal.ended(), 0)
        self.assertEqual(OF_BLOCK.findall(terminal.screen.text()), [])
        self.assertEqual(len(re.findall(r"[abc]: completed after", terminal.screen.text())), 3)
        self.assertEqual(terminal.screen.strange, [])

    def test_thirty_running_in_ten_rows_and_nothing_is_left_after_ctrl_c(self) -> None:
        for number in range(30):
            self.config(f"run_{number:02}", "import time\ntime.sleep(600)")
        terminal = self.on_terminal("--configs", "run_*.py", "--jobs", 30, rows=10)
        text = terminal.wait(r"(?m)^30 running")
        shown = len(OF_BLOCK.findall(text)) - 1
        self.assertIn(shown, range(5, 9))
        self.assert_one_block(text, shown)
        terminal.type(b"\x03")
        self.assertEqual(terminal.ended(), 130)
        self.assertEqual(OF_BLOCK.findall(terminal.screen.text()), [])
        self.assertRegex(terminal.screen.text(), r"30 interrupted\n.*continue with: ")
        self.assertNotIn("^C", terminal.screen.text())

    @unittest.skipUnless(shutil.which("bash"), "bash is missing")
    def test_ctrl_z_gives_the_shell_a_clean_terminal_and_fg_goes_on(self) -> None:
        self.config("one", STEPS)
        terminal = self.shell()
        terminal.type(f"{sys.executable} {RUNNER} --configs one.py\n".encode())
        self.assert_one_block(terminal.wait(r"\none +iter 0/100.*\n1 running"), 1)
        terminal.type(b"\x1a")
        text = terminal.wait(r"Stopped .*(?:\n.*)*\n\$")
        self.assertEqual(OF_BLOCK.findall(text), [])
        self.assertNotIn("^Z", text)
        self.go("on")
        terminal.type(b"fg\n")
        self.assert_one_block(terminal.wait(r"\none +iter 50/100.*\n1 running"), 1)
        self.end_in_shell(terminal)

    @unittest.skipUnless(shutil.which("tmux"), "tmux is missing")
    def test_tmux_shows_one_block_through_resizes_and_none_after_ctrl_c(self) -> None:
        for number in range(12):
            self.config(f"run_{number:02}", STEPS)
        tmux = ["tmux", "-L", "test", "-f", "/dev/null"]

        def ask(*words: str) -> str:
            env = {**{key: each for key, each in os.environ.items() if key != "TMUX"}, "TMUX_TMPDIR": str(self.dir)}
            done = subprocess.run([*tmux, *words], cwd=self.dir, env=env, capture_output=True, text=True, timeout=60)
            self.assertEqual(done.returncode, 0, done.stderr)
            return done.stdout

        def shows(pattern: str) -> str:
            def screen() -> str:
                text = ask("capture-pane", "-p")
                return text if re.search(pattern, text) else ""

            return str(wait_for(screen, f"{pattern!r} in tmux"))

        command = f"{sys.executable} {RUNNER} --configs 'run_*.py' --jobs 12; touch over; exec cat"
        ask("new-session", "-d", "-x", "120", "-y", "24", command)
        self.addCleanup(ask, "kill-server")
        self.assert_one_block(shows(r"\nrun_00 +iter 0/100(?:.*\n)+12 running"), 12)
        for width, height, shown, more in ((60, 24, 12, ""), (60, 8, 4, r"\.\.\. and 8 more\n"), (130, 30, 12, "")):
            ask("resize-window", "-x", str(width), "-y", str(height))
            rows = rf"(?:run_\d\d +iter 0.*\n){{{shown - 1}}}"
            text = shows(rf"(?:\A|\n)run_00 +iter 0.*\n{rows}{more}12 running.*\s*\Z")
            self.assert_one_block(text, shown + bool(more))
        ask("send-keys", "C-c")
        wait_for((self.dir / "over").exists, "the end of the runner")
        self.assertEqual(OF_BLOCK.findall(shows(r"continue with: ")), [])

    def test_with_stdout_in_a_pipe_there_is_no_block_that_its_lines_could_tear(self) -> None:
        self.config("one", STEPS)
        terminal = self.on_terminal("sh", "-c", f"{sys.executable} {RUNNER} --configs one.py | cat")
        self.go("on")
        terminal.wait(r"one: step 50")
        self.go("go")
        self.assertEqual(terminal.ended(), 0)
        self.assertNotIn(b"\x1b", terminal.raw)
        self.assertRegex(terminal.screen.text(), r"one: completed after")

    @unittest.skipUnless(shutil.which("bash"), "bash is missing")
    def test_in_the_background_it_draws_no_block_over_what_the_shell_does(self) -> None:
        self.config("one", STEPS)
        terminal = self.shell()
        terminal.type(f"{sys.executable} {RUNNER} --configs one.py &\n".encode())
        self.go("on")
        terminal.wait(r"one: step 50")
        self.assertNotIn(b"1 running", terminal.raw)
        terminal.type(b"fg\n")
        self.assert_one_block(terminal.wait(r"one +iter 50/100.*\n1 running"), 1)
        self.end_in_shell(terminal)

    def test_with_stdout_in_a_file_the_block_is_on_the_terminal_and_the_file_is_plain(self) -> None:
        self.config("one", STEPS)
        terminal = self.on_terminal("sh", "-c", f"exec {sys.executable} {RUNNER} --configs one.py >out.txt")
        self.assert_one_block(terminal.wait(r"one +iter 0/100.*\n1 running"), 1)
        self.go("on")
        self.go("go")
        self.assertEqual(terminal.ended(), 0)
        self.assertEqual(terminal.screen.text().strip(), "")
        text = (self.dir / "out.txt").read_text()
        self.assertRegex(text, r"one: completed after")
        self.assertEqual([each for each in text if not each.isprintable() and each != "\n"], [])

    def test_a_dumb_terminal_gets_plain_lines_and_with_quiet_none_gets_any(self) -> None:
        self.config("one", "print('step 5: train loss 1.0, val loss 2.0')")
        dumb = self.on_terminal("--configs", "one.py", TERM="dumb")
        quiet = self.on_terminal("--configs", "one.py", "--quiet")
        self.assertEqual((dumb.ended(), quiet.ended()), (0, 0))
        self.assertNotIn(b"\x1b", dumb.raw)
        self.assertIn(b"1 completed", dumb.raw)
        self.assertEqual(quiet.raw, b"")


class FollowTest(RunnerCase):
    def test_follow_copies_the_output_and_names_the_experiment_where_several_run(self) -> None:
        self.config("a", "import sys\nprint('to out')\nprint('to err', file=sys.stderr)")
        self.config("b", "print('of b')")
        out = self.run_runner("--configs", "a.py", "--follow", expect=0).stdout
        self.assertRegex(out, r"(?m)^to out$")
        self.assertRegex(out, r"(?m)^to err$")
        out = self.run_runner("--configs", "a.py", "b.py", "--follow", "--jobs", 2, expect=0).stdout
        self.assertRegex(out, r"(?m)^a: to out$")
        self.assertRegex(out, r"(?m)^b: of b$")


class TroubleTest(RunnerCase):
    def pipe(self) -> tuple[int, int]:
        reads, writes = os.pipe()
        self.addCleanup(lambda: [self.close(each) for each in (reads, writes)])
        return reads, writes

    @staticmethod
    def close(descriptor: int) -> None:
        with contextlib.suppress(OSError):
            os.close(descriptor)

    def test_a_reader_that_closes_the_pipe_after_the_first_line_does_not_stop_the_batch(self) -> None:
        self.config("a", "await_file('go')")
        self.config("b", "print('b')")
        reads, writes = self.pipe()
        runner = self.start("--configs", "a.py", "b.py", stdout=writes)
        os.close(writes)
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(reads, 1)
        os.close(reads)
        self.go("go")
        self.ended(runner, 0)
        self.assertEqual(self.statuses(), {"a": "completed", "b": "completed"})
        self.assertRegex(self.master_log(), r"2 completed")

    def test_a_runner_that_is_started_with_closed_streams_works_and_its_logs_are_its_own(self) -> None:
        self.config("a", "print('out')\nimport sys\nprint('err', file=sys.stderr)")
        for closed in (">&-", ">&- 2>&-", "<&- >&- 2>&-"):
            with self.subTest(closed):
                shutil.rmtree(self.dir / "experiments", ignore_errors=True)
                command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, str(RUNNER), "--configs", "a.py"]
                self.assertEqual(subprocess.run(command, cwd=self.dir, timeout=PATIENCE).returncode, 0)
                self.assertEqual(self.log("a"), b"out\n")
                self.assertEqual(self.log("a", "stderr"), b"err\n")
                self.assertRegex(self.master_log().splitlines()[-1], "1 completed")

    def test_a_full_disk_under_the_console_does_not_stop_the_batch(self) -> None:
        if not os.path.exists("/dev/full"):
            self.skipTest("no /dev/full")
        self.config("a")
        with open("/dev/full", "w") as full:
            runner = self.start("--configs", "a.py", stdout=full)
        self.ended(runner, 0)

    def test_a_locale_without_utf_8_does_not_stop_the_batch(self) -> None:
        self.config("größe", "import os\nos.write(1, 'ß\\n'.encode())")
        self.config("bad", "raise ValueError('Größe')")
        plain = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
        strict = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        for extra in ({"LANG": "C"}, {"LC_ALL": "C"}, strict, {**strict, "PYTHONIOENCODING": "ascii:strict"}):
            with self.subTest(extra):
                shutil.rmtree(self.dir / "experiments", ignore_errors=True)
                runner = self.start("--configs", "*.py", env={**plain, **extra}, errors="replace")
                self.ended(runner, 1)
                by_path = {result["config_path"]: result for result in self.summary()["results"].values()}
                done = next(each for path, each in by_path.items() if path.startswith("gr"))
                self.assertEqual(done["status"], "completed")
                self.assertEqual(self.log(done["config_name"]), "ß\n".encode())
                self.assertRegex(by_path["bad.py"]["error"], r"ValueError: Gr")
