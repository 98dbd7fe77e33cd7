"""Much of everything: ten thousand experiments, sixty over eight slots, long lines, crowds of processes.

    MANY_SEED=7 MANY_EXPERIMENTS=1000 MANY_LINE_MB=10000 python3 -m unittest tests.slow.many

The seed decides how the sixty end; it is printed.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
import time
import unittest
from pathlib import Path
from typing import Any

from tests.support import PATIENCE, Forked, RunnerCase, is_running, wait_for

SEED = int(os.environ.get("MANY_SEED") or random.SystemRandom().randrange(10**6))
EXPERIMENTS = int(os.environ.get("MANY_EXPERIMENTS") or 60)
LINE_MB = int(os.environ.get("MANY_LINE_MB") or 200)
# How the experiment with a seed shall end: the test and the training ask the same function.
FATE = """
import random

def fate(seed):
    rng = random.Random(seed)
    seconds = rng.choice([0, 0, 0.01, 0.05, 0.1, 0.2])
    kind, code = rng.choice([("exit", 0)] * 5 + [("exit", 1), ("exit", 42), ("raise", 1), ("kill", 9), ("kill", 15)])
    return seconds, kind, code
"""
namespace: dict[str, Any] = {}
exec(FATE, namespace)
fate = namespace["fate"]


class ExperimentsTest(RunnerCase):
    def test_many_over_eight_slots_end_each_as_it_should_and_never_more_than_eight_run_at_a_time(self) -> None:
        print(f"\n  MANY_SEED={SEED} MANY_EXPERIMENTS={EXPERIMENTS}", end=" ", file=sys.stderr, flush=True)
        code = (
            FATE
            + """
def note(sign):
    log = os.open("events", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.write(log, sign)
    os.close(log)

seed = int(overrides["seed"])
seconds, kind, code = fate(seed)
note(b"+")
print("out", seed)
print("err", seed, file=sys.stderr)
time.sleep(seconds)
note(b"-")
if kind == "raise":
    raise ValueError(f"bad {seed}")
if kind == "kill":
    os.kill(os.getpid(), code)
    time.sleep(60)
sys.exit(code)
"""
        )
        self.config("a", code)
        seeds = [SEED + number for number in range(EXPERIMENTS)]
        self.run_runner("--configs", "a.py", "--sweep", f"seed={','.join(map(str, seeds))}", "--jobs", 8, expect=1)
        events, running, most = (self.dir / "events").read_bytes(), 0, 0
        for sign in events.decode():
            running += 1 if sign == "+" else -1
            most = max(most, running)
        self.assertEqual((len(events), running), (2 * EXPERIMENTS, 0))
        self.assertLessEqual(most, 8)
        for seed in seeds:
            with self.subTest(seed=seed):
                self.check_fate(f"a__seed_{seed}", seed)
        self.assert_nothing_runs()

    def check_fate(self, name: str, seed: int) -> None:
        _, kind, code = fate(seed)
        result = self.result(name)
        number = signal.Signals(code).name if kind == "kill" else None
        ended = ("completed" if code == 0 else "failed", -code if number else code, number)
        self.assertEqual((result["status"], result["return_code"], result["signal"]), ended)
        self.assertEqual(result["attempts"], 1)
        self.assertEqual(self.log(name), f"out {seed}\n".encode())
        self.assertTrue(self.log(name, "stderr").startswith(f"err {seed}\n".encode()))
        if kind == "raise":
            self.assertEqual(result["error"], f"exit code 1: ValueError: bad {seed}")
        self.assertEqual(self.summary()["results"][name], result)

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

    def let_one_give_up(self, pair: list[Forked], go: Path) -> None:
        """One of two runners ends with 75 while the other's training goes on, which then may end."""
        wait_for(lambda: any(each.has_ended() for each in pair), "one of two runners to give up")
        go.touch()
        done = sorted((each.ended() for each in pair), key=lambda each: -each.returncode)
        self.assertEqual([each.returncode for each in done], [75, 1], done)
        self.assertRegex(done[0].stderr, r"\Aerror: another runner holds this batch: pid \d+ on \S+ since \S+\n\Z")
        go.unlink()

    def test_of_two_runners_that_resume_at_once_one_runs_and_one_ends_with_75_fifty_times_in_a_row(self) -> None:
        """Ten copies of a batch, five turns each: in every turn two runners are let go at one instant."""
        self.config("a")
        launch = self.dir / "launch"
        launch.write_text('until [ -e "$1/../go" ]; do sleep 0.02; done\nexit 1\n')
        (self.dir / "experiments").mkdir()
        self.go("experiments/go")
        self.run_runner("--configs", "a.py", "--launcher", "sh launch {dir}/..", expect=1)
        lanes = [self.dir / "experiments" / f"lane_{number}" for number in range(10)]
        for lane in lanes:
            shutil.copytree(self.batch(), lane / "batch")
        for _ in range(5):
            source, sink = os.pipe()
            pairs = []
            for lane in lanes:
                pairs.append([Forked(self.dir, "--resume", lane / "batch", gate=(source, sink)) for _ in range(2)])
                for each in pairs[-1]:
                    self.addCleanup(each.end)
            for end in (sink, source):
                os.close(end)
            for lane, pair in zip(lanes, pairs):
                self.let_one_give_up(pair, lane / "go")
        for lane in lanes:
            self.assertEqual(self.json(lane / "batch" / "a" / "experiment_result.json")["attempts"], 6)
