"""A trainer in the style of Lightning: progress bars of tqdm on stderr, checkpoints in a directory of their own."""

import argparse
import os
import sys

from pause import pause_at  # type: ignore[import-not-found]

parser = argparse.ArgumentParser()
parser.add_argument("command", choices=["fit"])
parser.add_argument("--config", required=True)
parser.add_argument("--trainer.default_root_dir", dest="root", required=True)
parser.add_argument("--trainer.max_epochs", dest="epochs", type=int, default=5)
parser.add_argument("--model.lr", dest="lr", type=float, default=0.1)
parser.add_argument("--ckpt_path")
args = parser.parse_args()
with open(args.config) as config:
    assert config.read().startswith("# lightning")

first = 0
if args.ckpt_path:
    first = int(os.path.basename(args.ckpt_path).partition("=")[2]) + 1
    print(f"Restored all states from the checkpoint at {args.ckpt_path}", flush=True)
for epoch in range(first, args.epochs):
    pause_at(epoch)
    for batch in range(1, 11):
        bar = "#" * batch
        losses = f"train_loss={args.lr + 1 / batch:.3f}, val_loss={args.lr + 2 / (epoch + 1):.3f}"
        sys.stderr.write(
            f"\rEpoch {epoch}: {10 * batch:3d}%|{bar:10}| {batch}/10 [00:0{batch % 10}<00:01, 36.1it/s, {losses}]"
        )
        sys.stderr.flush()
    sys.stderr.write("\n")
    folder = os.path.join(args.root, "checkpoints", f"epoch={epoch}")
    os.makedirs(folder)
    with open(os.path.join(folder, "weights"), "w") as file:
        file.write(str(epoch))
