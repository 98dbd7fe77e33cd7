"""--status and its table: of a batch that runs, has ended, lost its runner, or is very large."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import termios
import time
import unittest
from datetime import datetime
from typing import Any, Optional

import run_experiments as runner
from tests.support import PATIENCE, RunnerCase, is_running, wait_for


class TableTest(unittest.TestCase):
    def test_a_table_is_columns_of_what_there_is(self) -> None:
        results = [
            runner.Result(
                config_name="a",
                status=runner.Status.COMPLETED,
                duration_seconds=61.0,
                max_iters=5,
                metrics=runner.Metrics(5, 1.0, 2.0, 1.5, 3),
                settings={"lr": 0.1, "name": "x" * 15},
                warnings=["odd"],
            ),
            runner.Result(
                config_name="b",
                status=runner.Status.FAILED,
                duration_seconds=1.0,
                error="one\nline",
                settings={"lr": 0.01},
            ),
            runner.Result(config_name="longer", metrics=runner.Metrics(7, 1.0, 3.0, 3.0, 7), settings={"name": True}),
        ]
        self.assertEqual(
            runner.result_lines(results),
            [
                "experiment  status         step  val loss  best (*: of all)  duration    lr  name",
                "a           completed (!)   5/5    2.0000           1.5000*      1m1s   0.1  xxxxxxxxxxxxxxx",
                "    warning: odd",
                "b           failed                                                 1s  0.01",
                "    error: one?line",
                "longer      pending           7    3.0000            3.0000                  True",
            ],
        )
        self.assertNotIn("*", runner.result_lines(results[:1])[1], "of one experiment nothing is best")

    def test_an_error_that_says_no_more_than_the_status_has_no_line(self) -> None:
        status = runner.Status.INTERRUPTED
        stopped = runner.Result(config_name="a", status=status, error="stopped by SIGINT")
        died = runner.Result(config_name="b", status=status, error="its runner died")
        self.assertEqual(
            runner.result_lines([stopped, died]),
            ["experiment  status", "a           interrupted", "b           interrupted", "    error: its runner died"],
        )


class StatusTest(RunnerCase):
    def test_the_table_of_a_running_a_finished_and_a_dead_batch(self) -> None:
        self.config("done", "max_iters = 5\nprint('step 5: train loss 1.0, val loss 2.0')")
        self.config("worse", "print('step 9: train loss 1.0, val loss 3.0')")
        code = "max_iters = 10\nprint('iter 0: loss 4.0, time 1ms\\nstep 0: train loss 4.0, val loss 4.0\\n"
        self.config("runs", code + "iter 4: loss 3.0, time 1ms')\nprint('ready')\nawait_file('go')")
        process = self.start("--configs", "done.py", "worse.py", "runs.py")
        self.wait_for_line("runs", b"ready\n")
        out = self.forked("--status").stdout
        self.assertRegex(out, r"^\S+: running, .*1 running; \S+, ETA \S+\n")
        self.assertRegex(out, r"(?m)^done +completed +5/5 +2.0000 +2.0000\* ")
        self.assertRegex(out, r"(?m)^worse +completed +9 +3.0000 +3.0000 ")
        self.assertRegex(out, r"(?m)^runs +running +4/10 +4.0000 +4.0000 +\S+ +\S+")
        process.kill()
        process.wait(60)
        out = self.forked("--status", self.batch()).stdout
        self.assertRegex(out, r": interrupted, 2 completed, 1 interrupted")
        self.assertRegex(out, r"(?m)^runs +interrupted +4/10 .*\n    error: its runner died")
        wait_for(lambda: not self.is_orphan_there(), "the end of the training")
        self.go("go")
        self.forked("--resume")
        self.assertRegex(self.forked("--status").stdout, r": finished, 3 completed; ")

    def is_orphan_there(self) -> bool:
        pid = self.json(self.batch() / "runs" / "experiment_metadata.json")["pid"]
        return is_running(pid)

    def test_a_batch_that_lost_its_summary_is_shown_from_its_experiments(self) -> None:
        self.config("good", "print('step 5: train loss 1.0, val loss 2.0')")
        self.config("bad", "raise ValueError('no')")
        self.forked("--configs", "good.py", "bad.py", expect=1)
        (self.batch() / "experiment_summary.json").unlink()
        out = self.forked("--status").stdout
        self.assertRegex(out, r"(?m)^good +completed +5 +2\.0000")
        self.assertRegex(out, r"(?m)^bad +failed .*\n    error: .*ValueError: no$")
        report = self.forked("--report").stdout
        self.assertTrue((self.dir / report.strip()).is_file())

    def test_the_settings_that_differ_have_columns_and_the_others_have_none(self) -> None:
        self.config("a", "learning_rate = 0.1\nbatch_size = 8")
        self.config("b", "learning_rate = 0.2\nbatch_size = 8")
        self.forked("--configs", "a.py", "b.py")
        lines = self.forked("--status").stdout.splitlines()
        self.assertRegex(lines[1], r"\blearning_rate\b")
        self.assertNotRegex(lines[1], "batch_size")
        self.assertRegex(lines[2], r"^a +.* 0\.1\b")

    def test_json_has_the_batch_and_a_row_for_each_experiment(self) -> None:
        self.config("a", "learning_rate = 1e999\nprint('step 5: train loss 1.0, val loss -inf')")
        self.config("b", "max_iters = 9\nlearning_rate = 0.1\nprint('ready')\nawait_file('go')")
        process = self.start("--configs", "a.py", "b.py")
        self.wait_for_line("b", b"ready\n")
        self.wait_for_event("b: started")
        (self.dir / "status.json").write_text(self.forked("--status", "--json").stdout)
        told = self.json(self.dir / "status.json")
        head = set("timestamp state start_time command sweep total_experiments completed running eta_seconds".split())
        self.assertLessEqual(head, set(told))
        self.assertEqual((told["state"], told["completed"], told["running"]), ("running", 1, 1))
        first, second = told["experiments"]
        keys = "name status progress step train_loss val_loss best_val_loss best_step best duration_seconds"
        self.assertLessEqual(set(f"{keys} eta_seconds settings error hint attempts".split()), set(first))
        self.assertEqual((first["val_loss"], first["settings"]["learning_rate"]), ("-inf", "inf"))
        self.assertEqual((second["name"], second["status"], second["eta_seconds"]), ("b", "running", None))
        self.go("go")
        self.ended(process, 0)


class WrittenCase(RunnerCase):
    """A batch as its summary alone tells it, whose runner seems to live."""

    def write(self, results: dict[str, Any], **head: Any) -> None:
        folder = self.dir / "experiments" / "experiment_20240128_143022"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "experiment_summary.json").write_text(json.dumps({"state": "running", "results": results, **head}))
        self.lock = open(folder / "runner.lock", "w")  # noqa: SIM115
        self.addCleanup(self.lock.close)
        fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def status(self) -> dict[str, Any]:
        (self.dir / "status.json").write_text(self.forked("--status", "--json").stdout)
        return self.json(self.dir / "status.json")


class NumbersTest(WrittenCase):
    def test_what_no_float_holds_comes_out_as_json(self) -> None:
        odd = {
            "duration_seconds": "ODD",
            "total_seconds": "ODD",
            "settings": {"a": ["ODD"]},
            "metrics": {"val_loss": "ODD"},
        }
        self.write({"a": {"status": "completed", **odd}, "b": {"status": "running", **odd}}, git={"commit": "ODD"})
        (summary,) = self.dir.glob("experiments/*/experiment_summary.json")
        written = summary.read_text()
        for text in ("NaN", "-Infinity", "1e999", '"nan"', "1e308", "9" * 400):
            with self.subTest(text=text[:20]):
                summary.write_text(written.replace('"ODD"', text))
                self.assertEqual(self.status()["completed"], 1)


class EtaTest(WrittenCase):
    """An experiment that began a thousand seconds ago; the test takes some seconds itself."""

    def running(self, step: Optional[int] = None, first: int = 0) -> dict[str, Any]:
        began = datetime.fromtimestamp(time.time() - 1000).astimezone().isoformat()
        metrics = {} if step is None else {"step": step, "first_step": first}
        iterations = None if step is None else 100
        return {"status": "running", "start_time": began, "max_iters": iterations, "metrics": metrics}

    def assert_about(self, seconds: Any, expected: float) -> None:
        self.assertAlmostEqual(seconds, expected, delta=PATIENCE)

    def test_what_is_left_of_an_experiment_comes_from_its_iterations(self) -> None:
        done = {"status": "completed", "duration_seconds": 30.0}
        self.write({"half": self.running(50), "again": self.running(90, 80), "new": self.running(), "done": done})
        half, again, new, done = self.status()["experiments"]
        self.assert_about(half["eta_seconds"], 1000)
        self.assert_about(again["eta_seconds"], 1000)
        self.assertEqual((new["eta_seconds"], done["eta_seconds"]), (None, None))

    def test_what_is_left_of_a_batch_comes_from_what_has_ended_and_the_slots(self) -> None:
        done, pending = {"status": "completed", "duration_seconds": 300.0}, {"status": "pending"}
        for slots, left in ((1, 1600), (2, 1000)):
            with self.subTest(slots=slots):
                results = {"a": self.running(50), "b": done, "c": pending, "d": pending}
                self.write(results, slots=slots)
                self.assert_about(self.status()["eta_seconds"], left)
                self.lock.close()


class PrintTest(WrittenCase):
    def setUp(self) -> None:
        super().setUp()
        self.write({f"run_{number}": {"status": "completed", "error": "x" * 100} for number in range(1000)})

    def test_a_reader_that_has_seen_enough_is_no_traceback(self) -> None:
        source, sink = os.pipe()
        os.close(source)
        process = self.start("--status", stdout=sink)
        os.close(sink)
        self.assertEqual((process.communicate(timeout=PATIENCE)[1], process.returncode), ("", 0))

    @unittest.skipUnless(os.path.exists("/dev/full"), "no /dev/full")
    def test_a_full_disk_is_told(self) -> None:
        with open("/dev/full", "w") as full:
            process = self.start("--status", "--json", stdout=full)
        self.assertRegex(process.communicate(timeout=PATIENCE)[1], r"^error: can't write to stdout: .*\n$")
        self.assertEqual(process.returncode, 2)

    def test_all_is_printed_also_into_a_pipe_that_does_not_block_and_is_read_late(self) -> None:
        source, sink = os.pipe()
        os.set_blocking(sink, False)
        process = self.start("--status", stdout=sink)
        wait_for(lambda: self.waiting_bytes(source) > 4096, "the table")
        os.close(sink)
        with open(source, encoding="utf-8") as file:
            lines = file.read().splitlines()
        self.assertEqual((process.wait(PATIENCE), len(lines)), (0, 2002))

    @staticmethod
    def waiting_bytes(pipe: int) -> int:
        return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0])
