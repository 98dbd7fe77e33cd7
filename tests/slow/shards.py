"""Beyond one machine: shards of one plan, each a batch of its own, and one table over all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.support import RunnerCase

CODE = "loss = 1.0 + int(overrides.get('seed', 0)) / 10\nprint(f'step 10: train loss {loss}, val loss {loss}')\n"


class ShardCase(RunnerCase):
    def setUp(self) -> None:
        super().setUp()
        self.configs = ["one", "two", "ten"]
        for name in self.configs:
            self.config(name, CODE)

    def plan_of(self, part: str, *more: str) -> list[str]:
        shard = ["--shard", part] if part else []
        args = ["--configs", *(f"{name}.py" for name in self.configs), "--sweep", "seed=1,2,3", *shard, *more]
        return list(self.planned(*args))

    def run_shard(self, part: str, *more: str, base: str = "", expect: int = 0) -> Path:
        """Run a shard; returns its batch."""
        place = base or "job/" + part.replace("/", "_of_")
        args = ["--configs", *(f"{name}.py" for name in self.configs), "--sweep", "seed=1,2,3", "--base_out_dir", place]
        self.forked(*args, "--shard", part, *more, expect=expect)
        return (self.dir / place / "latest").resolve(strict=True)

    def shard_of(self, batch: Path) -> dict[str, Any]:
        shard = self.json(batch / "experiment_summary.json")["shard"]
        assert isinstance(shard, dict)
        return shard

    def status(self, *words: str) -> str:
        return self.forked("--status", *words).stdout

    def status_json(self, *words: str) -> Any:
        return json.loads(self.forked("--status", *words, "--json").stdout)


class PartitionTest(ShardCase):
    def test_shards_are_every_nth_experiment_and_together_the_whole_plan_under_the_same_names(self) -> None:
        whole = self.plan_of("")
        self.assertEqual(len(whole), 9)
        self.assertEqual(self.plan_of("1/4"), ["one__seed_1", "two__seed_2", "ten__seed_3"])
        self.assertEqual(self.plan_of("2/4"), ["one__seed_2", "two__seed_3"])
        self.assertEqual(self.plan_of("4/4"), ["two__seed_1", "ten__seed_2"])
        for count in (1, 2, 4, 9):
            parts = [self.plan_of(f"{index}/{count}") for index in range(1, count + 1)]
            self.assertEqual(sorted(sum(parts, [])), sorted(whole))
        self.config("deep/one", CODE)
        self.configs = ["one", "deep/one"]  # no shard has a name to itself
        self.assertEqual(sorted(self.plan_of("1/2") + self.plan_of("2/2")), sorted(self.plan_of("")))

    def test_a_shard_beyond_the_plan_has_nothing_to_do_which_is_no_failure(self) -> None:
        done = self.forked("--configs", "one.py", "--shard", "2/3", expect=0)
        self.assertEqual(done.stdout, "--shard 2/3: no experiment is left of 1: nothing to do\n")
        self.assertFalse((self.dir / "experiments").exists())

    def test_the_summary_keeps_the_part_and_a_digest_of_the_whole_plan(self) -> None:
        self.configs = ["one"]
        first, second = self.run_shard("1/2"), self.run_shard("2/2")
        digest = self.shard_of(first)["plan_digest"]
        self.assertRegex(digest, r"^[0-9a-f]{64}$")
        self.assertEqual(self.shard_of(first), {"index": 1, "count": 2, "plan_digest": digest, "experiments": 3})
        self.assertEqual(self.shard_of(second), {"index": 2, "count": 2, "plan_digest": digest, "experiments": 3})
        other = self.run_shard("1/2", "--batch_size", "4", base="other")
        self.assertNotEqual(self.shard_of(other)["plan_digest"], digest)

    def test_a_resume_keeps_its_own_plan_whatever_the_patterns_match_by_then(self) -> None:
        fails = "if not os.path.exists('go'):\n    sys.exit(3)\n"
        for name in self.configs:
            self.config(name, fails + CODE)
        batch = self.run_shard("2/4", expect=1)
        before = self.shard_of(batch)
        self.config("another", CODE)
        (self.dir / "one.py").rename(self.dir / "renamed.py")
        self.go("go")
        self.forked("--resume", "--base_out_dir", "job/2_of_4")
        summary = self.json(batch / "experiment_summary.json")
        self.assertEqual(list(summary["results"]), ["one__seed_2", "two__seed_3"])
        self.assertEqual((summary["completed"], summary["shard"]), (2, before))


class OneTableTest(ShardCase):
    def setUp(self) -> None:
        super().setUp()
        self.configs = ["one", "two"]

    def test_status_and_report_over_shards_are_one_table_one_page_and_one_json(self) -> None:
        for index in (1, 2, 3):
            self.run_shard(f"{index}/3")
        folders = [f"job/{index}_of_3/latest" for index in (1, 2, 3)]
        for words in (folders, ["job/*/latest"], ["job/*"], [folders[0], "job/[23]_of_3/latest"]):
            with self.subTest(words=words):
                said = self.status(*words)
                rows = re.findall(r"(?m)^(\w+__seed_\d) +completed ", said)
                self.assertEqual(sorted(rows), sorted(self.plan_of("")))
                self.assertEqual(len(re.findall(r"(?m)^experiment +status", said)), 1)
                self.assertNotIn("missing", said)
                self.assertNotIn("differing", said)
        told = self.status_json("job/*/latest")
        self.assertEqual((told["state"], told["completed"], len(told["experiments"])), ("finished", 6, 6))
        self.assertEqual([each["total_experiments"] for each in told["batches"]], [2, 2, 2])
        self.assertEqual(told["notes"], [])
        path = self.forked("--report", "job/*/latest").stdout.strip()
        self.assertEqual((self.dir / path).resolve(), (self.dir / "job" / "report.html").resolve())
        page = (self.dir / path).read_text()
        for name in self.plan_of(""):
            self.assertIn(name, page)
        for address in re.findall(r'href="\./([^"]+)"', page):
            self.assertTrue((self.dir / "job" / address).exists(), f"a link leads nowhere: {address}")

    def test_seeds_are_grouped_over_all_shards_but_not_over_configs_of_which_nothing_is_known(self) -> None:
        for part in ("1/2", "2/2"):
            self.run_shard(part)
        groups = self.status_json("job/*")["groups"]
        told = [(each["name"], each["completed"], round(each["best_mean"], 6)) for each in groups]
        self.assertEqual(told, [("one", 3, 1.2), ("two", 3, 1.2)])

    def test_a_missing_shard_is_named_and_one_of_another_plan_too(self) -> None:
        self.run_shard("1/4")
        self.run_shard("3/4")
        self.assertIn("\nof 4 shards these are missing: 2, 4\n", self.status("job/*/latest"))
        self.assertEqual(self.status_json("job/*/latest")["notes"], ["of 4 shards these are missing: 2, 4"])
        self.forked("--report", "job/*/latest")
        self.assertIn("of 4 shards these are missing: 2, 4", (self.dir / "job" / "report.html").read_text())
        self.run_shard("2/4", "--batch_size", "4")
        self.run_shard("4/4")
        said = self.status("job/*/latest")
        self.assertIn("\nthe shards are of differing plans\n", said)
        self.assertNotIn("missing", said)

    def test_the_same_name_in_two_batches_has_the_batchs_name_before_it(self) -> None:
        self.run_shard("1/3", base="a")
        self.run_shard("1/3", base="b")
        names = [path.resolve().name for path in (self.dir / "a" / "latest", self.dir / "b" / "latest")]
        (self.dir / "b" / names[1]).rename(self.dir / "b" / "experiment_renamed")
        said = self.status(f"a/{names[0]}", "b/experiment_renamed")
        for name in ("one__seed_1", "two__seed_1"):
            self.assertIn(f"\na/{names[0]}/{name} ", said)
            self.assertIn(f"\nb/experiment_renamed/{name} ", said)

    def test_batches_of_the_same_name_in_two_places_are_told_apart(self) -> None:
        self.run_shard("1/3", base="a")
        folder = (self.dir / "a" / "latest").resolve()
        (self.dir / "b").mkdir()
        folder.rename(self.dir / "b" / folder.name)
        self.run_shard("1/3", base="a")
        again = (self.dir / "a" / "latest").resolve()
        again.rename(self.dir / "a" / folder.name)
        told = self.status_json(f"a/{folder.name}", f"b/{folder.name}")
        names = [each["name"] for each in told["experiments"]]
        self.assertEqual(len(set(names)), 4, names)

    def test_a_directory_that_is_no_batch_and_a_pattern_that_matches_nothing_are_errors(self) -> None:
        self.run_shard("1/3")
        for words in (["job/*/latest", "nowhere"], ["job/*_of_9/latest"], ["job/1_of_3", "one.py"]):
            with self.subTest(words=words):
                self.assertIn("no batch", self.forked("--status", *words, expect=2).stderr)


class ComparedTest(RunnerCase):
    """Last week's batch and today's."""

    def setUp(self) -> None:
        super().setUp()
        settings = "n_layer = 4\nlearning_rate = 0.1\ndropout = 0.0\nseed = 1\nmax_iters = 10\nname = 'x'\n"
        body = "print(f'step 10: train loss {n_layer * learning_rate}, val loss {n_layer * learning_rate}')"
        self.strict_trainer(settings, body)
        self.config("a", "name = 'a'\n")
        self.config("b", "name = 'b'\n")
        self.forked("--configs", "[ab].py", "--n_layer", "4", "--base_out_dir", "last_week")
        self.forked("--configs", "[ab].py", "--n_layer", "8", "--base_out_dir", "today")

    def test_settings_in_which_two_batches_differ_are_columns_and_those_in_which_none_does_are_not(self) -> None:
        said = self.forked("--status", "last_week", "today").stdout
        [title] = re.findall(r"(?m)^experiment +status.*$", said)
        self.assertEqual(
            set(title.split()) & {"n_layer", "name", "learning_rate", "seed", "dropout"}, {"n_layer", "name"}
        )
        rows = re.findall(r"(?m)^\S*experiment_\S+/([ab]) .*$", said)
        self.assertEqual(rows, ["a", "b", "a", "b"])
        told = json.loads(self.forked("--status", "last_week", "today", "--json").stdout)
        settings = [each["settings"] for each in told["experiments"]]
        self.assertEqual([each["n_layer"] for each in settings], [4, 4, 8, 8])
        path = self.forked("--report", "last_week", "today").stdout.strip()
        self.assertEqual(path, "report.html")
        page = (self.dir / path).read_text().replace("<wbr>", "")
        titles = re.findall(r"<th scope=[^>]*>([^<]*)</th>", page)
        self.assertEqual(
            [title for title in titles if title in ("n_layer", "name", "seed", "dropout")], ["n_layer", "name"]
        )

    def test_a_batch_of_a_version_without_common_settings_is_shown_beside_a_new_one(self) -> None:
        path = self.dir / "last_week" / "latest" / "experiment_summary.json"
        summary = self.json(path)
        del summary["common_settings"]
        path.write_text(json.dumps(summary))
        told = json.loads(self.forked("--status", "last_week", "today", "--json").stdout)
        self.assertEqual(len(told["experiments"]), 4)
