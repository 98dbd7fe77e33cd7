"""A disk that fails: each of the runner's own calls that changes a file fails once, or from there on for good.

    WRITE_SEED=7 WRITE_CASES=1000 python3 -m unittest tests.slow.every_write

The seed is printed; the same seed picks the same cases, and so many cases are all there are.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from tests.faulty import FaultyCase
from tests.support import PATIENCE, RUNNER

SEED = int(os.environ.get("WRITE_SEED") or random.SystemRandom().randrange(10**6))
CASES = int(os.environ.get("WRITE_CASES") or 40)

FAULTS = r"""
import atexit

calls, lock = [], threading.Lock()

def count(name):
    with lock:
        calls.append(name)
        if NTH and (len(calls) == NTH or LASTING and len(calls) > NTH):
            fail(errno.ERROR)

class File:
    def __init__(self, file):
        self.file = file
    def __enter__(self):
        return self
    def __exit__(self, *_):
        self.file.close()
    def __getattr__(self, name):
        if name in ("write", "flush"):
            count(name)
        return getattr(self.file, name)

def faulty_open(file, mode="r", *args, **kwargs):
    opened = open(file, mode, *args, **kwargs)
    return File(opened) if "w" in mode else opened

def tell_calls():
    with open("calls", "w") as file:
        file.write("\n".join(calls))

for name in ("writev", "fsync", "replace", "rename", "mkdir", "makedirs", "symlink", "ftruncate", "unlink"):
    before(name, lambda *_, name=name: count(name))
before("write", lambda descriptor, _: descriptor > 2 and count("write"))
before("open", lambda path, flags, *_: flags & (os.O_WRONLY | os.O_RDWR) and path != os.devnull and count("open"))
run_experiments.open = faulty_open
run_experiments.SHORT = 0.2  # a lasting fault is waited for no longer
atexit.register(tell_calls)
"""


class EveryWriteTest(FaultyCase):
    def run_with_fault(self, folder: Path, nth: int, error: str, lasting: str) -> subprocess.CompletedProcess[str]:
        """A batch of two experiments, in which the nth call fails (0: none)."""
        folder.mkdir()
        (folder / "train.sh").write_text('echo "of ${1##*/}"; echo error >&2; echo "$1" >> started; sleep 0.05\n')
        for name in "ab":
            (folder / f"{name}.py").write_text("max_iters = 10\n")
        faults = f"NTH, LASTING = {nth}, {lasting == 'lasting'}\n{FAULTS.replace('ERROR', error)}"
        args = ["--train_script", "train.sh", "--launcher", "sh", "--configs", "a.py", "b.py"]
        runner = self.start_faulty(faults, *args, cwd=folder)
        out, err = runner.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(runner.args, runner.returncode, out, err)

    def test_each_call_that_changes_a_file_may_fail(self) -> None:
        whole = self.run_with_fault(self.dir / "whole", 0, "EIO", "once")
        self.assertEqual((whole.returncode, whole.stderr), (0, ""), whole.stdout)
        calls = (self.dir / "whole" / "calls").read_text().split("\n")
        self.assertGreater(len(calls), 30)
        cases = [
            (nth, error, how)
            for nth in range(1, len(calls) + 1)
            for error in ("EIO", "ENOSPC")
            for how in ("once", "lasting")
        ]
        print(f"\n  WRITE_SEED={SEED} WRITE_CASES={CASES} of {len(cases)}", end=" ", file=sys.stderr, flush=True)
        if len(cases) > CASES:
            cases = random.Random(SEED).sample(cases, CASES)
        for nth, error, how in cases:
            with self.subTest(nth=nth, error=error, how=how, call=calls[nth - 1], seed=SEED):
                folder = self.dir / f"{nth}_{error}_{how}"
                self.check(folder, self.run_with_fault(folder, nth, error, how))

    def check(self, folder: Path, done: subprocess.CompletedProcess[str]) -> None:
        said = f"{done.stdout}\n{done.stderr}"
        self.assertIn(done.returncode, (0, 1, 2), said)
        self.assertNotIn("Traceback", done.stderr)
        self.assertNotIn("Exception", done.stderr)
        started = (folder / "started").read_text().split() if (folder / "started").exists() else []
        if done.returncode == 2:
            self.assertEqual(started, [])
            self.assertRegex(done.stderr, r"\Aerror: [^\n]+\n\Z")
        self.check_results(folder, done.returncode)
        if any(folder.glob("experiments/experiment_*/experiment_summary.json")):
            command = [sys.executable, str(RUNNER), "--resume"]
            again = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
            self.assertEqual((again.returncode, again.stderr), (0, ""), f"{said}\n{again.stdout}")
            self.check_results(folder, 0)

    def check_results(self, folder: Path, code: int) -> None:
        """What is written is whole, and what is called complete is."""
        statuses = []
        for path in folder.glob("experiments/experiment_*/*/experiment_result.json"):
            result = json.loads(path.read_text())
            statuses.append(result["status"])
            if result["status"] == "completed" and result["log_complete"]:
                lines = f"of {result['config_path']}\n"
                self.assertEqual((path.parent / "stdout.log").read_text().count(lines), 1)
                self.assertEqual((path.parent / "stderr.log").read_text().count("error\n"), 1)
                self.assertEqual((path.parent / "combined.log").read_text().count(lines), 1)
        for path in folder.glob("experiments/experiment_*/experiment_summary.json"):
            results = json.loads(path.read_text())["results"].values()
            if code == 0:
                self.assertEqual([each["status"] for each in results], ["completed"] * 2)
