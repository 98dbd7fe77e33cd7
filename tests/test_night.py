"""What somebody who knew only the README managed to lose or to be misled by; each was seen, and then mended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from unittest import mock

import run_experiments as runner
from tests.support import RunnerCase

TRAINER = """
init_from = "scratch"
learning_rate = 0.1
print("began", overrides.get("init_from", "anew"), sorted(os.listdir(out_dir)), flush=True)
"""
FAILS_AFTER_SAVING = TRAINER + "open(os.path.join(out_dir, 'ckpt.pt'), 'w').close()\nsys.exit(3)\n"
# It writes a part of its only checkpoint, pauses with the file open, and writes the rest when it is told to.
PAUSES = """
file = open(os.path.join(out_dir, "ckpt.pt"), "w")
file.write("a part, ")
file.flush()
print("ready", flush=True)
await_file("go")
file.write("the rest")
file.close()
live_on()
"""
SHARDS = """
def save(step, shards):
    folder = os.path.join(out_dir, f"step-{step}")
    os.makedirs(folder, exist_ok=True)
    for shard in shards:
        open(os.path.join(folder, f"shard{shard}"), "w").close()

if overrides.get("init_from") == "resume":
    newest = max(each for each in os.listdir(out_dir) if re.fullmatch(r"step-\\d+", each))
    for shard in "012":
        open(os.path.join(out_dir, newest, f"shard{shard}")).close()
    print("read", newest)
else:
    save(10, "012")
    time.sleep(0.01)  # so that the second one is the newer
    save(20, "0")
    sys.exit(3)
