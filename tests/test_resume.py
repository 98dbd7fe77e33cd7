"""Continuing a batch: what runs again, how, and what is never lost."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.support import CHILD_TOOLS, Forked, RunnerCase, wait_for

KEPT = "init_from = 'scratch'\nmax_iters = 10\nbatch_size = 8\nword = 'x'"  # a trainer that can continue
BEGAN = (
    "name = os.path.basename(sys.argv[1])[:-3]\nprint(f'began {init_from} {batch_size}')\nexec(open('body.py').read())"
)


class ResumeCase(RunnerCase):
    """A trainer with `init_from` and nanoGPT's configurator, whose body the tests change."""

    def setUp(self) -> None:
        super().setUp()
        self.strict_trainer(KEPT, BEGAN)
        self.body("")

    def body(self, code: str) -> None:
        """What every training does from now on."""
        (self.dir / "body.py").write_text(code)

    def stop_first(self, *args: Any, names: str = "a.py") -> None:
        """A batch that is interrupted by its first experiment, with ckpt_5.pt, for which no stop has to wait."""
        self.body(CHILD_TOOLS + "print('ready', flush=True)\nos.kill(os.getppid(), signal.SIGINT)\nlive_on()")
        self.forked("--stop_signal", "TERM", "--configs", *names.split(), *args, expect=130)
        (self.batch() / names.split()[0][:-3] / "ckpt_5.pt").write_text("5")
        self.body("")

    def resume(self, *args: Any, expect: int = 0) -> str:
        return self.forked("--resume", *args, expect=expect).stdout


