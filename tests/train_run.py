"""
A small trainer in the style of nanoGPT, for machines without torch or a GPU: standard library only.

    python tests/train_run.py config/shkspr_char_diff/easy_first.py --out_dir=out --max_iters=300

It trains a character-level masked-diffusion ("unmasking") model: some characters of a block are masked, and
the model says what stands there. The model is a softmax over the vocabulary, whose logits are the sum of one
row of weights for each character in a window around the masked place; it learns by row-wise AdamW.

Its command line, log lines, checkpoints and errors are those of the real thing, so that whatever starts this
script can start the real one.
"""

import math
import os
import pickle
import random
import re
import time
from operator import mul

# The settings: every name below, up to the configurator, may be set by a config file or by --key=value.
out_dir = "out"
init_from = "scratch"  # or 'resume': go on from the newest checkpoint in out_dir
eval_interval = 50
log_interval = 10
eval_iters = 10  # batches per evaluation and split
eval_only = False  # evaluate once, then exit
always_save_checkpoint = True  # False: only when the validation loss is the best so far
wandb_log = False
wandb_project = "unmasking"
wandb_run_name = "stand-in"
dataset = "shakespeare_char"  # data/<dataset>/input.txt where it exists, else Python's own documentation
gradient_accumulation_steps = 1
batch_size = 6
block_size = 32
use_paragraph_boundaries = False  # True: blocks begin where a paragraph begins
training_type = "unmasking"
unmasking_stages = [
    {"type": "random", "max_masked_ratio": 0.5, "val_loss_stale_count": 3},
    {"type": "random", "max_masked_ratio": 0.9, "val_loss_stale_count": 3},
]
n_layer = 2  # neighbours seen on each side, as by a stack of so many convolutions of width 3
n_head = 2  # no heads in so small a model: only checked against n_embd, as in the real one
n_embd = 32  # no embeddings either
dropout = 0.0  # share of the neighbours that are hidden in training
learning_rate = 2e-2
max_iters = 300
weight_decay = 1e-2
beta1 = 0.9
beta2 = 0.99
grad_clip = 1.0  # 0.0: off
decay_lr = True
warmup_iters = 10
lr_decay_iters = 300
min_lr = 2e-3
device = "cpu"
dtype = "float32"
compile = False
seed = 1337

config_keys = [k for k, v in globals().items() if k[0] != "_" and isinstance(v, (int, float, str, list))]
# The configurator lies beside this script, wherever the training is started from.
exec(open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "configurator.py")).read())  # noqa: SIM115
config = {k: globals()[k] for k in config_keys}

TEXT_LIMIT = 1_200_000  # characters; all of tiny Shakespeare, a fraction of a second to read
TORCH_DEVICES = "cpu, cuda, ipu, xpu, mkldnn, opengl, opencl, ideep, hip, ve, fpga, lazy, vulkan, mps, meta"


# Data: blocks of text, drawn at random


def load_text():
    path = os.path.join("data", dataset, "input.txt")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            return path, f.read(TEXT_LIMIT)
    from pydoc_data.topics import topics

    return "pydoc_data.topics", "\n\n".join(topics.values())


def block_starts(text):
    """The places where a block may begin."""
    everywhere = range(len(text) - block_size + 1)
    if not use_paragraph_boundaries:
        return everywhere
    return [m.end() for m in re.finditer(r"\n\s*\n", text) if m.end() in everywhere] or everywhere


def masked_positions(stage, rng):
    """The positions of a block that the stage masks: at least one."""
    if stage["type"] == "random":
        ratio = rng.uniform(0, stage["max_masked_ratio"])
        masked = {i for i in range(block_size) if rng.random() < ratio}
    else:
        # Sticky: passes over the block until the target is met; beside what is masked already a position is
        # masked with p2, elsewhere with p1, so that with p2 > p1 whole stretches of text go missing.
        p1, p2 = stage["p1_probability"], stage["p2_probability"]
        wanted = min(block_size, round(stage["target_masked_ratio"] * block_size))
        masked = set()
        while len(masked) < wanted:
            for i in range(block_size):
                if rng.random() < (p2 if i - 1 in masked or i + 1 in masked else p1) and len(masked) < wanted:
                    masked.add(i)
    return sorted(masked) or [rng.randrange(block_size)]


def draw_batch(split, stage, rng, hide=0.0):
    """Pairs of (row of weights at each place of the window, what the masked character was)."""
    text, starts = splits[split]
    edge = [mask_token] * n_layer  # what lies outside of the block is as unknown as what is masked
    for _ in range(batch_size):
        start = rng.choice(starts)
        block = [index_of[c] for c in text[start : start + block_size]]
        masked = masked_positions(stage, rng)
        seen = [mask_token if hide and rng.random() < hide else c for c in block]
        for i in masked:
            seen[i] = mask_token
        seen = edge + seen + edge
        for i in masked:
            # The masked character is the window's middle: always masked, so its one row is the bias.
            window = enumerate(seen[i : i + 2 * n_layer + 1])
            yield [place * (mask_token + 1) + c for place, c in window], block[i]


