"""What people see: the live block on a real terminal, plain lines elsewhere, --status, --follow."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
import unittest
from datetime import datetime
from pathlib import Path
from typing import Any

import run_experiments as runner
from tests.support import CHILD_TOOLS, PATIENCE, RUNNER, RunnerCase, is_running, wait_for


class Screen:
    """As much of a terminal as the runner uses: text, \\r, \\n, cursor up, erase to the end of line and screen."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.lines = [""]
        self.row = self.column = 0
        self.draws = 0

    def feed(self, text: str) -> None:
        for part in re.findall(r"\x1b\[\d*[A-Za-z]|\x1b.|[\r\n]|[^\x1b\r\n]+", text):
            if part == "\r":
                self.column = 0
            elif part == "\n":
                self.down()
            elif part[0] != "\x1b":
                self.put(part)
            elif part[-1] == "A":
                self.row -= int(part[2:-1])
                self.draws += 1
                if self.row < 0:
                    raise AssertionError("the cursor left the screen")
            elif part[-1] == "K":
                self.lines[self.row] = self.lines[self.row][: self.column]
            elif part[-1] == "J":
                self.lines[self.row :] = [self.lines[self.row][: self.column]]
            else:
                raise AssertionError(f"unknown sequence {part!r}")

    def put(self, text: str) -> None:
        for letter in text:
            if self.column == self.columns:
                self.column = 0
                self.down()
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + letter + line[self.column + 1 :]
            self.column += 1

    def down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")