class HowTest(ResumeCase):
    def test_an_experiment_with_a_checkpoint_continues_and_its_logs_grow(self) -> None:
        self.config("a")
        self.config("b")
        self.stop_first(names="a.py b.py")
        before = self.log("a")
        out = self.resume()
        self.assertRegex(out, r"a: continues from ckpt_5.pt")
        self.assertTrue(self.log("a").startswith(before))
        self.assertTrue(self.log("a").endswith(b"began resume 8\n"))
        self.assertRegex(self.log("a", "combined"), rb"\n\S+ \S+ \[RUNNER\] attempt 2 continues from ckpt_5.pt\n")
        self.assertTrue((self.batch() / "a" / "ckpt_5.pt").exists())
        result = self.result("a")
        self.assertEqual((result["status"], result["attempts"]), ("completed", 2))
        gone = ("error", "hint", "signal", "traceback", "stderr_tail")
        self.assertEqual([result[key] for key in gone], [None, None, None, None, ""])
        first = result["attempt_history"][0]
        self.assertEqual((first["attempt"], first["status"], first["return_code"]), (1, "interrupted", -15))
        self.assertTrue(first["start_time"] and first["end_time"])
        self.assertEqual(self.result("b")["attempts"], 1)
        self.assertEqual(self.summary()["completed"], 2)

    def started_over(self, why: str, *args: Any) -> None:
        log = self.log("a")
        self.assertRegex(self.resume(*args), rf"a: starts over: {why}")
        earlier = self.batch() / "a" / "attempt_1"
        self.assertEqual((earlier / "stdout.log").read_bytes(), log)
        self.assertTrue((earlier / "experiment_metadata.json").exists())
        self.assertTrue((earlier / "experiment_result.json").exists())
        self.assertFalse((self.batch() / "a" / "ckpt_5.pt").exists())
        self.assertNotIn(b"ready", self.log("a"))
        self.assertEqual(self.result("a")["attempts"], 2)
        self.assertEqual(self.json(self.batch() / "a" / "experiment_metadata.json")["attempt"], 2)

    def test_no_checkpoint_starts_over(self) -> None:
        self.config("a")
        self.stop_first()
        (self.batch() / "a" / "ckpt_5.pt").unlink()
        self.started_over("no checkpoint")

    def test_init_from_scratch_starts_over(self) -> None:
        self.config("a")
        self.stop_first()
        self.started_over("--init_from=scratch", "--init_from", "scratch")

    def test_a_trainer_without_init_from_starts_over(self) -> None:
        self.strict_trainer(KEPT.replace("init_from = 'scratch'\n", ""), BEGAN.replace("{init_from} ", ""))
        self.config("a")
        self.stop_first()
        self.started_over("the trainer has no setting init_from")

    def test_a_config_that_has_gone_is_replaced_by_its_copy(self) -> None:
        self.config("a", "batch_size = 5")
        self.stop_first()
        (self.dir / "a.py").unlink()
        self.resume()
        self.assertIn(b"began resume 5", self.log("a"))

    def test_it_works_from_another_directory(self) -> None:
        self.config("a")
        self.stop_first()
        elsewhere = self.dir / "elsewhere"
        elsewhere.mkdir()
        done = Forked(elsewhere, "--resume", self.batch()).ended()
        self.assertEqual((done.returncode, self.result("a")["status"]), (0, "completed"), done.stderr)
        self.assertEqual(list(elsewhere.iterdir()), [])

    def test_options_given_now_are_laid_over_and_recorded(self) -> None:
        self.config("a")
        self.config("b")
        self.stop_first("--max_iters", 20, names="a.py b.py")
        self.resume("--batch_size", 4)
        self.assertIn(b"began resume 4", self.log("a"))
        for name in "ab":
            self.assertEqual(self.result(name)["overrides"], {"max_iters": 20, "batch_size": 4})
        self.assertEqual(self.summary()["resumes"][0]["overrides"], {"batch_size": "4"})
        self.assertEqual(self.summary()["global_overrides"], {"max_iters": 20})

    def test_a_dry_run_tells_what_would_happen_and_changes_nothing(self) -> None:
        for name in "abc":
            self.config(name)
        self.stop_first(names="a.py b.py c.py")
        before = {path: path.stat().st_mtime_ns for path in self.batch().rglob("*")}
        out = self.resume("--dry_run")
        self.assertRegex(out, r"(?m)^# a: continues from ckpt_5.pt\n\S+ train_run.py \S*a.py .*--init_from=resume$")
        self.assertRegex(out, r"(?m)^# b: starts: first attempt\n\S+ train_run.py \S*b.py ")
        self.assertEqual({path: path.stat().st_mtime_ns for path in self.batch().rglob("*")}, before)
        self.resume()
        self.config("c", "batch_size = 1")
        self.assertEqual(
            self.resume(self.batch(), "--dry_run").splitlines(),
            [f"# resuming {self.batch()}", "# c: completed, but its config has changed since: c.py"]
            + [f"# {name}: completed, left alone" for name in "abc"]
            + ["# 0 of 3 experiments would run"],
        )

    def test_a_checkpoint_that_was_cut_off_is_set_aside_and_the_one_before_is_continued_from(self) -> None:
        self.config("a")
        self.stop_first()
        folder = self.batch() / "a"
        (folder / "ckpt_10.pt").write_text("cut off")
        self.body("if os.path.exists(out_dir + '/ckpt_10.pt'): raise EOFError('Ran out of input')")
        self.resume()
        self.assertEqual((folder / "ckpt_10.pt.set_aside").read_text(), "cut off")
        self.assertRegex(self.master_log(), r"set aside.*ckpt_10\.pt")
        self.assertEqual(re.findall(rb"(?m)^began .*$", self.log("a"))[1:], [b"began resume 8"] * 2)
        result = self.result("a")
        self.assertEqual([each["status"] for each in result["attempt_history"]], ["interrupted", "failed"])
        self.assertEqual((result["status"], Path(result["final_checkpoint"]).name), ("completed", "ckpt_5.pt"))

    def test_a_lone_checkpoint_that_cannot_be_read_is_set_aside_too(self) -> None:
        self.config("a")
        self.stop_first()
        self.body("if init_from == 'resume': raise EOFError('Ran out of input')")
        self.resume()
        self.assertEqual(self.result("a")["status"], "completed")
        self.assertEqual(len(list((self.batch() / "a").rglob("ckpt_5.pt*"))), 1)

    def test_a_failed_one_runs_again_and_a_completed_one_does_not(self) -> None:
        self.config("a")
        self.config("b")
        self.body("sys.exit(name == 'b')")
        self.forked("--configs", "a.py", "b.py", expect=1)
        first = self.result("a")
        self.body("")
        self.resume()
        self.assertEqual(self.result("a"), first)
        self.assertEqual((self.result("b")["status"], self.result("b")["attempts"]), ("completed", 2))

    def test_values_kept_in_json_lead_to_the_same_training(self) -> None:
        self.config("a")
        self.body("print('VALUES', repr(word), repr(batch_size))\nsys.exit(1)")
        for word in ("2024", "\"'größe=\\n'\""):
            with self.subTest(word=word):
                self.forked("--configs", "a.py", f"--word={word}", "--batch_size", "1e1", expect=1)
                self.resume(expect=1)
                logs = (self.batch() / "a" / "attempt_1" / "stdout.log", self.batch() / "a" / "stdout.log")
                first, again = (re.findall(r"(?m)^VALUES .*", log.read_text("utf-8")) for log in logs)
                self.assertEqual((len(first), again), (1, first))


