"""What a training prints: every byte in its log, every line in combined.log, as it comes; and what its lines tell."""

from __future__ import annotations

import random
import re
from datetime import datetime

from tests.support import RunnerCase

STAMP = re.compile(rb"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}) \[(STDOUT|STDERR)\] ")
ECHO = """
def print_and_wait(data):
    # until the runner has written it, so that what follows is a block of its own
    log = os.path.join(out_dir, "stdout.log")
    size = os.path.getsize(log) + len(data)
    os.write(1, data)
    while os.path.getsize(log) < size:
        time.sleep(0.001)
"""


def as_lines(data: bytes) -> list[bytes]:
    """What combined.log owes of a stream: \\n, \\r and \\r\\n end a line, and so does the end."""
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return lines if lines[-1] else lines[:-1]


class CaptureCase(RunnerCase):
    def combined(self, name: str) -> dict[bytes, list[bytes]]:
        """The lines of combined.log by stream; each must be stamped with a time and end."""
        data = self.log(name, "combined")
        lines = data.split(b"\n")
        self.assertEqual(lines.pop(), b"", "the last line has no end")
        found: dict[bytes, list[bytes]] = {b"STDOUT": [], b"STDERR": []}
        for line in lines:
            match = STAMP.match(line)
            assert match, f"not stamped: {line[:80]!r}"
            found[match[2]].append(line[match.end() :])
        for line in lines[:100]:
            datetime.strptime(line[:23].decode(), "%Y-%m-%d %H:%M:%S.%f")
        return found

    def capture(self, name: str, code: str) -> None:
        self.config(name, ECHO + code)
        self.run_runner("--configs", f"{name}.py", expect=0)


class BytesTest(CaptureCase):
    def test_random_bytes_of_both_streams_at_once_are_kept_and_no_line_is_torn_or_lost(self) -> None:
        code = """
import random, threading

def write(descriptor):
    chance = random.Random(descriptor)
    for size in (1 << 20, 1, 7, 1 << 20, 3000, 65536, 65537, 13):
        data = chance.randbytes(size)
        while data:
            data = data[os.write(descriptor, data):]

other = threading.Thread(target=write, args=(2,))
other.start()
write(1)
other.join()
"""
        self.capture("noise", code)
        for stream, descriptor in (("stdout", 1), ("stderr", 2)):
            chance = random.Random(descriptor)
            sizes = (1 << 20, 1, 7, 1 << 20, 3000, 65536, 65537, 13)
            data = b"".join(chance.randbytes(size) for size in sizes)
            self.assertTrue(self.log("noise", stream) == data, f"{stream}.log differs")
            lines = self.combined("noise")[stream.upper().encode()]
            self.assertTrue(lines == as_lines(data), f"the lines of {stream} differ in combined.log")
        self.assertIs(self.result("noise")["log_complete"], True)


class LinesTest(CaptureCase):
    def test_carriage_returns_end_lines_once_even_when_their_newline_comes_in_another_write(self) -> None:
        code = r"""
print_and_wait(b"10%\r20%\r")
print_and_wait(b"30%\r\n")
print_and_wait(b"split\r")
print_and_wait(b"\n")
print_and_wait(b"\n")
print_and_wait(b"after\r")
print_and_wait(b"two")
print_and_wait(b" parts\r")
print_and_wait(b"\r\nend\r")
"""
        self.capture("bar", code)
        expected = [b"10%", b"20%", b"30%", b"split", b"", b"after", b"two parts", b"", b"end"]
        self.assertEqual(self.combined("bar")[b"STDOUT"], expected)
        self.assertEqual(self.log("bar"), b"10%\r20%\r30%\r\nsplit\r\n\nafter\rtwo parts\r\r\nend\r")

    def test_a_line_is_in_both_logs_while_the_training_runs_without_a_flush_of_its_own(self) -> None:
        self.config("live", "print('hello')\nprint('trouble', file=sys.stderr)\nawait_file('go')")
        runner = self.start("--configs", "live.py")
        self.wait_for_line("live", b"hello\n")
        self.wait_for_line("live", b"trouble\n", "stderr")
        self.wait_for_line("live", b"[STDOUT] hello\n", "combined")
        self.wait_for_line("live", b"[STDERR] trouble\n", "combined")
        self.assertIsNone(runner.poll())
        self.go("go")
        self.ended(runner, 0)

    def test_a_partial_line_is_in_stdout_log_at_once_and_in_combined_log_when_it_ends(self) -> None:
        code = """
sys.stderr.write("first\\n")
sys.stdout.write("loading ...")
await_file("go")
sys.stdout.write(" done\\nand")
await_file("end")
"""
        self.config("partial", code)
        runner = self.start("--configs", "partial.py")
        self.wait_for_line("partial", b"loading ...")
        self.wait_for_line("partial", b"first\n", "combined")
        self.assertNotIn(b"loading", self.log("partial", "combined"))
        self.go("go")
        self.wait_for_line("partial", b"[STDOUT] loading ... done\n", "combined")
        self.wait_for_line("partial", b"and")
        self.assertIsNone(runner.poll())
        self.go("end")
        self.ended(runner, 0)
        self.assertEqual(self.combined("partial")[b"STDOUT"], [b"loading ... done", b"and"])

    def test_the_streams_are_pipes_of_a_session_of_its_own_and_stdin_is_empty(self) -> None:
        self.capture("place", "print([sys.stdin.read(), os.getsid(0) == os.getpid(), os.isatty(1), os.getcwd()])")
        self.assertEqual(self.log("place").decode(), f"{['', True, False, str(self.dir.resolve())]}\n")


