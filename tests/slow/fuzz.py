"""Random trees of processes that print random bytes and die in random ways: no byte is lost, no process stays.

    FUZZ_SEED=7 FUZZ_TREES=5000 FUZZ_JOBS=16 python3 -m unittest tests.slow.fuzz

The seed is printed; the same seed grows the same trees. A failure tells the tree that failed: FUZZ_ONLY=tree_00042
grows that one alone.

A tree is planned here, in full: what each process prints, from a pool of random bytes, when, and how it dies. The plan
stands as a comment in the tree's config. Each process keeps a record, outside the batch, of what it has written. A
stream is written either by one process of a tree (its record and its log are compared byte for byte) or by several,
in whole lines (these are compared as multisets, and each process's own in their order).
"""

from __future__ import annotations

import collections
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any, Optional

from tests.support import PATIENCE, RunnerCase, is_running, wait_for, working_in

SEED = int(os.environ.get("FUZZ_SEED") or random.SystemRandom().randrange(10**6))
TREES = int(os.environ.get("FUZZ_TREES") or 160)
JOBS = int(os.environ.get("FUZZ_JOBS") or 12)
ONLY = os.environ.get("FUZZ_ONLY")
POOL = 1 << 20  # bytes
LONG_LINE = 30_000  # bytes; half of what the runner keeps of an unfinished line
STAMPED = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \[(STDOUT|STDERR)\] ")
DEATHS = [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGSEGV, signal.SIGABRT, signal.SIGPIPE]
STREAMS = ("stdout", "stderr")

NODE = r"""
import os, signal, sys, time

def grow(node):
    records = {}

    def put(stream, start, size):
        if stream not in records:
            name = f"records/{tree}.{node['id']}.{stream}"
            records[stream] = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        data = os.pread(pool, size, start)
        while data:
            done = os.write(1 + (stream == "stderr"), data)
            os.write(records[stream], data[:done])
            data = data[done:]

    def line(stream, start, size):  # in one piece, which a pipe keeps in one piece
        text = os.pread(pool, size, start).hex().encode()
        put_whole = b"%s %d %s\n" % (tree.encode(), node["id"], text)
        os.write(1 + (stream == "stderr"), put_whole)
        with open(f"records/{tree}.{node['id']}.{stream}", "ab") as record:
            record.write(put_whole)

    children = []
    for what, *args in node["acts"]:
        if what == "put":
            put(*args)
        elif what == "line":
            line(*args)
        elif what == "pause":
            time.sleep(args[0] / 1000)
        elif what == "close":
            os.close(1 + (args[0] == "stderr"))
        elif what == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        elif what == "leave":
            os.setsid()
        elif what == "fork":
            pid = os.fork()
            if not pid:
                grow(args[0])
            children.append(pid)
        elif what == "reap":
            os.waitpid(children[args[0]], 0)
        elif what == "shoot":
            os.kill(children[args[0]], signal.SIGKILL)
        elif what == "stay":
            while True:
                time.sleep(60)
        elif what == "exit":
            os._exit(args[0])
        elif what == "die":
            signal.signal(args[0], signal.SIG_DFL) if args[0] != signal.SIGKILL else None
            while True:
                os.kill(os.getpid(), args[0])

tree = os.path.basename(sys.argv[2])[:-3]
pool = os.open("pool", os.O_RDONLY)
for number in (signal.SIGINT, signal.SIGPIPE):
    signal.signal(number, signal.SIG_DFL)
with open(sys.argv[2]) as config:
    plan = eval(config.read().lstrip("# "))
grow(plan)
"""


@dataclass
class Node:
    """A process: what it does in turn, and whether it may be killed in the middle of it."""

    id: int
    acts: list[Any] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)
    cut: bool = False  # its parent ends it, perhaps before it is through
    ends: bool = True  # it can be waited for

    def plan(self) -> dict[str, Any]:
        """The plan as a literal."""
        plans = [act if act[0] != "fork" else ("fork", act[1].plan()) for act in self.acts]
        return {"id": self.id, "acts": plans}

    def family(self) -> list[Node]:
        return [self, *(each for child in self.children for each in child.family())]


@dataclass
class Tree:
    name: str
    root: Node
    writers: dict[str, Optional[int]]  # stream -> the one node that writes it; None: all may, in lines
    ending: tuple[str, int] = ("exit", 0)

    def nodes(self) -> list[Node]:
        return self.root.family()


