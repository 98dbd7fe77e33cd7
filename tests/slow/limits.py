"""Limits: of time, of silence, of failures; and second chances."""

from __future__ import annotations

from tests.support import RunnerCase


class TimeTest(RunnerCase):
    def test_a_timeout_and_a_stall_end_an_attempt_by_the_stop_signal_and_another_one_follows(self) -> None:
        code = "if os.path.exists(f'{out_dir}/../tried'): sys.exit()\nopen(f'{out_dir}/../tried', 'w').close()\n"
        code += "signal.signal(signal.SIGUSR1, lambda *_: (print('got USR1'), sys.exit(5)))\nlive_on()"
        self.config("slow", code)
        self.config("good", "print('fine')")
        code = "import sys, time\nfor _ in range(25):\n    time.sleep(0.1)\n    print('.', end='', file=sys.stderr, flush=True)"
        self.config("busy", code)  # longer than the limit, but not silent
        args = ["--jobs", 2, "--stop_signal", "SIGUSR1", "--retries", 1]
        errors = {"timeout": r"not done after 2s \(--timeout\)", "stall": "stalled"}
        timeout = self.start(*args, "--configs", "slow.py", "good.py", "--timeout", 2, "--base_out_dir", "timeout")
        stall = self.start(*args, "--configs", "slow.py", "busy.py", "--stall", 2, "--base_out_dir", "stall")
        self.ended(timeout, 0)
        self.ended(stall, 0)
        for option, error in errors.items():
            with self.subTest(option=option):
                results = self.json(self.dir / option / "latest" / "experiment_summary.json")["results"]
                self.assertEqual((results["slow"]["status"], results["slow"]["attempts"]), ("completed", 2))
                [first] = results["slow"]["attempt_history"]
                self.assertEqual((first["status"], first["return_code"]), ("timeout", 5))
                self.assertRegex(first["error"], error)
                other = results["good" if option == "timeout" else "busy"]
                self.assertEqual((other["status"], other["attempts"]), ("completed", 1))


class FailureTest(RunnerCase):
    NOTE = "import os, sys\nname = os.path.basename(out_dir)\nopen('order', 'a').write(name)\n"

    def order(self) -> str:
        text = (self.dir / "order").read_text()
        (self.dir / "order").unlink()
        return text

    def test_a_failed_one_is_retried_after_the_others_and_so_often_at_most(self) -> None:
        for name in "abc":
            self.config(name, f"{self.NOTE}sys.exit(name == 'a' and open('order').read().count('a') < 3)")
        self.forked("--configs", "a.py", "b.py", "c.py", "--retries", 2)
        self.assertEqual(self.order(), "abcaa")
        self.assertEqual(self.result("a")["attempts"], 3)
        self.assertEqual([each["status"] for each in self.result("a")["attempt_history"]], ["failed", "failed"])
        self.forked("--configs", "a.py", "b.py", "--retries", 1, expect=1)
        self.assertEqual(self.order(), "aba")

    def test_after_so_many_failures_nothing_more_is_started_until_the_batch_is_resumed(self) -> None:
        for name in "abcd":
            self.config(name, f"{self.NOTE}sys.exit(name != 'a' and not os.path.exists('go'))")
        done = self.forked("--configs", "[a-d].py", "--max_failures", 2, expect=1)
        self.assertRegex(done.stdout, r"error: 2 experiments have failed \(--max_failures\); nothing more is started")
        summary = self.summary()
        self.assertEqual((summary["completed"], summary["failed"], summary["pending"]), (1, 2, 1))
        self.go("go")
        self.forked("--resume")
        self.assertEqual(self.summary()["completed"], 4)

    def test_after_so_many_failures_what_runs_in_other_slots_may_end_and_nothing_follows(self) -> None:
        self.config("fails", "import sys\nsys.exit(1)")
        self.config("runs", "print('ready')\nawait_file('go')")
        self.config("waits")
        runner = self.start("--configs", "runs.py", "fails.py", "waits.py", "--jobs", 2, "--max_failures", 1)
        self.wait_for_event("nothing more is started")
        self.go("go")
        self.ended(runner, 1)
        statuses = {name: result["status"] for name, result in self.summary()["results"].items()}
        self.assertEqual(statuses, {"runs": "completed", "fails": "failed", "waits": "pending"})
