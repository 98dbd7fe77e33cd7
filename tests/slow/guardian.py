"""The guardian a hundred times, and under Slurm.

    GUARDIAN_SEED=7 GUARDIAN_CASES=1000 python3 -m unittest tests.slow.guardian

The seed is printed; the same seed picks the same moments.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time

from tests.support import is_running, working_in
from tests.test_guardian import TREE, GuardianCase

SEED = int(os.environ.get("GUARDIAN_SEED") or random.SystemRandom().randrange(10**6))
CASES = int(os.environ.get("GUARDIAN_CASES") or 100)


class OftenTest(GuardianCase):
    def test_runners_that_are_killed_at_any_moment_leave_no_process_behind(self) -> None:
        print(f"\n  GUARDIAN_SEED={SEED} GUARDIAN_CASES={CASES}", end=" ", file=sys.stderr, flush=True)
        chance = random.Random(SEED)
        for name in "abc":
            self.config(name, TREE)
        for _ in range(CASES):
            grace = chance.choice((0, 0.1, 0.3))
            runner = self.start("--configs", "a.py", "b.py", "c.py", "--jobs", 2, "--grace", grace)
            time.sleep(chance.random() * 0.6)  # the moment is the test's chance; nothing depends on it
            if chance.random() < 0.3:
                runner.send_signal(chance.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)))
            runner.kill()
            runner.communicate()
        self.assertGreater(len(self.pids(0)), CASES, "too few of the trainings had begun")
        self.assert_nothing_runs()
        self.assertEqual([pid for pid in self.pids(0) if is_running(pid) and pid in working_in(self.dir)], [])
