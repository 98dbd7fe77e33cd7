"""A stop that costs nothing: each training gets the signal that it cleans up on, and no checkpoint is cut off."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.faulty import FaultyCase
from tests.support import RUNNER, RunnerCase

FOREVER = 100_000  # seconds of grace: a test that waits for them never ends

# What the trainings have in common: a file that shows how one was ended, and waiting for an end.
TOOLS = """
def save(how):
    with open(os.path.join(out_dir, "saved"), "w") as file:
        file.write(how)

def wait_to_be_ended():
    note_pid()
    print("ready", flush=True)
    live_on()

def on_term(*_):
    save("TERM")
    sys.exit(0)
"""
CLEANS_UP = """
try:
    wait_to_be_ended()
finally:
    save(sys.exc_info()[0].__name__)
"""
AT_EXIT = """
import atexit
atexit.register(save, "atexit")
wait_to_be_ended()
"""
HANDLES_TERM = """
signal.signal(signal.SIGTERM, on_term)
wait_to_be_ended()
"""
HANDLES_TERM_LATE = """
print("importing", flush=True)
await_file("imported")
signal.signal(signal.SIGTERM, on_term)
wait_to_be_ended()
"""
ASKED = """
def on_term(*_):
    open("asked", "w").close()
    await_file("go")
    save("TERM")
    print("saved", flush=True)
    sys.exit(0)

"""
NO_LINGER = "run_experiments.LINGER = 0.0\n"  # what a training that ended by itself leaves behind is killed at once
STILL_IMPORTS = """
try:
    wait_to_be_ended()
except KeyboardInterrupt:
    save("before the handler")
    raise
signal.signal(signal.SIGTERM, on_term)
"""
HAS_WORKERS = """
def work():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a DataLoader's workers: it is for the leader to end them
    note_pid()
    live_on()

def end_workers():
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
    save(f"ended {len(workers)} workers")

workers = []
for _ in range(2):
    worker = os.fork()
    if not worker:
        work()
    workers.append(worker)
try:
    wait_to_be_ended()
finally:
    end_workers()
"""

# A checkpoint that is written block by block, until the test has seen that the runner waits for it, and then whole.
WRITES = """
def write(path):
    with open(path, "wb") as file:
        while not os.path.exists("seen"):
            file.write(b"block ")
            file.flush()
            print("saving", flush=True)
            time.sleep(0.01)
        for _ in range(20):
            file.write(b"more ")
            file.flush()
            time.sleep(0.01)
        file.write(b"end")

path = os.path.join(out_dir, "ckpt.pt")
"""
IN_PLACE = "write(path)\nwait_to_be_ended()\n"
RENAMED = "write(path + '.tmp')\nos.rename(path + '.tmp', path)\nwait_to_be_ended()\n"
SHARDS = """
os.mkdir(path)
write(os.path.join(path, "shard_0"))
with open(os.path.join(path, "shard_1"), "wb") as file:
    file.write(b"end")
wait_to_be_ended()
"""
ON_TERM = """
def on_term(*_):
    write(path)
    sys.exit(0)