class Gardener:
    """Plans trees by chance; the same chance plans the same."""

    def __init__(self, seed: str) -> None:
        self.chance = random.Random(seed)

    def pool(self) -> bytes:
        """What is printed: noise, text, progress bars, long stretches without an end of line, evaluations."""
        parts: list[bytes] = []
        size = 0
        while size < POOL:
            kind = self.chance.randrange(5)
            if kind == 0:
                part = self.chance.getrandbits(8 * 5000).to_bytes(5000, "little")
            elif kind == 1:
                part = b"".join(b"iter %d: loss %.4f, time 1ms\n" % (n, 1 + 1 / (n + 1)) for n in range(100))
            elif kind == 2:
                part = b"".join(b"\r%3d%%|%s" % (n, b"#" * n) for n in range(100)) + b"\r\n" * 3
            elif kind == 3:
                part = bytes([self.chance.randrange(32, 127)]) * self.chance.choice((10, 5000, 200_000))
            else:
                part = b"step 10: train loss 2.5, val loss nan\n\xff\xfe\x00\x1b[31m\n" * self.chance.randrange(50)
            parts.append(part)
            size += len(part)
        return b"".join(parts)[:POOL]

    def tree(self, name: str) -> Tree:
        count = self.chance.choice((1, 1, 2, 2, 3, 5, 8))
        nodes = [Node(0)]
        for number in range(1, count):
            node, parent = Node(number), self.chance.choice(nodes)
            parent.children.append(node)
            nodes.append(node)
        writers = {stream: self.chance.choice((0, self.chance.randrange(count), None)) for stream in STREAMS}
        for node in reversed(nodes):  # a child's acts are known before its parent forks it
            self.act(node, writers)
        tree = Tree(name, nodes[0], writers)
        last = nodes[0].acts[-1]
        tree.ending = (last[0], last[1])
        return tree

    def act(self, node: Node, writers: dict[str, Optional[int]]) -> None:
        """Think out what a process does."""
        chance = self.chance
        acts: list[Any] = []
        for _ in range(chance.choice((0, 1, 3, 10, 30))):
            stream = chance.choice(STREAMS)
            if writers[stream] == node.id:
                size = chance.choice((1, 80, 1000, 65536, 100_000))
                acts.append(("put", stream, chance.randrange(POOL - size), size))
            elif writers[stream] is None:
                size = chance.choice((1, 30, 1500))
                acts.append(("line", stream, chance.randrange(POOL - size), size))
            if chance.random() < 0.3:
                acts.append(("pause", chance.choice((0, 1, 5, 20))))
        for child in node.children:
            acts.insert(chance.randrange(len(acts) + 1), ("fork", child))
            then = chance.random()
            if then < 0.15:
                acts.append(("shoot", child))
                child.cut = True
            elif then < 0.55 and child.ends:
                acts.append(("reap", child))
        node.ends = all(each.ends for each in node.children)  # more than is needed: not all are waited for
        order = [act[1] for act in acts if act[0] == "fork"]
        acts = [(act[0], order.index(act[1])) if act[0] in ("reap", "shoot") else act for act in acts]
        if chance.random() < 0.15:  # what is printed after it would fail
            stream = chance.choice(STREAMS)
            acts = [each for each in acts if each[:2] not in (("put", stream), ("line", stream))]
            acts.append(("close", stream))
        if node.id and node.ends and chance.random() < 0.1:
            acts.insert(0, ("leave",))
        elif node.id and chance.random() < 0.1:
            acts.insert(0, ("deaf",))
        node.acts = [*acts, self.end(node, ("leave",) in acts)]

    def end(self, node: Node, left: bool) -> tuple[Any, ...]:
        how = self.chance.random()
        if node.id and how < 0.06 and not left:  # the runner has to end it
            node.ends = False
            return ("stay",)
        if how < 0.5:
            return ("exit", 0)
        return ("exit", self.chance.randrange(1, 256)) if how < 0.75 else ("die", int(self.chance.choice(DEATHS)))


def lines_of(data: bytes) -> list[bytes]:
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return lines if lines[-1] else lines[:-1]


