"""What others hand in can be anything: values, names, output, a batch's own files. It is never run, shown raw, or
followed out of the batch's directory, and never ends in a traceback.

    HOSTILE_SEED=7 HOSTILE_CASES=5000 HOSTILE_LINE_MB=10000 python3 -m unittest tests.test_hostile

The seed is printed; the same seed makes the same cases.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support import CHILD_TOOLS, PATIENCE, RUNNER, RunnerCase, is_running, wait_for

SEED = int(os.environ.get("HOSTILE_SEED") or random.SystemRandom().randrange(10**6))
CASES = int(os.environ.get("HOSTILE_CASES") or 80)
LINE_MB = int(os.environ.get("HOSTILE_LINE_MB") or 200)
UNSHOWN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # what can paint a terminal
JUNK = "\udcff\0" * 100_000
ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\x7f"

DRIVER = r"""
import json, os, resource, signal, sys, traceback

sys.path.insert(0, os.path.dirname(sys.argv[1]))
import run_experiments

SPAWNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "pty.spawn")

def work(case):
    os.chdir(case["cwd"])
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(case[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(file, descriptor)
        os.close(file)
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    if case["files"]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (case["files"], case["files"]))
    signal.alarm(case["seconds"])
    sys.argv = [sys.argv[1], *case["argv"]]
    def watch(event, args):
        if event in SPAWNS:
            os.write(2, b"Traceback: %s of %r\n" % (event.encode(), args))
    if case["spawns"] is False:
        sys.addaudithook(watch)
    code = 70
    try:
        code = run_experiments.main(case["argv"])
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 71)

for line in sys.stdin:
    case = json.loads(line)
    pid = os.fork()
    if not pid:
        work(case)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""  # the runner in a process of its own for each case, without the cost of starting Python


class HostileCase(RunnerCase):
    """A canary directory lies beside the batches; whatever a case does, nothing but its own batch may change."""

    def setUp(self) -> None:
        super().setUp()
        self.canary = self.dir / "canary"
        (self.canary / "inner").mkdir(parents=True)
        for name in ("file", "stdout.log", "experiment_result.json", "config_used.py", "inner/file"):
            (self.canary / name).write_text(f"of {name}\n")
        (self.dir / "driver.py").write_text(DRIVER)
        command = [sys.executable, str(self.dir / "driver.py"), str(RUNNER)]
        self.driver = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(self.driver.communicate, timeout=PATIENCE)
        self.number = 0

    def call(self, *argv: Any, spawns: bool = True, files: int = 0) -> tuple[int, str, str]:
        """The exit code, stdout and stderr of the runner with these arguments."""
        assert self.driver.stdin and self.driver.stdout
        out, err = self.dir / ".out", self.dir / ".err"
        case: dict[str, Any] = {"argv": list(map(str, argv)), "cwd": str(self.dir)}
        case.update(out=str(out), err=str(err), spawns=spawns, files=files, seconds=int(PATIENCE))
        self.driver.stdin.write(json.dumps(case) + "\n")
        self.driver.stdin.flush()
        code = int(self.driver.stdout.readline())
        return code, out.read_text(errors="surrogateescape"), err.read_text(errors="surrogateescape")

    def outside(self) -> dict[str, Any]:
        """All that no case may change: each file with its content, and when it was last written to."""
        found: dict[str, Any] = {}
        for folder, _, names in os.walk(self.dir):
            for path in (folder, *(os.path.join(folder, name) for name in names)):
                place = os.path.relpath(path, self.dir)
                if place.split(os.sep)[0] in ("cases", "experiments", ".out", ".err", ".", "base"):
                    continue
                status = os.lstat(path)
                content = Path(path).read_bytes() if os.path.isfile(path) and not os.path.islink(path) else b""
                found[place] = (status.st_mode, status.st_mtime_ns, content)
        return found

    def assert_decent(self, code: int, out: str, err: str, codes: tuple[int, ...] = (0, 1, 2, 75)) -> None:
        """The runner ended by itself, said what it had to say in plain lines, and met no mistake of its own."""
        self.assertNotIn("Traceback", err)
        self.assertIn(code, codes, f"-{signal.SIGALRM.value} is a hang\n{out[-2000:]}\n{err[-2000:]}")
        for text in (out, err):
            found = UNSHOWN.search(text)
            self.assertIsNone(found, f"raw {found and found[0]!r} in: {text[:2000]!r}")
        if code == 2:
            self.assertRegex(err, r"\Aerror: [^\n]+\n\Z")


# ------------------------------------------------------------------------------------- values and names


