"""What is told is what ran: statuses and warnings, metrics, durations, errors; which batch and which experiment is meant."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from tests.support import CHILD_TOOLS, RunnerCase

NAN_LATER = "print('step 5: train loss 2.0, val loss 2.0')\nprint('step 10: train loss nan, val loss nan')"
SETTINGS = "init_from = 'scratch'\nmax_iters = 1000\nrate = 0.1"
SAVE = "open(out_dir + '/ckpt_5.pt', 'w').close()\n"


def step(number: int, loss: float = 2.0) -> str:
    return f"print('step {number}: train loss {loss}, val loss {loss}', flush=True)\n"


class StatusTest(RunnerCase):
    def strict(self, body: str, settings: str = SETTINGS) -> dict[str, Any]:
        """The result of one experiment of a nanoGPT-style trainer, which completes."""
        self.strict_trainer(settings, body)
        self.config("a")
        self.forked("--configs", "a.py")
        return self.result("a")

    def test_a_loss_that_was_finite_and_is_nan_at_exit_0_is_failed_not_retried_and_exits_1(self) -> None:
        self.config("a", NAN_LATER)
        self.forked("--configs", "a.py", "--retries", "3", expect=1)
        result = self.result("a")
        self.assertEqual((result["status"], result["return_code"], result["attempts"]), ("failed", 0, 1))
        self.assertEqual(result["error"], "exit code 0, but the loss is nan since step 10")
        self.assertEqual(result["metrics"]["best_val_loss"], 2.0)

    def test_diverged_ones_count_for_max_failures(self) -> None:
        for name in "abc":
            self.config(name, NAN_LATER)
        self.forked("--configs", "a.py", "b.py", "c.py", "--max_failures", "2", expect=1)
        self.assertEqual(self.statuses(), {"a": "failed", "b": "failed", "c": "pending"})

    def test_a_loss_that_is_finite_again_has_not_diverged_and_one_that_never_was_is_a_warning(self) -> None:
        self.config("a", f"{NAN_LATER}\n{step(15)}")
        self.config("b", step(5, float("nan")))
        self.forked("--configs", "a.py", "b.py")
        self.assertEqual(self.statuses(), {"a": "completed", "b": "completed"})
        self.assertEqual(self.result("a")["warnings"], [])
        self.assertEqual(self.result("b")["warnings"], ["the loss is not finite: try a smaller --learning_rate"])

    def test_resume_leaves_a_diverged_one_alone_unless_an_override_or_again_names_it(self) -> None:
        self.config("a", NAN_LATER)
        self.config("b", "raise SystemExit(3)")
        self.forked("--configs", "a.py", "b.py", expect=1)
        batch = f"experiments/{self.batch().name}"
        out = self.forked("--resume", expect=1).stdout
        self.assertIn("a: diverged, left alone", out)
        self.assertEqual((self.result("a")["attempts"], self.result("b")["attempts"]), (1, 2))
        self.forked("--resume", batch, "--learning_rate", "1e-4", expect=1)
        self.forked("--resume", batch, "--again", "a", expect=1)
        self.assertEqual(self.result("a")["attempts"], 3)

    def test_an_override_brings_resume_to_the_batch_in_which_one_has_diverged(self) -> None:
        self.config("a", NAN_LATER)
        self.forked("--configs", "a.py", expect=1)
        diverged = self.batch()
        self.config("b", step(1))
        self.forked("--configs", "b.py")
        self.forked("--resume", "--learning_rate", "1e-4", expect=1)
        self.assertEqual(self.json(diverged / "experiment_summary.json")["results"]["a"]["attempts"], 2)

    def test_stop_on_nan_ends_an_attempt_after_three_losses_or_one_evaluation(self) -> None:
        losses = "".join(f"print('iter {n}: loss {loss}', flush=True)\n" for n, loss in enumerate([2.0, "nan", "nan"]))
        self.config("two", losses)
        self.config("three", losses + "print('iter 3: loss inf', flush=True)\nlive_on()")
        self.config("evaluation", step(5) + step(10, float("inf")) + "live_on()")
        self.forked("--configs", "two.py", "three.py", "evaluation.py", "--stop_on_nan", expect=1)
        errors = {name: result["error"] for name, result in self.summary()["results"].items()}
        stopped = "the loss is not finite (--stop_on_nan)"
        self.assertEqual(
            errors, {"two": "exit code 0, but the loss is nan since step 1", "three": stopped, "evaluation": stopped}
        )
        self.assertEqual(set(self.statuses().values()), {"failed"})
        self.assertTrue(self.result("three")["diverged"])

    def test_an_early_end_is_completed_with_a_warning_that_the_table_status_and_quiet_show(self) -> None:
        result = self.strict(step(3) + step(6))
        self.assertEqual((result["status"], result["warnings"]), ("completed", ["ended at step 6 of 1000"]))
        for out in (
            self.master_log(),
            self.forked("--status").stdout,
            self.forked("--configs", "a.py", "--quiet").stdout,
        ):
            self.assertIn("ended at step 6 of 1000", out)
        self.assertTrue("ended at step 6 of 1000" in (self.batch() / "report.html").read_text())

    def test_an_end_within_the_largest_gap_between_steps_is_no_early_one(self) -> None:
        self.assertEqual(self.strict(step(0) + step(400) + step(600))["warnings"], [])

    def test_a_nano_gpt_style_script_without_any_step_has_a_warning_and_another_script_has_none(self) -> None:
        self.assertEqual(self.strict("print('done')")["warnings"], ["printed no step"])
        (self.dir / "train_run.py").write_text("print('done')")
        self.forked("--configs", "a.py")
        self.assertEqual(self.result("a")["warnings"], [])


class MetricsTest(RunnerCase):
    def test_a_line_of_the_config_or_the_script_that_is_echoed_is_no_metric(self) -> None:
        echoes = "print('''\nstep 7: train loss 0.1, val loss 0.1\n''')\n"  # a line of its own text
        self.strict_trainer(SETTINGS, echoes + step(1000))
        self.config("a", "# tried before: step 5000: train loss 0.9000, val loss 0.5000\n")
        self.forked("--configs", "a.py")
        for line in (b"step 5000: train loss 0.9000", b"step 7: train loss 0.1"):
            self.assertIn(line, self.log("a"))
        metrics = self.result("a")["metrics"]
        self.assertEqual((metrics["step"], metrics["best_val_loss"]), (1000, 2.0))

    def test_lines_on_stderr_count_wherever_the_metric_stands(self) -> None:
        lines = (
            "INFO:train:step 5: train loss 3.0, val loss 3.5",
            "36it/s] [rank0]: step 6: train loss 2.0, val loss 2.5",
        )
        self.config("a", "".join(f"print({line!r}, file=sys.stderr)\n" for line in lines))
        self.forked("--configs", "a.py")
        metrics = self.result("a")["metrics"]
        self.assertEqual([metrics[key] for key in ("first_step", "step", "val_loss")], [5, 6, 2.5])

    def test_what_an_import_may_set_is_a_question_mark_and_null(self) -> None:
        self.strict_trainer(SETTINGS, "print(rate)\n" + step(10))
        self.config("base", "rate = 0.7\nmax_iters = 10")
        self.config("a", "from base import *")
        self.config("b", "from base import *\nrate = 0.2")
        self.forked("--configs", "a.py", "b.py")
        self.assertEqual([self.result(name)["settings"]["rate"] for name in "ab"], [None, 0.2])
        self.assertEqual((self.result("a")["max_iters"], self.result("a")["warnings"]), (None, []))
        self.assertRegex(self.forked("--status").stdout, r"(?m)^a  .* \?( |$)")
        self.assertTrue("<td>?<td" in (self.batch() / "report.html").read_text(), "no ? in the page's table")


class DurationTest(RunnerCase):
    def interrupt(self) -> None:
        self.config("a", "if not os.path.exists('go'):\n    os.kill(os.getppid(), signal.SIGINT)\n    live_on()")
        self.forked("--configs", "a.py", expect=130)

    def test_total_seconds_is_the_sum_over_the_attempts_and_the_table_shows_it(self) -> None:
        self.interrupt()
        path = self.batch() / "a" / "experiment_result.json"
        result = self.json(path)
        path.write_text(json.dumps({**result, "duration_seconds": 7200.0, "total_seconds": 7200.0}))
        summary = self.summary()
        summary["results"]["a"].update(duration_seconds=7200.0, total_seconds=7200.0)
        (self.batch() / "experiment_summary.json").write_text(json.dumps(summary))
        self.go("go")
        self.forked("--resume")
        after = self.result("a")
        self.assertLess(after["duration_seconds"], 3600)
        self.assertAlmostEqual(after["total_seconds"], 7200.0 + after["duration_seconds"], places=2)
        self.assertRegex(self.forked("--status").stdout, r"(?m)^a .* 2h0?0?m?")

    def test_an_interrupted_and_a_finished_batch_have_no_eta(self) -> None:
        self.interrupt()
        self.go("go")
        for state in ("interrupted", "finished"):
            told = json.loads(self.forked("--status", "--json").stdout)
            self.assertEqual((told["state"], told["eta_seconds"]), (state, None))
            self.assertNotIn("ETA", self.forked("--status").stdout)
            self.forked("--resume")


class ErrorTest(RunnerCase):
    def test_a_bare_assertion_is_told_with_its_source_line(self) -> None:
        (self.dir / "train_run.py").write_text("heads = 3\nassert 8 % heads == 0\n")
        self.config("a")
        self.forked("--configs", "a.py", expect=1)
        told = "exit code 1: AssertionError: assert 8 % heads == 0 (train_run.py, line 2)"
        self.assertEqual(self.result("a")["error"], told)

    def test_a_timeout_comes_with_the_traceback_that_stands_in_stderr_already(self) -> None:
        self.config(
            "a", "import traceback\ntry:\n    {}['key']\nexcept KeyError:\n    traceback.print_exc()\nlive_on()"
        )
        self.forked("--configs", "a.py", "--stall", 1, expect=1)
        self.assertEqual(self.result("a")["error"], "stalled: no output for 1s (--stall): KeyError: 'key'")


class WhichBatchTest(RunnerCase):
    """`old` began before `new`, whatever they are called by now."""

    def made(self, name: str, began: str, code: str = "") -> Path:
        """A batch of one experiment, with its beginning and its name as the test wants them."""
        self.config("a", code)
        self.forked("--configs", "a.py", expect=None)
        folder, place = self.batch(), self.dir / "experiments" / name
        (self.dir / "experiments" / "latest").unlink()
        folder.rename(place)
        for path in (place / "experiment_summary.json", place / "plan" / "plan.json"):
            data = {**self.json(path), "start_time": began}
            path.write_text(json.dumps(data, indent=1))
        return place

    def shown(self, *args: str) -> str:
        return self.forked("--status", *args).stdout.partition(":")[0]

    def test_the_newest_is_the_one_that_began_last_whatever_its_name_and_its_time_zone(self) -> None:
        self.made("experiment_20250101_000000", "2024-01-28T14:30:22.000+02:00")
        self.made("kept_for_the_paper", "2024-01-28T13:00:00.000+00:00")
        self.assertEqual(self.shown(), "experiments/kept_for_the_paper")
        page = self.forked("--report").stdout.strip()
        self.assertRegex(page, "^experiments/kept_for_the_paper/report.html$")

    def test_a_copied_latest_that_is_a_directory_or_points_nowhere_decides_nothing(self) -> None:
        self.made("new", "2024-01-29T00:00:00.000+00:00")
        old = self.made("old", "2024-01-28T00:00:00.000+00:00")
        latest = self.dir / "experiments" / "latest"
        latest.symlink_to("nowhere")
        self.assertEqual(self.shown(), "experiments/new")
        latest.unlink()
        latest.symlink_to("old")
        self.assertEqual(self.shown(), "experiments/new")
        latest.unlink()
        shutil.copytree(old, latest)
        self.assertEqual(self.shown(), "experiments/new")

    def test_resume_takes_the_newest_with_anything_left_and_says_which(self) -> None:
        self.made("night", "2024-01-28T00:00:00.000+00:00", "raise SystemExit(3)")
        self.made("quick", "2024-01-29T00:00:00.000+00:00")
        self.made("diverged", "2024-01-30T00:00:00.000+00:00", NAN_LATER)
        (self.dir / "a.py").write_text("")
        for mode in (["--dry_run"], []):
            out = self.forked("--resume", *mode).stdout
            self.assertIn("resuming experiments/night\n", out)
        summary = self.json(self.dir / "experiments" / "night" / "experiment_summary.json")
        self.assertEqual((summary["completed"], summary["state"]), (1, "finished"))

    def test_with_nothing_left_anywhere_resume_says_so_and_exits_with_0(self) -> None:
        self.made("quick", "2024-01-29T00:00:00.000+00:00")
        self.made("diverged", "2024-01-30T00:00:00.000+00:00", NAN_LATER)
        out = self.forked("--resume").stdout
        self.assertIn("a: diverged, left alone", out)
        self.assertTrue(
            out.endswith("experiments/diverged: 1 failed; no other batch has anything left either: nothing to do\n"),
            out,
        )
        self.assertEqual(self.forked("--resume", "--quiet").stdout, "")

    def test_a_batch_that_was_moved_shows_links_and_resumes_from_where_it_is(self) -> None:
        self.made("first", "2024-01-28T00:00:00.000+00:00", SAVE + "raise SystemExit(3)")
        os.makedirs(self.dir / "archive" / "2024")
        shutil.move(self.dir / "experiments" / "first", self.dir / "archive" / "2024" / "renamed")
        place = "archive/2024/renamed"
        self.assertEqual(self.shown(place), place)
        page = (self.dir / self.forked("--report", place).stdout.strip()).read_text()
        self.assertTrue('href="./a/stdout.log"' in page, "no link to the log beside the page")
        (self.dir / "a.py").write_text(SAVE)
        self.forked("--resume", place)
        result = self.json(self.dir / place / "a" / "experiment_result.json")
        self.assertEqual((result["status"], result["experiment_dir"]), ("completed", f"{place}/a"))
        self.assertEqual(result["final_checkpoint"], f"{place}/a/ckpt_5.pt")
        self.assertEqual(list((self.dir / "experiments").glob("*")), [])


class AgainTest(RunnerCase):
    """Two completed experiments of a trainer that can continue."""

    def setUp(self) -> None:
        super().setUp()
        self.strict_trainer(
            SETTINGS, "print('began', init_from, max_iters)\nexec(open('body.py').read())\n" + step(990)
        )
        (self.dir / "body.py").write_text(CHILD_TOOLS + "if rate == 0.1:\n    " + SAVE)
        self.config("saves")
        self.config("bare", "rate = 0.2")
        self.forked("--configs", "saves.py", "bare.py")
        self.name = f"experiments/{self.batch().name}"

    def began(self, name: str) -> list[str]:
        return [line for line in self.log(name).decode().splitlines() if line.startswith("began")]

    def test_again_trains_longer_from_the_checkpoint_else_anew_with_the_earlier_attempt_kept(self) -> None:
        dry = self.forked("--resume", "--again", "*", "--max_iters", "5000", "--dry_run").stdout
        self.assertIn("# saves: continues from ckpt_5.pt\n", dry)
        self.assertIn("# bare: starts over: no checkpoint\n", dry)
        self.forked("--resume", "--again", "*", "--max_iters", "5000")
        self.assertEqual(self.began("saves"), ["began scratch 1000", "began resume 5000"])
        self.assertEqual(self.began("bare"), ["began scratch 5000"])
        earlier = (self.batch() / "bare" / "attempt_1" / "stdout.log").read_bytes()
        self.assertIn(b"began scratch 1000\n", earlier)
        self.assertEqual(self.result("saves")["max_iters"], 5000)

    def test_again_takes_names_and_patterns_and_leaves_the_others_alone(self) -> None:
        err = self.forked("--resume", self.name, "--again", "other", expect=2).stderr
        self.assertIn("error: --again: no experiment of this name: other", err)
        err = self.forked("--configs", "bare.py", "--again", "x", expect=2).stderr
        self.assertIn("error: --again: only with --resume", err)
        out = self.forked("--resume", self.name, "--max_iters", "5000").stdout
        for name in ("saves", "bare"):
            self.assertIn(f"{name}: completed, left alone; --again runs it all the same", out)
        self.forked("--resume", self.name, "--again", "ba*", "nothing")
        attempts = {name: result["attempts"] for name, result in self.summary()["results"].items()}
        self.assertEqual(attempts, {"saves": 1, "bare": 2})