class TerminalTest(RunnerCase):
    def on_terminal(self, *args: Any, columns: int = 150, rows: int = 24, **env: str) -> int:
        """The runner on a terminal of its own; returns the terminal's other side."""
        self.screen = Screen(columns)
        self.pid, terminal = pty.fork()
        if not self.pid:
            with contextlib.suppress(BaseException):
                os.chdir(self.dir)
                fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
                settings = {"TERM": "xterm", **env}
                os.execve(sys.executable, [sys.executable, str(RUNNER), *map(str, args)], {**os.environ, **settings})
            os._exit(99)
        self.addCleanup(os.close, terminal)
        self.raw = ""
        return terminal

    def read(self, terminal: int) -> bool:
        """Take in what the terminal shows within a moment; false at its end."""
        if select.select([terminal], [], [], 0.05)[0]:
            try:
                data = os.read(terminal, 65536).decode(errors="replace")  # a letter may be cut in two
            except OSError:
                return False
            self.raw += data
            self.screen.feed(data)
        return True

    def wait_until(self, terminal: int, pattern: str) -> str:
        """The screen, once it shows this."""

        def shown() -> str:
            self.read(terminal)
            text = "\n".join(self.screen.lines)
            return text if re.search(pattern, text) else ""

        return str(wait_for(shown, f"{pattern!r} on the screen"))

    def exit_code(self, terminal: int) -> int:
        deadline = time.monotonic() + PATIENCE
        while self.read(terminal) and time.monotonic() < deadline:
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    STEPS = (
        CHILD_TOOLS
        + "max_iters = 100\nprint('iter 0: loss 4.0, time 1ms', flush=True)\nawait_file('on')\n"
        + "print('iter 50: loss 3.5, time 1ms\\nstep 50: train loss 3.5, val loss 3.25', flush=True)\nawait_file('go')"
    )

    def test_the_block_has_a_line_for_each_running_experiment_and_one_for_the_batch(self) -> None:
        for name in "abcd":
            self.config(name, self.STEPS)
        terminal = self.on_terminal("--configs", "a.py", "b.py", "c.py", "d.py", "--jobs", 3)
        self.wait_until(terminal, r"a +iter 0/100 +\.{20} +loss 4.0000 +val - +\S+\nb +iter 0/100.*\nc +iter 0/100")
        self.go("on")
        text = self.wait_until(
            terminal, r"c +iter 50/100 +#{10}\.{10} +loss 3.5000 +val 3.2500 +\S+ +ETA \S+\n1 pending, 3 running"
        )
        self.assertEqual(len(re.findall(r"(?m)^[abcd] +iter", text)), 3)
        self.go("go")
        self.assertEqual(self.exit_code(terminal), 0)
        text = "\n".join(self.screen.lines)
        self.assertNotRegex(text, r"(?m)^[abcd] +iter|^.*3 running")
        self.assertRegex(text, r"4 completed\n$")

    def test_no_more_lines_than_fit_and_after_ctrl_c_nothing_of_the_block_is_left(self) -> None:
        for number in range(12):
            self.config(f"run_{number}", CHILD_TOOLS + "live_on()")
        terminal = self.on_terminal("--configs", "run_*.py", "--jobs", 12, rows=8)
        text = self.wait_until(terminal, r"(?m)^12 running")
        self.assertEqual(len(re.findall(r"(?m)^run_\d+ +iter 0", text)), 5)
        os.write(terminal, b"\x03")
        self.assertEqual(self.exit_code(terminal), 130)
        self.assertNotRegex("\n".join(self.screen.lines), r"(?m)^run_\d+ +iter|^\d+ running")

    def test_a_narrower_window_leaves_no_remains(self) -> None:
        self.config("long_name_of_an_experiment", self.STEPS)
        terminal = self.on_terminal("--configs", "long*.py", columns=100)
        self.wait_until(terminal, r"iter 0/100")
        self.screen = Screen(50)  # a terminal that wraps again what it shows
        lines = runner.Console(False)
        self.assertEqual(lines.block, [])
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
        self.screen.lines = ["x" * 50, "x" * 20, "1 running", ""] + [""] * 3
        self.screen.row = 3
        self.go("on")
        text = self.wait_until(terminal, r"iter 50/100")
        self.assertTrue(all(len(line) < 50 for line in text.splitlines() if "iter 50" in line))
        self.go("go")
        self.assertEqual(self.exit_code(terminal), 0)

    def test_nothing_is_redrawn_when_nothing_changes_and_at_most_four_times_a_second(self) -> None:
        code = "import time\nfor i in range(1500):\n    print(f'iter {i}: loss 1.{i}, time 1ms', flush=True)\n    time.sleep(0.001)"
        self.config("busy", code)
        terminal = self.on_terminal("--configs", "busy.py")
        self.assertEqual(self.exit_code(terminal), 0)
        took = self.result("busy")["duration_seconds"]
        self.assertLessEqual(self.screen.draws, 4 * took + 6)  # and the few for lines above the block
        console = runner.Console(False)
        console.live, drawn = True, []
        console.write = lambda descriptor, text: drawn.append(text)  # type: ignore[method-assign]
        for _ in range(5):
            console.draw(["same"])
        self.assertEqual(len(drawn), 1)

    @unittest.skipUnless(os.path.exists("/bin/bash"), "bash is missing")
    def test_ctrl_z_leaves_the_terminal_clean_and_fg_goes_on(self) -> None:
        self.config("one", self.STEPS)
        terminal = self.on_terminal("--configs", "one.py")
        self.wait_until(terminal, r"one +iter 0/100")
        os.kill(self.pid, signal.SIGTSTP)
        wait_for(lambda: self.read(terminal) and os.waitpid(self.pid, os.WUNTRACED | os.WNOHANG)[0], "the stop")
        while select.select([terminal], [], [], 0.1)[0]:
            self.read(terminal)
        self.assertNotRegex("\n".join(self.screen.lines), r"(?m)^one +iter|^1 running")
        self.go("on")
        os.kill(self.pid, signal.SIGCONT)
        self.wait_until(terminal, r"one +iter 50/100")
        self.go("go")
        self.assertEqual(self.exit_code(terminal), 0)

    def test_a_dumb_terminal_gets_plain_lines(self) -> None:
        self.config("one", "print('step 5: train loss 1.0, val loss 2.0')")
        terminal = self.on_terminal("--configs", "one.py", TERM="dumb")
        self.assertEqual(self.exit_code(terminal), 0)
        self.assertNotIn("\x1b", self.raw)
        self.assertIn("1 completed", self.raw)