def hostile_texts(canary: Path) -> list[str]:
    """Texts that mean something to some reader on the way: shell, Python, format, terminal, parser, file system."""
    touch = f"touch {canary}/executed"
    return [
        "",
        " ",
        "\n",
        "-",
        "--",
        "---",
        "=",
        "a=b=c",
        "'",
        '"',
        "\\",
        "'\"'\"\\",
        f"$({touch})",
        f"`{touch}`",
        f"; {touch};",
        f"| {touch}",
        f"\n{touch}\n",
        f"' ; {touch} ; '",
        f'" ; {touch} ; "',
        f"__import__('os').system('{touch}')",
        f"[__import__('os').system('{touch}') for _ in [1]]",
        f'f\'{{__import__("os").system("{touch}")}}\'',
        f"!!python/object/apply:os.system ['{touch}']",
        "{dir}{name}{slot}{device}",
        "{0.__class__}",
        "{x!r:{y}}",
        "{{{",
        "%s%n%(x)s",
        "*",
        "~",
        "$HOME",
        ESCAPES,
        "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
        "\udcff\udcfe",
        "9" * 5000,
        "-" + "9" * 400,
        "0x" + "f" * 5000,
        "1e999999999999",
        "-1e999",
        "nan",
        "1" + "0" * 320,
        "1_000",
        "0777",
        "1j",
        "[" * 300,
        "[" * 3000 + "]" * 3000,
        "(" * 90_000,
        "-" * 20_000 + "1",
        "1+" * 20_000 + "1",
        "{'a':" * 1000 + "1" + "}" * 1000,
        "x" * 100_000,
        "../../canary/file",
        str(canary / "file"),
        "/dev/zero",
        "/dev/stdin",
        "None",
        "True",
        "()",
        "b'bytes'",
        "lambda: 1",
    ]


class ValueTest(HostileCase):
    OPTIONS = ["--note", "--batch_size", "--learning_rate", "--wandb_project", "--device", "--compile", "--sweep"]
    OPTIONS += ["--launcher", "--jobs", "--devices", "--timeout", "--stall", "--grace", "--retries", "--max_failures"]
    OPTIONS += ["--stop_signal", "--train_script", "--base_out_dir", "--configs", "--resume", "--status", "--report"]

    def test_no_value_of_any_option_is_run_or_ends_in_a_traceback(self) -> None:
        self.config("easy", "learning_rate = 1e-3\nbatch_size = 8\n")
        before = self.outside()
        for value in hostile_texts(self.canary):
            for option in self.OPTIONS:
                with self.subTest(option=option, value=value[:100]):
                    given = f"note={value}" if option == "--sweep" else value
                    where = ["--configs", "easy.py"] if option not in ("--configs", *self.OPTIONS[-3:]) else []
                    self.assert_decent(*self.call("--dry_run", *where, f"{option}={given}", spawns=False))
                    self.assertFalse((self.dir / "experiments").exists())
        self.assertEqual(self.outside(), before)

    @unittest.skipUnless(shutil.which("bash"), "the printed command is read as bash does")
    def test_the_command_that_is_printed_is_one_that_a_shell_takes_for_the_same_words(self) -> None:
        self.config("easy")
        for value in hostile_texts(self.canary):
            if value == "--":
                continue  # refused
            with self.subTest(value=value[:100]):
                code, out, err = self.call("--dry_run", "--configs", "easy.py", f"--note={value}")
                self.assert_decent(code, out, err, codes=(0,))
                script = f"printf '%s\\0' {out.splitlines()[-1]}".encode(errors="surrogateescape")
                done = subprocess.run(["bash"], input=script, stdout=subprocess.PIPE, check=True)
                words = done.stdout.decode(errors="surrogateescape").split("\0")
                self.assertIn(words[-2], (f"--note={value}", f"--note={value!r}"))  # quoted: else literal_eval dies
        self.assertFalse((self.canary / "executed").exists())

    def test_a_config_that_is_no_decent_python_is_that_experiments_failure(self) -> None:
        touch = f"touch {self.canary}/executed"
        sources: list[bytes] = [
            b"\0",
            b"x = 1\0",
            b"\xff\xfex = 1",
            b"# coding: rot13\nk = 1",
            b"# coding: \x1b[31m\nx = 1",
            b"x = '\x1b[31m",
            f"import os; os.system({touch!r})".encode(),
            b"x = " + b"1+" * 5000 + b"1",
            b"x = " + b"-" * 5000 + b"1",
            b"x = " + b"(" * 150 + b")" * 150,
            b"x = " + b"[" * 5000 + b"]" * 5000,
            b"x = " + b"{1:" * 90 + b"1" + b"}" * 90,
            b"x = " + b"9" * 5000,
            b"x = 0x" + b"f" * 5000,
            b"x = 10 ** 10 ** 10\ny = 'a' * 10 ** 10\nz = 9e99 * 9e99 * 9e99 / 0",
            b"if " * 3000,
            b"x = y = z = " * 2000 + b"1",
            b"max_iters = float('nan')\nlearning_rate = 1e999\nbatch_size = -0.0",
            b"x: int\ny: int = 1\nfor z in range(9): pass\ndel z",
            b"\n".join(b"x%d = %d" % (n, n) for n in range(20_000)),
        ]
        for number, source in enumerate(sources):
            (self.dir / f"odd_{number:02}.py").write_bytes(source)
        before = self.outside()
        for number, source in enumerate(sources):
            with self.subTest(source=source[:80]):
                config = f"odd_{number:02}.py"
                self.assert_decent(*self.call("--dry_run", "--configs", config, spawns=False))
                self.assert_decent(*self.call("--configs", config, "--launcher", "true"), codes=(0, 1))
        self.assertEqual(self.outside(), before)

    def test_names_stay_in_the_batch_and_are_shown_without_their_escapes(self) -> None:
        odd = [
            ESCAPES.encode(),
            b"\n",
            b" ",
            b"-rf",
            b"--out_dir",
            b"..",
            b"...",
            b"..\\..\\canary",
            b"$(touch executed)",
            b"`touch executed`",
            b"; touch executed #",
            b"<script>alert(1)</script>"[:25].replace(b"/", b"\\"),
            b"\xff\xfe\xc3(",
            "é\u0301\u202e".encode(),
            b"%s{dir}",
            b"x" * 240,
            b"latest",
            b"runner.lock",
            b"master_log.txt",
            b"report.html",
            b"experiment_summary.json",
            b"CON",
            b"attempt_1",
        ]
        folder = os.fsencode(self.dir / "names")
        os.mkdir(folder)
        for name in odd:
            with open(os.path.join(folder, name + b".py"), "wb") as file:
                file.write(b"print('step 1: train loss 1.0, val loss 1.0')\n")
        before = self.outside()
        done = self.run_runner("--configs", "names/*.py", "names/.*.py", "--jobs", 4, errors="surrogateescape")
        self.assert_decent(done.returncode, done.stdout, done.stderr, codes=(0,))
        self.assertEqual(len(self.summary()["results"]), len(odd))
        for name in self.summary()["results"]:
            self.assertRegex(name, r"\A[A-Za-z0-9_][A-Za-z0-9._-]*\Z")
            self.assertTrue((self.batch() / name / "stdout.log").is_file())
        self.assertIsNone(UNSHOWN.search(self.master_log()))
        self.assertNotIn("<script>alert", (self.batch() / "report.html").read_text())
        self.assertEqual(self.outside(), before)
        self.assertEqual(list(self.dir.glob("**/executed")), [])
        for arguments in (["--status"], ["--status", "--json"], ["--report"], ["--resume"]):
            self.assert_decent(*self.call(*arguments, spawns=arguments == ["--resume"]), codes=(0,))


