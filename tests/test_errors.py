"""What the end of a training and its directory tell: errors, hints, checkpoints. Literal tables, no processes."""

from __future__ import annotations

import os
import signal
import tempfile
import unittest

import run_experiments as runner

TORCHRUN = """\
E1124 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: {code}) local_rank: 1 (pid: 6863)
Traceback (most recent call last):
  File "/bin/torchrun", line 8, in <module>
    sys.exit(main())
             ^^^^^^
torch.distributed.elastic.multiprocessing.errors.ChildFailedError: 
============================================================
train.py FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-11-24_22:43:21
  host      : localhost
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 6862)  (SIGTERM)
  error_file: <N/A>
  traceback : Signal 15 (SIGTERM) received by PID 6862
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-24_22:43:21
  host      : localhost
  rank      : 1 (local_rank: 1)
  exitcode  : {code} (pid: 6863)  
  error_file: <N/A>
  traceback : something
============================================================
"""  # as torch 2.13 prints it
TRACE = 'Traceback (most recent call last):\n  File "/a/train.py", line 4, in <module>\n    {source}\n'


class ErrorsTest(unittest.TestCase):
    def test_error_line(self) -> None:
        assertion = TRACE.format(source="assert x > 0") + "    ^^^^^^^\nAssertionError\n"
        state = 'RuntimeError: Error(s) in loading state_dict for GPT:\n\tMissing key(s) in state_dict: "a", "b". \n'
        usage = "usage: train.py [-h]\ntrain.py: error: unrecognized arguments: --foo\n"
        ranks = "[rank0]: Traceback (most recent call last):\n[rank0]:   File\n[rank0]: ValueError: late\n"
        first = ranks.replace("rank0", "rank1").replace("late", "first")
        for text, said in (
            ("", ""),
            ("a warning\n", ""),
            (TRACE.format(source="f()") + "ValueError: no\n", "ValueError: no"),
            (assertion, "AssertionError: assert x > 0 (train.py, line 4)"),
            (
                TRACE.format(source="exec(x)") + '  File "<string>", line 9, in <module>\nAssertionError\n',
                "AssertionError",
            ),
            (
                TRACE.format(source="f()") + state + "wandb: bye\n",
                'RuntimeError: Error(s) in loading state_dict for GPT: Missing key(s) in state_dict: "a", "b".',
            ),
            (usage, "train.py: error: unrecognized arguments: --foo"),
            (
                usage + "srun: error: node1: task 0: Exited with exit code 2\n",
                "train.py: error: unrecognized arguments: --foo",
            ),
            ("srun: error: node1: task 0: Exited with exit code 2\n", ""),
            ("Usage: main.py [OPTIONS]\n\nError: No such option: --foo\n", "Error: No such option: --foo"),
            (usage + TORCHRUN.format(code=2), "train.py: error: unrecognized arguments: --foo"),
            (TORCHRUN.format(code=-11), "rank 1 died of SIGSEGV"),
            (ranks + TORCHRUN.format(code=-11), "rank 1 died of SIGSEGV"),
            (first + ranks + TORCHRUN.format(code=1), "ValueError: first"),
            (TRACE.format(source="f()") + "ValueError: no\n" + TORCHRUN.format(code=1), "ValueError: no"),
            (TORCHRUN.format(code=3), "rank 1 ended with exit code 3"),
            ('  File "t.py", line 1\n    x x\nSyntaxError: invalid syntax\n', "SyntaxError: invalid syntax"),
            ("python3: can't open file '/a/x.py': [Errno 2]\n", "python3: can't open file '/a/x.py': [Errno 2]"),
        ):
            with self.subTest(text=text):
                self.assertEqual(runner.error_line(text), said)
        self.assertEqual(len(runner.error_line(f"{TRACE}ValueError: {'x' * 999}\n")), 300)

    def test_broken_checkpoints(self) -> None:
        for text, broken in (
            ("EOFError: Ran out of input", True),
            ("EOFError", True),
            ("EOFError: EOF when reading a line", False),
            ("_pickle.UnpicklingError: pickle data was truncated", True),
            (
                "_pickle.UnpicklingError: Weights only load failed.\n\t(1) x\n\tWeightsUnpickler error: Unsupported global: G",
                False,
            ),
            (
                "[rank0]: RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central directory",
                True,
            ),
            ("RuntimeError: unexpected EOF, expected 5 more bytes. The file might be corrupted.", True),
            ("RuntimeError: Invalid magic number; corrupt file?", True),
            ("struct.error: unpack requires a buffer of 2 bytes", True),
            ("KeyError: \"filename 'storages' not found\"", True),
            ("safetensors_rust.SafetensorError: Error while deserializing header: InvalidHeaderDeserialization", True),
            ("json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)", True),
            (
                "    super().__init__(torch._C.PyTorchFileReader(x))\n          ^^^^\nOSError: [Errno 22] Invalid argument",
                True,
            ),
            ("OSError: [Errno 22] Invalid argument", False),
            ("Warning: sequence truncated to 1024", False),
            ("torch.OutOfMemoryError: CUDA out of memory", False),
            ("ConnectionError: network", False),
        ):
            with self.subTest(text=text):
                self.assertEqual(bool(runner.BROKEN_CHECKPOINT.search(f"line\n{text}\n")), broken)

    def test_endings(self) -> None:
        for code, ending in (
            (1, (None, "exit code 1")),
            (-signal.SIGKILL, ("SIGKILL", "killed by SIGKILL")),
            (139, (None, "exit code 139 (SIGSEGV)")),
        ):
            self.assertEqual(runner.end_in_words(code), ending)

    def test_hints(self) -> None:
        for text, remedy in (
            ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "--batch_size"),
            ("RuntimeError: DefaultCPUAllocator: can't allocate memory", "--batch_size"),
            ("RuntimeError: CUDA error: invalid device ordinal", "cuda:0"),
            ("RuntimeError: Found no NVIDIA driver on your system.", "--device cpu"),
            ("AssertionError: Torch not compiled with CUDA enabled", "--device cpu"),
            ("wandb.errors.UsageError: api_key not configured (no-tty)", "--wandb_enabled false"),
            ("ModuleNotFoundError: No module named 'wandb'", "--wandb_enabled false"),
            ("ValueError: Unknown config key: foo", "setting"),
            ('  File "<string>", line 43, in <module>\nAssertionError', "type"),
        ):
            with self.subTest(text=text):
                self.assertIn(remedy, runner.hint_for(f"Traceback (most recent call last):\n{text}\n") or "")
        self.assertIsNone(runner.hint_for("ValueError: no"))