class RefusalTest(ResumeCase):
    def test_a_batch_whose_last_summary_could_not_be_written_gets_it_and_nothing_runs_again(self) -> None:
        self.config("a", "open('runs', 'a').write('x')")
        self.forked("--configs", "a.py")
        path = self.batch() / "experiment_summary.json"
        summary = self.json(path)
        summary["state"], summary["results"]["a"]["status"] = "running", "running"
        path.write_text(json.dumps(summary))
        self.resume()
        summary = self.json(path)
        self.assertEqual((summary["state"], summary["results"]["a"]["status"]), ("finished", "completed"))
        self.assertEqual((self.dir / "runs").read_text(), "x")

    def test_a_finished_batch_is_left_alone(self) -> None:
        self.config("a")
        self.forked("--configs", "a.py")
        before = {path: path.stat().st_mtime_ns for path in self.batch().rglob("*") if path.name != "runner.lock"}
        self.assertIn("nothing to do", self.resume(self.batch()))
        self.assertIn("1 completed; no other batch has anything left either: nothing to do\n", self.resume())
        after = {path: path.stat().st_mtime_ns for path in self.batch().rglob("*") if path.name != "runner.lock"}
        self.assertEqual(after, before)

    def damaged(self, *texts: str) -> None:
        """A batch of version 1.0.0, which has no plan/, is refused with each of these as its summary; nothing changes."""
        shutil.rmtree(self.batch() / "plan", ignore_errors=True)
        before = sorted(self.batch().rglob("*"))
        for text in texts:
            with self.subTest(text=text[:60]):
                (self.batch() / "experiment_summary.json").write_text(text)
                done = self.forked("--resume", self.batch(), expect=2)
                self.assertRegex(done.stderr, r"\Aerror: .*experiment_summary\.json.*\n\Z")
                self.assertEqual(sorted(self.batch().rglob("*")), before)

    def test_a_summary_that_is_damaged_is_refused_by_every_mode_and_named(self) -> None:
        self.config("a")
        self.forked("--configs", "a.py")
        path = self.batch() / "experiment_summary.json"
        whole = path.read_text()
        self.damaged(whole[:-40], "", "[1]", '"x"', '{"results": []}', '{"results": {"a": 3}}', "[" * 99999)
        for option in ("--status", "--report"):
            done = self.forked(option, self.batch(), expect=2)
            self.assertRegex(done.stderr, r"^error: summary is damaged: .*experiment_summary.json.*\n$")

    def test_a_summary_with_values_of_wrong_types_is_refused_and_named(self) -> None:
        self.config("a")
        self.body("sys.exit(1)")
        self.forked("--configs", "a.py", expect=1)
        whole = self.json(self.batch() / "experiment_summary.json")
        wrong: list[dict[str, Any]] = [{"train_script": 5}, {"options": {"jobs": "x"}}, {"options": {"jobs": [2]}}]
        wrong += [{"options": {"launcher": 7}}, {"options": [1]}, {"options": {"timeout": {}}}, {"results": None}]
        results: list[dict[str, Any]] = [
            {"config_path": 7},
            {"config_path": None},
            {"overrides": [1]},
            {"overrides": "x"},
        ]
        results += [{"status": 5}, {"attempts": "three"}, {"attempts": -1}]
        wrong += [{"results": {"a": {**whole["results"]["a"], **each}}} for each in results]
        (self.batch() / "a" / "experiment_result.json").unlink()
        self.damaged(*(json.dumps({**whole, **change}) for change in wrong))

    def test_kept_options_that_no_command_line_could_have_given_are_refused_and_named(self) -> None:
        self.config("a", "sys.exit(1)")
        self.forked("--configs", "a.py", expect=1)
        path = self.batch() / "experiment_summary.json"
        whole = self.json(path)
        wrong: dict[str, Any] = {"metrics": ["loss", "("], "stop_signal": "NOSUCH", "jobs": -5, "shard": "3/2"}
        for name, value in wrong.items():
            with self.subTest(name=name):
                path.write_text(json.dumps({**whole, "options": {name: value}}))
                err = self.forked("--resume", self.batch(), expect=2).stderr
                self.assertRegex(err, rf"\Aerror: [^\n]*: {name} of its options: [^\n]*\n\Z")
        path.write_text(json.dumps({**whole, "resumes": 5}))
        self.forked("--resume", self.batch(), expect=1)

    def test_what_is_no_batch_is_refused_and_stays_as_it_is(self) -> None:
        self.config("a")
        (self.dir / "empty").mkdir()
        for place in ("empty", "nowhere", "a.py"):
            done = self.forked("--resume", place, expect=2)
            self.assertRegex(done.stderr, rf"^error: no batch there: {place}\n$")
        self.assertEqual(list((self.dir / "empty").iterdir()), [])

    def test_a_second_runner_ends_with_75_and_says_who_holds_the_batch(self) -> None:
        self.config("a", CHILD_TOOLS + "if not os.path.exists('second'): sys.exit(1)\nprint('ready')\nawait_file('go')")
        self.forked("--configs", "a.py", expect=1)
        self.go("second")
        both = [self.start("--resume", self.batch()) for _ in range(2)]
        wait_for(lambda: any(each.poll() is not None for each in both), "one of the two to give up")
        loser, winner = sorted(both, key=lambda each: each.poll() is None)
        self.assertEqual(loser.returncode, 75)
        told = rf"^error: another runner holds this batch: pid {winner.pid} on \S+ since \S+\n$"
        self.assertRegex(loser.communicate()[1], told)
        self.wait_for_line("a", b"ready\n")
        self.assertRegex(self.forked("--status").stdout, r"a +running")
        self.go("go")
        self.ended(winner, 0)
        self.assertEqual(self.result("a")["attempts"], 2)