# ------------------------------------------------------------------------------------------ what is printed


class OutputTest(HostileCase):
    def test_escapes_in_evaluations_and_exceptions_reach_no_terminal_and_no_page(self) -> None:
        self.config(
            "paint",
            CHILD_TOOLS
            + f"""
odd = {ESCAPES!r} + "</script><script>alert(1)</script><!--" + "]]>&quot;"
print(f"step 1{{odd}}: train loss 2.0, val loss 2.0")
print(f"{{odd}}step 2: train loss 2.0, val loss 2.0{{odd}}")
print(f"step 3: train loss 2.0{{odd}}, val loss 2.0\\r{{odd}}step 4: train loss 1.5, val loss 1.5")
print(f"iter 5: loss 1.0{{odd}}")
sys.stderr.write(f"warning {{odd}}\\n")
raise ValueError(f"gone wrong: {{odd}}\\nstep 9: train loss 0.1, val loss 0.1")
""",
        )
        for follow in ([], ["--follow"]):
            with self.subTest(follow=follow):
                done = self.run_runner("--configs", "paint.py", *follow, expect=1)
                self.assertIsNone(UNSHOWN.search(done.stdout), repr(done.stdout))
                self.assertIsNone(UNSHOWN.search(done.stderr), repr(done.stderr))
                self.assertIsNone(UNSHOWN.search(self.master_log()), repr(self.master_log()))
                self.assertIn("gone wrong", self.master_log())
                self.assertEqual(self.result("paint")["metrics"]["best_step"], 4)
                self.assertIn(ESCAPES.encode(), self.log("paint"))
                page = (self.batch() / "report.html").read_text()
                self.assertIsNone(UNSHOWN.search(page.replace("\t", "")))
                self.assertNotIn("<script>alert", page)
                for arguments in (["--status"], ["--status", "--json"]):
                    self.assert_decent(*self.call(*arguments, spawns=False), codes=(0,))

    def test_numbers_that_are_too_large_are_no_obstacle(self) -> None:
        lines = [
            f"step {'9' * 4999}: train loss 1.0, val loss 1.0",
            f"step 1: train loss {'9' * 5000}, val loss 1e{'9' * 4000}",
            "step 2: train loss 1e999, val loss -1e999",
            f"iter {'9' * 15}: loss {'1' * 400}",
            "iter 999999999999999: loss nan",
            "step -5: train loss -nan, val loss +inf",
            "step 7: train loss 1e, val loss 1e+",
        ]
        self.config("huge", "\n".join(f"print({line!r})" for line in lines))
        done = self.run_runner("--configs", "huge.py", expect=0)
        self.assertEqual(done.stderr, "")
        self.summary(), self.result("huge")  # strict JSON
        for arguments in (["--status"], ["--status", "--json"], ["--report"]):
            self.assert_decent(*self.call(*arguments, spawns=False), codes=(0,))

    def test_100000_updates_of_a_progress_bar_are_as_many_lines(self) -> None:
        self.config(
            "bar",
            "import os\nfor number in range(100_000):\n    os.write(1, b'%6d/100000\\r' % number)\nos.write(1, b'done\\n')",
        )
        self.run_runner("--configs", "bar.py", expect=0)
        expected = b"".join(b"%6d/100000\r" % number for number in range(100_000)) + b"done\n"
        self.assertTrue(self.log("bar") == expected, "stdout.log differs")
        stamped = re.findall(rb"(?m)^\S+ \S+ \[STDOUT\] (.*)$", self.log("bar", "combined"))
        self.assertTrue(stamped == expected.replace(b"\r", b"\n").split(b"\n")[:-1], "combined.log differs")

    @unittest.skipUnless(Path("/proc/self/status").exists(), "the peak memory of a process is read from /proc")
    def test_one_line_without_end_needs_no_more_memory_than_a_short_one(self) -> None:
        peaks = []
        for megabytes in (5, LINE_MB):
            self.config(
                "long",
                CHILD_TOOLS
                + f"""
block = b"0123456789abcdef" * (1 << 12)
for _ in range({megabytes * 16}):
    view = memoryview(block)
    while view:
        view = view[os.write(1, view):]
open(f"{{out_dir}}/written", "w").close()
await_file("go")
""",
            )
            (self.dir / "go").unlink(missing_ok=True)
            runner = self.start("--configs", "long.py", "--base_out_dir", f"out_{megabytes}")
            folder = self.dir / f"out_{megabytes}" / "latest" / "long"

            def written(folder: Path = folder, size: int = megabytes << 20) -> bool:
                return (folder / "stdout.log").exists() and (folder / "stdout.log").stat().st_size >= size

            deadline = time.monotonic() + PATIENCE + megabytes / 5
            while not written() and time.monotonic() < deadline:
                time.sleep(0.02)
            self.assertTrue(written())
            wait_for((folder / "written").exists, "the last of it")
            self.go("go")
            _, _, usage = os.wait4(runner.pid, 0)  # the end, with the page, is part of it
            runner.returncode = 0
            peaks.append(usage.ru_maxrss)
            size = (folder / "combined.log").stat().st_size
            self.assertGreaterEqual(size, megabytes << 20)
            self.assertLess(size, (megabytes << 20) * 1.01)
            shutil.rmtree(self.dir / f"out_{megabytes}")
        self.assertLess(peaks[1], 1.1 * peaks[0])