"""


class StopTest(RunnerCase):
    def test_a_save_that_pauses_with_its_file_open_is_not_cut_off(self) -> None:
        self.config("one", PAUSES)
        runner = self.start("--configs", "one.py", "--grace", 100_000)
        self.wait_for_line("one", b"ready\n")
        runner.send_signal(signal.SIGINT)
        self.wait_for_event("waiting for ckpt.pt to be written")
        self.go("go")
        runner.communicate(timeout=60)
        self.assertEqual((self.batch() / "one" / "ckpt.pt").read_text(), "a part, the rest")


class ContinueTest(RunnerCase):
    def began(self, name: str = "one") -> list[str]:
        """How the attempts whose log this is began."""
        lines = self.log(name).decode().splitlines()
        return [line.split()[1] for line in lines if line.startswith("began")]

    def test_from_scratch_is_an_order_for_one_attempt(self) -> None:
        self.config("one", FAILS_AFTER_SAVING)
        self.forked("--configs", "one.py", "--init_from", "scratch", "--retries", 1, expect=1)
        self.assertEqual(self.began(), ["scratch", "resume"])
        self.forked("--resume", "--init_from=scratch", "--retries", 1, expect=1)
        self.assertEqual(self.began(), ["scratch", "resume"])
        self.assertTrue((self.batch() / "one" / "attempt_2").is_dir())
        self.forked("--resume", expect=1)
        self.assertEqual(self.began(), ["scratch", "resume", "resume", "resume"])

    def test_a_checkpoint_that_lacks_a_file_is_set_aside_and_the_one_before_is_used(self) -> None:
        self.config("one", "init_from = 'scratch'\nimport re\n" + SHARDS)
        self.forked("--configs", "one.py", "--checkpoints", "step-*/", "--retries", 1)
        self.assertIn(b"read step-10\n", self.log("one"))
        self.assertTrue((self.batch() / "one" / "step-20.set_aside").is_dir())

    def test_a_loss_of_nan_in_an_attempt_that_goes_on_from_a_finite_one_is_no_success(self) -> None:
        code = (
            "open(os.path.join(out_dir, 'ckpt.pt'), 'w').close()\ncontinues = overrides.get('init_from') == 'resume'\n"
        )
        code += "for n in range(3):\n    print(f'iter {n}: loss {\"nan\" if continues else 2.0}', flush=True)\n"
        self.config("one", TRAINER + code + "sys.exit(0 if continues else 3)\n")
        self.forked("--configs", "one.py", "--retries", 1, expect=1)
        result = self.result("one")
        self.assertEqual((result["status"], result["diverged"]), ("failed", True))
        self.assertIn("the loss is nan since step 0", result["error"])

    def test_a_copied_repository_goes_on_with_its_own_code(self) -> None:
        self.config("one", FAILS_AFTER_SAVING)
        self.forked("--configs", "one.py", expect=1)
        there = self.dir / "copy"
        shutil.copytree(self.dir, there, symlinks=True, ignore=shutil.ignore_patterns("copy"))
        script = there / "train_run.py"
        script.write_text("print('the code of the copy', flush=True)\n" + script.read_text())
        self.run_runner("--resume", cwd=there, expect=1)
        [log] = there.glob("experiments/experiment_*/one/stdout.log")
        self.assertIn("the code of the copy", log.read_text())

    def test_code_that_changed_between_a_stop_and_its_resume_is_told(self) -> None:
        self.config("one", FAILS_AFTER_SAVING)
        (self.dir / ".gitignore").write_text("experiments\n")
        self.git("init", "-q")
        self.git("config", "color.ui", "always")  # which is not for the patch
        self.git("config", "diff.noprefix", "true")
        self.git("add", "-A")
        self.git("commit", "-qm", "first")
        self.forked("--configs", "one.py", expect=1)
        self.forked("--resume", expect=1)
        self.assertEqual(self.result("one")["warnings"], [])
        with open(self.dir / "train_run.py", "a") as file:
            file.write("# edited\n")
        self.forked("--resume", expect=1)
        [warning] = self.result("one")["warnings"]
        self.assertEqual(warning, "code has changed since the batch began: what isn't committed")
        self.assertFalse((self.batch() / "uncommitted.patch").exists())  # it began without one
        patch = (self.batch() / "one" / "uncommitted.patch").read_text()
        self.assertIn("\n+# edited\n", patch)
        self.assertIn("\n+++ b/train_run.py\n", patch)
        self.git("commit", "-qam", "second")
        self.forked("--resume", expect=1)
        self.assertRegex(
            self.result("one")["warnings"][0], "code has changed since the batch began: commit [0-9a-f]{40}"
        )

    def git(self, *words: str) -> None:
        who = {f"GIT_{role}_{what}": "somebody" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        subprocess.run(["git", *words], cwd=self.dir, env={**os.environ, **who}, check=True, capture_output=True)


class RecordTest(RunnerCase):
    """What a maintainer found by reading: records that said less, or other things, than what had happened."""

    def test_a_result_that_can_not_be_written_is_said_and_not_only_an_exit_code(self) -> None:
        self.config("one", "os.makedirs(os.path.join(out_dir, 'experiment_result.json', 'x'))")
        said = self.forked("--configs", "one.py", "--quiet", expect=1).stdout
        self.assertEqual(said.count("error: can't write"), 1, said)

    def test_what_is_overridden_at_a_resume_stays_for_the_next_also_where_it_was_swept(self) -> None:
        self.config("one", FAILS_AFTER_SAVING)
        self.forked("--configs", "one.py", "--sweep", "learning_rate=0.1,0.2", expect=1)
        self.forked("--resume", "--learning_rate", "0.5", expect=1)
        for command in self.planned("--resume").values():
            self.assertIn("--learning_rate=0.5", command)

    def test_what_has_completed_is_shown_with_what_it_ran_with(self) -> None:
        self.strict_trainer("n_layer = 4\ncode = 0\n", "sys.exit(code)")
        self.config("done")
        self.config("fails", "n_layer = 3\ncode = 3\n")
        self.forked("--configs", "done.py", "fails.py", expect=1)
        self.strict_trainer("n_layer = 6\ncode = 0\n", "sys.exit(code)")
        self.forked("--resume", "--code", 0)
        self.assertEqual(self.summary()["results"]["done"]["settings"]["n_layer"], 4)

    def test_a_config_that_breaks_later_leaves_what_the_last_attempt_was(self) -> None:
        self.config("one", FAILS_AFTER_SAVING)
        self.forked("--configs", "one.py", expect=1)
        self.config("one", "learning_rate = = 1")
        self.strict_trainer("learning_rate = 0.1\n")
        self.forked("--resume", expect=1)
        result = self.result("one")
        self.assertEqual((result["attempts"], result["return_code"]), (1, 3))
        self.assertIn("config can't be used", result["error"])

    def test_an_only_checkpoint_that_was_set_aside_gets_its_name_back(self) -> None:
        code = "init_from = 'scratch'\npath = os.path.join(out_dir, 'ckpt.pt')\n"
        code += "if not (os.path.exists(path) or os.path.exists(path + '.set_aside')):\n    open(path, 'a').close()\n"
        code += "if overrides.get('init_from') == 'resume':\n    print('_pickle.UnpicklingError: truncated', file=sys.stderr)\n"
        self.config("one", code + "    print('an epilogue\\n' * 40, file=sys.stderr)\nsys.exit(3)\n")
        self.forked("--configs", "one.py", "--retries", 1, expect=1)
        self.assertTrue((self.batch() / "one" / "ckpt.pt").exists(), self.master_log())
        self.assertIn("which has its name back", self.master_log())
        self.assertEqual([each["attempt"] for each in self.result("one")["attempt_history"]], [1, 2])
        self.assertTrue(all(each["end_time"] for each in self.result("one")["attempt_history"]))

    def test_what_was_interrupted_goes_on_with_its_copy_also_where_the_original_is_handed_on(self) -> None:
        self.config("one", "print('ready', flush=True)\nlive_on()")
        runner = self.start("--configs", "one.py")
        self.wait_for_line("one", b"ready\n")
        runner.send_signal(signal.SIGINT)
        self.ended(runner, 130)
        self.config("one", "print('edited')")
        said = self.forked("--resume", "--dry_run").stdout
        self.assertIn("plan/one.py --out_dir", said)

    def test_copies_of_a_checkpoint_go_when_the_experiment_completes_wherever_it_lies(self) -> None:
        code = "path = os.path.join(out_dir, 'ck', 'ckpt.pt')\nos.makedirs(os.path.dirname(path), exist_ok=True)\n"
        code += "print(len(os.listdir(os.path.dirname(path))), flush=True)\nopen(path, 'a').close()\n"
        self.config("one", TRAINER + code + "sys.exit(0 if overrides.get('init_from') else 3)\n")
        self.forked("--configs", "one.py", "--retries", 1, "--checkpoints", "ck/*.pt")
        self.assertIn(b"\n2\n", self.log("one"))  # the second attempt had a copy beside it
        self.assertEqual(os.listdir(self.batch() / "one" / "ck"), ["ckpt.pt"])

    def test_a_copy_that_can_not_be_made_leaves_nothing(self) -> None:
        checkpoint = self.dir / "ckpt.pt"
        checkpoint.write_bytes(b"weights")
        with mock.patch("shutil.copyfile", side_effect=OSError("no space")), self.assertRaises(OSError):
            runner.keep_copy(str(checkpoint))
        self.assertEqual([each for each in os.listdir(self.dir) if each.startswith(".kept")], [])

    def test_an_attempt_that_has_just_begun_has_nothing_of_the_one_before(self) -> None:
        (self.dir / "experiment_metadata.json").write_text(json.dumps({"attempt": 2, "start_time": "2026-01-01"}))
        before = runner.Result("one", attempts=1, return_code=3, error="exit code 3", hint="less", warnings=["w"])
        found = runner.catch_up(before, str(self.dir), held=True, patterns=[])
        self.assertEqual((found.attempts, found.status), (2, "running"))
        self.assertEqual((found.return_code, found.error, found.hint, found.warnings), (None, None, None, []))

    def test_a_batch_with_experiments_that_were_not_tried_again_is_not_finished(self) -> None:
        for name in ("one", "two"):
            self.config(name, "sys.exit(3)")
        self.forked("--configs", "one.py", "two.py", expect=1)
        self.assertEqual(self.summary()["state"], "finished")
        self.forked("--resume", "--max_failures", 1, expect=1)
        self.assertEqual(self.summary()["state"], "interrupted")


class KilledTest(RunnerCase):
    def test_the_time_of_an_attempt_whose_runner_was_killed_counts(self) -> None:
        self.config("one", "print('ready', flush=True)\nawait_file('go')")
        runner = self.start("--configs", "one.py")
        self.wait_for_line("one", b"ready\n")
        runner.kill()
        runner.communicate()
        self.go("go")
        self.forked("--resume")
        result = self.result("one")
        [before] = result["attempt_history"]
        self.assertEqual(before["status"], "interrupted")
        self.assertAlmostEqual(result["total_seconds"], before["duration_seconds"] + result["duration_seconds"], 2)

    def test_a_dry_run_does_not_say_of_a_batch_that_runs_what_would_be_resumed(self) -> None:
        self.config("one", "print('ready', flush=True)\nawait_file('go')")
        runner = self.start("--configs", "one.py")
        self.wait_for_line("one", b"ready\n")
        said = self.forked("--resume", "--dry_run", expect=75)
        self.assertIn("another runner holds this batch", said.stderr)
        self.go("go")
        self.ended(runner, 0)

    def test_what_is_prepared_while_launching_stops_is_not_forgotten(self) -> None:
        def slow_copy(checkpoint: str) -> None:
            self.wait_for_event("--max_failures")
            raise OSError("no disk")

        self.config("one", FAILS_AFTER_SAVING)
        self.config("two", "sys.exit(3)")
        log = "open('experiments/latest/master_log.txt').read()"
        # At the resume it runs until what is prepared has been taken note of.
        self.config(
            "three", f"while 'resuming' in {log} and 'no disk' not in {log}:\n    time.sleep(0.01)\nsys.exit(3)"
        )
        self.forked("--configs", "one.py", "two.py", "three.py", expect=1)
        with mock.patch.object(runner, "keep_copy", slow_copy):
            self.forked("--resume", "--jobs", 3, "--max_failures", 1, expect=1)
        self.assertEqual((self.summary()["state"], self.result("one")["attempts"]), ("interrupted", 1))

    def test_a_plan_whose_sweep_holds_no_texts_is_made_good_by_the_summary(self) -> None:
        self.config("one", FAILS_AFTER_SAVING)
        self.forked("--configs", "one.py", "--sweep", "learning_rate=0.1", expect=1)
        path = self.batch() / "plan" / "plan.json"
        plan = json.loads(path.read_text())
        plan["experiments"][0]["sweep"]["learning_rate"] = [1]
        path.write_text(json.dumps(plan))
        [command] = self.planned("--resume").values()
        self.assertIn("--learning_rate=0.1", command)


class TableTest(RunnerCase):
    def test_groups_of_seeds_keep_their_names_over_several_batches(self) -> None:
        self.config("one", "seed = 0\nprint('step 5: train loss 1.0, val loss 2.0')\n")
        for _ in range(2):
            self.forked("--configs", "one.py", "--sweep", "seed=1,2")
        batches = [str(each) for each in Path(self.dir).glob("experiments/experiment_*")]
        told = json.loads(self.forked("--status", *batches, "--json").stdout)
        self.assertEqual([(each["name"], each["total"]) for each in told["groups"]], [("one", 4)])

    def test_a_shard_that_has_nothing_to_do_is_not_missing(self) -> None:
        self.config("one")
        self.config("two")
        for part in ("1/4", "2/4", "3/4"):
            self.forked("--configs", "one.py", "two.py", "--shard", part, "--base_out_dir", f"shards/{part[0]}")
        self.assertNotIn("missing", self.forked("--status", "shards/*/latest").stdout)

    def test_a_damaged_shard_is_no_traceback(self) -> None:
        self.config("one")
        self.config("two")
        for part in ("1/3", "2/3"):
            self.forked("--configs", "one.py", "two.py", "--shard", part, "--base_out_dir", f"shards/{part[0]}")
        path = (self.dir / "shards" / "1" / "latest").resolve() / "experiment_summary.json"
        summary = json.loads(path.read_text())
        for key, value in (("experiments", "x"), ("index", [])):
            with self.subTest(key=key):
                shard = {**summary["shard"], key: value}
                path.write_text(json.dumps({**summary, "shard": shard}))
                self.assertEqual(self.forked("--status", "shards/*/latest").stdout.count("finished, 1 completed"), 2)

    def test_devices_for_a_trainer_that_knows_none_are_refused_before_anything_starts(self) -> None:
        self.strict_trainer("learning_rate = 0.1\n")
        self.config("one", "learning_rate = 0.2\n")
        said = self.forked("--configs", "one.py", "--devices", "cpu,cpu", expect=2).stderr
        self.assertIn("unknown setting 'device'", said)
        self.assertFalse((self.dir / "experiments").exists())

    def test_the_page_does_not_draw_what_the_configurator_echoes(self) -> None:
        self.config("one", "'''\nstep 0: train loss 0.9, val loss 0.5\n'''\nprint(open(config).read())\n" + LOSSES)
        self.forked("--configs", "one.py")
        page = (self.batch() / "report.html").read_text()
        self.assertIn('"val":[[1,2.0],[2,1.5]]', page)

    def test_a_config_whose_only_setting_is_misspelt_is_run_and_warned_of(self) -> None:
        self.strict_trainer("learning_rate = 0.1\n")
        self.config("one", "learning_rate = 0.2\n")
        self.config("two", "learning_rat = 0.3\n")
        said = self.forked("--dry_run", "--configs", "*.py").stdout
        self.assertIn("warning: two.py: config sets 'learning_rat'", said)
        self.assertIn("# two: starts", said)


LOSSES = "print('step 1: train loss 2.0, val loss 2.0')\nprint('step 2: train loss 1.5, val loss 1.5')\n"