class JudgeTest(unittest.TestCase):
    """How an attempt ended, by its return code, by what stopped it, by its stderr and its losses."""

    def test_each_end_has_its_status_and_its_reason(self) -> None:
        traceback = "Traceback (most recent call last):\n  File 'a.py', line 1\nValueError: no\n"
        interrupt = traceback.replace("ValueError: no", "KeyboardInterrupt")
        stopped = (runner.Status.INTERRUPTED, "stopped by SIGINT")
        stalled = (runner.Status.TIMEOUT, "stalled")
        cases = [
            (0, None, traceback, "completed", None),
            (3, None, "", "failed", "exit code 3"),
            (-9, None, "", "failed", "killed by SIGKILL"),
            (1, None, traceback, "failed", "exit code 1: ValueError: no"),
            (0, stopped, traceback, "interrupted", "stopped by SIGINT"),
            (-2, stalled, interrupt, "timeout", "stalled"),
            (1, stalled, traceback, "timeout", "stalled: ValueError: no"),
            (None, (runner.Status.FAILED, "can't be killed: pid 7"), "", "failed", "can't be killed: pid 7"),
        ]
        for return_code, stop, stderr, status, error in cases:
            with self.subTest(return_code=return_code, stop=stop, stderr=stderr):
                result = runner.Result(return_code=return_code)
                self.assertEqual(runner.judge(result, stop, stderr, is_strict=False), [])
                self.assertEqual((result.status, result.error), (status, error))
                self.assertEqual(result.stderr_tail, "" if status == "completed" else stderr.strip())

    def test_an_exit_code_of_0_is_doubted(self) -> None:
        nan, lost = float("nan"), "the loss is not finite: try a smaller --learning_rate"
        metrics = runner.Metrics
        cases = [
            (metrics(), "completed", ["printed no step"]),
            (metrics(step=10, first_step=1, train_loss=1.0), "completed", []),
            (metrics(step=6, first_step=1, largest_gap=3), "completed", ["ended at step 6 of 10"]),
            (metrics(step=6, first_step=1, largest_gap=4), "completed", []),
            (metrics(step=10, first_step=1, val_loss=nan), "completed", [lost]),
            (metrics(step=10, first_step=1, val_loss=nan, diverged_since=4), "failed", []),
        ]
        for told, status, warnings in cases:
            with self.subTest(told):
                result = runner.Result(return_code=0, max_iters=10, metrics=told)
                self.assertEqual(runner.judge(result, None, "", is_strict=True), warnings)
                self.assertEqual((result.status, result.diverged), (status, status == "failed"))
        self.assertEqual((result.error, result.hint), ("exit code 0, but the loss is nan since step 4", lost))


class FilesTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def make(self, name: str, size: int = 1, at: int = 1) -> str:
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"x" * size)
        os.utime(path, ns=(at, at))
        return path

    def names(self, *pattern: str) -> list[str]:
        return [os.path.relpath(path, self.folder) for path in runner.checkpoints(self.folder, *pattern)]

    def test_the_newest_checkpoint_comes_first(self) -> None:
        for name, at in (("ckpt_2.pt", 5), ("ckpt_10.pt", 5), ("ckpt.pt", 9), ("ckpt.pt.tmp", 20), ("x.pt", 30)):
            self.make(name, at=at)
        for name in ("ckpt_tmp.pt", ".ckpt.pt", "tmpckpt.pt", "ckpt_3.pt.set_aside"):
            self.make(name, at=40)
        self.make("ckpt_temp0.7.pt", at=1)
        self.assertEqual(self.names(), ["ckpt.pt", "ckpt_10.pt", "ckpt_2.pt", "ckpt_temp0.7.pt"])
        odd = [f"ckpt_{name}.pt" for name in ("1²2", "٣", "x\n", "9" * 200)]
        for name in odd:
            self.make(name, at=50)
        self.assertEqual(set(self.names()[:4]), set(odd))

    def test_patterns_may_name_directories(self) -> None:
        for name in ("checkpoint-9/a", "checkpoint-10/a", "checkpoint-11.tmp/a", "tmp-checkpoint-12/a", "a/b-1.pt"):
            self.make(name)
        self.assertEqual(set(self.names("checkpoint-*")), {"checkpoint-10", "checkpoint-9"})
        self.assertEqual(set(self.names("checkpoint-*/")), {"checkpoint-10", "checkpoint-9"})
        self.assertEqual(self.names("a/b-*.pt"), ["a/b-1.pt"])
        self.assertEqual(self.names("["), [])
        self.assertEqual(runner.checkpoints(os.path.join(self.folder, "none")), [])

    def test_what_is_being_written(self) -> None:
        for name in ("ckpt.pt", "ckpt.pt.tmp", ".ckpt.pt.Xy1", "tmpckpt.pt", "ckpt.pt.part", "ckpt.txt", "other.tmp"):
            self.make(name, size=3, at=7)
        looks = runner.being_written(self.folder, "ckpt*.pt")
        self.assertEqual(
            looks, dict.fromkeys(("ckpt.pt", "ckpt.pt.tmp", ".ckpt.pt.Xy1", "tmpckpt.pt", "ckpt.pt.part"), (3, 7))
        )
        self.make("d/step-5/a", size=3)
        self.make("d/step-5/deep/b", size=4)
        before = runner.being_written(self.folder, "d/step-*/")
        self.assertEqual(list(before), ["d/step-5"])
        self.make("d/step-5/deep/b", size=5)
        self.assertNotEqual(runner.being_written(self.folder, "d/step-*/"), before)
        self.assertEqual(runner.being_written(os.path.join(self.folder, "none"), "x*"), {})

    def test_of_an_only_checkpoint_the_copy_before_the_latest_stays(self) -> None:
        for size in (1, 2, 3):
            path = self.make("ckpt.pt", size=size, at=size)
            runner.keep_copy(path)
        kept = {each: os.path.getsize(os.path.join(self.folder, each)) for each in os.listdir(self.folder)}
        self.assertEqual(kept, {"ckpt.pt": 3, ".kept_ckpt.pt.2": 2, ".kept_ckpt.pt.3": 3})
        self.assertEqual(runner.older_copies(path), [os.path.join(self.folder, ".kept_ckpt.pt.2")])
        self.assertEqual(self.names(), ["ckpt.pt"])

    def test_the_tail_of_a_file(self) -> None:
        path = self.make("log", size=100)
        with open(path, "ab") as file:
            file.write(b"end")
        for size, start, tail in ((3, 0, b"end"), (99, 101, b"nd"), (4, 50, b"xend"), (9, 999, b"")):
            self.assertEqual(runner.read_tail(path, size, start), tail)
        self.assertEqual(runner.read_tail(path + "none"), b"")
