"""How an experiment ended: error, hint, metrics, and the files that say so."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
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
CHAINED = "try:\n    1 / 0\nexcept Exception:\n    {}\nraise OSError(5, 'disk')"
ERRORS = {  # name -> what the training does, how its error begins
    "lines": ("raise ValueError('first\\n  second\\nthird')", "exit code 1: ValueError: first"),
    "chained": (CHAINED.format("raise KeyError('a')"), "exit code 1: KeyError: 'a'"),
    "not_last": (CHAINED.format("import traceback; traceback.print_exc()"), r"exit code 1: OSError: \[Errno 5\] disk"),
    "odd": ("raise ValueError('\x1b[31mred \\udcff ' + 'x' * 9999)", "exit code 1: ValueError: "),
    "no_text": ("import os\nos.write(2, b'\\xff\\0 odd\\rlast words')\nos._exit(4)", "exit code 4$"),
    "segv": ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV$"),
    "kill": ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL$"),
    "code_137": ("import sys\nsys.exit(137)", r"exit code 137 \(SIGKILL\)$"),
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

    def test_what_the_real_configurator_dies_of_gets_its_remedy_on_the_console_as_well(self) -> None:
        for name in ("train_run.py", "configurator.py"):
            shutil.copy(TESTS / name, self.dir)
        self.config("one", "max_iters = 1\n")
        for argument, error, remedy in (
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
        names = [f"run_{number}" for number in range(12)]
        for name in names:
            self.config(name, "print('step 1: train loss 1.0, val loss 1.0')")
        runner = self.start("--configs", "run_*.py", "--jobs", 2, "--quiet")
        path, seen = self.dir / "experiments" / "latest" / "experiment_summary.json", set()
        wait_for(path.exists, "the summary")
        while runner.poll() is None:
            summary = json.loads(path.read_bytes())
            self.assertEqual((list(summary["results"]), summary["total_experiments"]), (names, 12))
            time.sleep(0.001)  # leaves the batch a core
            seen.add(summary["completed"])
        self.ended(runner, 0)
        self.assertTrue(seen, "the test never saw the batch at work")
        self.assertEqual(self.summary()["completed"], 12)