class NothingLostTest(ResumeCase):
    def contents(self, folder: Path) -> dict[str, bytes]:
        """Every file below a directory, by its path in there."""
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def test_all_that_an_attempt_left_moves_aside_byte_for_byte_also_when_it_happens_again(self) -> None:
        self.config("a")
        self.stop_first()
        folder = self.batch() / "a"
        (folder / "samples" / "deep").mkdir(parents=True)
        (folder / "samples" / "deep" / "one.bin").write_bytes(b"\0\xff")
        (folder / ".hidden").write_text("x")
        (folder / "attempt_notes.txt").write_text("of the trainer")
        first = self.contents(folder)
        self.body("print('second', file=sys.stderr)\nsys.exit(3)")
        self.resume("--init_from", "scratch", expect=1)
        self.assertEqual(self.contents(folder / "attempt_1"), first)
        second = {name: data for name, data in self.contents(folder).items() if not name.startswith("attempt_1/")}
        own = ["stdout.log", "stderr.log", "combined.log", "config_used.py"]
        self.assertLessEqual({*own, "experiment_metadata.json", "experiment_result.json"}, set(second))
        self.body("")
        self.resume()
        self.assertEqual(self.contents(folder / "attempt_1"), first)
        self.assertEqual(self.contents(folder / "attempt_2"), second)
        self.assertEqual(self.log("a", "stderr"), b"")
        history = self.result("a")["attempt_history"]
        told = [(each["attempt"], each["status"], each["return_code"]) for each in history]
        self.assertEqual(told, [(1, "interrupted", -15), (2, "failed", 3)])

    def test_a_crash_while_an_attempt_was_moved_aside_loses_nothing(self) -> None:
        self.config("a")
        self.stop_first()
        folder = self.batch() / "a"
        before = Counter(self.contents(folder).values())
        (folder / "attempt_1").mkdir()
        for name in ("stdout.log", "ckpt_5.pt"):
            (folder / name).rename(folder / "attempt_1" / name)
        (folder / "stdout.log").write_text("twice")
        before[b"twice"] += 1
        self.resume()
        self.assertEqual(before - Counter(self.contents(folder / "attempt_1").values()), Counter())
        self.assertEqual((self.result("a")["status"], self.result("a")["attempts"]), ("completed", 2))

    def test_a_killed_runner_leaves_a_batch_that_reads_as_interrupted_and_continues(self) -> None:
        self.config("a")
        self.config("b")
        code = "open(out_dir + '/ckpt_5.pt', 'w').write('5')\nprint('ready', flush=True)\nawait_file(out_dir + '/stdout.log')\n"
        self.body(CHILD_TOOLS + code + "os.kill(os.getppid(), signal.SIGKILL)\nlive_on()")
        self.forked("--configs", "a.py", "b.py", expect=-signal.SIGKILL)
        self.assert_nothing_runs()
        before, combined = self.log("a"), self.log("a", "combined")
        self.assertEqual(self.summary()["state"], "running")
        status = json.loads(self.forked("--status", "--json").stdout)
        self.assertEqual(status["state"], "interrupted")
        self.assertEqual([each["status"] for each in status["experiments"]], ["interrupted", "pending"])
        self.body("")
        self.assertIn("a: continues from ckpt_5.pt", self.resume())
        self.assertTrue(self.log("a").startswith(before))
        self.assertTrue(self.log("a").endswith(b"began resume 8\n"))
        self.assertTrue(self.log("a", "combined").startswith(combined))
        result = self.result("a")
        self.assertEqual((result["status"], result["attempts"]), ("completed", 2))
        [first] = result["attempt_history"]
        self.assertEqual((first["attempt"], first["status"], first["end_time"]), (1, "interrupted", None))
        self.assertEqual((self.summary()["state"], self.summary()["completed"]), ("finished", 2))