# Model and optimizer


def forward(keys, target):
    """The loss in nats, and its gradient by the logits as (exponentials, their sum)."""
    logits = list(map(sum, zip(*[weights.get(key, zeros) for key in keys])))
    peak = max(logits)
    exps = [math.exp(x - peak) for x in logits]
    total = sum(exps)
    return math.log(total) + peak - logits[target], exps, total


def estimate_loss(at_iter):
    """
    The mean loss of each split, over all stages in turn: so the loss stays comparable when the stage changes.
    Its random numbers are its own: the training is the same however often it is evaluated.
    """
    losses = {}
    for split in ("train", "val"):
        rng = random.Random(f"{seed} {at_iter} {split}")
        found = []
        for k in range(eval_iters):
            stage = unmasking_stages[k % len(unmasking_stages)]
            found += [forward(keys, target)[0] for keys, target in draw_batch(split, stage, rng)]
        losses[split] = sum(found) / len(found)
    return losses


def train_step(lr):
    """One update of the weights; the mean loss before it, and the number of multiply-adds that it took."""
    loss, count, gradients = 0.0, 0, {}
    for _ in range(gradient_accumulation_steps):
        for keys, target in draw_batch("train", unmasking_stages[progress["stage"]], train_rng, dropout):
            nats, exps, total = forward(keys, target)
            gradient = [x / total for x in exps]
            gradient[target] -= 1.0
            for key in keys:
                gradients.setdefault(key, []).append(gradient)
            loss, count = loss + nats, count + 1

    sums = {key: list(map(sum, zip(*parts))) for key, parts in gradients.items()}
    squares = {key: sum(map(mul, g, g)) for key, g in sums.items()}
    norm = math.sqrt(sum(squares.values())) / count
    scale = (min(1.0, grad_clip / (norm + 1e-6)) if grad_clip else 1.0) / count

    # AdamW, but with one second moment per row, and only for rows that took part: the rest costs nothing.
    keep = 1.0 - lr * weight_decay
    for key, g in sums.items():
        square = squares[key] * scale * scale / len(g)
        if key in moments:
            first, second = moments[key]
            first = [beta1 * m + (1.0 - beta1) * scale * x for m, x in zip(first, g)]
            second = beta2 * second + (1.0 - beta2) * square
        else:
            first, second = [scale * x for x in g], square
        moments[key] = first, second
        rate = lr / (math.sqrt(second) + 1e-8)
        weights[key] = [keep * w - rate * m for w, m in zip(weights.get(key, zeros), first)]
    return loss / count, 3 * count * (2 * n_layer + 1) * len(zeros)


def lr_at(it):
    """Linear warm-up, then a cosine down to min_lr."""
    if not decay_lr:
        return learning_rate
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    ratio = (it - warmup_iters) / max(1, lr_decay_iters - warmup_iters)
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (learning_rate - min_lr)


# Progress: stages and checkpoints


def note_evaluation(val_loss):
    """Count evaluations without a new best; after as many as the stage allows, the next stage begins."""
    if val_loss < progress["stage_best"]:
        progress.update(stage_best=val_loss, stale=0)
        return
    progress["stale"] += 1
    allowed, following = unmasking_stages[progress["stage"]]["val_loss_stale_count"], progress["stage"] + 1
    if progress["stale"] >= allowed and following < len(unmasking_stages):
        progress.update(stage=following, stage_best=math.inf, stale=0)
        print_stage()


def print_stage():
    at = progress["stage"]
    print(f"unmasking stage {at + 1} of {len(unmasking_stages)}: {unmasking_stages[at]}")


def save_checkpoint():
    """Straight to its final name, as torch.save does it: a kill may leave a truncated file."""
    model = {"model": weights, "optimizer": moments, "config": config, "vocabulary": vocabulary}
    state = {"iter_num": iter_num, "best_val_loss": best_val_loss, "progress": progress}
    print(f"saving checkpoint to {out_dir}")
    with open(os.path.join(out_dir, f"ckpt_unmasking_{iter_num}.pt"), "wb") as f:
        pickle.dump({**model, **state, "random_state": train_rng.getstate()}, f)


def load_newest_checkpoint():
    found = [re.fullmatch(r"ckpt_unmasking_(\d+)\.pt", name) for name in os.listdir(out_dir)]
    newest = max((m for m in found if m), key=lambda m: int(m[1]), default=None)
    if newest is None:
        raise FileNotFoundError(f"no ckpt_unmasking_*.pt to resume from in {out_dir}")
    print(f"Resuming training from {out_dir} ({newest[0]})")
    with open(os.path.join(out_dir, newest[0]), "rb") as f:
        return pickle.load(f)


