"""How an experiment ended: error, hint, metrics, and the files that say so."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import time
from datetime import datetime
from typing import Any

from tests.support import TESTS, RunnerCase, wait_for

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
TORCHRUN = (
    "[rank0]: Traceback (most recent call last):\n[rank0]:   File 'x', line 1\n[rank0]: KeyError: 'wte'\n"
    "Traceback (most recent call last):\n  File 'y'\ntorch.distributed.ChildFailedError: \n"
)
CHAINED = "try:\n    1 / 0\nexcept Exception:\n    {}\nraise OSError(5, 'disk')"
ERRORS = {  # name -> what the training does, how its error begins
    "plain": ("raise ValueError('Unknown config key: foo')", "exit code 1: ValueError: Unknown config key: foo"),
    "bare": ("assert False", "exit code 1: AssertionError"),
    "own": ("class Diverged(Exception): pass\nraise Diverged('at 7')", "exit code 1: .*Diverged: at 7"),
    "lines": ("raise ValueError('first\\n  second\\nthird')", "exit code 1: ValueError: first"),
    "chained": (CHAINED.format("raise KeyError('a')"), "exit code 1: KeyError: 'a'"),
    "not_last": (CHAINED.format("import traceback; traceback.print_exc()"), r"exit code 1: OSError: \[Errno 5\] disk"),
    "ctrl_c": ("raise KeyboardInterrupt", ".*KeyboardInterrupt"),
    "odd": ("raise ValueError('\x1b[31mred \\udcff ' + 'x' * 9999)", "exit code 1: ValueError: "),
    "syntax": ("exec('x = = 1')", "exit code 1: SyntaxError: invalid syntax"),
    "torchrun": (f"import sys\nsys.stderr.write({TORCHRUN!r})\nsys.exit(1)", "exit code 1: KeyError: 'wte'$"),
    "words": ("import sys\nprint('just words', file=sys.stderr)\nsys.exit(7)", "exit code 7$"),
    "no_text": ("import os\nos.write(2, b'\\xff\\0 odd\\rlast words')\nos._exit(4)", "exit code 4$"),
    "segv": ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV$"),
    "kill": ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL$"),
    **{f"code_{code}": (f"import sys\nsys.exit({code})", f"exit code {code}$") for code in (3, 128, 255)},
    "code_137": ("import sys\nsys.exit(137)", r"exit code 137 \(SIGKILL\)$"),
    "code_143": ("import sys\nsys.exit(143)", r"exit code 143 \(SIGTERM\)$"),
}


class EndingTest(RunnerCase):
    def result_of(self, code: str, **options: Any) -> dict[str, Any]:
        """The result of one training with this code."""
        self.config("one", code)
        self.forked("--configs", "one.py", expect=None, **options)
        return self.result("one")

    def test_what_went_wrong_is_told_in_one_line(self) -> None:
        for name, (code, _) in ERRORS.items():
            self.config(name, code)
        self.forked("--configs", *(f"{name}.py" for name in ERRORS), "--jobs", 3, expect=1)
        for name, (_, error) in ERRORS.items():
            with self.subTest(name):
                result = self.result(name)
                self.assertEqual(result["status"], "failed")
                self.assertRegex(result["error"], re.compile(rf"\A{error}"))
                self.assertLess(len(result["error"]), 600)
                self.assertNotIn("\n", result["error"])
                self.assertEqual("out-of-memory" in (result["hint"] or ""), name in ("kill", "code_137"))
        self.assertEqual((self.result("segv")["signal"], self.result("segv")["return_code"]), ("SIGSEGV", -11))
        self.assertEqual((self.result("code_137")["signal"], self.result("code_137")["return_code"]), (None, 137))
        self.assertRegex(self.result("no_text")["stderr_tail"], "odd\\nlast words$")

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
        self.forked("--configs", "run_*.py", "--jobs", 4, expect=1)
        for number, (text, remedy) in enumerate(table):
            with self.subTest(text=text):
                self.assertIn(remedy, self.result(f"run_{number}")["hint"])

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
                done = self.forked("--configs", "one.py", "--", argument, expect=1)
                result = self.result("one")
                self.assertIn(error, result["error"])
                self.assertIn(remedy, result["hint"])
                self.assertIn(f"hint: {result['hint']}", done.stdout)

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
        self.forked("--configs", "good.py", "bad.py", "--seed", 3, expect=1)
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
        self.forked("--configs", "one.py", "--n_layer", "a b")
        self.assertEqual(self.log("one"), b"1 True\n")
        metadata = self.json(self.batch() / "one" / "experiment_metadata.json")
        self.assertEqual(shlex.split(metadata["command_line"]), metadata["command"])
        self.assertEqual(metadata["command"][1], "train_run.py")
        self.assertEqual(os.path.basename(metadata["command"][2]), "one.py")
        self.assertEqual(metadata["working_directory"], os.path.realpath(self.dir))
        self.assertIsInstance(metadata["pid"], int)

    def test_times_are_in_order_and_durations_are_those_of_the_training(self) -> None:
        self.config("one", "import time\ntime.sleep(0.2)")
        self.forked("--configs", "one.py")
        result, summary = self.result("one"), self.summary()
        times = [summary["start_time"], result["start_time"], result["end_time"], summary["end_time"]]
        self.assertEqual(times, sorted(times, key=datetime.fromisoformat))
        self.assertGreaterEqual(result["duration_seconds"], 0.2)
        self.assertGreaterEqual(summary["duration_seconds"], result["duration_seconds"])
        self.assertGreater(result["cpu_seconds"], 0)

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
        subprocess.run([*git, "init", "-q"], cwd=self.dir, check=True)
        self.forked("--configs", "one.py")
        state = self.json(self.batch() / "one" / "experiment_metadata.json")["git"]
        self.assertIsNone(state and state["commit"])
        for command in (["add", "one.py"], ["commit", "-qm", "first"]):
            subprocess.run([*git, *command], cwd=self.dir, check=True)
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], cwd=self.dir, capture_output=True, text=True
        ).stdout.strip()
        for text, dirty in (("", False), ("x = 1", True)):
            self.config("one", text)
            self.forked("--configs", "one.py")
            state = self.json(self.batch() / "one" / "experiment_metadata.json")["git"]
            self.assertEqual(state, {"commit": commit, "branch": "trunk", "dirty": dirty})

    def test_the_settings_in_which_experiments_differ_are_in_the_table(self) -> None:
        (self.dir / "train_run.py").write_text(
            "n_layer = 2\nseed = 1\nexec(open('configurator.py').read())\nprint('iter 0: loss 1.0')\n"
        )
        (self.dir / "configurator.py").write_text("")
        self.config("small", "n_layer = 3")
        self.config("large", "n_layer = 12")
        done = self.forked("--configs", "small.py", "large.py")
        table = done.stdout[done.stdout.index("experiment  ") :]
        self.assertRegex(table, r"experiment +status +step +duration +n_layer *\n")
        self.assertRegex(table, r"large +completed +0 +\S+ +12 *\n")
        self.assertNotIn("seed", table)


class TogetherTest(RunnerCase):
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
        self.assertTrue(seen, "the test never saw the batch at work")
        self.assertEqual(self.summary()["completed"], 30)

    def batch_exists(self) -> bool:
        with contextlib.suppress(OSError):
            return (self.batch() / "experiment_summary.json").exists()
        return False