# ------------------------------------------------------------------------------ a batch that was tampered with


@contextlib.contextmanager
def deeply() -> Iterator[None]:
    """For what is nested as deeply as the runner reads it, but at the depth of a test's own stack."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def nested(depth: int, kind: str) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


class BatchCase(HostileCase):
    """A batch with a completed, a failed and an interrupted experiment, copied and damaged anew for each case."""

    def setUp(self) -> None:
        super().setUp()
        self.chance = random.Random(SEED)
        script = """
            case "$1" in
                good*) echo 'step 10: train loss 1.5, val loss 1.25'; echo x > "${2#--out_dir=}/ckpt.pt" ;;
                bad*) echo 'ValueError: no luck' >&2; exit 3 ;;
                slow*) test -e go || { echo 'iter 5: loss 1.0'; echo > begun; exec sleep 60; } ;;
            esac
        """
        (self.dir / "train.sh").write_text(script)
        for name in ("good", "bad", "slow"):
            self.config(name, "learning_rate = 1e-3\nmax_iters = 10\n")
        words = ["--configs", "good.py", "bad.py", "slow.py", "--sweep", "seed=1", "--learning_rate", "1e-4"]
        words += ["--train_script", "train.sh", "--launcher", "sh", "--grace", "0.5"]
        runner = self.start(*words, "--base_out_dir", "base")
        wait_for((self.dir / "begun").exists, "the slow one")
        runner.send_signal(signal.SIGINT)
        self.ended(runner, 130)
        self.go("go")
        self.base = (self.dir / "base" / "latest").resolve()
        self.texts = {
            place: (self.base / place).read_text()
            for place in (
                "experiment_summary.json",
                "good__seed_1/experiment_result.json",
                "bad__seed_1/experiment_result.json",
                "bad__seed_1/experiment_metadata.json",
                "slow__seed_1/experiment_result.json",
                "slow__seed_1/experiment_metadata.json",
            )
        }
        (self.dir / "cases").mkdir()

    def copy_batch(self) -> Path:
        """A copy of the batch, which a case may damage."""
        self.number += 1
        place = self.dir / "cases" / f"experiment_20240101_{self.number:06}"
        shutil.copytree(self.base, place, symlinks=True)
        return place

    def check_shown(self, place: Path) -> None:
        relative = place.relative_to(self.dir)
        self.assert_decent(*self.call("--status", relative, spawns=False), codes=(0, 2))
        code, out, err = self.call("--status", relative, "--json", spawns=False)
        self.assert_decent(code, out, err, codes=(0, 2))
        if code == 0:
            with deeply():
                json.loads(out, parse_constant=self.fail)
        code, out, err = self.call("--report", relative, spawns=False)
        self.assert_decent(code, out, err, codes=(0, 2))
        if code == 0:
            self.check_page(place / "report.html")

    def check_page(self, path: Path) -> None:
        page = path.read_text()
        self.assertNotIn("<script>alert", page)
        self.assertIsNone(UNSHOWN.search(page), "raw control characters in the page")
        data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
        assert data
        json.loads(data[1], parse_constant=self.fail)

    def check_resumed(self, place: Path) -> None:
        relative = place.relative_to(self.dir)
        self.assert_decent(*self.call("--resume", relative, "--dry_run", spawns=False), codes=(0, 2))
        code, out, err = self.call("--resume", relative)
        self.assert_decent(code, out, err)
        master = place / "master_log.txt"
        if master.is_file() and not master.is_symlink():
            self.assertIsNone(UNSHOWN.search(master.read_text(errors="surrogateescape").replace(JUNK, "")))
        if code in (0, 1) and (place / "experiment_summary.json").is_file():
            self.json(place / "experiment_summary.json")


class DamageTest(BatchCase):
    def hostile_value(self) -> Any:
        chance, canary = self.chance, str(self.canary)
        plain: list[Any] = [
            None,
            True,
            False,
            0,
            -1,
            -1.5,
            1e308,
            10**14,
            10**30,
            10**400,
            -(10**4000),
            [],
            {},
            "",
            "x" * 10_000,
        ]
        texts = [
            ESCAPES,
            "\x00",
            "a\x00b",
            "\ud800",
            "\udcff",
            "<script>alert(1)</script>",
            "\n\n",
            "running",
            "failed",
        ]
        texts += [f"$(touch {canary}/executed)", f"{canary}/file", f"{canary}/inner", "../../canary", "/dev/zero", "."]
        texts += ["--out_dir=canary", "{dir}", "{nothing}", "=", "good.py", "2024-01-01T00:00:00+00:00", "0001-01-01"]
        texts += ["9999-12-31T23:59:59-23:59", "nan", "inf", "completed", "pending", "KILL", "cuda:0,cuda:0", "'"]
        wild = [float("nan"), float("inf"), -float("inf"), [1, "a", None], [[]], [{}], {"a": 1}, {"": None}]
        wild += [{ESCAPES: ESCAPES}, {"seed": float("nan")}, {"seed": 10**400}, {"out_dir": canary}, {"a b": "c"}]
        deep = [nested(chance.choice((50, 200, 300, 480, 900, 950, 980)), kind) for kind in ("list", "dict")]
        return chance.choice([*plain, *texts, *wild, *deep])

    def mutate(self, value: Any) -> None:
        """Replace, rename, drop or add something somewhere in a JSON value."""
        chance = self.chance
        while True:  # go down a random way
            keys = list(value) if isinstance(value, dict) else list(range(len(value)))
            if not keys:
                break
            key = chance.choice(keys)
            if isinstance(value[key], (dict, list)) and value[key] and chance.random() < 0.8:
                value = value[key]
                continue
            break
        how = chance.random()
        if isinstance(value, list):
            value.insert(chance.randrange(len(value) + 1), self.hostile_value())
        elif how < 0.75 and keys:
            value[key] = self.hostile_value()
        elif how < 0.85 and keys:
            del value[key]
        else:
            names = ["..", ".", "", "../../canary", "a/b", str(self.canary), "good__seed_1", "latest", "runner.lock"]
            names += ["experiment_summary.json", "\x00", ESCAPES, "\ud800", "x" * 300, "attempt_1", "-rf"]
            value[chance.choice(names)] = value.pop(key) if keys and how < 0.95 else self.hostile_value()

    def damaged(self, text: str) -> bytes:
        """A JSON file's text, damaged somehow."""
        chance, how = self.chance, self.chance.random()
        if how < 0.75:
            value = json.loads(text)
            for _ in range(chance.choice((1, 1, 1, 2, 5, 20))):
                self.mutate(value)
            with deeply():
                return json.dumps(value).encode()
        data = bytearray(text.encode())
        if how < 0.82:
            return bytes(data[: chance.randrange(len(data))])
        if how < 0.9:
            for _ in range(chance.choice((1, 3, 30))):
                data[chance.randrange(len(data))] = chance.randrange(256)
            return bytes(data)
        deep, number = chance.choice((990, 100_000)), b"9" * chance.choice((300, 4000, 100_000))
        wholes = [b"", b"null", b"[]", b"1", b"\0" * 100, b"[" * deep, b'{"a":' * deep, b"\xef\xbb\xbf" + data]
        wholes += [text.encode("utf-16"), b" " * 5_000_000, b'{"results": {"a": %s}}' % number, b"NaN", b'"text"']
        wholes += [
            b'{"results": {}}',
            b'{"results": {"a": {}}}',
            b'{"results": [%s]}' % number,
            b"[" * deep + b"]" * deep,
        ]
        return chance.choice(wholes)

    def test_damaged_json_is_refused_or_made_the_best_of(self) -> None:
        print(f"\n  HOSTILE_SEED={SEED} HOSTILE_CASES={CASES}", end=" ", file=sys.stderr, flush=True)
        before = self.outside()
        for number in range(CASES):
            place = self.copy_batch()
            files = {}
            for name in self.chance.sample(sorted(self.texts), self.chance.choice((1, 1, 2))):
                files[name] = self.damaged(self.texts[name])
                (place / name).write_bytes(files[name])
            if self.chance.random() < 0.2:
                (place / "experiment_summary.json").unlink()
            with self.subTest(case=number, seed=SEED, files=list(files)):
                self.check_shown(place)
                self.check_resumed(place)
                self.assertEqual(self.outside(), before, "something outside the batch has changed")
                shutil.rmtree(place)  # of a failure, the batch is kept to the test's end

    def test_a_reader_that_needs_more_than_the_text_is_no_reader(self) -> None:
        """What parses but can't be written again, or not be compared, or not be encoded."""
        for key, value in {
            "sweep": {"seed": [1]},
            "command": ["\ud800", "\x00", 1, None, {}],
            "git": {"commit": nested(300, "dict"), "dirty": [0]},
            "options": {"jobs": 10**30},
            "start_time": "0001-01-01T00:00:00+23:59",
            "duration_seconds": -1e300,
            "hostname": nested(900, "list"),
            "resumes": {"a": "b"},
            "working_directory": str(self.canary),
            "train_script": str(self.canary / "file"),
        }.items():
            with self.subTest(key=key):
                place = self.copy_batch()
                summary = json.loads(self.texts["experiment_summary.json"])
                summary[key] = value
                for number, result in enumerate(summary["results"].values()):
                    result["overrides"] = {"seed": (10**400, 1, -(10**309))[number]}
                (place / "experiment_summary.json").write_text(json.dumps(summary))
                before = self.outside()
                self.check_shown(place)
                self.check_resumed(place)
                self.assertEqual(self.outside(), before)

    def test_pids_of_any_size_are_only_numbers(self) -> None:
        pids: tuple[Any, ...] = (0, -1, 1, 2**31 - 1, 2**31, 2**63, 10**30, True, "1", None, 1.5, [])
        for pid in pids:
            with self.subTest(pid=pid):
                place = self.copy_batch()
                for name in ("bad__seed_1", "slow__seed_1"):
                    path = place / name / "experiment_metadata.json"
                    metadata = json.loads(path.read_text())
                    path.write_text(json.dumps({**metadata, "pid": pid, "pid_started": None}))
                self.check_shown(place)
                self.check_resumed(place)


