"""What goes wrong around a batch: disks, directories, configs, names, limits. It is recorded, and the rest runs."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Optional

from tests.support import CHILD_TOOLS, PATIENCE, RUNNER, RunnerCase, wait_for

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
    def statuses(self) -> dict[str, str]:
        return {name: result["status"] for name, result in self.summary()["results"].items()}

    def refused(self, *args: Any, **options: Any) -> str:
        """Start the runner with something impossible; returns its one line of complaint."""
        done = self.run_runner(*args, expect=2, **options)
        self.assertRegex(done.stderr, r"\Aerror: .*\n\Z", "not one line that tells the error")
        self.assertFalse((self.dir / "experiments").exists(), "something was started")
        return done.stderr

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
            self.config(name, f"{CHILD_TOOLS}{code}\nsys.stdout.flush()\nopen('{name}_done', 'w').close()")
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

    def test_a_disk_that_fills_up_does_not_stop_the_training_and_leaves_the_json_files_whole(self) -> None:
        disk = self.tmpfs(128)  # the runner launches nothing on less than 100 MB
        code = "print('ready')\nawait_file('go')\nprint('x' * 100000)\nopen('trained', 'w').close()\nawait_file('end')"
        self.config("a", CHILD_TOOLS + code)
        self.config("b", "open('b_started', 'w')")
        runner = self.disk_batch(disk, "--configs", "a.py", "b.py")
        self.wait_for_line("a", b"ready\n", "combined")
        self.fill(disk)
        self.go("go")
        wait_for((self.dir / "trained").exists, "the training to print more than the disk can hold")
        self.assertIsNone(runner.poll())
        self.go("end")
        out = self.ended(runner, 1)
        self.assertRegex(out, r"a: .*\.log is incomplete: No space left")
        self.assertRegex(out, r"a: completed")
        self.assertRegex(out, r"nothing more is started")
        self.assertRegex(out, r"b +pending")
        self.assertFalse((self.dir / "b_started").exists())
        self.assertIn(self.statuses()["a"], ("running", "completed"))  # the old summary or the new one, but whole
        for path in self.batch().rglob("*.json"):
            self.json(path)
        self.assertEqual([path.name for path in self.batch().rglob(".*.tmp")], [])

    def test_a_disk_that_has_room_again_in_time_gets_the_result_with_log_complete_false(self) -> None:
        disk = self.tmpfs(128)
        code = "print('ready')\nawait_file('go')\nprint('x' * 100000)\nopen('trained', 'w').close()\nawait_file('end')"
        self.config("a", CHILD_TOOLS + code)
        self.config("b", "print('b')")
        runner = self.disk_batch(disk, "--configs", "a.py", "b.py")
        self.wait_for_line("a", b"ready\n", "combined")
        filler = self.fill(disk)
        self.go("go")
        wait_for((self.dir / "trained").exists, "the training to print more than the disk can hold")
        filler.unlink()
        self.go("end")
        self.ended(runner, 0)
        self.assertEqual(self.statuses(), {"a": "completed", "b": "completed"})
        self.assertIs(self.result("a")["log_complete"], False)
        self.assertIs(self.result("b")["log_complete"], True)
        self.assertRegex(self.master_log(), r"a: .*\.log is incomplete")

    def test_on_a_full_disk_nothing_is_started_and_the_reason_is_told(self) -> None:
        disk = self.tmpfs(1)
        self.config("a", "open('started', 'w')")
        for full in (False, True):
            with self.subTest(full=full):
                if full:
                    self.fill(disk)
                runner = self.start("--configs", "a.py", "--base_out_dir", "disk")
                out, err = runner.communicate(timeout=PATIENCE)
                self.assertNotIn("Traceback", out + err)
                self.assertIn(runner.returncode, (1, 2) if full else (1,))
                self.assertRegex(out + err, r"error: .*(MB free|No space left)")
                self.assertFalse((self.dir / "started").exists())


class DirectoryTest(FaultCase):
    def test_an_experiment_directory_that_is_deleted_while_it_runs_costs_only_its_logs(self) -> None:
        self.config("a", CHILD_TOOLS + "print('ready')\nawait_file('go')\nprint('more')\nopen('trained', 'w').close()")
        self.config("b", "print('b')")
        runner = self.start("--configs", "a.py", "b.py")
        self.wait_for_line("a", b"ready\n", "combined")
        shutil.rmtree(self.batch() / "a")
        self.go("go")
        out = self.ended(runner, 0)
        self.assertTrue((self.dir / "trained").exists())
        self.assertEqual(self.statuses(), {"a": "completed", "b": "completed"})
        self.assertIs(self.summary()["results"]["a"]["log_complete"], False)
        for text in (out, self.master_log()):
            self.assertRegex(text, r"a: .*(log|incomplete)")
        self.assertEqual(self.log("b"), b"b\n")

    def test_a_log_that_is_deleted_or_replaced_while_it_is_written_is_not_called_complete(self) -> None:
        self.config("a", CHILD_TOOLS + "print('ready')\nawait_file('go')\nprint('more')")
        runner = self.start("--configs", "a.py")
        self.wait_for_line("a", b"ready\n", "combined")
        (self.batch() / "a" / "stdout.log").unlink()
        (self.batch() / "a" / "stdout.log").write_text("not what the training wrote")
        self.go("go")
        self.ended(runner, 0)
        self.assertIs(self.result("a")["log_complete"], False)
        self.assertRegex(self.master_log(), r"a: .*stdout\.log")

    def test_a_batch_directory_that_is_deleted_ends_the_batch_without_a_traceback_of_the_runner(self) -> None:
        self.config("a", CHILD_TOOLS + "print('ready')\nawait_file('go')\nopen('trained', 'w').close()")
        self.config("b")
        runner = self.start("--configs", "a.py", "b.py")
        self.wait_for_line("a", b"ready\n")
        shutil.rmtree(self.batch())
        self.go("go")
        out, err = runner.communicate(timeout=PATIENCE)
        self.assertEqual((runner.returncode, err), (1, ""), out)
        self.assertTrue((self.dir / "trained").exists())
        self.assertRegex(out, "a: completed")
        self.assertRegex(out, "b: error")

    def test_a_file_in_the_place_of_base_out_dir_is_told_before_anything_starts(self) -> None:
        self.config("a", "open('started', 'w')")
        (self.dir / "file").write_text("")
        for place in ("file", "file/below"):
            self.assertRegex(self.refused("--configs", "a.py", "--base_out_dir", place), rf"--base_out_dir.*{place}")
        self.assertFalse((self.dir / "started").exists())

    def test_a_base_out_dir_that_must_not_be_written_is_told_before_anything_starts(self) -> None:
        self.config("a")
        (self.dir / "closed").mkdir(0o500)
        args = ("--configs", "a.py", "--base_out_dir", "closed")
        runner = self.start(*args) if os.getuid() else self.start_as_stranger(*args)  # nothing is closed to root
        _, err = runner.communicate(timeout=PATIENCE)
        self.assertEqual(runner.returncode, 2)
        self.assertRegex(err, r"\Aerror: .*--base_out_dir: closed: Permission denied\n\Z")


class ConfigTest(FaultCase):
    def test_a_missing_training_script_is_told_before_anything_starts(self) -> None:
        self.config("a")
        self.assertIn("nowhere.py", self.refused("--configs", "a.py", "--train_script", "nowhere.py"))
        (self.dir / "train_run.py").unlink()
        said = self.refused("--configs", "a.py")
        self.assertIn("train_run.py", said)
        self.assertIn("--train_script", said)

    def test_a_missing_config_a_directory_and_an_equals_sign_are_told_before_anything_starts(self) -> None:
        self.config("easy_first", "open('started', 'w')")
        (self.dir / "folder").mkdir()
        self.config("lr=1")
        self.config("a=b/easy")
        self.assertRegex(self.refused("--configs", "easy_first.py", "easy_frist.py"), "easy_frist.py.*easy_first.py")
        self.assertIn("nothing_*.py", self.refused("--configs", "easy_first.py", "nothing_*.py"))
        self.assertRegex(self.refused("--configs", "easy_first.py", "folder"), "directory: folder")
        self.assertRegex(self.refused("--configs", "easy_first.py", "lr=1.py"), "'='.*lr=1.py")
        self.assertRegex(self.refused("--configs", "easy_first.py", "a=b/*.py"), "'='.*a=b/easy.py")
        self.assertFalse((self.dir / "started").exists())

    def test_a_config_that_can_not_be_used_has_failed_without_a_process_and_the_next_one_runs(self) -> None:
        self.config("syntax", "learning_rate = 1e-3\nmax_iters = = 5\n")
        self.config("indent", "x = 1\n  y = 2\n")
        (self.dir / "nul.py").write_bytes(b"x = 1\0\n")
        (self.dir / "latin.py").write_bytes(b"name = '\xe4'\n")
        (self.dir / "dangling.py").symlink_to("nowhere")
        (self.dir / "loop.py").symlink_to("loop.py")
        os.mkfifo(self.dir / "pipe.py")
        (self.dir / "device.py").symlink_to("/dev/zero")
        self.config("fine", "print('ran')")
        expected = {
            "syntax": r"syntax\.py, line 2: .*max_iters = = 5",
            "indent": r"indent\.py, line 2: .*y = 2",
            "nul": r"nul\.py.*null bytes",
            "latin": r"latin\.py.*(utf-8|codec|0xe4)",
            "dangling": r"dangling\.py: No such file",
            "loop": r"loop\.py: .*symbolic links",
            "pipe": r"pipe\.py: not a regular file",
            "device": r"device\.py: not a regular file",
        }
        done = self.run_runner("--configs", *(f"{name}.py" for name in (*expected, "fine")), expect=1)
        for name, error in expected.items():
            with self.subTest(name):
                result = self.result(name) if (self.batch() / name).exists() else self.summary()["results"][name]
                self.assertEqual((result["status"], result["return_code"]), ("failed", None))
                self.assertRegex(result["error"], error)
                self.assertFalse((self.batch() / name / "stdout.log").exists(), "a process was started")
                for text in (done.stdout, self.master_log()):
                    self.assertRegex(text, rf"{name}: failed.*{error}")
        self.assertEqual(self.statuses()["fine"], "completed")
        self.assertEqual((self.summary()["completed"], self.summary()["failed"]), (1, len(expected)))

    def test_an_experiment_that_never_ran_has_a_result_file_as_well(self) -> None:
        self.config("syntax", "x = = 1")
        self.run_runner("--configs", "syntax.py", expect=1)
        result = self.result("syntax")
        self.assertEqual(result["status"], "failed")
        self.assertEqual(result, self.summary()["results"]["syntax"])

    def test_a_config_that_must_not_be_read_has_failed_and_the_next_one_runs(self) -> None:
        self.config("closed").chmod(0)
        self.config("open", "print('ran')")
        args = ("--configs", "closed.py", "open.py")
        runner = self.start(*args) if os.getuid() else self.start_as_stranger(*args)
        self.ended(runner, 1)
        self.assertEqual(self.statuses(), {"closed": "failed", "open": "completed"})
        self.assertRegex(self.summary()["results"]["closed"]["error"], r"closed\.py: Permission denied")

    def test_a_config_or_script_that_goes_away_during_the_batch_costs_only_its_own_experiments(self) -> None:
        self.config("a", "import os\nos.unlink('b.py')")
        self.config("b", "open('started', 'w')")
        self.config("c", "import os\nos.unlink('train_run.py')")
        self.config("d", "open('started', 'w')")
        done = self.run_runner("--configs", "a.py", "b.py", "c.py", "d.py", expect=1)
        self.assertEqual(done.stderr, "")
        results = self.summary()["results"]
        self.assertEqual((results["a"]["status"], results["c"]["status"]), ("completed", "completed"))
        self.assertEqual(results["b"]["status"], "failed")
        self.assertRegex(results["b"]["error"], r"config can't be used: b\.py: No such file")
        self.assertEqual((results["d"]["status"], results["d"]["return_code"]), ("failed", 2))
        self.assertIn("train_run.py", results["d"]["stderr_tail"])
        self.assertFalse((self.dir / "started").exists())

    def test_settings_that_a_config_computes_or_json_does_not_know_do_not_stop_the_batch(self) -> None:
        codes = {
            "plain": "x = 1",
            "computed": "x = max(1, 2)\ny = [each for each in 'ab']",
            "a_set": "x = {1, 2}",
            "some_bytes": "x = b'\\xff'",
            "a_complex": "x = 1j",
            "an_ellipsis": "x = ...",
            "deep": "x = [{'a': (1e999, -1e999)}]\nz = {1: 2, None: b'', (1, 2): 3}",
            "huge": "x = 10 ** 400\nz = 1e999",
            "text": "x = '\\ud800'",
        }
        for name, code in codes.items():
            self.config(name, code)
        self.run_runner("--configs", *(f"{name}.py" for name in codes), expect=0)
        self.assertEqual(self.statuses(), dict.fromkeys(codes, "completed"))
        self.assertEqual(self.summary()["results"]["plain"]["settings"]["x"], 1)


class NameTest(FaultCase):
    def ran_with(self, name: str) -> str:
        """The config that a training was started with."""
        return os.fsdecode(self.log(name)[:-1])

    def test_odd_names_reach_the_training_as_they_are_and_make_harmless_directories(self) -> None:
        names = [
            "with space",
            "quo'te",
            'dou"ble',
            "new\nline",
            "ta\tb",
            "größe",
            "日本",
            "a;touch pwned",
            "$(touch pwned)",
        ]
        names += [
            "star*[1]?",
            "%s{0}{name}",
            "back\\slash",
            "..",
            "...",
            "#",
            "master_log.txt",
            "runner.lock",
            "a\x1b[31mred",
        ]
        names += [os.fsdecode(b"bytes\xff\xfe")]
        (self.dir / "configs").mkdir()
        paths = [f"configs/{name}.py" for name in names]
        for path in paths:
            (self.dir / path).write_text(
                "import os, sys\nsys.stdout.buffer.write(os.fsencode(config) + b'\\n')\n"
                "assert os.path.isdir(out_dir), out_dir"
            )
        done = self.run_runner("--configs", *paths, "--jobs", 2, expect=0, encoding="utf-8")
        results = self.summary()["results"]
        self.assertEqual([result["config_path"] for result in results.values()], paths)
        for name, path in zip(results, paths):
            with self.subTest(path):
                self.assertRegex(name, r"\A[A-Za-z0-9_][A-Za-z0-9._-]{0,199}\Z")
                self.assertEqual(self.ran_with(name), path)
                self.assertEqual(self.json(self.batch() / name / "experiment_metadata.json")["command"][2], path)
        self.assertEqual(len(results), len(names))
        self.assertFalse((self.dir / "pwned").exists())
        self.assertNotIn("\x1b", done.stdout + self.master_log())
        self.assertIn("$'configs/new\\x0aline.py'", done.stdout)
        for line in self.master_log().splitlines():
            self.assertRegex(line, r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "an event of more than one line")

    def test_a_pattern_in_a_training_repository_leaves_the_programs_out_and_takes_a_name_like_an_option(self) -> None:
        self.config("-dash", "print(config)")
        self.config("configurator", "raise SystemExit(1)")
        done = self.run_runner("--configs", "*.py", expect=0)
        self.assertRegex(done.stdout, r"left out.*configurator\.py")
        self.assertRegex(done.stdout, r"left out.*train_run\.py")
        self.assertEqual([result["config_path"] for result in self.summary()["results"].values()], ["./-dash.py"])

    def test_two_configs_of_one_stem_get_telling_names(self) -> None:
        for folder in ("a", "b", "c/a"):
            self.config(f"{folder}/easy", f"print({folder!r})")
        self.config("hard")
        self.run_runner("--configs", "a/easy.py", "b/easy.py", "c/a/easy.py", "hard.py", expect=0)
        names = list(self.summary()["results"])
        self.assertEqual(len(set(names)), 4)
        for name, part in zip(names, ("a__easy", "b__easy", "c__a__easy", "hard")):
            self.assertEqual(name, part)
        self.assertEqual(self.log("b__easy"), b"b\n")

    def test_stems_of_250_bytes_get_names_of_their_own_that_fit(self) -> None:
        stems = ["x" * 250, "x" * 249 + "y", "ü" * 125, "é" * 125]
        for stem in stems:
            self.config(stem, "print(config)")
        self.run_runner("--configs", *(f"{stem}.py" for stem in stems), expect=0)
        names = list(self.summary()["results"])
        self.assertEqual(len({name.casefold() for name in names}), 4)
        self.assertLessEqual(max(map(len, names)), 200)
        self.assertEqual([self.ran_with(name) for name in names], [f"{stem}.py" for stem in stems])

    def test_a_checkpoint_with_an_odd_name_does_no_harm(self) -> None:
        code = "import os\nfor name in ('1²2', '٣', 'x\\n', '9' * 200):\n    open(f'{out_dir}/ckpt_{name}.pt', 'w').close()"
        self.config("a", code)
        self.config("b")
        self.run_runner("--configs", "a.py", "b.py", expect=0)
        self.assertEqual(self.statuses(), {"a": "completed", "b": "completed"})

    def test_configs_with_odd_digits_are_sorted_without_a_traceback(self) -> None:
        for name in ("5²3", "5٣3", "5a3", "10", "9"):
            self.config(f"configs/{name}")
        self.run_runner("--configs", "configs/*.py", expect=0)
        self.assertEqual(len(self.summary()["results"]), 5)


class ConsoleTest(FaultCase):
    def pipe(self) -> tuple[int, int]:
        reads, writes = os.pipe()
        self.addCleanup(lambda: [self.close(each) for each in (reads, writes)])
        return reads, writes

    @staticmethod
    def close(descriptor: int) -> None:
        with contextlib.suppress(OSError):
            os.close(descriptor)

    def test_a_reader_that_closes_the_pipe_after_the_first_line_does_not_stop_the_batch(self) -> None:
        self.config("a", CHILD_TOOLS + "await_file('go')")
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

    def test_a_pipe_that_nobody_reads_does_not_stop_the_batch(self) -> None:
        reads, writes = self.pipe()
        os.set_blocking(writes, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writes, bytes(4096))
        os.set_blocking(writes, True)
        self.config("a")
        self.config("b")
        runner = self.start("--configs", "a.py", "b.py", stdout=writes)
        os.close(writes)
        self.ended(runner, 0)
        self.assertEqual(self.statuses(), {"a": "completed", "b": "completed"})

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


class TogetherTest(FaultCase):
    def test_batches_that_start_in_one_second_get_directories_of_their_own(self) -> None:
        self.config("a", "print('ran')")
        base = self.dir / "experiments"
        for _ in range(5):
            runners = [self.start("--configs", "a.py") for _ in range(4)]
            for runner in runners:
                self.ended(runner, 0)
            folders = [each for each in base.iterdir() if not each.is_symlink()]
            if any(re.search(r"_\d{6}_\d+$", each.name) for each in folders):
                break
        else:
            self.fail("no two batches were ever started in one second")
        self.assertEqual(len(folders) % 4, 0)
        self.assertEqual(len(folders), len(self.runners))
        for folder in folders:
            self.assertEqual(self.json(folder / "experiment_summary.json")["completed"], 1)
            self.assertEqual((folder / "a" / "stdout.log").read_text(), "ran\n")
        self.assertTrue((base / "latest").is_symlink())
        self.assertEqual([each.name for each in base.iterdir() if each.name.startswith(".")], [])

    def test_every_read_of_the_summary_during_a_batch_is_valid_json(self) -> None:
        names = [f"run_{number}" for number in range(30)]
        for name in names:
            self.config(name, "print('step 1: train loss 1.0, val loss 1.0')")
        runner = self.start("--configs", "run_*.py", "--jobs", 2, "--quiet")
        wait_for(lambda: self.batch_exists(), "the summary")
        path, seen = self.batch() / "experiment_summary.json", set()
        while runner.poll() is None:
            summary = json.loads(path.read_bytes())
            self.assertEqual(list(summary["results"]), names)
            time.sleep(0.001)  # leaves the batch a core
            self.assertEqual(summary["total_experiments"], 30)
            seen.add(summary["completed"])
        self.ended(runner, 0)
        self.assertGreater(len(seen), 2, "the test never saw the batch at work")
        self.assertEqual(self.summary()["completed"], 30)

    def batch_exists(self) -> bool:
        with contextlib.suppress(OSError):
            return (self.batch() / "experiment_summary.json").exists()
        return False


class LimitTest(FaultCase):
    def test_too_few_descriptors_fail_the_experiment_with_a_clear_error_and_not_the_batch(self) -> None:
        self.config("a", "open('started', 'w')")
        self.config("b")
        clear = 0
        for most in (12, 16):
            shutil.rmtree(self.dir / "experiments", ignore_errors=True)
            runner = self.start("--configs", "a.py", "b.py", preexec_fn=limit(resource.RLIMIT_NOFILE, most))
            out, err = runner.communicate(timeout=PATIENCE)
            with self.subTest(most=most):
                self.assertEqual(err.count("Traceback"), 0, err)
                self.assert_nothing_runs()
                if runner.returncode == 1 and "can't write" in out:  # not even for a file of its own
                    self.assertIn("Too many open files", out)
                elif runner.returncode == 1:
                    self.assertEqual(self.statuses(), {"a": "error", "b": "error"})
                    for result in self.summary()["results"].values():
                        self.assertIn("Too many open files", result["error"])
                        self.assertIn("Traceback", result["traceback"])
                    clear += 1
                else:
                    self.assertIn(runner.returncode, (0, 2))
        self.assertGreater(clear, 0, "no limit let the runner start and its experiments fail")

    def test_experiments_for_which_no_descriptors_are_left_fail_and_those_that_run_go_on(self) -> None:
        names = "abcdefg"
        for name in names:
            self.config(name, CHILD_TOOLS + "await_file('go')")
        configs = [f"{name}.py" for name in names]
        runner = self.start("--configs", *configs, "--jobs", 7, preexec_fn=limit(resource.RLIMIT_NOFILE, 32))
        self.wait_for_event("Too many open files")
        self.go("go")
        self.ended(runner, 1)
        statuses = self.statuses().values()
        self.assertEqual(set(statuses), {"completed", "error"}, statuses)

    def test_too_few_processes_fail_the_experiment_with_a_clear_error_and_not_the_batch(self) -> None:
        self.config("a")
        self.config("b")
        clear = 0
        for most in (2, 3, 5):
            shutil.rmtree(self.dir / "experiments", ignore_errors=True)
            args = ("--configs", "a.py", "b.py")
            runner = self.start_as_stranger(*args, preexec_fn=limit(resource.RLIMIT_NPROC, most))
            out, err = runner.communicate(timeout=PATIENCE)
            with self.subTest(most=most):
                self.assertEqual(err.count("Traceback"), 0, err)
                self.assert_nothing_runs()
                if runner.returncode == 1:
                    self.assertTrue(set(self.statuses().values()) <= {"error", "failed"}, self.statuses())
                    for result in self.summary()["results"].values():
                        self.assertRegex(str(result["error"]), "start|fork|resource|thread|exit code")
                    clear += 1
        self.assertGreater(clear, 0, "no limit let the runner start and its experiments fail")

    def test_a_user_without_any_room_for_a_thread_is_told_so(self) -> None:
        self.config("a")
        runner = self.start_as_stranger("--configs", "a.py", preexec_fn=limit(resource.RLIMIT_NPROC, 1))
        out, err = runner.communicate(timeout=PATIENCE)
        self.assertIn(runner.returncode, (1, 2))
        self.assertNotIn("Traceback", err)
        self.assertRegex(out + err, "error.* thread")

    def test_a_launcher_that_vanishes_fails_its_experiment_and_the_batch_goes_on(self) -> None:
        launcher = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
        for name in ("", "a", "b", "c", "d"):
            path = self.dir / f"launch_{name}"
            path.write_text(launcher)
            path.chmod(0o755)
        self.config("a", "import os\nos.unlink('launch_b')\nos.chmod('launch_c', 0o644)")
        for name in "bc":
            self.config(name, "open('started', 'w')")
        self.config("d")
        done = self.run_runner("--configs", "a.py", "b.py", "c.py", "d.py", "--launcher", "./launch_{name}", expect=1)
        self.assertEqual(done.stderr, "")
        statuses = self.statuses()
        self.assertEqual((statuses["a"], statuses["d"]), ("completed", "completed"))
        for name, reason in (("b", "No such file"), ("c", "Permission denied")):
            result = self.result(name)
            self.assertIn(result["status"], ("failed", "error"))
            self.assertRegex(
                f"{result['error']}\n{result['stderr_tail']}", rf"launch_{name}.*{reason}|{reason}.*launch_{name}"
            )
        self.assertFalse((self.dir / "started").exists())

    def test_a_launcher_that_is_not_there_is_told_before_anything_starts(self) -> None:
        self.config("a")
        self.assertIn("no_such_launcher", self.refused("--configs", "a.py", "--launcher", "no_such_launcher --fast"))