class FuzzTest(RunnerCase):
    def setUp(self) -> None:
        super().setUp()
        (self.dir / "records").mkdir()
        (self.dir / "node.py").write_text(NODE)
        self.pool = Gardener(f"{SEED}").pool()
        (self.dir / "pool").write_bytes(self.pool)

    def plant(self, count: int) -> list[Tree]:
        (self.dir / "trees").mkdir()
        trees = []
        for number in range(count):
            name = f"tree_{number:05}"
            if ONLY in (None, "", name):
                tree = Gardener(f"{SEED} {name}").tree(name)
                (self.dir / "trees" / f"{name}.py").write_text(f"# {tree.root.plan()!r}\n")
                trees.append(tree)
        return trees

    def record(self, tree: Tree, node: Node, stream: str) -> bytes:
        path = self.dir / "records" / f"{tree.name}.{node.id}.{stream}"
        return path.read_bytes() if path.exists() else b""

    def test_random_trees_of_processes(self) -> None:
        print(f"\n  FUZZ_SEED={SEED} FUZZ_TREES={TREES} FUZZ_JOBS={JOBS}", end=" ", file=sys.stderr, flush=True)
        trees = self.plant(TREES)
        launcher = shlex.join([sys.executable, "-I", "-S", "node.py"])
        arguments = ["--configs", "trees/*.py", "--launcher", launcher, "--jobs", JOBS]
        with open(self.dir / "console", "wb") as console:
            runner = self.start(*arguments, stdout=console, stderr=subprocess.STDOUT)
        runner.wait(4 * PATIENCE + TREES)
        self.assertIn(runner.returncode, (0, 1))
        master = (self.batch() / "master_log.txt").read_text()
        self.assertNotIn("Traceback", (self.dir / "console").read_text())
        self.cut_off = set(re.findall(r"(tree_\d+): a process outside its group still holds its output", master))
        self.killed = set(re.findall(r"(tree_\d+): killed what it left behind", master))
        results = self.summary()["results"]
        for tree in trees:
            with self.subTest(tree.name, seed=SEED):
                self.check_end(tree, results[tree.name])
                for stream in STREAMS:
                    self.check_stream(tree, stream)
                self.check_combined(tree)
        wait_for(lambda: not self.left(), f"the end of {self.left()}")

    def left(self) -> list[int]:
        return [pid for pid in working_in(self.dir) if is_running(pid)]

    def check_end(self, tree: Tree, result: dict[str, Any]) -> None:
        how, number = tree.ending
        code = number if how == "exit" else -number
        self.assertEqual(result["return_code"], code)
        self.assertEqual(result["status"], "failed" if code else "completed")
        self.assertEqual(result["signal"], signal.Signals(number).name if how == "die" else None)
        self.assertIs(result["log_complete"], True)
        own = json.loads((self.batch() / tree.name / "experiment_result.json").read_text())
        self.assertEqual(own, result)

    def check_stream(self, tree: Tree, stream: str) -> None:
        log, writer, cut_off = self.log(tree.name, stream), tree.writers[stream], tree.name in self.cut_off
        if writer is not None:
            node = next(each for each in tree.nodes() if each.id == writer)
            written = self.record(tree, node, stream)
            if cut_off:  # what came after the runner had left is in the record alone
                self.assertTrue(written.startswith(log) or log.startswith(written), f"{stream}.log differs")
            elif not self.may_be_cut(tree, node):
                self.assertTrue(log == written, f"{stream}.log differs: {len(log)} and {len(written)} bytes")
                return
            planned = b"".join(self.pool[a[2] : a[2] + a[3]] for a in node.acts if a[:2] == ("put", stream))
            self.assertTrue(planned.startswith(log), f"{stream}.log holds what was not written")
            self.assertTrue(cut_off or log.startswith(written), f"{stream}.log lost what was written")
            return
        got = log.split(b"\n")
        self.assertEqual(got.pop(), b"", f"{stream}.log ends within a line")
        by_node = collections.defaultdict(list)
        for line in got:
            words = line.split(b" ")
            self.assertEqual((len(words), words[0]), (3, tree.name.encode()), f"torn: {line[:100]!r}")
            by_node[int(words[1])].append(line)
        for node in tree.nodes():
            recorded, lines = self.record(tree, node, stream).split(b"\n")[:-1], by_node.pop(node.id, [])
            if cut_off:
                lines, recorded = lines[: len(recorded)], recorded[: len(lines)]
            elif self.may_be_cut(tree, node):
                self.assertLessEqual(len(lines) - len(recorded), 1)
                lines = lines[: len(recorded)]  # it was killed between the writing and the record
            self.assertEqual(lines, recorded, f"the lines of process {node.id} in {stream}.log differ")
        self.assertEqual(dict(by_node), {}, f"{stream}.log holds lines of nobody")

    def may_be_cut(self, tree: Tree, node: Node) -> bool:
        """Whether a process may have been killed between its acts: by its parent, or as the rest of its group."""
        return node.cut or (tree.name in self.killed and node is not tree.root)

    def check_combined(self, tree: Tree) -> None:
        lines = self.log(tree.name, "combined").split(b"\n")
        self.assertEqual(lines.pop(), b"", "combined.log ends within a line")
        found: dict[str, list[bytes]] = {stream: [] for stream in STREAMS}
        for line in lines:
            mark = STAMPED.match(line)
            assert mark, f"not stamped: {line[:100]!r}"
            found[mark[1].decode().lower()].append(line[mark.end() :])
        for stream in STREAMS:
            log = self.log(tree.name, stream)
            expected = lines_of(log)
            if max(map(len, expected), default=0) < LONG_LINE:
                self.assertTrue(found[stream] == expected, f"the lines of {stream} differ in combined.log")
            whole = log.replace(b"\r", b"").replace(b"\n", b"")
            self.assertTrue(b"".join(found[stream]) == whole, f"the bytes of {stream} differ in combined.log")