class PlantTest(BatchCase):
    PLACES = (
        "bad__seed_1",
        "slow__seed_1",
        "experiment_summary.json",
        ".experiment_summary.json.tmp",
        "runner.lock",
        "master_log.txt",
        "report.html",
        ".report.html.tmp",
        *(
            f"bad__seed_1/{name}"
            for name in (
                "stdout.log",
                "stderr.log",
                "combined.log",
                "config_used.py",
                "experiment_metadata.json",
                ".experiment_metadata.json.tmp",
                "experiment_result.json",
                ".experiment_result.json.tmp",
                "attempt_1",
                "ckpt.pt",
            )
        ),
    )
    THINGS: tuple[str, ...] = (
        "link to a file",
        "link to a directory",
        "dangling link",
        "link to itself",
        "directory",
        "fifo",
        "socket",
    )
    THINGS += ("link to zeros", "hard-to-read file")

    def plant(self, path: Path, thing: str) -> None:
        """Put a thing in the place of a file or directory of the batch."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif os.path.lexists(path):
            path.unlink()
        if thing == "link to a file":
            path.symlink_to(self.canary / "file")
        elif thing == "link to a directory":
            path.symlink_to(self.canary)
        elif thing == "dangling link":
            path.symlink_to(self.canary / "new")
        elif thing == "link to itself":
            path.symlink_to(path.name)
        elif thing == "directory":
            path.mkdir()
            (path / "inner").mkdir()
        elif thing == "fifo":
            os.mkfifo(path)
        elif thing == "socket":
            with socket.socket(socket.AF_UNIX) as server:
                here = os.getcwd()
                os.chdir(path.parent)  # a socket's path may be 107 bytes long
                server.bind(path.name)
                os.chdir(here)
        elif thing == "link to zeros":
            path.symlink_to("/dev/zero")
        else:
            path.write_text(JUNK, errors="surrogateescape")

    def test_what_is_planted_in_a_batch_is_not_followed(self) -> None:
        before = self.outside()
        whole = [(place, thing) for place in self.PLACES for thing in self.THINGS]
        for name, thing in whole if len(whole) < CASES else self.chance.sample(whole, CASES // 2):
            with self.subTest(place=name, thing=thing, seed=SEED):
                place = self.copy_batch()
                self.plant(place / name, thing)
                self.check_shown(place)
                self.check_resumed(place)
                self.assertEqual(self.outside(), before, "something outside the batch has changed")
                shutil.rmtree(place)

    def test_a_batchs_place_that_is_taken_is_left_alone(self) -> None:
        """`latest`, and the temporary link that it is made of, as links, files and directories."""
        self.config("easy")
        for thing in self.THINGS:
            for name in ("latest", "experiments"):
                with self.subTest(name=name, thing=thing):
                    shutil.rmtree(self.dir / "experiments", ignore_errors=True)
                    if name == "latest":
                        (self.dir / "experiments").mkdir()
                        self.plant(self.dir / "experiments" / "latest", thing)
                    elif thing not in ("link to a directory", "directory"):  # these are where a user wants it
                        self.plant(self.dir / "experiments", thing)
                    else:
                        continue
                    before = self.outside()
                    self.assert_decent(*self.call("--configs", "easy.py", "--launcher", "true"), codes=(0, 2))
                    self.assertEqual(self.outside(), before)
                    if name == "experiments":
                        (self.dir / "experiments").unlink()


# -------------------------------------------------------------------------------------- clocks, limits, crowds


class CrowdTest(HostileCase):
    def test_few_descriptors_are_told_without_a_traceback_whatever_their_number(self) -> None:
        for number in range(3):
            self.config(f"run_{number}", "print('hello')")
        for files in range(6, 40):
            with self.subTest(files=files):
                shutil.rmtree(self.dir / "experiments", ignore_errors=True)
                code, out, err = self.call("--configs", "run_*.py", "--jobs", 3, "--launcher", "true", files=files)
                self.assert_decent(code, out, err)
                if code in (0, 1) and "can't write" not in out:
                    statuses = {each["status"] for each in self.summary()["results"].values()}
                    self.assertLessEqual(statuses, {"completed", "error", "pending", "failed"})

    @unittest.skipUnless(Path("/proc/self/stat").exists(), "needs /proc to tell zombies from the living")
    def test_thousands_of_zombies_and_a_crowd_of_orphans_end_with_their_leader(self) -> None:
        self.config(
            "crowd",
            CHILD_TOOLS
            + """
