"""A night that goes on: what a training finds in its environment, its share of the machine, sweeps in pairs and seeds."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from typing import Any

from tests.support import RunnerCase

# A training that notes, for each of its attempts, what it finds in its environment; the first attempt fails.
SHOW = """
import json
init_from = "scratch"
names = ("WANDB_RUN_GROUP", "WANDB_RUN_ID", "WANDB_RESUME", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
found = {name: os.environ[name] for name in names if name in os.environ}
with open(os.path.basename(out_dir) + ".env", "a") as file:
    file.write(json.dumps(found) + "\\n")
"""
SAVE = "open(os.path.join(out_dir, 'ckpt.pt'), 'w').close()\n"
FAIL_ONCE = f"if not os.path.exists(name + '.failed'):\n    open(name + '.failed', 'w')\n    {SAVE}    sys.exit(3)\n"


class EnvironmentCase(RunnerCase):
    def setUp(self) -> None:
        super().setUp()
        for name in ("WANDB_RUN_GROUP", "WANDB_RUN_ID", "WANDB_RESUME", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
            self.set_variable(name, None)

    def set_variable(self, name: str, value: Any) -> None:
        """A variable of this process, and so of what it starts, until the test ends."""
        before = os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
        self.addCleanup(lambda: os.environ.pop(name, None) if before is None else os.environ.update({name: before}))

    def found(self, name: str) -> list[dict[str, str]]:
        """The variables that each attempt of an experiment has found."""
        return [json.loads(line) for line in (self.dir / f"{name}.env").read_text().splitlines()]

    def environment_set(self, name: str) -> Any:
        return self.json(self.batch() / name / "experiment_metadata.json")["environment_set"]


class WandbTest(EnvironmentCase):
    def test_a_run_that_continues_is_the_same_run_and_one_that_starts_over_is_another(self) -> None:
        fail_once = "name = os.path.basename(out_dir)\n" + FAIL_ONCE
        self.config("continues", "wandb_log = True" + SHOW + fail_once)
        self.config("starts_over", "wandb_log = True" + SHOW + fail_once.replace(SAVE, "pass\n"))
        self.config("own_name", "wandb_enabled = True" + SHOW)
        self.forked("--configs", "continues.py", "starts_over.py", "own_name.py", "--retries", 1)
        first, second = self.found("continues")
        self.assertEqual(first, second)
        self.assertEqual((first["WANDB_RUN_GROUP"], first["WANDB_RESUME"]), (self.batch().name, "allow"))
        self.assertRegex(first["WANDB_RUN_ID"], r"^[A-Za-z0-9_-]{8,64}$")
        over = self.found("starts_over")
        self.assertEqual([each["WANDB_RUN_GROUP"] for each in over], [self.batch().name] * 2)
        ids = {first["WANDB_RUN_ID"], *(each["WANDB_RUN_ID"] for each in over + self.found("own_name"))}
        self.assertEqual(len(ids), 4)
        self.assertEqual(self.environment_set("continues"), first)

    def test_a_resume_in_the_morning_goes_on_with_the_run_too_and_a_scratch_one_does_not(self) -> None:
        self.config("one", "wandb_log = True" + SHOW + SAVE + "sys.exit(3)")
        self.forked("--configs", "one.py", expect=1)
        self.forked("--resume", expect=1)
        self.forked("--resume", "--init_from=scratch", expect=1)
        ids = [each["WANDB_RUN_ID"] for each in self.found("one")]
        self.assertEqual([ids.index(each) for each in ids], [0, 0, 2])

    def test_what_the_users_environment_says_of_wandb_stays(self) -> None:
        self.set_variable("WANDB_RUN_ID", "mine")
        self.set_variable("WANDB_RUN_GROUP", "ours")
        self.config("one", "wandb_log = True" + SHOW)
        self.forked("--configs", "one.py")
        expected = {"WANDB_RUN_GROUP": "ours", "WANDB_RUN_ID": "mine", "WANDB_RESUME": "allow"}
        self.assertEqual(self.found("one"), [expected])
        self.assertEqual(self.environment_set("one"), {"WANDB_RESUME": "allow"})

    def test_without_wandb_log_nothing_is_set_and_an_override_counts_more_than_the_config(self) -> None:
        self.config("off", "wandb_log = False" + SHOW)
        self.config("unknown", SHOW)
        self.forked("--configs", "off.py", "unknown.py")
        self.config("on", "wandb_log = True" + SHOW)
        self.forked("--configs", "on.py", "--wandb_enabled", "false")
        self.assertEqual([self.found(name) for name in ("off", "unknown", "on")], [[{}]] * 3)


class CoresTest(EnvironmentCase):
    def setUp(self) -> None:
        super().setUp()
        has_affinity = hasattr(os, "sched_getaffinity")
        self.cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1

    def test_trainings_side_by_side_share_the_cores_and_it_is_said_once(self) -> None:
        for name in "abc":
            self.config(name, SHOW)
        out = self.forked("--configs", "[abc].py", "--jobs", 2).stdout
        threads = str(max(1, self.cores // 2))
        for name in "abc":
            self.assertEqual(self.found(name), [{"OMP_NUM_THREADS": threads}])
            self.assertEqual(self.environment_set(name), {"OMP_NUM_THREADS": threads})
        self.assertEqual(self.master_log().count("OMP_NUM_THREADS="), 1)
        self.assertIn(f"OMP_NUM_THREADS={threads}", out)
        self.forked("--configs", "a.py", "--jobs", 4 * self.cores)
        self.assertEqual(self.found("a")[-1], {"OMP_NUM_THREADS": "1"})

    def test_one_at_a_time_a_launcher_and_a_choice_of_the_users_leave_it_alone(self) -> None:
        self.config("a", SHOW)
        self.forked("--configs", "a.py")
        self.forked("--configs", "a.py", "--jobs", 2, "--launcher", sys.executable)
        self.assertEqual(self.found("a"), [{}, {}])
        self.set_variable("OMP_NUM_THREADS", "7")
        self.forked("--configs", "a.py", "--jobs", 2)
        self.assertEqual(self.found("a")[-1], {"OMP_NUM_THREADS": "7"})
        self.assertEqual(self.environment_set("a"), {})


class DevicesTest(EnvironmentCase):
    def fake_gpus(self, number: int) -> None:
        """An nvidia-smi, before any real one in PATH, that lists so many."""
        tools = self.dir / "bin"
        tools.mkdir(exist_ok=True)
        lines = "".join(f"GPU {index}: NVIDIA A100 (UUID: GPU-{index})\n" for index in range(number))
        (tools / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<'END'\n{lines}END\n")
        (tools / "nvidia-smi").chmod(0o755)
        self.set_variable("PATH", f"{tools}:{os.environ['PATH']}")

    def test_a_device_named_twice_is_two_slots_on_it(self) -> None:
        code = "open(os.path.basename(out_dir) + '.here', 'w').close()\nprint(overrides['device'])\n"
        code += "for name in 'ab':\n    await_file(name + '.here')\n"
        for name in "ab":
            self.config(name, "device = 'cpu'\n" + code)
        self.forked("--configs", "[ab].py", "--devices", "cuda:0,cuda:0")
        self.assertEqual((self.log("a"), self.log("b")), (b"cuda:0\n", b"cuda:0\n"))

    def test_gpus_gives_each_experiment_its_own_ones_and_no_device(self) -> None:
        self.fake_gpus(5)
        code = SHOW + "open(os.path.basename(out_dir) + '.here', 'w').close()\nprint(sys.argv[2:])\n"
        code += "for name in 'ab':\n    await_file(name + '.here')\n"
        for name in "ab":
            self.config(name, "device = 'cuda'\n" + code)
        self.forked("--configs", "[ab].py", "--gpus", 2)
        seen = [self.found(name)[0]["CUDA_VISIBLE_DEVICES"] for name in "ab"]
        self.assertEqual(seen, ["0,1", "2,3"])
        self.assertNotIn(b"--device", self.log("a"))
        self.assertEqual(self.environment_set("b")["CUDA_VISIBLE_DEVICES"], "2,3")
        self.assertEqual(self.summary()["slots"], 2)
        self.config("c", SHOW + "sys.exit(3)")
        self.forked("--configs", "c.py", "--gpus", 3, expect=1)
        self.forked("--resume", expect=1)
        self.assertEqual([each["CUDA_VISIBLE_DEVICES"] for each in self.found("c")], ["0,1,2", "0,1,2"])

    def test_gpus_are_those_that_cuda_visible_devices_leaves(self) -> None:
        self.fake_gpus(5)
        self.set_variable("CUDA_VISIBLE_DEVICES", "3,1,4")
        self.config("a", SHOW)
        self.forked("--configs", "a.py", "--gpus", 2)
        self.assertEqual(self.found("a"), [{"CUDA_VISIBLE_DEVICES": "3,1"}])

    def test_what_does_not_go_with_gpus_is_refused(self) -> None:
        self.fake_gpus(2)
        self.config("a")
        cases = {
            "--gpus 3": r"2 GPUs found.*",
            "--gpus 1 --devices cuda:0": "--devices: not allowed with --gpus",
            "--gpus 1 --jobs 2": "--gpus: not allowed with --jobs",
            "--gpus 1 --device cuda": "--device: not allowed with --gpus",
            "--gpus 0": "not a whole number from 1",
        }
        for words, expected in cases.items():
            with self.subTest(words=words):
                done = self.forked("--configs", "a.py", *words.split(), expect=2)
                self.assertRegex(done.stderr, "^error: .*" + expected)
        self.assertFalse((self.dir / "experiments").exists())


class OwnOptionsTest(RunnerCase):
    def test_an_option_that_is_a_setting_too_is_refused_with_the_way_to_the_trainers(self) -> None:
        self.strict_trainer("gpus = 1\nmetrics = 'loss'\nshard = 0\ntimeout = 5\n", "print(gpus, metrics, shard)")
        self.config("a", "gpus = 1\n")
        for option, value in {"gpus": "2", "metrics": "(?P<val_loss>x)", "shard": "1/2", "timeout": "9"}.items():
            with self.subTest(option=option):
                done = self.forked("--configs", "a.py", f"--{option}", value, expect=2)
                self.assertIn(f"--{option} is an option of the runner and a setting of train_run.py", done.stderr)
                self.assertIn(f"-- --{option}=", done.stderr)
        self.forked("--configs", "a.py", "--", "--gpus=2", "--metrics='mse'", "--shard=3")
        self.assertEqual(self.log("a").splitlines()[-1], b"2 mse 3")


class SeedsTest(RunnerCase):
    """Groups that differ in nothing but their seed."""

    def run_seeds(self) -> str:
        # val loss: 1 + seed/10 at the best, and 0.5 more at the end; ten times as much with n_embd = 8
        body = "import os\nfor step in (0, 5, 10):\n    extra = {0: 2.0, 5: 0.0, 10: 0.5}[step]\n"
        body += "    loss = (1 + seed / 10 + extra) * (10 if n_embd == 8 else 1)\n"
        body += "    print(f'step {step}: train loss {loss:.4f}, val loss {loss:.4f}')\n"
        body += "if seed == 3 and n_embd == 8 and not os.path.exists('go'):\n    raise SystemExit(3)"
        self.strict_trainer("seed = 0\nn_embd = 4\nmax_iters = 10\nwandb_run_name = 'x'\ndevice = 'cpu'\n", body)
        self.config("a", "n_embd = 4\n")
        args = ["--configs", "a.py", "--sweep", "seed=1,2,3", "--sweep", "n_embd=4,8", "--devices", "cpu,cuda:0"]
        return self.forked(*args, expect=1).stdout

    def test_the_table_json_and_page_have_a_row_for_each_group_with_mean_and_deviation(self) -> None:
        out = self.run_seeds()
        row_4 = r"(?m)^a__n_embd_4 +3 of 3 +1\.2000 ± 0\.1000 +1\.7000 ± 0\.1000$"
        row_8 = r"(?m)^a__n_embd_8 +2 of 3 +11\.5000 ± 0\.7071 +16\.5000 ± 0\.7071$"
        for said in (out, self.forked("--status").stdout):
            self.assertRegex(said, r"(?m)^over seeds +completed +best val loss +last val loss$")
            self.assertRegex(said, row_4)
            self.assertRegex(said, row_8)
        status = json.loads(self.forked("--status", "--json").stdout)
        self.assertEqual(len(status["experiments"]), 6)
        groups = {each["name"]: each for each in status["groups"]}
        self.assertEqual([each["name"] for each in status["groups"]], ["a__n_embd_4", "a__n_embd_8"])
        self.assertEqual((groups["a__n_embd_8"]["completed"], groups["a__n_embd_8"]["total"]), (2, 3))
        self.assertAlmostEqual(groups["a__n_embd_4"]["best_mean"], 1.2)
        self.assertAlmostEqual(groups["a__n_embd_4"]["best_std"], 0.1)
        self.assertEqual(groups["a__n_embd_4"]["settings"], {"n_embd": 4})
        page = (self.batch() / "report.html").read_text()
        self.assertIn("1.2000 ± 0.1000", page)

    def test_configs_of_which_nothing_is_known_are_groups_of_their_own(self) -> None:
        for name in ("a.yaml", "b.yaml"):
            (self.dir / name).write_text("lr: 1\n")
        program = "import sys; print('step 1: val loss', len(sys.argv[1]) + len(sys.argv[2]))"
        command = f"{sys.executable} -c {shlex.quote(program)} {{config}} {{overrides}}"
        args = ["--command", command, "--configs", "a.yaml", "b.yaml", "--sweep", "seed=1,2"]
        out = self.forked(*args).stdout
        self.assertEqual(re.findall(r"(?m)^(\w+) +2 of 2 ", out), ["a", "b"])

    def test_one_completed_run_has_no_deviation_and_a_batch_without_a_seed_no_groups(self) -> None:
        self.strict_trainer("seed = 0\nlr = 1.0\n", "print('step 1: train loss 1.0, val loss 2.0')\nassert seed == 1")
        self.config("a", "lr = 1.0\n")
        out = self.forked("--configs", "a.py", "--sweep", "seed=1,2", expect=1).stdout
        self.assertRegex(out, r"(?m)^a +1 of 2$")
        out = self.forked("--configs", "a.py", "--sweep", "lr=1.0,2.0", "--seed", 1).stdout
        self.assertNotIn("over seeds", out)
