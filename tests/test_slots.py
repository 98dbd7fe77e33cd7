"""Sweeps, slots, devices and launchers: each result right, each slot used by one experiment at a time."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import unittest
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

from tests.support import CHILD_TOOLS, PATIENCE, TESTS, RunnerCase, is_running, wait_for

SEED = int(os.environ.get("TEST_SEED", random.randrange(10**6)))
MANY = int(os.environ.get("SLOT_EXPERIMENTS", "60"))
TORCH = os.environ.get("TORCH_PYTHON", sys.executable)
TORCHRUN = f"{shlex.quote(TORCH)} -m torch.distributed.run --standalone --nproc_per_node=2"

# How the experiment with a seed shall end: the test and the training ask the same function.
FATE = """
import random

def fate(seed):
    rng = random.Random(seed)
    seconds = rng.choice([0, 0, 0.01, 0.05, 0.1, 0.2])
    kind, code = rng.choice([("exit", 0)] * 5 + [("exit", 1), ("exit", 42), ("raise", 1), ("kill", 9), ("kill", 15)])
    return seconds, kind, code
"""
# A training that notes when it begins and ends, and on which device, in a file that all of them share.
NOTE = (
    CHILD_TOOLS
    + FATE
    + """
def note(what):
    log = os.open("events", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.write(log, f"{what} {os.path.basename(out_dir)} {overrides.get('device')}\\n".encode())
    os.close(log)

seed = int(overrides.get("seed", 0))
seconds, kind, code = fate(seed)
note("start")
print("out", seed)
print("err", seed, file=sys.stderr)
time.sleep(seconds)
note("stop")
if kind == "raise":
    raise ValueError(f"bad {seed}")
if kind == "kill":
    os.kill(os.getpid(), code)
    time.sleep(60)
sys.exit(code)
"""
)
namespace: dict[str, Any] = {}
exec(FATE, namespace)
fate = namespace["fate"]


class SlotCase(RunnerCase):
    def events(self) -> list[tuple[str, str, str]]:
        """(start or stop, experiment, device), in the order in which they happened."""
        lines = (self.dir / "events").read_text().splitlines()
        return [(what, name, device) for what, name, device in map(str.split, lines)]

    def most_at_once(self, key: int) -> Counter[str]:
        """For each experiment (1) or device (2), and for all of them under "", how many ran at most at a time."""
        now: Counter[str] = Counter()
        most: Counter[str] = Counter()
        for event in self.events():
            for each in ("", event[key]):
                now[each] += 1 if event[0] == "start" else -1
                most[each] = max(most[each], now[each])
        self.assertEqual(set(now.values()), {0})
        return most

    def assert_fates(self, names: dict[str, int]) -> None:
        """Each of the experiments ended as its seed says, with its own output in its own logs."""
        summary = self.summary()
        self.assertEqual(list(summary["results"]), list(names))
        statuses: Counter[str] = Counter()
        for name, seed in names.items():
            _, kind, code = fate(seed)
            result = self.result(name)
            number = signal.Signals(code).name if kind == "kill" else None
            ended = ("completed" if code == 0 else "failed", -code if number else code, number)
            with self.subTest(name=name, kind=kind, code=code):
                self.assertEqual((result["status"], result["return_code"], result["signal"]), ended)
                self.assertEqual(result["attempts"], 1)
                self.assertEqual(self.log(name), f"out {seed}\n".encode())
                self.assertTrue(self.log(name, "stderr").startswith(f"err {seed}\n".encode()))
                if kind == "raise":
                    self.assertEqual(result["error"], f"exit code 1: ValueError: bad {seed}")
                self.assertEqual(summary["results"][name], result)
            statuses[ended[0]] += 1
        self.assertEqual((summary["completed"], summary["failed"]), (statuses["completed"], statuses["failed"]))
        self.assertEqual(summary["state"], "finished")


class SweepTest(RunnerCase):
    def test_a_sweep_runs_the_product_in_a_natural_order_under_telling_names(self) -> None:
        shutil.copy(TESTS / "configurator.py", self.dir)
        script = "out_dir = ''\nlearning_rate = 0.1\nseed = 1\nwandb_run_name = 'x'\n"
        script += "exec(open('configurator.py').read())\nprint(learning_rate, seed, wandb_run_name)\n"
        (self.dir / "train_run.py").write_text(script)
        self.config("easy", "")
        self.config("hard", "seed = 9")
        sweep = ["--sweep", "learning_rate=1e-3,0.01,1", "--sweep", "seed=1,2"]
        done = self.run_runner("--configs", "easy.py", "hard.py", *sweep, expect=0)
        points = [(c, r, s) for c in ("easy", "hard") for r in ("0.001", "0.01", "1.0") for s in ("1", "2")]
        names = [f"{config}__learning_rate_{rate}__seed_{seed}" for config, rate, seed in points]
        self.assertEqual(list(self.summary()["results"]), names)
        for name, (_, rate, seed) in zip(names, points):
            self.assertEqual(self.log(name).decode().splitlines()[-1], f"{rate} {seed} {name}")
            self.assertEqual(self.result(name)["settings"], {"learning_rate": float(rate), "seed": int(seed)})
        self.assertRegex(done.stdout, r"experiment +status +duration +learning_rate +seed\n")
        self.assertEqual(re.findall(r"(\S+): started", done.stdout), names)


class JobsTest(SlotCase):
    def test_many_experiments_over_eight_slots_end_each_as_it_should_and_never_more_than_eight_at_a_time(self) -> None:
        self.config("a", NOTE)
        seeds = [SEED + number for number in range(MANY)]
        self.run_runner("--configs", "a.py", "--sweep", f"seed={','.join(map(str, seeds))}", "--jobs", 8, expect=1)
        self.assert_fates({f"a__seed_{seed}": seed for seed in seeds})
        most = self.most_at_once(1)
        self.assertIn(most.pop(""), range(2, 9))
        self.assertEqual(most, Counter({f"a__seed_{seed}": 1 for seed in seeds}))
        self.assert_nothing_runs()

    def test_as_many_run_at_a_time_as_there_are_jobs(self) -> None:
        """Each waits until all of them are there: with one slot less, this never ends."""
        code = CHILD_TOOLS + "open(f'here_{os.path.basename(out_dir)}', 'w')\n"
        code += "for name in 'abcd':\n    await_file(f'here_{name}')\n"
        for name in "abcd":
            self.config(name, code)
        self.run_runner("--configs", "[a-d].py", "--jobs", 4, "--timeout", f"{PATIENCE:.0f}", expect=0)

    def test_without_jobs_one_runs_after_the_other_in_the_order_of_the_plan(self) -> None:
        for name in "cab":
            self.config(name, NOTE.replace("= fate(seed)", "= 0, 'exit', 0"))
        self.run_runner("--configs", "c.py", "a.py", "b.py", expect=0)
        order = [(what, name) for what, name, _ in self.events()]
        self.assertEqual(order, [(what, name) for name in "cab" for what in ("start", "stop")])

    def test_each_failed_one_is_retried_whichever_slots_are_free(self) -> None:
        code = "import os, sys\nmark = 'tried_' + os.path.basename(out_dir)\n"
        code += "done = os.path.exists(mark)\nopen(mark, 'a').write('x')\nsys.exit(not done)"
        names = [f"run_{number}" for number in range(6)]
        for name in names:
            self.config(name, code)
        self.run_runner("--configs", "run_*.py", "--jobs", 3, "--retries", 2, expect=0)
        for name in names:
            self.assertEqual((self.dir / f"tried_{name}").read_text(), "xx")
            result = self.result(name)
            self.assertEqual((result["status"], result["attempts"]), ("completed", 2))
            self.assertEqual([each["status"] for each in result["attempt_history"]], ["failed"])

    def test_after_so_many_failures_what_runs_in_other_slots_may_end_and_nothing_follows(self) -> None:
        self.config("fails", "import sys\nsys.exit(1)")
        self.config("runs", CHILD_TOOLS + "print('ready')\nawait_file('go')")
        self.config("waits")
        runner = self.start("--configs", "runs.py", "fails.py", "waits.py", "--jobs", 2, "--max_failures", 1)
        self.wait_for_event("nothing more is started")
        self.go("go")
        self.ended(runner, 1)
        statuses = {name: result["status"] for name, result in self.summary()["results"].items()}
        self.assertEqual(statuses, {"runs": "completed", "fails": "failed", "waits": "pending"})


class StopTest(SlotCase):
    def start_eight(self, handler: str, *args: Any) -> Any:
        """A batch of ten with eight running, each of which has noted its pid."""
        for number in range(10):
            self.config(f"run_{number}", CHILD_TOOLS + handler + "note_pid()\nlive_on()")
        runner = self.start("--configs", "run_*.py", "--jobs", 8, *args)
        self.pids(8)
        return runner

    def assert_stopped(self) -> list[dict[str, Any]]:
        """Eight are interrupted, two pending, no process is left; returns the eight results."""
        self.assert_nothing_runs()
        self.assertEqual(len(self.pids(8)), 8)
        results = self.summary()["results"]
        statuses = {name: result["status"] for name, result in results.items()}
        self.assertEqual(
            statuses, {f"run_{number}": "interrupted" if number < 8 else "pending" for number in range(10)}
        )
        self.assertEqual((self.summary()["state"], self.summary()["interrupted"]), ("interrupted", 8))
        return [self.result(f"run_{number}") for number in range(8)]

    def test_ctrl_c_with_eight_running_ends_them_all_and_resume_finishes_the_batch(self) -> None:
        runner = self.start_eight("")
        runner.send_signal(signal.SIGINT)
        self.ended(runner, 130)
        for result in self.assert_stopped():
            self.assertEqual(result["signal"], "SIGTERM")
        for number in range(10):
            self.config(f"run_{number}")
        self.run_runner("--resume", expect=0)
        self.assertEqual(self.summary()["completed"], 10)

    def test_eight_that_ignore_the_signal_share_one_grace(self) -> None:
        """All have had their signal before the first of them was killed."""
        handler = (
            "def note(*_):\n    open('asked', 'a').write(f'{time.time()}\\n')\nsignal.signal(signal.SIGTERM, note)\n"
        )
        runner = self.start_eight(handler, "--grace", 1)
        runner.send_signal(signal.SIGTERM)
        self.ended(runner, 143)
        results = self.assert_stopped()
        asked = [float(line) for line in (self.dir / "asked").read_text().splitlines()]
        self.assertEqual(len(asked), 8)
        first_end = min(datetime.fromisoformat(result["end_time"]).timestamp() for result in results)
        self.assertLess(max(asked), first_end)
        self.assertEqual({result["signal"] for result in results}, {"SIGKILL"})


class DeviceTest(SlotCase):
    def test_never_two_run_on_one_device_and_the_result_says_which_it_was(self) -> None:
        self.config("a", NOTE)
        seeds = [SEED + number for number in range(18)]
        devices = ["cuda:0", "cuda:1", "cpu"]
        args = ["--sweep", f"seed={','.join(map(str, seeds))}", "--devices", ",".join(devices)]
        self.run_runner("--configs", "a.py", *args, expect=1 if any(fate(seed)[2] for seed in seeds) else 0)
        self.assert_fates({f"a__seed_{seed}": seed for seed in seeds})
        most = self.most_at_once(2)
        self.assertLessEqual(most.pop(""), 3)
        self.assertEqual(most, Counter(devices))
        for what, name, device in self.events():
            if what == "start":
                self.assertEqual(self.result(name)["device"], device)
                self.assertIn(
                    f"--device={device}", self.json(self.batch() / name / "experiment_metadata.json")["command"]
                )

    def test_a_free_device_takes_the_next_in_the_plan(self) -> None:
        self.config("holds", CHILD_TOOLS + "await_file('go')")
        for name in "abc":
            self.config(name)
        runner = self.start("--configs", "holds.py", "[abc].py", "--devices", "cuda:0,cuda:1")
        self.wait_for_event("c: completed")
        self.go("go")
        self.ended(runner, 0)
        devices = {name: result["device"] for name, result in self.summary()["results"].items()}
        self.assertEqual(devices, {"holds": "cuda:0", "a": "cuda:1", "b": "cuda:1", "c": "cuda:1"})

    def test_without_devices_no_device_is_given_and_none_told(self) -> None:
        self.config("a", "print(sorted(overrides))")
        self.run_runner("--configs", "a.py", expect=0)
        self.assertEqual(self.log("a"), b"[]\n")
        self.assertIsNone(self.result("a")["device"])

    def environment(self, nvidia_smi: str, visible: Optional[str]) -> dict[str, str]:
        """An environment in which nvidia-smi is this shell script."""
        tool = self.dir / "bin" / "nvidia-smi"
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\n{nvidia_smi}\n")
        tool.chmod(0o755)
        env = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        env["PATH"] = f"{tool.parent}{os.pathsep}{env['PATH']}"
        return env if visible is None else {**env, "CUDA_VISIBLE_DEVICES": visible}

    def test_devices_auto_are_those_that_nvidia_smi_lists_and_the_environment_leaves(self) -> None:
        self.config("a", "print(overrides['device'])")
        three = 'for n in 0 1 2; do echo "GPU $n: NVIDIA A100 (UUID: GPU-$n)"; done'
        for visible, count in ((None, 3), ("0,2", 2), ("1", 1), ("GPU-2,GPU-1", 2)):
            with self.subTest(visible=visible):
                self.run_runner(
                    "--configs", "a.py", "--devices", "auto", expect=0, env=self.environment(three, visible)
                )
                self.assertEqual(self.summary()["options"]["devices"], [f"cuda:{number}" for number in range(count)])
                self.assertEqual(self.log("a"), b"cuda:0\n")

    def test_devices_auto_without_a_gpu_is_a_clear_error(self) -> None:
        self.config("a")
        one = "echo 'GPU 0: X (UUID: GPU-1)'"
        for tool, visible in (("echo 'No devices found.'; exit 6", None), (one, ""), (one, "-1"), ("exit 127", None)):
            with self.subTest(tool=tool, visible=visible):
                done = self.run_runner(
                    "--configs", "a.py", "--devices", "auto", expect=2, env=self.environment(tool, visible)
                )
                self.assertRegex(done.stderr, r"\Aerror: --devices auto: .*GPU.*\n\Z")


class LauncherTest(SlotCase):
    def test_nice_as_the_launcher_stands_before_the_training(self) -> None:
        if not (shutil.which("nice") and shutil.which("python3")):
            self.skipTest("needs nice and python3")
        self.config("a", "import os\nprint(os.nice(0))")
        self.run_runner("--configs", "a.py", "--launcher", "nice -n 10 python3", expect=0)
        self.assertEqual(int(self.log("a")), min(19, os.nice(0) + 10))
        command = self.json(self.batch() / "a" / "experiment_metadata.json")["command"]
        self.assertEqual(command[:6], ["nice", "-n", "10", "python3", "train_run.py", "a.py"])

    def test_placeholders_tell_the_launcher_of_name_directory_device_and_slot(self) -> None:
        self.config("a", "import json, os\nprint(json.dumps([os.environ[key] for key in 'NDVSB']))")
        launcher = f"env N={{name}} D={{dir}} V={{device}} S={{slot}} 'B={{{{x}}}} $HOME' {shlex.quote(sys.executable)}"
        args = ["--sweep", "seed=1,2", "--devices", "cuda:0,cuda:1"]
        self.run_runner("--configs", "a.py", *args, "--launcher", launcher, expect=0)
        for number in (0, 1):
            name = f"a__seed_{number + 1}"
            told = json.loads(self.log(name))
            self.assertEqual(told[0], name)
            self.assertTrue((self.dir / told[1]).samefile(self.batch() / name))
            self.assertEqual(told[2:], [f"cuda:{number}", str(number), "{x} $HOME"])

    def test_a_launcher_from_a_relative_path_is_found(self) -> None:
        self.config("a", "import os\nprint(os.environ['FROM'])")
        script = self.dir / "launch me"
        script.write_text(f'#!/bin/sh\nFROM=launcher exec {shlex.quote(sys.executable)} "$@"\n')
        script.chmod(0o755)
        self.run_runner("--configs", "a.py", "--launcher", "'./launch me'", expect=0)
        self.assertEqual(self.log("a"), b"launcher\n")

    def test_the_launchers_own_failure_is_the_experiments_failure(self) -> None:
        self.config("a")
        self.run_runner("--configs", "a.py", "--launcher", "sh -c 'echo no nodes >&2; exit 3'", expect=1)
        result = self.result("a")
        self.assertEqual((result["status"], result["return_code"]), ("failed", 3))
        self.assertEqual(result["stderr_tail"].strip(), "no nodes")

    def test_a_launcher_that_is_gone_by_then_is_an_error_of_each_and_stops_no_batch(self) -> None:
        script = self.dir / "launch"
        script.write_text(f'#!/bin/sh\nrm -f launch\nexec {shlex.quote(sys.executable)} "$@"\n')
        script.chmod(0o755)
        for name in "abc":
            self.config(name)
        # A guard before the launcher may be what fails then, and it says so on stderr.
        self.run_runner("--configs", "[abc].py", "--launcher", "./launch", expect=1)
        statuses = [self.result(name)["status"] for name in "abc"]
        self.assertEqual(statuses[0], "completed")
        self.assertLessEqual(set(statuses[1:]), {"error", "failed"})
        for name in "bc":
            result = self.result(name)
            self.assertRegex(f"{result['error']} {result['stderr_tail']}", "launch")

    def test_an_exit_code_of_128_and_a_signal_is_told_as_that_signal(self) -> None:
        codes = {137: "exit code 137 (SIGKILL)", 143: "exit code 143 (SIGTERM)", 139: "exit code 139 (SIGSEGV)"}
        codes.update({3: "exit code 3", 128: "exit code 128", 255: "exit code 255"})
        self.config("a", "import sys\nsys.exit(int(overrides['code']))")
        self.run_runner("--configs", "a.py", "--sweep", f"code={','.join(map(str, codes))}", "--jobs", 3, expect=1)
        for code, text in codes.items():
            with self.subTest(code=code):
                result = self.result(f"a__code_{code}")
                self.assertEqual((result["return_code"], result["signal"], result["error"]), (code, None, text))
                self.assertEqual("out-of-memory" in (result["hint"] or ""), code == 137)

    def test_a_launcher_is_never_given_to_a_shell(self) -> None:
        self.config("one")
        self.run_runner(
            "--configs", "one.py", "--launcher", "true ; touch pwned `touch pwned` $(touch pwned)", expect=0
        )
        self.assertFalse((self.dir / "pwned").exists())


@unittest.skipIf(subprocess.run([TORCH, "-c", "import torch"], capture_output=True).returncode, "no torch")
class TorchrunTest(SlotCase):
    def test_torchrun_with_two_processes_trains_and_fails_as_one(self) -> None:
        script = "import sys, torch, torch.distributed as dist\ndist.init_process_group('gloo')\n"
        script += "if sys.argv[1] == 'one.py' and dist.get_rank() == 1: raise KeyError('only rank 1')\n"
        script += "total = torch.ones(1)\ndist.all_reduce(total)\nrank = dist.get_rank()\n"
        script += "if rank == 0: print(f'step 1: train loss {total.item():.4f}, val loss 1.0000')\n"
        script += "dist.barrier()\ndist.destroy_process_group()\n"
        script += "if sys.argv[1] == 'bad.py' and rank == 1: raise ValueError('rank 1 has had enough')\n"
        (self.dir / "train_run.py").write_text(script)
        self.config("good")
        self.config("bad")
        self.config("one")
        self.run_runner("--configs", "good.py", "bad.py", "one.py", "--jobs", 3, "--launcher", TORCHRUN, expect=1)
        self.assertEqual(self.result("good")["metrics"]["train_loss"], 2.0)
        self.assertEqual((self.result("good")["status"], self.result("bad")["status"]), ("completed", "failed"))
        self.assertIn("ValueError: rank 1 has had enough", self.result("bad")["error"])
        self.assertEqual(self.result("one")["error"], "exit code 1: KeyError: 'only rank 1'")  # not rank 0's lost peer
        self.assert_nothing_runs()

    def test_stopping_torchrun_leaves_no_worker(self) -> None:
        self.config("one", CHILD_TOOLS + "signal.signal(15, signal.SIG_IGN)\nnote_pid()\nlive_on()")
        runner = self.start("--configs", "one.py", "--launcher", TORCHRUN, "--grace", 1)
        pids = self.pids(2)
        runner.send_signal(signal.SIGINT)
        self.ended(runner, 130)
        wait_for(lambda: not any(map(is_running, pids)), "the end of both workers")


class StopSignalTest(SlotCase):
    def test_with_int_a_trainer_cleans_up_on_keyboard_interrupt(self) -> None:
        code = CHILD_TOOLS + "try:\n    print('ready')\n    live_on()\n"
        code += "except KeyboardInterrupt:\n    print('cleaned up')\n"
        self.config("a", code)
        runner = self.start("--configs", "a.py", "--stop_signal", "INT")
        self.wait_for_line("a", b"ready\n")
        runner.send_signal(signal.SIGTERM)
        self.ended(runner, 143)
        self.assertEqual(self.log("a"), b"ready\ncleaned up\n")
        result = self.result("a")
        self.assertEqual((result["status"], result["return_code"]), ("interrupted", 0))

    def test_a_timeout_and_a_stall_send_the_stop_signal_and_leave_other_slots_alone(self) -> None:
        code = CHILD_TOOLS + "signal.signal(signal.SIGUSR1, lambda *_: (print('got USR1'), sys.exit(5)))\nlive_on()"
        self.config("slow", code)
        self.config("good", "print('fine')")
        args = ["--configs", "slow.py", "good.py", "--jobs", 2, "--stop_signal", "SIGUSR1", "--base_out_dir"]
        for runner in [self.start(*args, option, f"--{option}", 2) for option in ("timeout", "stall")]:
            self.ended(runner, 1)
        for option in ("timeout", "stall"):
            with self.subTest(option=option):
                batch = self.dir / option / "latest"
                results = self.json(batch / "experiment_summary.json")["results"]
                self.assertEqual((results["slow"]["status"], results["slow"]["return_code"]), ("timeout", 5))
                self.assertEqual(results["good"]["status"], "completed")
                self.assertEqual((batch / "slow" / "stdout.log").read_bytes(), b"got USR1\n")

    def killed_after(self, signals: int, *args: Any) -> float:
        """Seconds from just before the first signal to the runner until its training, deaf to it, is dead."""
        os.mkfifo(self.dir / "alive")
        code = "signal.signal(signal.SIGTERM, lambda *_: open('asked', 'a').write('x'))\n"
        self.config("a", CHILD_TOOLS + code + "alive = open('alive', 'w')\nprint('ready')\nlive_on()")
        runner = self.start("--configs", "a.py", *args)
        with open(self.dir / "alive") as alive:
            self.wait_for_line("a", b"ready\n")
            began = time.monotonic()
            for number in range(signals):  # alternating: the same one at once again counts as its echo
                runner.send_signal(signal.SIGTERM if number % 2 else signal.SIGINT)
                if number == 0:
                    self.wait_for_event("SIGINT: stopping")
            alive.read()  # ends when the last writer is dead
            ended = time.monotonic()
        self.ended(runner, 130)
        self.assertEqual(self.result("a")["signal"], "SIGKILL")
        wait_for(Path(self.dir / "asked").exists, "the first signal at the training")
        return ended - began

    def test_a_second_ctrl_c_kills_but_never_sooner_than_a_fifth_of_a_second_after_the_first_signal(self) -> None:
        """srun needs that long to pass the first signal on. The grace is so long that the test would never end."""
        self.assertGreaterEqual(self.killed_after(2, "--grace", 100_000), 0.2)

    def test_many_ctrl_c_in_a_row_kill_no_sooner(self) -> None:
        self.assertGreaterEqual(self.killed_after(6, "--grace", 100_000), 0.2)

    def test_a_trainer_deaf_to_the_stop_signal_gets_term_before_kill(self) -> None:
        """`srun -X` passes INT on and dies of TERM in order, but leaves the task alive when it is killed."""
        code = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        code += "signal.signal(signal.SIGTERM, lambda *_: (print('got TERM'), sys.exit(3)))\n"
        self.config("a", CHILD_TOOLS + code + "print('ready')\nlive_on()")
        runner = self.start("--configs", "a.py", "--stop_signal", "INT", "--grace", 0)
        self.wait_for_line("a", b"ready\n")
        runner.send_signal(signal.SIGINT)
        self.ended(runner, 130)
        self.assertEqual(self.log("a"), b"ready\ngot TERM\n")
        self.assertEqual((self.result("a")["status"], self.result("a")["return_code"]), ("interrupted", 3))

    def test_the_stop_signal_reaches_a_training_also_where_the_runner_was_started_to_ignore_it(self) -> None:
        """As a script's background jobs are started: `run_experiments.py … &` has SIGINT ignored."""
        self.config(
            "a", CHILD_TOOLS + "print('ready')\ntry:\n    live_on()\nexcept KeyboardInterrupt:\n    print('bye')\n"
        )
        ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
        runner = self.start("--configs", "a.py", "--stop_signal", "INT", preexec_fn=ignore)
        self.wait_for_line("a", b"ready\n")
        runner.send_signal(signal.SIGINT)  # stays ignored
        runner.send_signal(signal.SIGTERM)
        self.ended(runner, 143)
        self.assertEqual(self.log("a"), b"ready\nbye\n")

    def test_no_grace_at_all_is_a_fifth_of_a_second_too(self) -> None:
        self.assertGreaterEqual(self.killed_after(1, "--grace", 0), 0.2)


if __name__ == "__main__":
    unittest.main()