class PlanTest(ResumeCase):
    def test_what_is_left_runs_in_the_order_of_the_plan(self) -> None:
        for name in "abcd":
            self.config(name)
        self.stop_first(names="d.py b.py c.py a.py")
        self.body("open('order', 'a').write(name)")
        self.resume()
        self.assertEqual((self.dir / "order").read_text(), "dbca")

    def test_the_plans_own_options_are_taken_over(self) -> None:
        self.config("a")
        launcher = f"env MARK={{name}} {shlex.quote(sys.executable)} -B"
        self.stop_first("--launcher", launcher, "--max_iters", 7, "--", "--batch_size=3")
        command = self.json(self.batch() / "a" / "experiment_metadata.json")["command"]
        self.resume()
        again = self.json(self.batch() / "a" / "experiment_metadata.json")["command"]
        self.assertEqual([word for word in again if word != "--init_from=resume"], command)
        self.assertEqual(again.count("--init_from=resume"), 1)
        self.assertEqual((command[0], command[-1]), ("env", "--batch_size=3"))
        self.assertTrue(self.log("a").endswith(b"began resume 3\n"))

    def test_each_point_of_a_sweep_keeps_its_values(self) -> None:
        self.config("a")
        args = ["--sweep", "batch_size=1,2,3", "--max_iters", "9"]
        self.body("sys.exit(1)")
        self.forked("--configs", "a.py", *args, expect=1)
        self.body("print(batch_size, max_iters)\nsys.exit(1)")
        for name in ("report.html", "experiment_summary.json"):
            with self.subTest(lost=name):
                (self.batch() / name).unlink()
                self.resume(expect=1)
                for number in (1, 2, 3):
                    self.assertTrue(self.log(f"a__batch_size_{number}").endswith(f"\n{number} 9\n".encode()))

    def test_without_a_name_it_is_the_newest_batch_and_with_one_it_is_that(self) -> None:
        self.config("a")
        self.body("sys.exit(1)")
        for _ in range(2):
            self.forked("--configs", "a.py", expect=1)
        newest = self.batch()
        [older] = [each for each in newest.parent.glob("experiment_*") if each != newest]
        self.body("")
        for batch, other, args in ((newest, older, ["--resume"]), (older, newest, ["--resume", f"{older}/"])):
            untouched = (other / "experiment_summary.json").read_bytes()
            self.forked(*args)
            self.assertEqual(self.json(batch / "experiment_summary.json")["completed"], 1)
            self.assertEqual((other / "experiment_summary.json").read_bytes(), untouched)

    def test_a_directory_in_which_nothing_was_recorded_yet_is_passed_over(self) -> None:
        """A runner that is killed between making its directory and its first summary leaves one."""
        self.config("a")
        self.body("sys.exit(1)")
        self.forked("--configs", "a.py", expect=1)
        batch = self.batch()
        (batch.parent / "experiment_20991231_235958").mkdir()
        later = batch.parent / "experiment_20991231_235959"
        later.mkdir()
        for name in ("runner.lock", "master_log.txt"):
            (later / name).write_text("")
        self.body("")
        self.resume()
        self.assertEqual(self.json(batch / "experiment_summary.json")["completed"], 1)

    def test_slots_given_now_replace_those_of_the_plan_in_whatever_way_they_were_given(self) -> None:
        ways = [["--jobs", "2"], ["--devices", "cpu"], ["--devices", "cpu,cuda:0"], ["--device", "cpu"]]
        self.config("a")
        (self.dir / "train_run.py").write_text("import sys\nsys.exit(1)\n")
        for before in ways[:2]:
            self.forked("--configs", "a.py", *before, expect=1)
            for now in ways:
                with self.subTest(before=before, now=now):
                    [command] = self.planned("--resume", *now).values()
                    self.assertEqual("--device=cpu" in command, now[0] != "--jobs")

    def test_a_retry_continues_from_the_checkpoint_that_the_failed_attempt_left(self) -> None:
        self.config("a")
        self.body("if init_from == 'resume': sys.exit()\nopen(out_dir + '/ckpt_5.pt', 'w')\nraise ValueError('first')")
        self.forked("--configs", "a.py", "--retries", 1)
        began = re.findall(rb"(?m)^began .*$", self.log("a"))
        self.assertEqual(began, [b"began scratch 8", b"began resume 8"])
        self.assertTrue((self.batch() / "a" / "ckpt_5.pt").exists())
        self.assertFalse((self.batch() / "a" / "attempt_1").exists())
