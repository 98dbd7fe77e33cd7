"""The live block on real terminals: a pty with a model of its screen, a shell with job control, tmux."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import unittest
from typing import Any

import run_experiments as runner
from tests.support import CHILD_TOOLS, RUNNER, RunnerCase, wait_for
from tests.terminal import Screen, Terminal

STEPS = (
    CHILD_TOOLS
    + "max_iters = 100\nprint('iter 0: loss 4.0, time 1ms', flush=True)\nawait_file('on')\n"
    + "print('iter 50: loss 3.5, time 1ms\\nstep 50: train loss 3.5, val loss 3.25', flush=True)\nawait_file('go')"
)
OF_BLOCK = re.compile(r"(?m)^\S+ +iter \d.*$|^(?:\d+ [a-z]+, )*\d+ running\b.*$")


class ScreenTest(unittest.TestCase):
    """The model itself: a wrong one would let everything pass."""

    def shown(self, *parts: str, columns: int = 10) -> list[str]:
        screen = Screen(4, columns)
        for part in parts:
            screen.feed(part.encode())
        self.assertEqual(screen.strange, [])
        return screen.visible().split("\n")[:-1]

    def test_it_writes_over_wraps_and_erases(self) -> None:
        self.assertEqual(self.shown("abc\rx\r\ny"), ["xbc", "y"])
        self.assertEqual(self.shown("0123456789ab"), ["0123456789", "ab"])
        self.assertEqual(self.shown("0123456789\r\nab"), ["0123456789", "ab"])
        self.assertEqual(self.shown("abc\r\ndef\r\n\x1b[2A\rx\x1b[K\r\ny"), ["x", "yef", ""])
        self.assertEqual(self.shown("abc\r\ndef\r\n\x1b[2", "Ax\x1b[J"), ["x", "", ""])
        self.assertEqual(self.shown(*[f"{n}\r\n" for n in range(6)], "\x1b[9A\rtop"), ["top", "4", "5", ""])

    def test_a_resize_wraps_anew(self) -> None:
        screen = Screen(4, 10)
        screen.feed(b"0123456789abcde\r\nxy\r\n")
        screen.resize(6, 5)
        self.assertEqual(screen.visible(), "01234\n56789\nabcde\nxy\n\n")
        screen.feed(b"\x1b[1Az")
        self.assertEqual(screen.visible(), "01234\n56789\nabcde\nzy\n\n")
        screen.resize(6, 20)
        self.assertEqual(screen.visible(), "0123456789abcde\nzy\n")

    def test_what_it_does_not_know_is_noted(self) -> None:
        screen = Screen(4, 10)
        screen.feed(b"\x1b[31mred\x07\x1b]0;title\x07\x1b[2J")
        self.assertEqual(screen.strange, ["\x1b[31m", "\x07", "\x1b]0;title\x07", "\x1b[2J"])


class LiveTest(RunnerCase):
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
        terminal.wait(r"1 completed\n\$")
        terminal.type(b"exit\n")
        self.assertEqual(terminal.ended(), 0)

    def assert_one_block(self, text: str, running: int) -> None:
        """The screen ends with a line for each of so many experiments and one for the batch, and has no others."""
        found = OF_BLOCK.findall(text)
        self.assertEqual(len(found), running + 1, text)
        self.assertEqual(text.rstrip("\n").split("\n")[-running - 1 :], found, text)

    def test_the_block_stands_under_the_events_at_every_moment(self) -> None:
        for name in "ab":
            self.config(name, STEPS)
        self.config("c", CHILD_TOOLS + "await_file('last')")
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

    def test_a_resize_leaves_one_block_and_every_event(self) -> None:
        self.config("first", STEPS)
        self.config("second", STEPS)
        terminal = self.on_terminal("--configs", "first.py", "second.py", "--jobs", 2, columns=110)
        terminal.wait(r"\nsecond +iter 0/100.*\n2 running")
        terminal.resize(24, 42)
        self.go("on")
        self.assert_one_block(terminal.wait(r"\nfirst +iter 50/100.*\nsecond +iter 50/100.*\n2 running"), 2)
        terminal.resize(9, 42)
        terminal.resize(24, 130)
        self.assert_one_block(terminal.wait(r"(?s)\nfirst +iter 50/100[^\n]* 3\.2500[^\n]*\nsecond .*\n2 running"), 2)
        self.go("go")
        self.assertEqual(terminal.ended(), 0)
        terminal.screen.resize(24, 400)
        for event in (r"first: started", r"second: started", r"first: step 50", r"second: completed", "2 completed\n"):
            self.assertEqual(len(re.findall(event, terminal.screen.text())), 1, event)
        self.assertEqual(OF_BLOCK.findall(terminal.screen.text()), [])

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
        for width, height, running in ((60, 24, 12), (60, 8, 5), (130, 30, 12)):
            ask("resize-window", "-x", str(width), "-y", str(height))
            text = shows(rf"(?:\A|\n)run_00 +iter 0.*\n(?:run_\d\d +iter 0.*\n){{{running - 1}}}12 running.*\s*\Z")
            self.assert_one_block(text, running)
        ask("send-keys", "C-c")
        wait_for((self.dir / "over").exists, "the end of the runner")
        self.assertEqual(OF_BLOCK.findall(shows(r"continue with: ")), [])

    def test_no_name_and_no_value_paints_the_terminal(self) -> None:
        odd = "a\x1b[31m\x07\x1b]0;owned\x07\u202eb"
        self.config(odd, f"print({odd!r} + 'step 5: train loss 1.0, val loss 2.0')\nraise ValueError({odd!r})")
        words = ["--configs", f"{odd}.py", "--base_out_dir", f"out{odd}", "--tag", odd, "--sweep", f"word={odd},{odd}2"]
        terminal = self.on_terminal(*words, "--follow")
        self.assertEqual(terminal.ended(), 1)
        status = self.on_terminal("--status", "--base_out_dir", f"out{odd}")
        self.assertEqual(status.ended(), 0)
        self.assertEqual(terminal.screen.strange + status.screen.strange, [])
        self.assertIn("2 failed", status.screen.text())

    def test_colours_are_never_used_so_no_color_is_honoured(self) -> None:
        self.config("one", "raise ValueError('x')")
        terminal = self.on_terminal("--configs", "one.py", NO_COLOR="1")
        self.assertEqual(terminal.ended(), 1)
        self.assertNotRegex(terminal.raw, rb"\x1b\[[\d;]*m")

    def test_quiet_shows_nothing_on_a_terminal(self) -> None:
        self.config("one", "print('step 5: train loss 1.0, val loss 2.0')")
        terminal = self.on_terminal("--configs", "one.py", "--quiet")
        self.assertEqual((terminal.ended(), terminal.raw), (0, b""))

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


class TableTest(unittest.TestCase):
    def test_a_table_is_columns_of_what_there_is(self) -> None:
        results = [
            runner.Result(
                config_name="a",
                status="completed",
                duration_seconds=61.0,
                max_iters=5,
                metrics=runner.Metrics(5, 1.0, 2.0, 1.5, 3),
                settings={"lr": 0.1, "name": "x" * 30},
            ),
            runner.Result(
                config_name="b", status="failed", duration_seconds=1.0, error="one\nline", settings={"lr": 0.01}
            ),
            runner.Result(config_name="longer", metrics=runner.Metrics(7, 1.0, 3.0, 3.0, 7), settings={"name": True}),
        ]
        self.assertEqual(
            runner.table(results),
            [
                "experiment  status     step  val loss  best val loss  duration  lr    name                  error",
                "a           completed   5/5    2.0000        1.5000*      1m1s  0.1   xxxxxxxxxxxxxxxxxxx…",
                "b           failed                                          1s  0.01                        one?line",
                "longer      pending       7    3.0000         3.0000         -        True",
            ],
        )

    def test_of_one_experiment_nothing_is_best(self) -> None:
        one = runner.Result(config_name="a", metrics=runner.Metrics(5, 1.0, 2.0, 1.5, 3))
        self.assertNotIn("*", "".join(runner.table([one])))


class StatusTest(RunnerCase):
    def test_a_batch_that_lost_its_summary_is_shown_from_its_experiments(self) -> None:
        self.config("good", "print('step 5: train loss 1.0, val loss 2.0')")
        self.config("bad", "raise ValueError('no')")
        self.run_runner("--configs", "good.py", "bad.py", expect=1)
        (self.batch() / "experiment_summary.json").unlink()
        out = self.run_runner("--status", expect=0).stdout
        self.assertRegex(out, r"(?m)^good +completed +5 +2\.0000")
        self.assertRegex(out, r"(?m)^bad +failed .*ValueError: no$")
        report = self.run_runner("--report", expect=0).stdout
        self.assertTrue((self.dir / report.strip()).is_file())

    def test_the_settings_that_differ_have_columns_and_the_others_have_none(self) -> None:
        self.config("a", "learning_rate = 0.1\nbatch_size = 8")
        self.config("b", "learning_rate = 0.2\nbatch_size = 8")
        self.run_runner("--configs", "a.py", "b.py", expect=0)
        lines = self.run_runner("--status", expect=0).stdout.splitlines()
        self.assertRegex(lines[1], r"\blearning_rate\b")
        self.assertNotRegex(lines[1], "batch_size")
        self.assertRegex(lines[2], r"^a +.* 0\.1\b")

    def test_json_has_the_batch_and_a_row_for_each_experiment(self) -> None:
        self.config("a", "learning_rate = 1e999\nprint('step 5: train loss 1.0, val loss -inf')")
        self.config("b", CHILD_TOOLS + "max_iters = 9\nlearning_rate = 0.1\nprint('ready')\nawait_file('go')")
        process = self.start("--configs", "a.py", "b.py")
        self.wait_for_line("b", b"ready\n")
        self.wait_for_event("b: started")
        (self.dir / "status.json").write_text(self.run_runner("--status", "--json", expect=0).stdout)
        told = self.json(self.dir / "status.json")
        head = set("timestamp state start_time command sweep total_experiments completed running eta_seconds".split())
        self.assertLessEqual(head, set(told))
        self.assertEqual((told["state"], told["completed"], told["running"]), ("running", 1, 1))
        first, second = told["experiments"]
        keys = "name status progress step train_loss val_loss best_val_loss best_step best duration_seconds"
        self.assertLessEqual(set(f"{keys} eta_seconds settings error hint attempts".split()), set(first))
        self.assertEqual((first["val_loss"], first["settings"]["learning_rate"]), ("-inf", "inf"))
        self.assertEqual((second["name"], second["status"], second["eta_seconds"]), ("b", "running", None))
        self.go("go")
        self.ended(process, 0)


if __name__ == "__main__":
    unittest.main()