signal.signal(signal.SIGTERM, on_term)
wait_to_be_ended()
"""


class StoppingCase(FaultyCase):
    def training(self, name: str, code: str) -> None:
        self.config(name, TOOLS + WRITES + code)

    def start_ready(self, *names: str, args: Any = (), line: bytes = b"ready\n") -> subprocess.Popen[str]:
        """The runner with all of these trainings at a time, each having printed the line."""
        runner = self.start("--configs", *(f"{name}.py" for name in names), "--jobs", len(names), *args)
        for name in names:
            self.wait_for_line(name, line)
        return runner

    def interrupt(self, runner: subprocess.Popen[str]) -> str:
        runner.send_signal(signal.SIGINT)
        out = self.ended(runner, 130)
        self.assert_nothing_runs()
        return out

    def saved(self, name: str) -> str:
        path = self.batch() / name / "saved"
        return path.read_text() if path.exists() else ""

    def ends_of(self, *names: str) -> set[str]:
        return {self.result(name)["status"] for name in names}

    def assert_whole(self, *files: str) -> None:
        for file in files:
            data = (self.batch() / file).read_bytes()
            self.assertEqual(data[-3:], b"end", f"{file} was cut off after {len(data)} bytes")


class AutoSignalTest(StoppingCase):
    """--stop_signal auto: INT, on which Python cleans up, unless the training handles TERM."""

    def test_finally_atexit_and_handlers_are_all_reached_by_the_signal_that_each_cleans_up_on(self) -> None:
        codes = {
            "cleans_up": CLEANS_UP,
            "at_exit": AT_EXIT,
            "handles_term": HANDLES_TERM,
            "late_handler": HANDLES_TERM_LATE,
            "still_imports": STILL_IMPORTS,
            "workers": HAS_WORKERS,
        }
        for name, code in codes.items():
            self.training(name, code)
        self.go("imported")
        out = self.interrupt(self.start_ready(*codes, args=["--grace", FOREVER]))
        expected = {
            "cleans_up": ("KeyboardInterrupt", "SIGINT", -2),
            "at_exit": ("atexit", "SIGINT", -2),
            "handles_term": ("TERM", None, 0),
            "late_handler": ("TERM", None, 0),
            "still_imports": ("before the handler", "SIGINT", -2),
            "workers": ("ended 2 workers", "SIGINT", -2),
        }
        results = {name: self.result(name) for name in codes}
        got = {name: (self.saved(name), each["signal"], each["return_code"]) for name, each in results.items()}
        self.assertEqual(got, expected, out)
        self.assertEqual(self.ends_of(*codes), {"interrupted"})

    def test_with_stdin_closed_and_hardly_any_environment_it_stops_as_ever(self) -> None:
        self.training("one", CLEANS_UP)
        command = f"exec env -i {sys.executable} {RUNNER} --configs one.py --grace {FOREVER} <&-"
        runner = subprocess.Popen(
            ["sh", "-c", command], cwd=self.dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.runners.append(runner)
        self.wait_for_line("one", b"ready\n")
        self.interrupt(runner)
        self.assertEqual(self.saved("one"), "KeyboardInterrupt")

    def behind(self, launcher: str, names: dict[str, str]) -> dict[str, str]:
        """What trainings behind a launcher have saved at a stop."""
        for name, code in names.items():
            self.training(name, code)
        launcher = launcher.replace("PYTHON", sys.executable)
        runner = self.start_ready(*names, args=["--grace", FOREVER, "--launcher", launcher])
        self.interrupt(runner)
        return {name: self.saved(name) for name in names}

    def test_behind_a_bash_wrapper_the_training_is_asked_and_not_the_wrapper(self) -> None:
        (self.dir / "wrapper.sh").write_text('export WRAPPED=1\n"$@"\necho "wrapper: $?"\n')
        # Bash dies of the TERM at once: what it has started has its grace all the same.
        slow = HANDLES_TERM.replace("signal.signal", ASKED + "signal.signal")
        self.training("slow", slow)
        self.training("cleans_up", CLEANS_UP)
        args = ["--grace", FOREVER, "--launcher", f"bash wrapper.sh {sys.executable}", "--jobs", 2]
        runner = self.start_faulty(NO_LINGER, "--configs", "slow.py", "cleans_up.py", *args)
        for name in ("slow", "cleans_up"):
            self.wait_for_line(name, b"ready\n")
        runner.send_signal(signal.SIGINT)
        self.await_file("asked")
        self.wait_for_event("cleans_up: interrupted")
        self.go("go")
        self.said(runner, 130)
        self.assert_nothing_runs()
        self.assertEqual((self.saved("slow"), self.saved("cleans_up")), ("TERM", "KeyboardInterrupt"))
        self.assertEqual((self.log("slow"), self.result("slow")["signal"]), (b"ready\nsaved\n", "SIGTERM"))

    def test_workers_in_sessions_of_their_own_are_asked_and_not_the_launcher_that_hands_signals_on(self) -> None:
        lines = ["import signal, subprocess, sys", "def hand_on(number, _):", "    worker.send_signal(number)"]
        lines += [f"signal.signal(signal.SIG{name}, hand_on)" for name in ("INT", "TERM")]
        lines += ["worker = subprocess.Popen([sys.executable, *sys.argv[1:]], start_new_session=True)"]
        (self.dir / "as_torchrun.py").write_text("\n".join([*lines, "sys.exit(worker.wait() != 0)\n"]))
        codes = {"handles_term": HANDLES_TERM, "cleans_up": CLEANS_UP}
        expected = {"handles_term": "TERM", "cleans_up": "KeyboardInterrupt"}
        self.assertEqual(self.behind("PYTHON as_torchrun.py", codes), expected)

    def test_a_wrapper_in_a_command_template_does_not_hide_that_the_training_handles_term(self) -> None:
        (self.dir / "wrapper.sh").write_text('"$@"\necho "wrapper: $?"\n')
        self.training("one", HANDLES_TERM)
        command = f"bash wrapper.sh {sys.executable} train_run.py {{config}} --out_dir={{dir}}"
        self.interrupt(self.start_ready("one", args=["--grace", FOREVER, "--command", command]))
        self.assertEqual(self.saved("one"), "TERM")


class CheckpointTest(StoppingCase):
    """What is being written when a stop comes."""

    def test_a_file_in_place_a_renamed_one_and_a_directory_of_shards_are_written_to_their_end(self) -> None:
        codes = {"in_place": IN_PLACE, "renamed": RENAMED, "shards": SHARDS}
        for name, code in codes.items():
            self.training(name, code)
        self.training("lies_there", "print('saving')\nopen(path, 'w').close()\n" + CLEANS_UP)
        runner = self.start_ready(*codes, "lies_there", line=b"saving\n")
        runner.send_signal(signal.SIGINT)
        at_most = r"be written \(at most (20|19) ?s\)\n"
        self.wait_for_event("in_place: waiting for ckpt.pt to " + at_most)
        self.wait_for_event("renamed: waiting for ckpt.pt.tmp to " + at_most)
        self.wait_for_event("shards: waiting for ckpt.pt to " + at_most)
        self.go("seen")
        out = self.ended(runner, 130)
        self.assert_nothing_runs()
        self.assert_whole("in_place/ckpt.pt", "renamed/ckpt.pt", "shards/ckpt.pt/shard_0", "shards/ckpt.pt/shard_1")
        self.assertEqual({self.result(name)["signal"] for name in codes}, {"SIGINT"})
        self.assertEqual(self.saved("lies_there"), "KeyboardInterrupt")
        self.assertNotIn("lies_there: waiting", out)


# A trainer that continues from its only checkpoint, and whose second attempt is killed in the middle of a save.
CONTINUES = """
init_from = "scratch"
path = os.path.join(out_dir, "ckpt.pt")
text = ""
if overrides.get("init_from") == "resume":
    with open(path) as file:
        text = file.read()
    if not text.endswith("end"):
        sys.exit(f"Traceback (most recent call last):\\n  File 'train.py', line 1\\n{ERROR}")
    print("continues from", text, flush=True)
