"""What others hand in can be anything: values, configs, a batch's own files. It is never run, shown raw, or followed
out of the batch's directory, and never ends in a traceback.

    HOSTILE_SEED=7 HOSTILE_CASES=5000 python3 -m unittest tests.slow.hostile

The seed is printed; the same seed makes the same cases.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support import ESCAPES, PATIENCE, UNSHOWN, Forked, RunnerCase, wait_for

SEED = int(os.environ.get("HOSTILE_SEED") or random.SystemRandom().randrange(10**6))
CASES = int(os.environ.get("HOSTILE_CASES") or 80)

SPAWNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "pty.spawn")


def confine(spawns: bool) -> None:
    """In a fork that becomes the runner: an end to memory and time, and a word on processes that must not be started."""
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    signal.alarm(int(PATIENCE))

    def watch(event: str, args: Any) -> None:
        if event in SPAWNS:
            os.write(2, f"Traceback: {event} of {args!r}\n".encode())

    if not spawns:
        sys.addaudithook(watch)


class HostileCase(RunnerCase):
    """A canary directory lies beside the batches; whatever a case does, nothing but its own batch may change."""

    def setUp(self) -> None:
        super().setUp()
        self.canary = self.dir / "canary"
        (self.canary / "inner").mkdir(parents=True)
        for name in ("file", "stdout.log", "experiment_result.json", "config_used.py", "inner/file"):
            (self.canary / name).write_text(f"of {name}\n")
        self.number = 0

    def call(self, *argv: Any, spawns: bool = True) -> tuple[int, str, str]:
        """The exit code, stdout and stderr of the runner with these arguments."""
        done = Forked(self.dir, *argv, first=lambda: confine(spawns)).ended()
        return done.returncode, done.stdout, done.stderr

    def outside(self) -> dict[str, Any]:
        """All that no case may change: each file with its content, and when it was last written to."""
        found: dict[str, Any] = {}
        for folder, _, names in os.walk(self.dir):
            for path in (folder, *(os.path.join(folder, name) for name in names)):
                place = os.path.relpath(path, self.dir)
                if place.split(os.sep)[0] in ("cases", "experiments", ".", "base"):
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


def hostile_texts(canary: Path) -> list[str]:
    """Texts that mean something to some reader on the way: shell, Python, format, terminal, parser, file system."""
    touch = f"touch {canary}/executed"
    texts = ["", " ", "\n", "-", "--", "---", "=", "a=b=c", "'", '"', "\\", "'\"'\"\\", "*", "~", "$HOME", ESCAPES]
    texts += [f"$({touch})", f"`{touch}`", f"; {touch};", f"| {touch}", f"\n{touch}\n", f"' ; {touch} ; '"]
    texts += [f'" ; {touch} ; "', f"__import__('os').system('{touch}')", f"!!python/object/apply:os.system ['{touch}']"]
    texts += ["{dir}{name}{slot}{device}", "{0.__class__}", "{x!r:{y}}", "{{{", "%s%n%(x)s", "\udcff\udcfe"]
    texts += ["9" * 5000, "-" + "9" * 400, "0x" + "f" * 5000, "1e999999999999", "-1e999", "nan", "1" + "0" * 320]
    texts += ["1_000", "0777", "1j", "[" * 300, "[" * 3000 + "]" * 3000, "(" * 90_000, "-" * 20_000 + "1"]
    texts += ["1+" * 20_000 + "1", "{'a':" * 1000 + "1" + "}" * 1000, "x" * 100_000, "None", "True", "()", "b'bytes'"]
    return [*texts, "../../canary/file", str(canary / "file"), "/dev/zero", "/dev/stdin", "lambda: 1"]


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

    def test_a_config_that_is_no_decent_python_is_that_experiments_failure(self) -> None:
        sources = [b"\0", b"x = 1\0", b"\xff\xfex = 1", b"# coding: rot13\nk = 1", b"# coding: \x1b[31m\nx = 1"]
        sources += [b"x = '\x1b[31m", f"import os; os.system('touch {self.canary}/executed')".encode()]
        sources += [b"x = " + b"1+" * 5000 + b"1", b"x = " + b"-" * 5000 + b"1", b"x = " + b"[" * 5000 + b"]" * 5000]
        sources += [b"x = " + b"(" * 150 + b")" * 150, b"x = " + b"{1:" * 90 + b"1" + b"}" * 90, b"if " * 3000]
        sources += [b"x = " + b"9" * 5000, b"x = 0x" + b"f" * 5000, b"x = y = z = " * 2000 + b"1"]
        sources += [b"x = 10 ** 10 ** 10\ny = 'a' * 10 ** 10\nz = 9e99 * 9e99 * 9e99 / 0"]
        sources += [b"max_iters = float('nan')\nlearning_rate = 1e999\nbatch_size = -0.0"]
        sources += [b"x: int\ny: int = 1\nfor z in range(9): pass\ndel z"]
        sources += [b"\n".join(b"x%d = %d" % (n, n) for n in range(20_000))]
        for number, source in enumerate(sources):
            (self.dir / f"odd_{number:02}.py").write_bytes(source)
        before = self.outside()
        for number, source in enumerate(sources):
            with self.subTest(source=source[:80]):
                config = f"odd_{number:02}.py"
                self.assert_decent(*self.call("--dry_run", "--configs", config, spawns=False))
                self.assert_decent(*self.call("--configs", config, "--launcher", "true"), codes=(0, 1))
        self.assertEqual(self.outside(), before)


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
            case "${1##*/}" in
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
                "plan/plan.json",
            )
            if (self.base / place).exists()
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
        with deeply():
            json.loads(data[1], parse_constant=self.fail)

    def check_resumed(self, place: Path) -> None:
        relative = place.relative_to(self.dir)
        self.assert_decent(*self.call("--resume", relative, "--dry_run", spawns=False), codes=(0, 2))
        code, out, err = self.call("--resume", relative)
        self.assert_decent(code, out, err)
        master = place / "master_log.txt"
        if master.is_file():
            self.assertIsNone(UNSHOWN.search(master.read_text(errors="surrogateescape")))
        if code in (0, 1) and (place / "experiment_summary.json").is_file():
            with deeply():
                self.json(place / "experiment_summary.json")


class DamageTest(BatchCase):
    def hostile_value(self) -> Any:
        chance, canary = self.chance, str(self.canary)
        plain: list[Any] = [None, True, False, 0, -1, -1.5, 1e308, 10**14, 10**30, 10**400, -(10**4000), [], {}, ""]
        texts = ["x" * 10_000, ESCAPES, "\x00", "a\x00b", "\ud800", "\udcff", "<script>alert(1)</script>", "\n\n"]
        texts += [f"$(touch {canary}/executed)", f"{canary}/file", f"{canary}/inner", "../../canary", "/dev/zero", "."]
        texts += ["--out_dir=canary", "{dir}", "{nothing}", "=", "good.py", "2024-01-01T00:00:00+00:00", "0001-01-01"]
        texts += ["9999-12-31T23:59:59-23:59", "nan", "inf", "completed", "pending", "KILL", "cuda:0,cuda:0", "'"]
        wild = [float("nan"), float("inf"), -float("inf"), [1, "a", None], [[]], [{}], {"a": 1}, {"": None}]
        wild += [{ESCAPES: ESCAPES}, {"seed": float("nan")}, {"seed": 10**400}, {"out_dir": canary}, {"a b": "c"}]
        deep = [nested(chance.choice((50, 200, 300, 480, 900, 950, 980)), kind) for kind in ("list", "dict")]
        return chance.choice([*plain, *texts, "running", "failed", *wild, *deep])

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
        wholes += [b'{"results": {}}', b'{"results": {"a": {}}}', b'{"results": [%s]}' % number]
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
