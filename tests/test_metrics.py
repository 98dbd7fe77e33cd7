"""What a training's lines tell: losses, steps, divergence, curves. Literal tables, no processes."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import unittest
from typing import Any, Optional, Union

import run_experiments as runner
from tests.support import TESTS


def told(text: Union[str, bytes], **options: Any) -> runner.News:
    reader = runner.LineReader(**options)
    reader.read(text if isinstance(text, bytes) else text.encode())
    return reader.take()


def losses(text: Union[str, bytes], **options: Any) -> tuple[Any, Any, Any]:
    metrics = told(text, **options).metrics
    return metrics.step, metrics.train_loss, metrics.val_loss


def number(text: str) -> Optional[float]:
    return float(text) if text else None


def last_line(text: bytes) -> str:
    reader = runner.LineReader()
    reader.read(text)
    return reader.last_line()


class LinesTest(unittest.TestCase):
    def test_each_line_of_public_trainers_is_read_as_told(self) -> None:
        with open(TESTS / "log-lines.tsv", encoding="utf-8") as file:
            rows = [line.rstrip("\n").split("\t") for line in file if not line.startswith("# ")]
        self.assertGreater(len(rows), 20)
        for trainer, line, *rest in rows:
            line = line.replace("\\t", "\t").replace("\\x1b", "\x1b")
            step, train, val = [*rest, "", "", ""][:3]
            with self.subTest(trainer=trainer, line=line):
                self.assertEqual(losses(line + "\n"), (number(step), number(train), number(val)))
                self.assertEqual(losses(f"noise\n[rank0]: {line}\n\n")[1:], (number(train), number(val)))

    def test_not_in_quotes_not_behind_a_hash_not_with_a_unit(self) -> None:
        for line in (
            '"step 5: train loss 1.0, val loss 2.0"',
            "print('step 5: train loss 1.0')",
            'log(f"iter 5: loss 1.0")',
            "lr = 1  # iter 5: loss 1.0",
            '{"message": "step 5: train loss 1.0, val loss 2.0"}',
            "step 5: loss 0.65ms",
            "step 5: loss 12%",
            "step 5: best val loss 2.0",
            "0: avg loss = 3.25",
            "Epoch 0.5 loss 2.0",
            "step 10k loss 2.0",
        ):
            with self.subTest(line=line):
                self.assertEqual(losses(line + "\n"), (None, None, None))

    def test_lines_of_config_and_script_are_ignored_when_echoed(self) -> None:
        config = b'"""\nstep 5000: train loss 0.9000, val loss 0.5000\n"""\r\n  step 1: loss 7\r\nx = None\n'
        ignored = runner.lines_like_metrics(config, b"iter 3: loss 2.0")
        self.assertEqual(
            ignored, {b"step 5000: train loss 0.9000, val loss 0.5000", b"step 1: loss 7", b"iter 3: loss 2.0"}
        )
        self.assertEqual(losses(config.replace(b"\r\n", b"\n"), ignored=ignored), (None, None, None))
        self.assertEqual(losses("iter 3: loss 2.1\n", ignored=ignored), (3, 2.1, None))

    def test_an_epoch_is_no_step_where_steps_are_told(self) -> None:
        news = told("step 100: loss 2.0\nEpoch 1: val_loss 1.5\n")
        self.assertEqual((news.metrics.step, news.metrics.best_step), (100, 100))

    def test_objects(self) -> None:
        for line, expected in (
            ("{'loss': '0.5', 'grad_norm': '1.2', 'epoch': '1.0'}", (1, 0.5, None)),
            ('INFO {"metrics": {"loss": 2.5}, "step": 7}', (7, 2.5, None)),
            ('{"train": {"loss": 2.0}, "val": {"loss": 3.0}, "step": 5}', (5, 2.0, None)),
            ('{"level": "INFO", "text": "val loss: 9", "step": 3, "val_loss": 2.5},', (3, None, 2.5)),
            ('{"step": 3, "loss": null}', (None, None, None)),
        ):
            with self.subTest(line=line):
                self.assertEqual(losses(line + "\n"), expected)

    def test_nan_and_inf(self) -> None:
        for line in ("step 5: loss nan", "step 5 loss=NaN", '{"step": 5, "loss": NaN}', "{'step': 5, 'loss': nan}"):
            with self.subTest(line=line):
                self.assertTrue(math.isnan(losses(line + "\n")[1]))


class ReaderTest(unittest.TestCase):
    def test_what_is_taken_is_what_came_since(self) -> None:
        reader = runner.LineReader()
        self.assertFalse(reader.read(b"hello\n"))
        self.assertTrue(reader.read(b"step 0: train loss 4.0, val loss 4.1\niter 0: loss 4.2\n"))
        first = reader.take()
        self.assertEqual(first.metrics, runner.Metrics(0, 4.2, 4.1, 4.1, 0, 0, None, None))
        self.assertEqual(first.evaluations, [b"step 0: train loss 4.0, val loss 4.1"])
        self.assertTrue(reader.read(b"iter 10: loss 3.0\nx\n"))
        second = reader.take()
        self.assertEqual(second.metrics, runner.Metrics(10, 3.0, None, None, None, 10, 10, None))
        self.assertEqual((second.evaluations, reader.take().metrics.step), ([], None))
        total = runner.Metrics()
        for each in (first, second):
            runner.add_metrics(total, each.metrics)
        self.assertEqual(total, runner.Metrics(10, 3.0, 4.1, 4.1, 0, 0, 10, None))

    def test_best_is_the_least_finite(self) -> None:
        total = runner.Metrics()
        for loss in ("3.0", "nan", "2.0", "2.5", "-inf"):
            runner.add_metrics(total, told(f"step 1: val loss {loss}\n").metrics)
        self.assertEqual((total.best_val_loss, total.val_loss), (2.0, -math.inf))

    def test_diverged_since(self) -> None:
        for text, since in (
            ("iter 1: loss nan\niter 2: loss nan\n", None),
            ("iter 1: loss 2\niter 2: loss nan\niter 3: loss inf\n", 2),
            ("iter 1: loss 2\niter 2: loss nan\niter 3: loss 1\n", None),
            ("step 1: train loss 2, val loss 2\nstep 5: train loss 2, val loss nan\niter 6: loss 1\n", 5),
        ):
            with self.subTest(text=text):
                self.assertEqual(told(text).metrics.diverged_since, since)

    def test_divergence_ends_in_the_total_too(self) -> None:
        reader, total = runner.LineReader(), runner.Metrics()
        for line, since in (
            (b"iter 1: loss 2\n", None),
            (b"iter 2: loss nan\n", 2),
            (b"x\n", 2),
            (b"iter 3: loss 1\n", None),
        ):
            reader.read(line)
            runner.add_metrics(total, reader.take().metrics)
            self.assertEqual(total.diverged_since, since, line)

    def test_losses_that_are_not_finite(self) -> None:
        self.assertFalse(told("iter 1: loss nan\niter 2: loss inf\niter 3: loss 2\n").is_lost)
        self.assertTrue(told("iter 1: loss nan\niter 2: loss inf\niter 3: loss nan\n").is_lost)
        self.assertTrue(told("step 1: train loss 2.0, val loss nan\n").is_lost)
        self.assertTrue(told("step 1: train loss nan, val loss 2.0\n").is_lost)

    def test_a_flood(self) -> None:
        lines = [b"iter %d: loss %d.5\n" % (step, step) for step in range(5000)]
        lines[2500] = b"step 2500: train loss 0.1, val loss 0.2\n"
        news = told(b"".join(lines))
        self.assertEqual(news.metrics, runner.Metrics(4999, 4999.5, 0.2, 0.2, 2500, 0, 1, None))
        self.assertEqual(news.evaluations, [b"step 2500: train loss 0.1, val loss 0.2"])
        general = b"".join(b"Step %05d/9999 | Loss: 2.5\n" % step for step in range(0, 5000, 5))
        middle = b"Step 777 | Val Loss: 1.5\n"
        news = told(general + middle + general.replace(b"Step 0", b"Step 1"))
        self.assertEqual(news.metrics, runner.Metrics(14995, 2.5, 1.5, 1.5, 777, 0, 5, None))

    def test_a_flood_of_evaluations_loses_its_oldest(self) -> None:
        news = told(b"".join(b"step %d: train loss 1.0, val loss 2.0\n" % step for step in range(1500)))
        self.assertEqual(len(news.evaluations), 1000)
        self.assertTrue(news.evaluations[-1].startswith(b"step 1499:"))

    def test_srun_waits(self) -> None:
        reader = runner.LineReader()
        self.assertTrue(reader.read(b"srun: job 7 queued and waiting for resources\n"))
        self.assertTrue(reader.queued)
        self.assertFalse(reader.read(b"another line\n"))
        self.assertTrue(reader.read(b"srun: job 7 has been allocated resources\n"))
        self.assertFalse(reader.queued)
        reader.read(b"srun: job 7 queued and waiting for resources\nsrun: job 7 has been allocated resources\n")
        self.assertFalse(reader.queued)

    def test_the_last_line(self) -> None:
        self.assertEqual(last_line(b"one\n\x1b[32mtwo\x1b[0m\x07\n\n"), "two?")
        self.assertLessEqual(len(last_line(b"x" * 100_000 + b"\n")), 1024)

    def test_patterns_of_the_user(self) -> None:
        patterns = runner.compile_metrics(
            [r"^T (?P<step>\d+)/(?P<total>\d+) (?P<train_loss>\S+)", r"V=(?P<val_loss>\S+)"]
        )
        news = told("T 5/9 2.5\n\nV=1.5\nstep 9: train loss 1, val loss 1\n", patterns=patterns)
        self.assertEqual(news.metrics, runner.Metrics(5, 2.5, 1.5, 1.5, 5, 5, None, None))
        self.assertEqual(losses("T 6/9 2.0 V=1.0\n", patterns=patterns), (6, 2.0, 1.0))
        for text, why in (("(", "regular"), ("(?P<x>.)", "unknown group"), (r"(?P<step>\d)", "no group")):
            with self.assertRaisesRegex(ValueError, why) as caught:
                runner.compile_metrics([text])
            self.assertNotIn("\n", str(caught.exception))


class CurveTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def curve(self, *blocks: bytes, **options: Any) -> dict[str, Any]:
        path, curve = os.path.join(self.folder, "log"), runner.Curve(**options)
        for block in blocks:
            with open(path, "ab") as file:
                file.write(block)
            curve.update(path)
        return curve.drawn()

    def test_curves(self) -> None:
        for blocks, val, train in (
            ([b"step 0: train loss 4, val loss 5\niter 0: lo", b"ss 4.5\n"], [[0, 5]], [[0, 4.5]]),
            ([b"step 0: train loss 4, val loss nan\n"], [[0, "nan"]], [[0, 4]]),
            (
                [b"Epoch 1 | train_loss 2 | val_loss 3\rEpoch 2 | train_loss 1 | val_loss 2\n"],
                [[1, 3], [2, 2]],
                [[1, 2], [2, 1]],
            ),
            ([b"iter 5: loss 2\n", b"iter 5: val loss 3\n"], [[5, 3]], [[5, 2]]),
            ([b"# step 0: train loss 4, val loss 5\n'iter 7: loss 2'\n"], [], []),
            ([b"iter 5: loss 2\niter 9: loss 1\n", b"iter 7: loss 3\n"], [], [[5, 2], [7, 3]]),
        ):
            with self.subTest(blocks=blocks):
                self.assertEqual(self.curve(*blocks), {"val": val, "train": train})
                os.unlink(os.path.join(self.folder, "log"))
        json.dumps(self.curve(b"step 0: train loss nan, val loss inf\n"), allow_nan=False)

    def test_parts_give_the_same_as_the_whole(self) -> None:
        text = b"".join(
            b"iter %d: loss %d, time 1ms\r\nstep %d: train loss 2.5, val loss %d\n" % (i, 900 - i, i, 800 - i)
            for i in range(99)
        )
        whole = self.curve(text)
        os.unlink(os.path.join(self.folder, "log"))
        self.assertEqual(self.curve(*(text[at : at + 37] for at in range(0, len(text), 37))), whole)
        self.assertEqual((len(whole["val"]), whole["val"][-1]), (99, [98, 702]))

    def test_steps_that_are_done_again_replace_what_was_said_of_them(self) -> None:
        lines = [b"step %d: train loss 1.0, val loss %d\n" % pair for pair in ((1, 5), (2, 4), (3, 3), (2, 2), (3, 1))]
        self.assertEqual(self.curve(*lines)["val"], [[1, 5], [2, 2], [3, 1]])

    def test_curves_by_patterns(self) -> None:
        pattern = re.compile(rb"S (?P<step>\d+) (?P<val_loss>\S+)")
        self.assertEqual(self.curve(b"S 1 2\niter 5: loss 2\n", patterns=[pattern]), {"val": [[1, 2]], "train": []})

    def test_a_log_that_shrank_is_another(self) -> None:
        path, curve = os.path.join(self.folder, "log"), runner.Curve()
        for text, train in ((b"iter 5: loss 2\niter 6: loss 2\n", [[5, 2], [6, 2]]), (b"iter 1: loss 3\n", [[1, 3]])):
            with open(path, "wb") as file:
                file.write(text)
            curve.update(path)
            self.assertEqual(curve.drawn()["train"], train)
        os.unlink(path)
        curve.update(path)
        self.assertEqual(curve.drawn(), {"val": [], "train": []})

    def test_many_points_are_thinned(self) -> None:
        lines = [
            b"step %d: train loss 2.0, val loss %d.0\n" % (step, 9 if step != 7777 else 1) for step in range(10_000)
        ]
        val = self.curve(*lines[::5000], b"", b"".join(lines[5001:]))["val"]
        self.assertLess(len(val), 1000)
        self.assertIn([7777, 1.0], val)
        self.assertEqual(val[-1], [9999, 9.0])