def check_device():
    """Fail as torch fails on a machine that has no such device."""
    kind = device.split(":")[0]
    if kind not in TORCH_DEVICES.split(", "):
        raise RuntimeError(f"Expected one of {TORCH_DEVICES} device type at start of device string: {device}")
    if kind == "cuda":
        raise RuntimeError("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU")
    if kind != "cpu":
        raise RuntimeError(f"PyTorch is not linked with support for {kind} devices")


# The training

if training_type != "unmasking":
    raise SystemExit(f"unknown training_type: {training_type!r}; this trainer knows 'unmasking'")
if init_from not in ("scratch", "resume"):
    raise SystemExit(f"unknown init_from: {init_from!r}; this trainer knows 'scratch' and 'resume'")
for stage in unmasking_stages:
    if stage["type"] not in ("sticky", "random"):
        raise SystemExit(f"unknown type of an unmasking stage: {stage}")
    if stage["type"] == "sticky" and min(stage["p1_probability"], stage["p2_probability"]) <= 0:
        raise SystemExit(f"an unmasking stage that never reaches its target: {stage}")
assert n_embd % n_head == 0
assert dtype in ("float32", "bfloat16", "float16")
print(f"tokens per iteration will be: {gradient_accumulation_steps * batch_size * block_size:,}")
os.makedirs(out_dir, exist_ok=True)
check_device()

source, whole_text = load_text()
vocabulary = "".join(sorted(set(whole_text)))
index_of = {c: i for i, c in enumerate(vocabulary)}
mask_token = len(vocabulary)
zeros = [0.0] * len(vocabulary)
cut = len(whole_text) * 9 // 10
texts = {"train": whole_text[:cut], "val": whole_text[cut:]}
splits = {split: (text, block_starts(text)) for split, text in texts.items()}
print(f"text: {source}, {len(whole_text):,} characters")
print(f"vocabulary: {len(vocabulary)} characters, loss of a uniform guess {math.log(len(vocabulary)):.4f}")

weights = {}  # rows by place * (mask_token + 1) + character; one that was never touched is all zeros
moments = {}  # (first moment, mean second moment) of each row
progress = {"stage": 0, "stage_best": math.inf, "stale": 0}
train_rng = random.Random(seed)
iter_num, best_val_loss = 0, math.inf
if init_from == "resume":
    checkpoint = load_newest_checkpoint()
    if checkpoint["vocabulary"] != vocabulary:
        raise RuntimeError("Error(s) in loading state_dict: the checkpoint has another vocabulary")
    weights, moments, progress = checkpoint["model"], checkpoint["optimizer"], checkpoint["progress"]
    progress["stage"] = min(progress["stage"], len(unmasking_stages) - 1)  # the stages may have become fewer
    iter_num, best_val_loss = checkpoint["iter_num"], checkpoint["best_val_loss"]
    train_rng.setstate(checkpoint["random_state"])
else:
    print("Initializing a new model from scratch")
if compile:
    print("compiling the model... (plain Python: nothing to compile)")
if wandb_log:
    import wandb

    wandb.init(project=wandb_project, name=wandb_run_name, config=config)
print_stage()

first_iter = iter_num
started = time.perf_counter()
while True:
    if iter_num % eval_interval == 0 or iter_num == first_iter or iter_num >= max_iters:
        losses = estimate_loss(iter_num)
        print(f"step {iter_num}: train loss {losses['train']:.4f}, val loss {losses['val']:.4f}")
        if wandb_log:
            wandb.log({"iter": iter_num, "train/loss": losses["train"], "val/loss": losses["val"]})
        # What a resumed training evaluates first is what its checkpoint holds: it was counted and saved then.
        if not eval_only and (iter_num > first_iter or iter_num == 0):
            improved = losses["val"] < best_val_loss
            best_val_loss = min(best_val_loss, losses["val"])
            note_evaluation(losses["val"])
            if iter_num > 0 and (improved or always_save_checkpoint):
                save_checkpoint()
    if eval_only or iter_num >= max_iters:
        break

    loss, multiply_adds = train_step(lr_at(iter_num))
    elapsed, started = time.perf_counter() - started, time.perf_counter()
    if iter_num % log_interval == 0:
        # Of 1 GFLOPS, for want of a GPU; -100% for the first few iterations, as nanoGPT has it.
        mfu = multiply_adds / elapsed / 1e9 if iter_num - first_iter >= 5 else -1.0
        print(f"iter {iter_num}: loss {loss:.4f}, time {elapsed * 1000:.2f}ms, mfu {mfu * 100:.2f}%")
    iter_num += 1
