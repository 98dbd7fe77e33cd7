"""What goes wrong around a batch: disks, directories, configs, limits. It is recorded, and the rest runs."""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Optional

from tests.support import PATIENCE, RUNNER, RunnerCase, wait_for

STRANGER = 54321  # a user without processes and files, whom root can become


def limit(kind: int, most: int) -> Callable[[], None]:
    """For a process to be: limit one of its resources."""
    return lambda: resource.setrlimit(kind, (most, most))


@functools.cache
def strangers_python() -> Optional[str]:
    """A Python that another user can run, where we can become another user at all, and it sees temporary files."""
    place = os.path.join(tempfile.gettempdir(), ".")
    for python in (sys.executable, shutil.which("python3", path=os.defpath)):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = [str(python), "-c", f"import os, sys; os.stat({place!r}); sys.exit(sys.version_info < (3, 9))"]
            if os.getuid() == 0 and subprocess.run(command, user=STRANGER, cwd="/").returncode == 0:
                return python
    return None


class FaultCase(RunnerCase):
    def start_as_stranger(self, *args: Any, **options: Any) -> subprocess.Popen[str]:
        """The runner, copied to where another user can read it, as that user; skips where that can't be done."""
        python = strangers_python()
        if not python:
            self.skipTest("needs to be root, who can become another user, and a Python for that user")
        shutil.copy(RUNNER, self.dir)
        for each in (self.dir, *self.dir.rglob("*")):
            os.chown(each, STRANGER, STRANGER)
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": self.dir, **options}
        command = [python, RUNNER.name, *map(str, args)]
        runner = subprocess.Popen(command, user=STRANGER, group=STRANGER, extra_groups=[], **options)
        self.runners.append(runner)
        return runner


class FullDiskTest(FaultCase):
    def tmpfs(self, megabytes: int) -> Path:
        """A small disk of our own; skips where there can't be one."""
        place = self.dir / "disk"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(place)]
        done = subprocess.run(command, capture_output=True, text=True) if shutil.which("mount") else None
        if done is None or done.returncode:
            self.skipTest(f"can't mount a small disk: {done.stderr.strip() if done else 'no mount'}")
        self.addCleanup(subprocess.run, ["umount", "-l", str(place)], check=True)
        return place

    @staticmethod
    def fill(disk: Path) -> Path:
        """Take all that is left of a disk, to the last byte."""
        filler = disk / "filler"
        with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
            free = os.statvfs(disk)
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
            file.seek(0, os.SEEK_END)
            while file.write(bytes(4096)):
                pass
        return filler

    def disk_batch(self, disk: Path, *args: Any, **options: Any) -> subprocess.Popen[str]:
        """A batch on that disk; `batch`, `result` and the like read it."""
        (self.dir / "experiments").symlink_to(disk)
        return self.start(*args, **options)

    def test_logs_that_can_not_be_written_do_not_stop_the_training_and_the_result_says_so(self) -> None:
        big = 64 << 10  # bytes that a file may hold: much for the JSON files, little for the logs
        cases = {  # what is printed, and the logs that it is too much for
            "out": (f"sys.stdout.write('x' * 79 + '\\n')\nfor _ in '1234': sys.stdout.write('y' * {big})", "stdout"),
            "err": (f"for _ in '1234': sys.stderr.write('y' * {big})", "stderr"),
            "lines": ("print('x\\n' * 6000)", "combined"),
            "small": ("print('fits')", ""),
        }
        for name, (code, _) in cases.items():
            self.config(name, f"{code}\nsys.stdout.flush()\nopen('{name}_done', 'w').close()")
        configs = [f"{name}.py" for name in cases]
        done = self.run_runner("--configs", *configs, expect=0, preexec_fn=limit(resource.RLIMIT_FSIZE, big))
        for name, (_, log) in cases.items():
            with self.subTest(name):
                self.assertTrue((self.dir / f"{name}_done").exists(), "the training was stopped")
                self.assertEqual(self.result(name)["status"], "completed")
                complete = {each: len(self.log(name, each)) < big for each in ("stdout", "stderr", "combined")}
                self.assertIs(self.result(name)["log_complete"], all(complete.values()))
                if log:
                    self.assertFalse(complete[log], "the test did not fill the log")
                    for text in (done.stdout, self.master_log()):
                        self.assertRegex(text, rf"{name}: {log}\.log is incomplete: File too large")
        self.assertEqual(self.log("lines"), b"x\n" * 6000 + b"\n")  # combined.log failed, stdout.log went on
        self.assertEqual(self.log("small"), b"fits\n")

    def test_a_disk_that_has_room_again_in_time_gets_the_result_with_log_complete_false(self) -> None:
        disk = self.tmpfs(128)
        code = "print('ready')\nawait_file('go')\nprint('x' * 100000)\nopen('trained', 'w').close()\nawait_file('end')"
        self.config("a", code)
        self.config("b", "print('b')")
        runner = self.disk_batch(disk, "--configs", "a.py", "b.py")
        self.wait_for_line("a", b"ready\n", "combined")
        filler = self.fill(disk)
        self.go("go")
        wait_for((self.dir / "trained").exists, "the training to print more than the disk can hold")
        self.assertIsNone(runner.poll())
        for path in self.batch().rglob("*.json"):
            self.json(path)
        filler.unlink()
        self.go("end")
        self.ended(runner, 0)
        self.assertEqual(self.statuses(), {"a": "completed", "b": "completed"})
        self.assertIs(self.result("a")["log_complete"], False)
        self.assertIs(self.result("b")["log_complete"], True)
        self.assertRegex(self.master_log(), r"a: .*\.log is incomplete: No space left")


