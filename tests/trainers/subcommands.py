"""A trainer of argparse with subcommands and a TOML file, in the style of litgpt: a checkpoint is a directory."""

import argparse
import os

from pause import pause_at  # type: ignore[import-not-found]

parser = argparse.ArgumentParser()
commands = parser.add_subparsers(dest="command", required=True)
evaluate = commands.add_parser("evaluate")
pretrain = commands.add_parser("pretrain")
pretrain.add_argument("model_name")
pretrain.add_argument("--config", required=True)
pretrain.add_argument("--out_dir", required=True)
pretrain.add_argument("--resume")
pretrain.add_argument("--train.max_steps", type=int, dest="max_steps")
pretrain.add_argument("--train.min_lr", type=float, dest="min_lr", default=0.0)
args = parser.parse_args()
assert args.command == "pretrain"

with open(args.config) as config:
    lines = [line.partition("=") for line in config if "=" in line]
settings = {key.strip(): value.strip() for key, _, value in lines}
last = args.max_steps or int(settings["max_steps"])
first = int(args.resume.rstrip("/").rpartition("-")[2]) + 1 if args.resume else 1
print(f"{args.model_name}: from step {first}", flush=True)
for step in range(first, last + 1):
    pause_at(step)
    print(f"Epoch 1 | iter {step * 2} step {step} | loss train: {5 / step:.3f}, val: n/a | iter time: 7.96 ms")
    print(f"iter {step}: val loss {6 / step + args.min_lr:.4f}, val time: 7.96 ms", flush=True)
    folder = os.path.join(args.out_dir, f"step-{step:05d}")
    os.mkdir(folder)
    with open(os.path.join(folder, "lit_model.pth"), "w") as file:
        file.write(str(step))