class PlainTest(RunnerCase):
    HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202e"

    def test_nothing_but_text_leaves_the_runner_whatever_a_trainer_prints(self) -> None:
        code = f"print({self.HOSTILE!r})\nprint({self.HOSTILE!r} + 'step 5: train loss 1.0, val loss 2.0')\n"
        self.config("one", code + f"raise ValueError({self.HOSTILE!r})")
        done = self.run_runner("--configs", "one.py", "--follow", expect=1)
        self.assertRegex(done.stdout, r"\?\]0;owned\?\?\[2J\?step 5")
        for text in (done.stdout, done.stderr, self.master_log(), self.run_runner("--status", expect=0).stdout):
            self.assertEqual([each for each in text if not each.isprintable() and each != "\n"], [])

    def test_follow_copies_the_output_and_names_the_experiment_where_several_run(self) -> None:
        self.config("a", "import sys\nprint('to out')\nprint('to err', file=sys.stderr)")
        self.config("b", "print('of b')")
        out = self.run_runner("--configs", "a.py", "--follow", expect=0).stdout
        self.assertRegex(out, r"(?m)^to out$")
        self.assertRegex(out, r"(?m)^to err$")
        out = self.run_runner("--configs", "a.py", "b.py", "--follow", "--jobs", 2, expect=0).stdout
        self.assertRegex(out, r"(?m)^a: to out$")
        self.assertRegex(out, r"(?m)^b: of b$")


