"""A batch that version 1.0.0 began (tests/batch_1_0_0, see its make.sh): it is shown, and goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.support import TESTS, RunnerCase

STORED = TESTS / "batch_1_0_0"
NAME = "experiments/experiment_20240128_143022"


class OldBatchTest(RunnerCase):
    def setUp(self) -> None:
        super().setUp()
        shutil.copytree(STORED, self.dir, dirs_exist_ok=True)
        shutil.copy(TESTS / "configurator.py", self.dir)
        self.folder = self.dir / NAME

    def batch(self) -> Path:
        return self.folder

    def old(self) -> dict[str, Any]:
        return self.json(STORED / NAME / "experiment_summary.json")

    def test_its_status_is_shown(self) -> None:
        out = self.forked("--status").stdout
        self.assertIn(f"{NAME}: interrupted, 1 completed, 1 failed, 1 interrupted, 1 pending; ", out)
        for name, status in (
            ("broken", "failed"),
            ("done", "completed"),
            ("stopped", "interrupted"),
            ("later", "pending"),
        ):
            self.assertRegex(out, rf"(?m)^{name} +{status}")
        told = json.loads(self.forked("--status", "--json").stdout)
        rates = [each["settings"]["learning_rate"] for each in told["experiments"]]
        self.assertEqual(rates, [0.001, 0.001, 0.002, 0.003])
        self.assertIsNone(told["eta_seconds"])

    def test_its_page_is_written_with_its_table_and_curves(self) -> None:
        page = Path(self.dir / self.forked("--report").stdout.strip())
        self.assertEqual(page, self.folder / "report.html")
        html = page.read_text()
        for text in ("stopped", "FileNotFoundError", "[[10,3.1],[20,2.1]]"):
            self.assertIn(text, html.replace(" ", ""))

    def test_a_dry_run_of_its_resume_tells_what_each_would_do_and_changes_nothing(self) -> None:
        before = sorted((path, path.stat().st_mtime_ns) for path in self.folder.rglob("*"))
        out = self.forked("--resume", "--dry_run").stdout
        for line in (
            "# broken: starts over: no checkpoint",
            "# done: completed, left alone",
            "# stopped: continues from ckpt_10.pt",
            "# later: starts: first attempt",
            "# 3 of 4 experiments would run",
        ):
            self.assertIn(line + "\n", out)
        self.assertEqual(before, sorted((path, path.stat().st_mtime_ns) for path in self.folder.rglob("*")))

    def test_its_resume_finishes_all_keeps_every_key_and_leaves_the_completed_one_alone(self) -> None:
        for name in ("missing.txt", "go"):
            self.go(name)
        done = {path: path.read_bytes() for path in (self.folder / "done").iterdir()}
        self.forked("--resume", NAME)
        summary, old = self.summary(), self.old()
        self.assertEqual(set(self.statuses().values()), {"completed"})
        self.assertEqual(old.keys() - summary.keys(), set())
        self.assertEqual((summary["start_time"], summary["state"]), (old["start_time"], "finished"))
        self.assertEqual(list(summary["results"]), ["broken", "done", "stopped", "later"])
        for name, result in summary["results"].items():
            before = old["results"][name]
            self.assertEqual(before.keys() - result.keys(), set())
            self.assertEqual(before["metrics"].keys() - result["metrics"].keys(), set())
            self.assertEqual(result["settings"], before["settings"])
        self.assertEqual({path: path.read_bytes() for path in (self.folder / "done").iterdir()}, done)
        self.assertEqual(
            {name: result["attempts"] for name, result in summary["results"].items()},
            {"broken": 2, "done": 1, "stopped": 2, "later": 1},
        )
        self.assertEqual(
            self.log("stopped").splitlines()[-2:],
            [b"resuming from step 10", b"step 20: train loss 2.0000, val loss 2.1000"],
        )
        self.assertGreater(self.result("stopped")["total_seconds"], old["results"]["stopped"]["duration_seconds"])
        self.assertTrue((self.folder / "broken" / "attempt_1" / "stderr.log").exists())
        planned = self.json(self.folder / "plan" / "plan.json")["experiments"]
        self.assertEqual([each["frozen"] for each in planned], ["broken.py", "done.py", "stopped.py", "later.py"])

    def test_it_is_resumed_where_only_the_trainer_is_left(self) -> None:
        for name in ("missing.txt", "go"):
            self.go(name)
        for name in ("broken", "done", "stopped"):
            (self.dir / "configs" / f"{name}.py").unlink()
        out = self.forked("--resume", NAME).stdout
        self.assertIn("stopped: config configs/stopped.py has gone, its copy is used", out)
        self.assertEqual(set(self.statuses().values()), {"completed"})