if not text:
    with open(path, "w") as file:
        file.write("first end")
    sys.exit(3)
if not os.path.exists("go"):
    kept = sorted(name for name in os.listdir(out_dir) if name.startswith(".kept_"))
    print("kept", kept, flush=True)
    with open(path, "w") as file:
        file.write("second, cut o")
    os.kill(os.getpid(), signal.SIGKILL)
"""
ERRORS = {
    "pickle": "EOFError: Ran out of input",
    "zip": "RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central directory",
    "truncated": "_pickle.UnpicklingError: pickle data was truncated",
    "safetensors": "safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer",
}


class CopyTest(RunnerCase):
    """The copy of an only checkpoint, for the day when the other is cut off."""

    def test_it_is_kept_before_continuing_used_when_the_newer_is_cut_off_and_removed_in_the_end(self) -> None:
        for name, error in ERRORS.items():
            self.config(name, f"ERROR = {error!r}\n{CONTINUES}")
        self.forked("--configs", *(f"{name}.py" for name in ERRORS), "--jobs", 4, expect=1)
        self.forked("--resume", expect=1)  # killed while it saves
        for name in ERRORS:
            self.assertIn(b"continues from first end\nkept ['.kept_ckpt.pt", self.log(name))
            self.assertEqual((self.batch() / name / "ckpt.pt").read_text(), "second, cut o")
        self.go("go")
        done = self.forked("--resume")
        self.assertEqual(self.statuses(), dict.fromkeys(ERRORS, "completed"))
        for name in ERRORS:
            said = rf"{name}: exit code 1: .*; set aside: ckpt.pt.set_aside; its kept copy is used"
            self.assertRegex(done.stdout, said)
            self.assertEqual(self.log(name).count(b"continues from first end\n"), 2)
            left = [each.name for each in (self.batch() / name).iterdir() if each.name.startswith(".kept")]
            self.assertEqual(left, [])
            self.assertEqual((self.batch() / name / "ckpt.pt").read_text(), "first end")

    def test_none_is_kept_where_there_are_two_checkpoints(self) -> None:
        code = "init_from = 'scratch'\nprint(sorted(os.listdir(out_dir)), flush=True)\n"
        code += "for name in ('ckpt_1.pt', 'ckpt_2.pt'):\n    open(os.path.join(out_dir, name), 'w').close()\n"
        self.config("one", code + "sys.exit(0 if overrides.get('init_from') else 3)")
        self.forked("--configs", "one.py", "--retries", 1)
        self.assertIn(b"ckpt_2.pt", self.log("one"))
        self.assertNotIn(b".kept", self.log("one"))

    def test_a_directory_is_copied_as_a_whole(self) -> None:
        code = "import glob\ninit_from = 'scratch'\nplace = os.path.join(out_dir, 'step-1')\n"
        code += "if overrides.get('init_from'):\n"
        code += "    print(sorted(os.listdir(glob.glob(os.path.join(out_dir, '.kept_*'))[0])))\n"
        code += "    sys.exit()\nos.mkdir(place)\n"
        code += "for name in 'ab':\n    open(os.path.join(place, name), 'w').close()\nsys.exit(3)"
        self.config("one", code)
        self.forked("--configs", "one.py", "--retries", 1, "--checkpoints", "step-*/")
        self.assertIn(b"['a', 'b']\n", self.log("one"))
        self.assertEqual(sorted(each.name for each in (self.batch() / "one").glob("*step-1*")), ["step-1"])


class MessageTest(StoppingCase):
    """What is said of a stop, and of going on after one."""

    def continue_line(self, out: str) -> str:
        match = re.search(r"(?m)^continue with: (.*)$", out)
        assert match, out
        return match[1]

    def test_the_line_to_continue_works_as_pasted_in_any_shell(self) -> None:
        place = self.dir / 'it\'s a "test" $HOME'
        place.mkdir()
        shutil.copy(self.dir / "train_run.py", place)
        (place / "one.py").write_text("sys.exit(0 if os.path.exists('go') else 3)\n")
        shutil.copy(RUNNER, place / "run experiments.py")
        for shell in filter(shutil.which, ("sh", "bash")):
            with self.subTest(shell=shell):
                (place / "go").unlink(missing_ok=True)
                command = [sys.executable, "run experiments.py", "--configs", "one.py", "--base_out_dir", f"my {shell}"]
                first = subprocess.run(command, cwd=place, capture_output=True, text=True)
                (place / "go").touch()
                line = self.continue_line(first.stdout)
                again = subprocess.run([shell], cwd=place, input=line + "\n", capture_output=True, text=True)
                self.assertEqual((first.returncode, again.returncode), (1, 0), f"{line}\n{again.stderr}")
                self.assertIn("1 completed", again.stdout)

    def test_the_line_to_continue_names_the_python_of_an_environment_that_is_not_active(self) -> None:
        self.config("one", "sys.exit(3)")
        bin_dir = self.dir / "env" / "bin"
        bin_dir.mkdir(parents=True)
        base = Path(os.path.realpath(sys.executable))
        (self.dir / "env" / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
        (bin_dir / base.name).symlink_to(base)
        environment = {**os.environ, "PATH": f"{base.parent}:/usr/bin:/bin"}
        command = [str(bin_dir / base.name), str(RUNNER), "--configs", "one.py"]
        done = subprocess.run(command, cwd=self.dir, env=environment, capture_output=True, text=True)
        self.assertIn(f"{bin_dir / base.name} ", self.continue_line(done.stdout))

    def resume_with(self, values: dict[str, str], *args: str) -> str:
        """What a resume says of a batch whose summary holds these values."""
        path = self.batch() / "experiment_summary.json"
        summary = self.json(path)
        self.assertLessEqual(values.keys(), summary.keys())
        text = path.read_text()
        for key, value in values.items():
            text = text.replace(f'"{key}": "{summary[key]}"', f'"{key}": "{value}"')
        path.write_text(text)
        return self.forked("--resume", *args, expect=1).stdout

    def test_a_resume_elsewhere_or_otherwise_says_what_is_not_as_it_was(self) -> None:
        self.config("one", "sys.exit(3)")
        self.forked("--configs", "one.py", expect=1)
        said = self.resume_with({})
        self.assertNotIn("the batch had", said)
        said = self.resume_with({"python_executable": "/opt/old/python", "hostname": "gone", "python_version": "3.9.0"})
        self.assertIn(f"warning: python executable is {sys.executable}, the batch had /opt/old/python\n", said)
        self.assertIn(f"warning: hostname is {os.uname().nodename}, the batch had gone\n", said)
        self.assertRegex(said, r"warning: python version is \S+, the batch had 3\.9\.0\n")
        shutil.copy(self.dir / "train_run.py", self.dir / "other.py")
        said = self.resume_with({}, "--train_script", "other.py")
        self.assertIn("warning: train script is other.py, the batch had train_run.py\n", said)