class DirectoryTest(FaultCase):
    def test_an_experiment_directory_that_is_deleted_while_it_runs_stops_neither_it_nor_the_batch(self) -> None:
        self.config("a", "print('ready')\nawait_file('go')\nprint('more')\nopen('trained', 'w').close()")
        self.config("b", "print('b')")
        runner = self.start("--configs", "a.py", "b.py")
        self.wait_for_line("a", b"ready\n", "combined")
        (self.batch() / "a").rename(self.dir / "gone")  # in one step, so that nothing is written into what goes
        self.go("go")
        self.ended(runner, 0)
        self.assertTrue((self.dir / "trained").exists())
        self.assertEqual(self.statuses(), {"a": "completed", "b": "completed"})
        self.assertEqual(self.log("b"), b"b\n")

    def test_a_batch_directory_that_is_deleted_ends_the_batch_without_a_traceback_of_the_runner(self) -> None:
        self.config("a", "print('ready')\nawait_file('go')\nopen('trained', 'w').close()")
        self.config("b")
        runner = self.start("--configs", "a.py", "b.py")
        self.wait_for_line("a", b"ready\n")
        self.batch().rename(self.dir / "gone")
        self.go("go")
        out, err = runner.communicate(timeout=PATIENCE)
        self.assertIn(runner.returncode, (0, 1), out)
        self.assertEqual(err, "")
        self.assertTrue((self.dir / "trained").exists())
        self.assertRegex(out, "a: completed")

    def test_a_base_out_dir_that_must_not_be_written_is_told_before_anything_starts(self) -> None:
        self.config("a")
        (self.dir / "closed").mkdir(0o500)
        args = ("--configs", "a.py", "--base_out_dir", "closed")
        runner = self.start(*args) if os.getuid() else self.start_as_stranger(*args)  # nothing is closed to root
        _, err = runner.communicate(timeout=PATIENCE)
        self.assertEqual(runner.returncode, 2)
        self.assertRegex(err, r"\Aerror: .*--base_out_dir: closed: Permission denied\n\Z")


class ConfigTest(FaultCase):
    def test_a_config_that_can_not_be_used_has_failed_without_a_process_and_the_next_one_runs(self) -> None:
        self.config("syntax", "learning_rate = 1e-3\nmax_iters = = 5\n")
        (self.dir / "nul.py").write_bytes(b"x = 1\0\n")
        (self.dir / "latin.py").write_bytes(b"name = '\xe4'\n")
        (self.dir / "dangling.py").symlink_to("nowhere")
        (self.dir / "loop.py").symlink_to("loop.py")
        self.config("fine", "print('ran')")
        expected = {
            "syntax": r"syntax\.py, line 2: .*max_iters = = 5",
            "nul": r"nul\.py.*null bytes",
            "latin": r"latin\.py.*(utf-8|codec|0xe4)",
            "dangling": r"dangling\.py: No such file",
            "loop": r"loop\.py: .*symbolic links",
        }
        done = self.run_runner("--configs", *(f"{name}.py" for name in (*expected, "fine")), expect=1)
        for name, error in expected.items():
            with self.subTest(name):
                result = self.result(name)
                self.assertEqual(result, self.summary()["results"][name])
                self.assertEqual((result["status"], result["return_code"]), ("failed", None))
                self.assertRegex(result["error"], error)
                self.assertFalse((self.batch() / name / "stdout.log").exists(), "a process was started")
                for text in (done.stdout, self.master_log()):
                    self.assertRegex(text, rf"{name}: failed.*{error}")
        self.assertEqual(self.statuses()["fine"], "completed")
        self.assertEqual((self.summary()["completed"], self.summary()["failed"]), (1, len(expected)))

    def test_a_config_that_must_not_be_read_has_failed_and_the_next_one_runs(self) -> None:
        self.config("closed").chmod(0)
        self.config("open", "print('ran')")
        args = ("--configs", "closed.py", "open.py")
        runner = self.start(*args) if os.getuid() else self.start_as_stranger(*args)
        self.ended(runner, 1)
        self.assertEqual(self.statuses(), {"closed": "failed", "open": "completed"})
        self.assertRegex(self.summary()["results"]["closed"]["error"], r"closed\.py: Permission denied")

    def test_a_script_that_goes_away_during_the_batch_fails_what_is_left_of_it(self) -> None:
        self.config("a", "import os\nos.unlink('train_run.py')")
        self.config("b", "open('started', 'w')")
        done = self.run_runner("--configs", "a.py", "b.py", expect=1)
        self.assertEqual(done.stderr, "")
        result = self.result("b")
        self.assertEqual((self.statuses()["a"], result["status"], result["return_code"]), ("completed", "failed", 2))
        self.assertIn("train_run.py", result["stderr_tail"])
        self.assertFalse((self.dir / "started").exists())

    def test_settings_that_a_config_computes_or_json_does_not_know_do_not_stop_the_batch(self) -> None:
        codes = [
            "x = 1",
            "x = max(1, 2)\ny = [each for each in 'ab']",
            "x = {1, 2}",
            "x = b'\\xff'",
            "x = 1j",
            "x = ...",
        ]
        codes += ["x = [{'a': (1e999, -1e999)}]\nz = {1: 2, None: b'', (1, 2): 3}", "x = 10 ** 400\nz = 1e999"]
        codes += ["x = '\\ud800'"]
        for number, code in enumerate(codes):
            self.config(f"run_{number}", code)
        self.run_runner("--configs", "run_*.py", expect=0)
        self.assertEqual(self.summary()["completed"], len(codes))
        self.assertEqual(self.result("run_0")["settings"]["x"], 1)
