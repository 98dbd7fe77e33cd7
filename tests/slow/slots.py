"""Slots, devices and launchers: each slot used by one experiment at a time, and what stands before the training."""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from typing import Optional

from tests.support import PATIENCE, RunnerCase

# A training that notes when it begins and ends, and on which device, in a file that all of them share.
NOTE = """
def note(what):
    log = os.open("events", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.write(log, f"{what} {os.path.basename(out_dir)} {overrides.get('device')}\\n".encode())
    os.close(log)

note("start")
print("out of", os.path.basename(out_dir))
time.sleep(0.02)
note("stop")
"""


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


class JobsTest(SlotCase):
    def test_as_many_run_at_a_time_as_there_are_jobs(self) -> None:
        """Each waits until all of them are there: with one slot less, this never ends."""
        code = "open(f'here_{os.path.basename(out_dir)}', 'w')\n"
        code += "for name in 'abcd':\n    await_file(f'here_{name}')\n"
        for name in "abcd":
            self.config(name, code)
        self.forked("--configs", "[a-d].py", "--jobs", 4, "--timeout", f"{PATIENCE:.0f}")

    def test_without_jobs_one_runs_after_the_other_in_the_order_of_the_plan(self) -> None:
        for name in "cab":
            self.config(name, NOTE)
        self.forked("--configs", "c.py", "a.py", "b.py")
        order = [(what, name) for what, name, _ in self.events()]
        self.assertEqual(order, [(what, name) for name in "cab" for what in ("start", "stop")])

    def test_never_more_run_at_a_time_than_there_are_jobs_and_each_has_its_own_output(self) -> None:
        self.config("a", NOTE)
        self.forked("--configs", "a.py", "--sweep", f"seed={','.join(map(str, range(20)))}", "--jobs", 4)
        names = [f"a__seed_{number}" for number in range(20)]
        most = self.most_at_once(1)
        self.assertIn(most.pop(""), range(1, 5))
        self.assertEqual(most, Counter(names))
        for name in names:
            self.assertEqual(self.log(name), f"out of {name}\n".encode())


class DeviceTest(SlotCase):
    def test_never_two_run_on_one_device_and_the_result_says_which_it_was(self) -> None:
        self.config("a", NOTE)
        devices = ["cuda:0", "cuda:1", "cpu"]
        self.forked("--configs", "a.py", "--sweep", "seed=1,2,3,4,5,6,7", "--devices", ",".join(devices))
        most = self.most_at_once(2)
        self.assertLessEqual(most.pop(""), 3)
        self.assertEqual(set(most.values()), {1})
        self.assertLessEqual(set(most), set(devices))
        for _, name, device in self.events():
            self.assertEqual(self.result(name)["device"], device)

    def test_a_free_device_takes_the_next_in_the_plan(self) -> None:
        self.config("holds", "await_file('go')")
        for name in "abc":
            self.config(name)
        runner = self.start("--configs", "holds.py", "[abc].py", "--devices", "cuda:0,cuda:1")
        self.wait_for_event("c: completed")
        self.go("go")
        self.ended(runner, 0)
        devices = {name: result["device"] for name, result in self.summary()["results"].items()}
        self.assertEqual(devices, {"holds": "cuda:0", "a": "cuda:1", "b": "cuda:1", "c": "cuda:1"})

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
                self.assertRegex(done.stderr, r"\Aerror: .*--devices auto: .*GPU.*\n\Z")


class LauncherTest(RunnerCase):
    def test_a_launcher_from_a_relative_path_is_found(self) -> None:
        self.config("a", "import os\nprint(os.environ['FROM'])")
        script = self.dir / "launch me"
        script.write_text(f'#!/bin/sh\nFROM=launcher exec {shlex.quote(sys.executable)} "$@"\n')
        script.chmod(0o755)
        self.forked("--configs", "a.py", "--launcher", "'./launch me'")
        self.assertEqual(self.log("a"), b"launcher\n")

    def test_the_launchers_own_failure_is_the_experiments_failure(self) -> None:
        self.config("a")
        self.forked("--configs", "a.py", "--launcher", "sh -c 'echo no nodes >&2; exit 3'", expect=1)
        result = self.result("a")
        self.assertEqual((result["status"], result["return_code"]), ("failed", 3))
        self.assertEqual(result["stderr_tail"].strip(), "no nodes")

    def test_a_launcher_is_never_given_to_a_shell(self) -> None:
        self.config("one")
        self.forked("--configs", "one.py", "--launcher", "true ; touch pwned `touch pwned` $(touch pwned)")
        self.assertFalse((self.dir / "pwned").exists())

    def test_a_launcher_that_vanishes_fails_its_experiment_and_the_batch_goes_on(self) -> None:
        launcher = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
        for name in ("", "a", "b", "c", "d"):
            path = self.dir / f"launch_{name}"
            path.write_text(launcher)
            path.chmod(0o755)
        self.config("a", "import os\nos.unlink('launch_b')\nos.chmod('launch_c', 0o644)")
        for name in "bc":
            self.config(name, "open('started', 'w')")
        self.config("d")
        done = self.forked("--configs", "a.py", "b.py", "c.py", "d.py", "--launcher", "./launch_{name}", expect=1)
        self.assertEqual(done.stderr, "")
        statuses = self.statuses()
        self.assertEqual((statuses["a"], statuses["d"]), ("completed", "completed"))
        for name, reason in (("b", "No such file"), ("c", "Permission denied")):
            result = self.result(name)
            self.assertIn(result["status"], ("failed", "error"))
            self.assertRegex(
                f"{result['error']}\n{result['stderr_tail']}", rf"launch_{name}.*{reason}|{reason}.*launch_{name}"
            )
        self.assertFalse((self.dir / "started").exists())
