"""Much of everything: ten thousand experiments, long lines, crowds of processes.

MANY_LINE_MB=10000 python3 -m unittest tests.slow.many
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import unittest
from pathlib import Path

from tests.support import PATIENCE, RunnerCase, is_running, wait_for

LINE_MB = int(os.environ.get("MANY_LINE_MB") or 200)


class ExperimentsTest(RunnerCase):
    def test_ten_thousand_are_planned_each_with_a_name_of_its_own(self) -> None:
        self.strict_trainer("learning_rate = 1e-3\nseed = 1\ndataset = 'x'")
        for number in range(25):
            self.config(f"c/c{number}", f"dataset = 'd{number}'")
        rates, seeds = (",".join(str(n / 100) for n in range(1, 21)), ",".join(map(str, range(20))))
        plan = self.planned("--configs", "c/*.py", "--sweep", f"learning_rate={rates}", "--sweep", f"seed={seeds}")
        self.assertEqual(len(plan), 10_000)
        self.assertEqual(list(plan)[-1], "c24__learning_rate_0.2__seed_19")

    def test_ten_thousand_are_shown(self) -> None:
        folder = self.dir / "experiments" / "experiment_20240128_143022"
        folder.mkdir(parents=True)
        metrics = {"step": 5, "val_loss": 1.5, "best_val_loss": 1.5}
        result = {"status": "completed", "metrics": metrics, "settings": {"lr": 1}}
        results = {f"run_{number}": result for number in range(10_000)}
        (folder / "experiment_summary.json").write_text(json.dumps({"state": "finished", "results": results}))
        out = self.run_runner("--status", expect=0).stdout
        self.assertEqual(len(out.splitlines()), 10_002)
        self.assertIn("10000 completed", out)
        self.run_runner("--report", expect=0)
        self.assertGreater((folder / "report.html").stat().st_size, 10**6)


class OutputTest(RunnerCase):
    def test_100000_updates_of_a_progress_bar_are_as_many_lines(self) -> None:
        self.config(
            "bar",
            "import os\nfor number in range(100_000):\n    os.write(1, b'%6d/100000\\r' % number)\nos.write(1, b'done\\n')",
        )
        self.run_runner("--configs", "bar.py", expect=0)
        expected = b"".join(b"%6d/100000\r" % number for number in range(100_000)) + b"done\n"
        self.assertTrue(self.log("bar") == expected, "stdout.log differs")
        stamped = re.findall(rb"(?m)^\S+ \S+ \[STDOUT\] (.*)$", self.log("bar", "combined"))
        self.assertTrue(stamped == expected.replace(b"\r", b"\n").split(b"\n")[:-1], "combined.log differs")

    @unittest.skipUnless(Path("/proc/self/status").exists(), "the peak memory of a process is read from /proc")
    def test_one_line_without_end_needs_no_more_memory_than_a_short_one(self) -> None:
        peaks = []
        for megabytes in (5, LINE_MB):
            code = f"""
block = b"0123456789abcdef" * (1 << 12)
for _ in range({megabytes * 16}):
    view = memoryview(block)
    while view:
        view = view[os.write(1, view):]
open(f"{{out_dir}}/written", "w").close()
await_file("go")
"""
            self.config("long", code)
            (self.dir / "go").unlink(missing_ok=True)
            runner = self.start("--configs", "long.py", "--base_out_dir", f"out_{megabytes}")
            folder = self.dir / f"out_{megabytes}" / "latest" / "long"

            def written(folder: Path = folder, size: int = megabytes << 20) -> bool:
                return (folder / "stdout.log").exists() and (folder / "stdout.log").stat().st_size >= size

            deadline = time.monotonic() + PATIENCE + megabytes / 5
            while not written() and time.monotonic() < deadline:
                time.sleep(0.02)
            self.assertTrue(written())
            wait_for((folder / "written").exists, "the last of it")
            self.go("go")
            _, _, usage = os.wait4(runner.pid, 0)  # the end, with the page, is part of it
            runner.returncode = 0
            peaks.append(usage.ru_maxrss)
            size = (folder / "combined.log").stat().st_size
            self.assertGreaterEqual(size, megabytes << 20)
            self.assertLess(size, (megabytes << 20) * 1.01)
            shutil.rmtree(self.dir / f"out_{megabytes}")
        self.assertLess(peaks[1], 1.1 * peaks[0])


class CrowdTest(RunnerCase):
    @unittest.skipUnless(Path("/proc/self/stat").exists(), "needs /proc to tell zombies from the living")
    def test_thousands_of_zombies_and_a_crowd_of_orphans_end_with_their_leader(self) -> None:
        code = """
for _ in range(2000):
    if not os.fork():
        os._exit(0)
def be_deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note_pid()
    live_on()
for _ in range(100):
    fork_off(be_deaf)
while not os.path.exists("pids") or open("pids").read().count("\\n") < 100:
    time.sleep(0.01)
os.write(1, b"all here")
os._exit(7)
"""
        self.config("crowd", code)
        runner = self.start("--configs", "crowd.py")
        self.ended(runner, 1)
        self.assertEqual(self.result("crowd")["return_code"], 7)
        self.assertEqual(self.log("crowd"), b"all here")
        self.assertIn("crowd: killed what it left behind", self.master_log())
        wait_for(lambda: not any(map(is_running, self.pids(100))), "the end of all of them")
        self.assert_nothing_runs()
