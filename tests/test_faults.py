"""What goes wrong around a batch: disks, directories, configs, limits. It is recorded, and the rest runs."""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import Callable

from tests.support import PATIENCE, RUNNER, RunnerCase


def limit(kind: int, most: int) -> Callable[[], None]:
    """For a process to be: limit one of its resources."""
    return lambda: resource.setrlimit(kind, (most, most))


class FullDiskTest(RunnerCase):
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
        done = self.run_runner("--quiet", "--configs", *configs, expect=0, preexec_fn=limit(resource.RLIMIT_FSIZE, big))
        for name, (_, log) in cases.items():
            with self.subTest(name):
                self.assertTrue((self.dir / f"{name}_done").exists(), "the training was stopped")
                self.assertEqual(self.result(name)["status"], "completed")
                complete = {each: len(self.log(name, each)) < big for each in ("stdout", "stderr", "combined")}
                self.assertIs(self.result(name)["log_complete"], all(complete.values()))
                if log:
                    self.assertFalse(complete[log], "the test did not fill the log")
                    for text in (done.stdout, self.master_log()):
                        self.assertRegex(text, rf"{name}: (warning: )?{log}\.log is incomplete: File too large")
                    self.assertRegex("\n".join(self.result(name)["warnings"]), rf"{log}\.log.*File too large")
        self.assertEqual(self.log("lines"), b"x\n" * 6000 + b"\n")  # combined.log failed, stdout.log went on
        self.assertNotIn("small", done.stdout)
        self.assertEqual((self.log("small"), self.result("small")["warnings"]), (b"fits\n", []))
        self.assertRegex(self.forked("--status").stdout, r"stdout\.log.*File too large")
        self.assertIn("File too large", (self.batch() / "report.html").read_text())


class DirectoryTest(RunnerCase):
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

    def test_a_working_directory_that_is_removed_is_said_at_the_start_and_disturbs_no_batch_that_runs(self) -> None:
        place = self.dir / "removed"
        place.mkdir()
        configs = [
            self.config("a", f"print('ready', flush=True)\nawait_file({str(self.dir / 'go')!r})"),
            self.config("b"),
        ]
        args = ["--configs", *configs, "--train_script", self.dir / "train_run.py"]
        args += ["--base_out_dir", self.dir / "experiments"]
        runner = self.start(*args, cwd=place)
        self.wait_for_line("a", b"ready\n")
        place.rmdir()
        self.go("go")
        self.ended(runner, 0)
        place.mkdir()
        removing = "import os, sys; os.rmdir(os.getcwd()); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        command = [sys.executable, "-c", removing, str(RUNNER), *map(str, args)]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        told = "error: the working directory has been removed; cd to another one\n"
        self.assertEqual((done.returncode, done.stderr), (2, told))


class ConfigTest(RunnerCase):
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
