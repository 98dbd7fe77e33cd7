"""A trainer of a JSON file, that prints JSON lines, with nested settings and a value that isn't a number."""

import argparse
import json
import os

from pause import pause_at  # type: ignore[import-not-found]

parser = argparse.ArgumentParser()
parser.add_argument("config")
parser.add_argument("--workdir", required=True)
parser.add_argument("--restore", action="store_true")
parser.add_argument("--lr", type=float)
parser.add_argument("--layers", type=json.loads)
args = parser.parse_args()
with open(args.config) as file:
    settings = json.load(file)
learning_rate = settings["lr"] if args.lr is None else args.lr
layers = settings["layers"] if args.layers is None else args.layers
last = os.path.join(args.workdir, "last.json")
first = 1
if args.restore:
    with open(last) as file:
        first = json.load(file)["step"] + 1
print(json.dumps({"event": "start", "layers": layers, "from": first}), flush=True)
for step in range(first, settings["steps"] + 1):
    pause_at(step)
    loss = learning_rate + sum(layers) / step
    line = {"iter": step, "loss": 9.0, "train_loss": loss, "val_loss": loss + 1, "time": 12.0}
    print(json.dumps(line), flush=True)
    with open(last, "w") as file:
        json.dump({"step": step}, file)
print(json.dumps({"event": "end", "loss": None}))