class StatusTest(RunnerCase):
    def test_the_table_of_a_running_a_finished_and_a_dead_batch(self) -> None:
        self.config("done", "max_iters = 5\nprint('step 5: train loss 1.0, val loss 2.0')")
        self.config("worse", "print('step 9: train loss 1.0, val loss 3.0')")
        code = "max_iters = 10\nprint('iter 0: loss 4.0, time 1ms\\nstep 0: train loss 4.0, val loss 4.0\\n"
        self.config("runs", CHILD_TOOLS + code + "iter 4: loss 3.0, time 1ms')\nprint('ready')\nawait_file('go')")
        process = self.start("--configs", "done.py", "worse.py", "runs.py")
        self.wait_for_line("runs", b"ready\n")
        out = self.run_runner("--status", expect=0).stdout
        self.assertRegex(out, r"^\S+: running, .*1 running; \S+, ETA \S+\n")
        self.assertRegex(out, r"(?m)^done +completed +5/5 +2.0000 +2.0000\* ")
        self.assertRegex(out, r"(?m)^worse +completed +9 +3.0000 +3.0000 ")
        self.assertRegex(out, r"(?m)^runs +running +4/10 +4.0000 +4.0000 +\S+ +\S+")
        process.kill()
        process.wait(60)
        out = self.run_runner("--status", self.batch(), expect=0).stdout
        self.assertRegex(out, r": interrupted, 2 completed, 1 interrupted")
        self.assertRegex(out, r"(?m)^runs +interrupted +4/10 .*its runner died")
        wait_for(lambda: not self.is_orphan_there(), "the end of the training")
        self.go("go")
        self.run_runner("--resume", expect=0)
        self.assertRegex(self.run_runner("--status", expect=0).stdout, r": finished, 3 completed; ")

    def is_orphan_there(self) -> bool:
        pid = self.json(self.batch() / "runs" / "experiment_metadata.json")["pid"]
        return is_running(pid)

    def test_json_is_the_same_for_programs(self) -> None:
        self.config("one", "print('step 5: train loss nan, val loss 2.0')")
        self.run_runner("--configs", "one.py", expect=0)
        text = self.run_runner("--status", "--json", expect=0).stdout
        told = json.loads(text, parse_constant=lambda name: self.fail(f"{name} is not JSON"))
        [row] = told["experiments"]
        self.assertEqual(
            (told["state"], told["completed"], row["name"], row["status"]), ("finished", 1, "one", "completed")
        )
        self.assertEqual((row["step"], row["train_loss"], row["val_loss"]), (5, "nan", 2.0))

    def many(self) -> Path:
        """A batch of ten thousand experiments, as its summary tells it."""
        folder = self.dir / "experiments" / "experiment_20240128_143022"
        folder.mkdir(parents=True)
        result = {
            "status": "completed",
            "metrics": {"step": 5, "val_loss": 1.5, "best_val_loss": 1.5},
            "settings": {"seed": 1},
        }
        results = {f"run_{number}": result for number in range(10_000)}
        (folder / "experiment_summary.json").write_text(json.dumps({"state": "finished", "results": results}))
        return folder

    def test_ten_thousand_experiments_are_shown(self) -> None:
        folder = self.many()
        out = self.run_runner("--status", expect=0).stdout
        self.assertEqual(len(out.splitlines()), 10_002)
        self.assertIn("10000 completed", out)
        self.run_runner("--report", expect=0)
        self.assertGreater((folder / "report.html").stat().st_size, 10**6)

    def test_all_is_printed_also_into_a_pipe_that_does_not_block_and_is_read_late(self) -> None:
        self.many()
        source, sink = os.pipe()
        os.set_blocking(sink, False)
        process = self.start("--status", stdout=sink)
        wait_for(lambda: self.waiting_bytes(source) > 4096, "the table")
        os.close(sink)
        with open(source, encoding="utf-8") as file:
            lines = file.read().splitlines()
        self.assertEqual((process.wait(PATIENCE), len(lines)), (0, 10_002))

    @staticmethod
    def waiting_bytes(pipe: int) -> int:
        return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0])

    def test_a_reader_that_has_seen_enough_and_a_full_disk_are_no_traceback(self) -> None:
        self.many()
        source, sink = os.pipe()
        os.close(source)
        process = self.start("--status", stdout=sink)
        os.close(sink)
        self.assertEqual((process.communicate(timeout=PATIENCE)[1], process.returncode), ("", 0))
        if os.path.exists("/dev/full"):
            with open("/dev/full", "w") as full:
                process = self.start("--status", "--json", stdout=full)
            self.assertRegex(process.communicate(timeout=PATIENCE)[1], r"^error: can't write to stdout: .*\n$")
            self.assertEqual(process.returncode, 2)


class EtaTest(unittest.TestCase):
    def result(self, status: str, **values: Any) -> runner.Result:
        metrics = runner.Metrics(**values.pop("metrics", {}))
        return runner.Result(config_name="x", status=status, metrics=metrics, **values)

    def test_what_is_left_comes_from_what_is_known(self) -> None:
        began = datetime.fromtimestamp(time.time() - 100).astimezone().isoformat()
        half = self.result("running", start_time=began, max_iters=100, metrics={"step": 50, "first_step": 0})
        continued = self.result("running", start_time=began, max_iters=100, metrics={"step": 90, "first_step": 80})
        unknown = self.result("running", start_time=began)
        done = self.result("completed", duration_seconds=30.0)
        pending = self.result("pending")
        self.assertAlmostEqual(runner.seconds_left(half) or 0, 100, delta=1)
        self.assertAlmostEqual(runner.seconds_left(continued) or 0, 100, delta=1)
        self.assertIsNone(runner.seconds_left(unknown))
        self.assertIsNone(runner.seconds_left(done))
        self.assertAlmostEqual(runner.batch_left([half, done, pending, pending], 1) or 0, 160, delta=1)
        self.assertAlmostEqual(runner.batch_left([half, done, pending, pending], 2) or 0, 100, delta=1)
        self.assertIsNone(runner.batch_left([done, done], 1))
        self.assertIsNone(runner.batch_left([pending], 1))


if __name__ == "__main__":
    unittest.main()