for _ in range(2000):
    if not os.fork():
        os._exit(0)
def be_deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note_pid()
    live_on()
for _ in range(100):
    fork_off(be_deaf)
while not os.path.exists("pids") or open("pids").read().count("\\n") < 100:
    time.sleep(0.01)
os.write(1, b"all here")
os._exit(7)
""",
        )
        runner = self.start("--configs", "crowd.py")
        self.ended(runner, 1)
        self.assertEqual(self.result("crowd")["return_code"], 7)
        self.assertEqual(self.log("crowd"), b"all here")
        self.assertIn("crowd: killed what it left behind", self.master_log())
        wait_for(lambda: not any(map(is_running, self.pids(100))), "the end of all of them")
        self.assert_nothing_runs()

    def test_a_daemon_that_floods_a_dead_trainers_streams_does_not_hold_the_batch(self) -> None:
        self.config(
            "flood",
            CHILD_TOOLS
            + """
def flood():
    os.setsid()
    note_pid()
    block = b"flood\\n" * 1000
    while True:
        os.write(1, block)
        os.write(2, block)
fork_off(flood)
await_file("pids")
os._exit(0)
""",
        )
        self.config("next", "print('my turn')")
        runner = self.start("--configs", "flood.py", "next.py")
        self.ended(runner, 0)
        (daemon,) = self.pids(1)
        wait_for(lambda: not is_running(daemon), "the daemon's end by a pipe that nobody reads")
        self.assertEqual(self.log("next"), b"my turn\n")
        self.assertIn("flood: a process outside its group still holds its output", self.master_log())
        self.assertEqual(self.result("flood")["return_code"], 0)
        for stream in ("stdout", "stderr"):
            self.assertRegex(self.log("flood", stream)[:6000], rb"\A(flood\n)+\Z")

    def test_an_orphan_of_the_group_that_floods_is_killed_with_it(self) -> None:
        self.config(
            "flood",
            CHILD_TOOLS
            + """
