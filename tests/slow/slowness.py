"""What is slow: a disk, a console, a launcher's training, the machine itself. It costs time, and nothing else."""

from __future__ import annotations

import contextlib
import os
import re
import signal

from tests.faulty import QUICK, FaultyCase
from tests.support import CHILD_TOOLS, PATIENCE, wait_for

PROMPT = CHILD_TOOLS + (
    "signal.signal(signal.SIGTERM, lambda *_: (open('told', 'w').close(), sys.exit(1)))\nnote_pid()\nprint('ready')\n"
)  # a training that notes the stop signal
TICKS = "while not os.path.exists('go'):\n    print('tick')\n    time.sleep(0.05)\n"
SLOW_WRITE = """
slow = {}

def take_time(log, *_):
    path = path_of(log)
    name = "/".join(path.split("/")[-2:])
    if path.endswith(".log") and slow.pop(name, None):
        note("slow")
        time.sleep(SECONDS)

before("write writev", take_time)
"""


def slow_write(*logs: str, seconds: float) -> str:
    """A fault: the first write to each of these logs takes so long."""
    return SLOW_WRITE.replace("{}", repr(dict.fromkeys(logs, True)), 1).replace("SECONDS", str(seconds))


class SlowDiskTest(FaultyCase):
    def test_a_log_write_that_is_slow_while_the_training_ends_loses_no_byte_that_it_printed(self) -> None:
        code = "import os\nos.write(1, b'first\\n')\nos.write(2, b'first\\n')\n"
        code += (
            "while not os.path.exists('slow'): pass\nfor each in 1, 2: os.write(each, b'x\\n' * 20000 + b'last\\n')\n"
        )
        names = [f"slow_{stream}" for stream in ("stdout", "stderr", "combined")]
        for name in names:
            self.config(name, code)
        daemon = "if not os.fork():\n    os.setsid()\n    while not os.path.exists('end'): time.sleep(0.01)\n    os._exit(0)\n"
        self.config("daemon", f"import time\n{code}{daemon}")
        logs = [f"{name}/{name[5:]}.log" for name in names] + ["daemon/stdout.log"]
        configs = [f"{name}.py" for name in (*names, "daemon")]
        self.addCleanup(self.go, "end")
        runner = self.start_faulty(QUICK + slow_write(*logs, seconds=1), "--configs", *configs, "--jobs", 4)
        self.said(runner, 0)
        self.assertEqual(len((self.dir / "slow").read_bytes()), len(logs), "not all of the writes were slow")
        whole = b"first\n" + b"x\n" * 20000 + b"last\n"
        for name in (*names, "daemon"):
            with self.subTest(name):
                self.assertEqual(len(self.log(name)), len(whole))
                self.assertEqual(self.log(name), whole)
                self.assertEqual(self.log(name, "stderr"), whole)
                self.assertEqual(self.log(name, "combined").count(b"] x\n"), 40000)
                self.assertEqual(self.log(name, "combined").count(b"] last\n"), 2)
                if name != "daemon":
                    self.assertIs(self.result(name)["log_complete"], True)
                    self.assertNotRegex(self.master_log(), f" {name}: .*outside")

    def stop_beside(self, faults: str) -> None:
        """A stop reaches a training, whose log goes on, though the runner is held up by another experiment's file."""
        self.config("b", PROMPT + TICKS)
        self.config("a", CHILD_TOOLS + "await_file('b_runs')")
        self.config("c", CHILD_TOOLS + "note_pid()\nlive_on()")
        runner = self.start_faulty(faults, "--configs", "b.py", "a.py", "c.py", "--jobs", 2)
        self.addCleanup(self.go, "open")
        self.wait_for_line("b", b"ready\n")
        self.go("b_runs")
        self.await_file("open_held")
        seen = len(self.log("b"))
        wait_for(lambda: len(self.log("b")) > seen, "more of the log of b")
        runner.send_signal(signal.SIGTERM)
        self.await_file("told")
        self.assertFalse((self.dir / "open").exists())
        self.go("open")
        self.said(runner, 143)
        self.assertEqual(self.result("b")["status"], "interrupted")
        self.assertEqual(self.statuses()["a"], "completed")
        self.assert_nothing_runs()

    @staticmethod
    def slow_sync(pattern: str) -> str:
        fault = f"def sync(file):\n    if re.search({pattern!r}, path_of(file)) and exists('b_runs'): hold('open')\n"
        return fault + "before('fsync fdatasync', sync)"

    def test_a_stop_reaches_a_training_while_the_sync_of_another_ones_result_goes_on(self) -> None:
        self.stop_beside(self.slow_sync("/a/.*result.json"))

    def test_a_stop_reaches_a_training_while_the_sync_of_another_ones_metadata_goes_on(self) -> None:
        self.stop_beside(self.slow_sync("/c/.*metadata.json"))

    def test_a_stop_reaches_a_training_while_the_close_of_another_ones_log_goes_on(self) -> None:
        fault = "def close(file):\n    if path_of(file).endswith('/a/stdout.log'): hold('open')\n"
        self.stop_beside(fault + "before('close', close)")


class SlowConsoleTest(FaultyCase):
    def stop_behind_console(self, *args: str) -> None:
        fault = (
            "def console(file, *_):\n    if file in (1, 2) and exists('shut') and not exists('open'): hold('open')\n"
        )
        self.config("a", PROMPT + TICKS)
        runner = self.start_faulty(fault + "before('write writev', console)", "--configs", "a.py", *args)
        self.addCleanup(self.go, "open")
        self.wait_for_line("a", b"ready\n")
        self.go("shut")
        if "--follow" in args:
            self.await_file("open_held")
        runner.send_signal(signal.SIGTERM)
        self.await_file("told")
        self.assertFalse((self.dir / "open").exists())
        self.go("open")
        self.said(runner, 143)
        self.assertEqual(self.statuses(), {"a": "interrupted"})

    def test_a_stop_reaches_the_training_though_the_console_takes_nothing(self) -> None:
        self.stop_behind_console()

    def test_a_stop_reaches_the_training_though_the_console_takes_nothing_of_what_is_followed(self) -> None:
        self.stop_behind_console("--follow")

    def test_a_pipe_that_nobody_reads_does_not_stop_the_batch(self) -> None:
        reads, writes = os.pipe()
        self.addCleanup(os.close, reads)
        os.set_blocking(writes, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writes, bytes(4096))
        os.set_blocking(writes, True)
        self.config("a")
        self.config("b")
        runner = self.start_faulty(QUICK, "--configs", "a.py", "b.py", stdout=writes)
        os.close(writes)
        self.assertEqual(runner.wait(4 * PATIENCE), 0)
        self.assertEqual(self.statuses(), {"a": "completed", "b": "completed"})

    def test_what_a_console_that_nobody_reads_has_missed_of_a_training_is_counted_and_said(self) -> None:
        lines = 100_000
        self.config("a", f"for number in range({lines}): print(f'{{number:80}}')\nopen('trained', 'w').close()\n")
        runner = self.start("--configs", "a.py", "--follow")
        self.await_file("trained")
        self.wait_for_event("a: completed")
        out = self.said(runner, 0)
        self.assertEqual(self.log("a").count(b"\n"), lines)
        self.assertTrue(re.search(r"(?i)\b[\d,]+ lines?\b.*\b(dropped|left out|missed|lost)", out), out[-1000:])