class EndOfStreamTest(CaptureCase):
    def test_a_training_that_closes_its_stdout_goes_on(self) -> None:
        code = """
print("last words")
os.close(1)
await_file("go")
os.write(2, b"still here\\n")
await_file("end")
os._exit(3)
"""
        self.config("closed", code)
        runner = self.start("--configs", "closed.py")
        self.wait_for_line("closed", b"[STDOUT] last words\n", "combined")
        self.go("go")
        self.wait_for_line("closed", b"[STDERR] still here\n", "combined")
        self.assertIsNone(runner.poll())
        self.go("end")
        self.ended(runner, 1)
        self.assertEqual(self.result("closed")["return_code"], 3)
        self.assertIs(self.result("closed")["log_complete"], True)

    def test_what_a_child_of_the_training_prints_right_after_the_training_has_ended_is_kept(self) -> None:
        code = """
def print_late():
    parent = os.getppid()
    os.write(1, b"early\\n")
    open("printing", "w").close()
    while os.getppid() == parent:
        time.sleep(0.001)
    for number in range(100):
        os.write(1 + number % 2, b"late %d\\n" % number)
    os.write(1, b"the end")

fork_off(print_late)
await_file("printing")
"""
        self.capture("parent", code)
        even = b"".join(b"late %d\n" % number for number in range(0, 100, 2))
        self.assertEqual(self.log("parent"), b"early\n" + even + b"the end")
        self.assertEqual(self.log("parent", "stderr").count(b"\n"), 50)
        self.assertEqual(self.combined("parent")[b"STDOUT"][-1], b"the end")
        self.assertEqual(self.result("parent")["status"], "completed")


class MetricsTest(CaptureCase):
    def metrics(self, name: str) -> list[object]:
        metrics = self.result(name)["metrics"]
        return [metrics[key] for key in ("step", "train_loss", "val_loss", "best_val_loss", "best_step")]

    def test_evaluations_count_in_whatever_blocks_they_come(self) -> None:
        lines = b"iter 9: loss 3.5, time 1ms\nstep 10: train loss 2.5, val loss 3.0\niter 11: loss 2.0\nthe next iter starts\n"
        self.capture("bulk", f"os.write(1, {lines!r})")
        self.assertEqual(self.metrics("bulk"), [11, 2.0, 3.0, 3.0, 10])
        self.capture("halves", 'print_and_wait(b"step 10: train loss 2.5, val lo")\nprint_and_wait(b"ss 3.25")\n')
        self.assertEqual(self.metrics("halves"), [10, 2.5, 3.25, 3.25, 10])

    def test_evaluations_are_in_the_master_log_while_the_training_runs(self) -> None:
        code = """
print("step 0: train loss 4.1, val loss 4.2")
await_file("go")
print("step 250: train loss 1.9, val loss 2.0")
"""
        self.config("live", code)
        runner = self.start("--configs", "live.py")
        self.wait_for_event("live: step 0: train loss 4.1, val loss 4.2")
        self.assertIsNone(runner.poll())
        self.assertNotIn("step 250", self.master_log())
        self.go("go")
        self.ended(runner, 0)
        self.assertIn("live: step 250: train loss 1.9, val loss 2.0", self.master_log())