def flood():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note_pid()
    while True:
        os.write(1, b"flood\\n" * 1000)
fork_off(flood)
await_file("pids")
os._exit(3)
""",
        )
        self.ended(self.start("--configs", "flood.py"), 1)
        self.assertEqual(self.result("flood")["return_code"], 3)
        self.assertIn("flood: killed what it left behind", self.master_log())
        self.assert_nothing_runs()


class ClockTest(RunnerCase):
    CLOCK = r"""
import datetime, sys, time
sys.path.insert(0, {folder!r})
import run_experiments

real, jumps = time.time, iter({jumps!r})
offset = 0.0
def wall():
    global offset
    offset += next(jumps, 0.0)
    return real() + offset
class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(wall(), tz)
time.time = wall
run_experiments.datetime = Clock
sys.argv[0] = "run_experiments.py"
sys.exit(run_experiments.main())
"""

    def run_with_jumps(self, jumps: list[float], *args: str) -> float:
        """Run a batch while its wall clock jumps at each look; returns the seconds that it truly took."""
        (self.dir / "clock.py").write_text(self.CLOCK.format(folder=str(RUNNER.parent), jumps=jumps))
        began = time.monotonic()
        command = [sys.executable, "clock.py", *args]
        done = subprocess.run(command, cwd=self.dir, capture_output=True, text=True, timeout=4 * PATIENCE)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        self.assertNotIn("Traceback", done.stdout)
        return time.monotonic() - began

    def test_durations_and_deadlines_are_right_while_the_clock_is_set_back_and_forth(self) -> None:
        for name in ("one", "two"):
            self.config(name, "for n in range(50):\n    print(f'step {n}: train loss 2.0, val loss 2.0', flush=True)")
        for jumps in ([-3600.0] * 10_000, [86400.0, -172800.0] * 5000, [7 * 86400.0] * 1000):
            with self.subTest(jump=jumps[0]):
                shutil.rmtree(self.dir / "experiments", ignore_errors=True)
                limits = ["--timeout", "1h", "--stall", "1h"]
                took = self.run_with_jumps(jumps, "--configs", "one.py", "two.py", *limits)
                summary = self.summary()
                self.assertEqual(summary["completed"], 2)
                durations = [each["duration_seconds"] for each in summary["results"].values()]
                self.assertGreater(min(durations), 0)
                self.assertLess(sum(durations), took)
                self.assertTrue(0 < summary["duration_seconds"] < took, summary["duration_seconds"])
                for line in self.log("one", "combined").splitlines():
                    self.assertRegex(line, rb"\A\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \[STDOUT\] ")

    def test_a_batch_that_seems_to_come_from_the_future_is_shown(self) -> None:
        self.config("easy", "pass")
        self.run_with_jumps([10 * 365 * 86400.0], "--configs", "easy.py")
        path = self.batch() / "experiment_summary.json"
        summary = self.json(path)
        summary["state"] = "running"
        summary["results"]["easy"].update(status="running", max_iters=100)
        (self.batch() / "easy" / "experiment_result.json").unlink()
        path.write_text(json.dumps(summary))
        with open(self.batch() / "runner.lock") as lock:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)  # as if its runner lived
            shown = self.run_runner("--status", expect=0).stdout
        self.assertIn("1 running; 0s", shown)


if __name__ == "__main__":
    unittest.main()
