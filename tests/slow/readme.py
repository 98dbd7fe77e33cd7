"""The README's commands work as written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from tests.support import PATIENCE, ROOT
from tests.test_readme import THIS_RUN, blocks

SOMEWHERE_ELSE = {  # what other machines have, as far as it matters here
    "nvidia-smi": "echo GPU 0: one; echo GPU 1: two",
    **dict.fromkeys(  # they start the training script with this Python
        ("torchrun", "docker", "srun"), 'while [ "${1##*/}" != train_run.py ]; do shift; done; exec python3 "$@"'
    ),
    "tmux": 'for last; do :; done; exec sh -c "$last"',
    "loginctl": "exit 0",
    "systemd-run": 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"',
    "ssh": 'shift; cd; exec bash -c "$*\nwait"',  # a real one leaves what it has started running
}
TRAINERS = {  # in the style of what --command is for
    "train_run.py": "out_dir, device, batch_size, max_iters = 'out', 'cpu', 12, 5\n"
    "exec(open('configurator.py').read())\nprint(f'step {max_iters}: train loss 1.0, val loss 1.0')\n",
    "main.py": "import sys\nprint(sys.argv)\nprint('step 1: loss 1.0')\n",
    "litgpt.py": "import sys\nassert sys.argv[1] == 'pretrain'\nprint(open(sys.argv[3]).read())\n",
}
NOT_OURS = (".*", "__pycache__", "*.egg-info", "build", "experiments", "quick_test")  # what a clone doesn't have


class CommandTest(unittest.TestCase):
    """The commands run one block after another in one copy of the repository, as somebody pastes them."""

    directory: Path

    @classmethod
    def setUpClass(cls) -> None:
        cls.directory = Path(tempfile.mkdtemp(prefix="run_experiments_test_"))
        cls.addClassCleanup(shutil.rmtree, cls.directory, ignore_errors=True)
        clone = cls.directory / "clone"
        shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(*NOT_OURS))
        if shutil.which("git"):
            git = ["git", "-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
            for words in (["init", "-q"], ["add", "--all"], ["commit", "-q", "-m", "all"]):
                subprocess.run([*git, *words], cwd=clone, check=True, stdout=subprocess.DEVNULL)
        cls.program("bin/python3", f'exec "{sys.executable}" "$@"')  # the one that runs this test

    @classmethod
    def program(cls, name: str, code: str) -> None:
        path = cls.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{code}\n")
        path.chmod(0o755)

    def run_block(self, block: str, folder: str = "clone", programs: str = "bin") -> None:
        path = os.pathsep.join([str(self.directory / programs), str(self.directory / "bin"), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", f"{block}\nwait"],  # for what it leaves running in the background
            cwd=self.directory / folder,
            env={**os.environ, "PATH": path, "HOME": str(self.directory / "home")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=4 * PATIENCE,
        )
        self.assertEqual(done.returncode, 0, f"{block}\n{done.stdout}")
        self.assertNotRegex(done.stdout, "Traceback|command not found|error: ")
        for log in (self.directory / folder).glob("*.log"):  # where a block sends the runner's output
            self.assertNotRegex(log.read_text(), "Traceback|error: ")

    @unittest.skipUnless(shutil.which("bash"), "bash is missing")
    def test_every_command_works_as_written(self) -> None:
        commands = blocks("bash")
        self.assertEqual(commands.count(f"{THIS_RUN}\n"), 1)
        self.assertGreater(len(commands), 6)
        for block in commands:
            with self.subTest(block=block):
                for program in ("jq", "git"):
                    if f"{program} " in block and not shutil.which(program):
                        self.skipTest(f"{program} is missing")
                if block != f"{THIS_RUN}\n":
                    self.run_block(block)

    @unittest.skipUnless(shutil.which("bash"), "bash is missing")
    def test_commands_for_other_machines_work_as_written_where_these_are_played(self) -> None:
        repository = self.directory / "home" / "my_repository"
        (repository / "config").mkdir(parents=True)
        for name in "abc":
            (repository / "config" / f"{name}.py").write_text("max_iters = 2\n")
        (repository / "config" / "d.yaml").write_text("trainer: {}\n")
        for name, code in TRAINERS.items():
            (repository / name).write_text(code)
        shutil.copy(ROOT / "tests" / "configurator.py", repository)
        for name, code in SOMEWHERE_ELSE.items():
            self.program(f"elsewhere/{name}", code)
        played = [block for block in blocks("sh") if "#SBATCH" not in block]  # that one slow/slurm runs
        self.assertGreater(len(played), 5)
        for block in played:
            with self.subTest(block=block):
                self.assertIn("python3 run_experiments.py", block)
                self.run_block(block, "clone" if "~/" in block else "home/my_repository", "elsewhere")
        base = repository / "experiments"
        for host in ("gpu1", "gpu2", "gpu3"):
            summary = json.loads((base / host / "latest" / "experiment_summary.json").read_bytes())
            self.assertEqual((summary["state"], summary["completed"]), ("finished", 1))
