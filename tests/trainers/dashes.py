"""A trainer of argparse with dashes, that needs no config: one file as its checkpoint, a line per epoch."""

import argparse
import os

from pause import pause_at  # type: ignore[import-not-found]

parser = argparse.ArgumentParser()
parser.add_argument("--save", required=True)
parser.add_argument("--resume")
parser.add_argument("--batch-size", type=int, default=4)
parser.add_argument("--learning-rate", type=float, default=0.1)
parser.add_argument("--num-epochs", type=int, default=5)
args = parser.parse_args()

first = 1
if args.resume:
    with open(args.resume) as file:
        first = int(file.read()) + 1
    print(f"Resumed from {os.path.basename(args.resume)}", flush=True)
for epoch in range(first, args.num_epochs + 1):
    pause_at(epoch)
    loss = args.learning_rate + 1 / (epoch * args.batch_size)
    print(f"Epoch {epoch:02d} | train_loss {loss:.4f} acc 0.9 | val_loss {loss + 0.5:.4f} acc 0.8", flush=True)
    with open(args.save + ".tmp", "w") as file:
        file.write(str(epoch))
    os.replace(args.save + ".tmp", args.save)
