"""How an experiment ended: error, hint, metrics, and the files that say so."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import unittest
from datetime import datetime
from typing import Any

from tests.support import TESTS, RunnerCase

ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d")
RESULT_KEYS = (
    "config_name config_path experiment_dir status return_code signal error hint start_time end_time duration_seconds"
    " attempts final_checkpoint metrics max_rss_bytes cpu_seconds log_files log_complete stderr_tail traceback"
).split()
SUMMARY_KEYS = (
    "timestamp base_out_dir experiment_dir state start_time end_time duration_seconds command train_script"
    " global_overrides sweep total_experiments completed failed errors timeouts interrupted pending results"
).split()
METADATA_KEYS = (
    "config_name config_path config_sha256 command command_line global_overrides overrides attempt start_time"
    " working_directory python_executable python_version hostname platform pid git cuda_visible_devices"
).split()


class EndingTest(RunnerCase):
    def result_of(self, code: str, **options: Any) -> dict[str, Any]:
        """The result of one training with this code."""
        self.config("one", code)
        self.run_runner("--configs", "one.py", **options)
        return self.result("one")

    def test_an_exit_code_and_the_exception_are_told_in_one_line(self) -> None:
        result = self.result_of("raise ValueError('Unknown config key: foo')")
        self.assertEqual(result["error"], "exit code 1: ValueError: Unknown config key: foo")
        self.assertEqual((result["status"], result["return_code"], result["signal"]), ("failed", 1, None))

    def test_the_last_of_chained_exceptions_is_told(self) -> None:
        result = self.result_of("try:\n    {}['a']\nexcept KeyError as e:\n    raise RuntimeError('second') from e")
        self.assertEqual(result["error"], "exit code 1: RuntimeError: second")

    def test_a_traceback_of_a_torchrun_worker_counts_not_torchruns_own(self) -> None:
        text = (
            "[rank0]: Traceback (most recent call last):\n[rank0]:   File 'x', line 1\n[rank0]: KeyError: 'wte'\n"
            "Traceback (most recent call last):\n  File 'y'\ntorch.distributed.ChildFailedError: \n"
        )
        result = self.result_of(f"import sys\nsys.stderr.write({text!r})\nsys.exit(1)")
        self.assertEqual(result["error"], "exit code 1: KeyError: 'wte'")

    def test_an_exit_code_without_a_traceback_stands_alone(self) -> None:
        result = self.result_of("import sys\nprint('just words', file=sys.stderr)\nsys.exit(7)")
        self.assertEqual((result["error"], result["return_code"]), ("exit code 7", 7))

    def test_death_by_a_signal_names_it(self) -> None:
        result = self.result_of("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
        self.assertEqual((result["status"], result["signal"], result["return_code"]), ("failed", "SIGSEGV", -11))
        self.assertEqual(result["error"], "killed by SIGSEGV")

    def test_an_exit_code_over_128_tells_the_signal_that_launchers_mean_by_it(self) -> None:
        result = self.result_of("import sys\nsys.exit(137)")
        self.assertEqual(result["error"], "exit code 137 (SIGKILL)")
        self.assertIn("out-of-memory", result["hint"])

    def test_the_tail_of_stderr_is_its_last_twenty_lines(self) -> None:
        result = self.result_of("import sys\nfor i in range(50): print(i, file=sys.stderr)\nsys.exit(1)")
        self.assertEqual(result["stderr_tail"].splitlines(), [str(i) for i in range(30, 50)])

    def test_the_known_troubles_get_their_remedy(self) -> None:
        table = [
            ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "--batch_size"),
            ("RuntimeError: DefaultCPUAllocator: can't allocate memory", "--batch_size"),
            ("RuntimeError: CUDA error: invalid device ordinal", "cuda:0"),
            ("RuntimeError: Found no NVIDIA driver on your system.", "--device cpu"),
            ("AssertionError: Torch not compiled with CUDA enabled", "--device cpu"),
            ("wandb.errors.UsageError: api_key not configured (no-tty)", "--wandb_enabled false"),
            ("ModuleNotFoundError: No module named 'wandb'", "--wandb_enabled false"),
            ("ValueError: Unknown config key: foo", "setting"),
            ('  File "<string>", line 43, in <module>\nAssertionError', "type"),
        ]
        for number, (text, _) in enumerate(table):
            said = f"Traceback (most recent call last):\n{text}\n"
            self.config(f"run_{number}", f"import sys\nsys.stderr.write({said!r})\nsys.exit(1)")
        self.run_runner("--configs", "run_*.py", "--jobs", 4, expect=1)
        for number, (text, remedy) in enumerate(table):
            with self.subTest(text=text):
                self.assertIn(remedy, self.result(f"run_{number}")["hint"])

    def test_every_form_of_exception_is_found_and_told_in_one_line(self) -> None:
        table = {
            "bare": ("assert False", "exit code 1: AssertionError"),
            "own": ("class Diverged(Exception): pass\nraise Diverged('at 7')", "Diverged: at 7"),
            "lines": ("raise ValueError('first\\n  second\\nthird')", "exit code 1: ValueError: first"),
            "handling": ("try:\n    1 / 0\nexcept Exception:\n    raise KeyError('a')", "exit code 1: KeyError: 'a'"),
            "ctrl_c": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
            "exit": ("import sys\nsys.exit('no data')", "exit code 1"),
            "odd": ("raise ValueError('\x1b[31mred \\udcff ' + 'x' * 9999)", "exit code 1: ValueError: "),
            "not_last": (
                "import traceback\ntry:\n    1 / 0\nexcept Exception:\n    traceback.print_exc()\nraise OSError(5, 'disk')",
                "exit code 1: OSError: [Errno 5] disk",
            ),
            "syntax": ("exec('x = = 1')", "exit code 1: SyntaxError: invalid syntax"),
        }
        for name, (code, _) in table.items():
            self.config(name, code)
        self.run_runner("--configs", *(f"{name}.py" for name in table), "--jobs", 3, expect=1)
        for name, (_, expected) in table.items():
            with self.subTest(name):
                error = self.result(name)["error"]
                self.assertIn(expected, error)
                self.assertLess(len(error), 600)
                self.assertNotIn("\n", error)

    def test_a_training_script_that_does_not_parse_under_its_launcher_is_told_as_python_does(self) -> None:
        self.config("one")
        (self.dir / "other.py").write_text("x = 1\nfor in y:\n")
        self.run_runner("--configs", "one.py", "--train_script", "other.py", "--launcher", sys.executable, expect=1)
        self.assertEqual(self.result("one")["error"], "exit code 1: SyntaxError: invalid syntax")

    def test_a_training_that_is_killed_is_told_of_the_out_of_memory_killer(self) -> None:
        result = self.result_of("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
        self.assertEqual((result["error"], result["signal"]), ("killed by SIGKILL", "SIGKILL"))
        self.assertIn("out-of-memory", result["hint"])

    def test_what_the_real_configurator_dies_of_gets_its_remedy_on_the_console_as_well(self) -> None:
        for name in ("train_run.py", "configurator.py"):
            shutil.copy(TESTS / name, self.dir)
        self.config("one", "max_iters = 1\n")
        for argument, error, remedy in (
            ("--foo=1", "ValueError: Unknown config key: foo", "setting"),
            ("--batch_size=1.5", "AssertionError", "type"),
            ("--device=cuda", "RuntimeError: Found no NVIDIA driver", "--device cpu"),
        ):
            with self.subTest(argument):
                done = self.run_runner("--configs", "one.py", "--", argument, expect=1)
                result = self.result("one")
                self.assertIn(error, result["error"])
                self.assertIn(remedy, result["hint"])
                self.assertIn(f"hint: {result['hint']}", done.stdout)

    def test_stderr_that_is_not_text_has_a_tail_all_the_same(self) -> None:
        result = self.result_of("import os\nos.write(2, b'\\xff\\0 odd\\rlast words')\nos._exit(4)")
        self.assertRegex(result["stderr_tail"], "odd\\nlast words$")
        self.assertEqual(result["error"], "exit code 4")

    def test_a_training_that_complained_and_completed_has_no_error(self) -> None:
        result = self.result_of("import sys\nsys.stderr.write('Traceback (most recent call last):\\nMemoryError\\n')")
        self.assertEqual((result["status"], result["error"], result["hint"]), ("completed", None, None))
        self.assertEqual((result["traceback"], result["signal"], result["return_code"]), (None, None, 0))

    def test_the_final_checkpoint_is_the_newest(self) -> None:
        result = self.result_of(
            "import os\nfor n, age in ((100, 1), (300, 30), (200, 20)):\n"
            "    path = f'{out_dir}/ckpt_{n}.pt'\n    open(path, 'w').close()\n    os.utime(path, (age, age))\n"
            "open(out_dir + '/ckpt_400.pt.tmp', 'w').close()"
        )
        self.assertTrue(result["final_checkpoint"].endswith("/ckpt_300.pt"), result["final_checkpoint"])
        self.assertTrue(os.path.exists(self.dir / result["final_checkpoint"]))


class FilesTest(RunnerCase):
    def test_every_key_of_the_design_is_there_and_times_have_their_offset(self) -> None:
        self.config("good", "print('step 5: train loss 1.5, val loss 2.5')")
        self.config("bad", "this is no python")
        self.run_runner("--configs", "good.py", "bad.py", "--seed", 3, expect=1)
        summary = self.summary()
        self.assertEqual([key for key in SUMMARY_KEYS if key not in summary], [])
        self.assertEqual((summary["completed"], summary["failed"], summary["state"]), (1, 1, "finished"))
        self.assertEqual(summary["global_overrides"], {"seed": 3})
        for name in ("good", "bad"):
            result = self.result(name)
            self.assertEqual([key for key in RESULT_KEYS if key not in result], [])
            self.assertEqual(summary["results"][name], result)
            self.assertRegex(result["start_time"], ISO)
            self.assertRegex(result["end_time"], ISO)
        metadata = self.json(self.batch() / "good" / "experiment_metadata.json")
        self.assertEqual([key for key in METADATA_KEYS if key not in metadata], [])
        self.assertIn("--seed=3", metadata["command"])
        self.assertEqual(self.result("good")["metrics"]["best_val_loss"], 2.5)
        self.assertGreater(self.result("good")["max_rss_bytes"], 1 << 20)

    def test_what_was_started_is_on_disk_before_it_starts(self) -> None:
        self.config(
            "one",
            "import json, os\nmetadata = json.load(open(os.path.join(out_dir, 'experiment_metadata.json')))\n"
            "print(metadata['attempt'], open(os.path.join(out_dir, 'config_used.py')).read() == open(config).read())",
        )
        self.run_runner("--configs", "one.py", "--n_layer", "a b", expect=0)
        self.assertEqual(self.log("one"), b"1 True\n")
        metadata = self.json(self.batch() / "one" / "experiment_metadata.json")
        self.assertEqual(shlex.split(metadata["command_line"]), metadata["command"])
        self.assertEqual(metadata["command"][1:3], ["train_run.py", "one.py"])
        self.assertEqual(metadata["working_directory"], os.path.realpath(self.dir))
        self.assertIsInstance(metadata["pid"], int)

    def test_times_are_in_order_and_durations_are_those_of_the_training(self) -> None:
        self.config("one", "import time\ntime.sleep(0.2)")
        self.run_runner("--configs", "one.py", expect=0)
        result, summary = self.result("one"), self.summary()
        times = [summary["start_time"], result["start_time"], result["end_time"], summary["end_time"]]
        self.assertEqual(times, sorted(times, key=datetime.fromisoformat))
        self.assertGreaterEqual(result["duration_seconds"], 0.2)
        self.assertGreaterEqual(summary["duration_seconds"], result["duration_seconds"])
        self.assertGreater(result["cpu_seconds"], 0)

    def test_a_config_that_does_not_parse_is_told_with_file_line_and_text_and_starts_nothing(self) -> None:
        self.config("bad", "a = 1\nb = = 2\n")
        self.run_runner("--configs", "bad.py", expect=1)
        error = self.result("bad")["error"]
        for part in ("bad.py", "line 2", "b = = 2"):
            self.assertIn(part, error)
        self.assertFalse((self.batch() / "bad" / "stdout.log").exists())

    def test_the_environment_is_never_stored_but_reaches_the_training(self) -> None:
        self.config("one", "import os\nprint(os.environ['API_KEY'][::-1], os.environ['PYTHONUNBUFFERED'])")
        self.run_runner("--configs", "one.py", expect=0, env={**os.environ, "API_KEY": "secret42"})
        self.assertEqual(self.log("one"), b"24terces 1\n")
        for path in self.batch().rglob("*"):
            if path.is_file():
                self.assertNotIn(b"secret42", path.read_bytes(), path)

    def test_the_commit_is_recorded_in_a_checkout_and_null_elsewhere(self) -> None:
        self.config("one")
        self.run_runner("--configs", "one.py", expect=0, env={**os.environ, "GIT_CEILING_DIRECTORIES": "/"})
        self.assertIsNone(self.json(self.batch() / "one" / "experiment_metadata.json")["git"])
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=trunk"]
        for command in (["init", "-q"], ["add", "one.py"], ["commit", "-qm", "first"]):
            subprocess.run([*git, *command], cwd=self.dir, check=True)
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], cwd=self.dir, capture_output=True, text=True
        ).stdout.strip()
        for text, dirty in (("", False), ("x = 1", True)):
            self.config("one", text)
            self.run_runner("--configs", "one.py", expect=0)
            state = self.json(self.batch() / "one" / "experiment_metadata.json")["git"]
            self.assertEqual(state, {"commit": commit, "branch": "trunk", "dirty": dirty})

    def test_a_checkout_without_a_commit_has_no_commit(self) -> None:
        self.config("one")
        subprocess.run(["git", "init", "-q"], cwd=self.dir, check=True)
        self.run_runner("--configs", "one.py", expect=0)
        state = self.json(self.batch() / "one" / "experiment_metadata.json")["git"]
        self.assertIsNone(state and state["commit"])

    def test_quiet_says_nothing_when_all_went_well_and_tells_what_did_not(self) -> None:
        self.config("good")
        self.config("bad", "raise KeyError('lost')")
        done = self.run_runner("--configs", "good.py", "--quiet", expect=0)
        self.assertEqual((done.stdout, done.stderr), ("", ""))
        done = self.run_runner("--configs", "good.py", "bad.py", "--quiet", expect=1)
        self.assertIn("KeyError: 'lost'", done.stdout)

    def test_a_training_has_no_stdin_and_works_where_the_runner_was_started(self) -> None:
        self.config("one", "import os, sys\nprint(repr(sys.stdin.read()), os.getcwd())")
        self.run_runner("--configs", "one.py", expect=0, stdin=subprocess.PIPE)
        self.assertEqual(self.log("one").decode(), f"'' {os.path.realpath(self.dir)}\n")

    def test_the_settings_in_which_experiments_differ_are_in_the_table(self) -> None:
        (self.dir / "train_run.py").write_text("n_layer = 2\nseed = 1\nexec(open('configurator.py').read())\n")
        (self.dir / "configurator.py").write_text("")
        self.config("small", "n_layer = 3")
        self.config("large", "n_layer = 12")
        done = self.run_runner("--configs", "small.py", "large.py", expect=0)
        table = done.stdout[done.stdout.index("experiment  ") :]
        self.assertRegex(table, r"experiment +status +duration +n_layer\n")
        self.assertRegex(table, r"large +completed +\S+ +12\n")
        self.assertNotIn("seed", table)

    def test_a_config_may_compute_what_it_likes(self) -> None:
        self.config("odd", "import os\na = {1, 2}\nb = b'x'\nc = os.getpid()\nd = (1, [2])\ne = 10 ** 4\nf = 1j\n")
        self.config("even", "a = None\nb = ...\nc = 'x'\n")
        self.run_runner("--configs", "odd.py", "even.py", expect=0)
        self.assertEqual(self.summary()["completed"], 2)


if __name__ == "__main__":
    unittest.main()
