"""A trainer of key=value, in the style of Hydra: unknown keys are refused, its output says step:N/M val_loss:X."""

import os
import sys

from pause import pause_at  # type: ignore[import-not-found]

settings = {"run.dir": "", "steps": "5", "model.depth": "1", "optimizer.lr": "0.5", "resume_from": "null"}
for word in sys.argv[1:]:
    key, equals, value = word.partition("=")
    if not equals or key not in settings:
        sys.exit(f"Could not override '{key}'. Key is not in struct")
    settings[key] = value

first, last = 1, int(settings["steps"])
if settings["resume_from"] != "null":
    with open(settings["resume_from"]) as file:
        first = int(file.read()) + 1
    print("resumed", flush=True)
for step in range(first, last + 1):
    pause_at(step)
    loss = float(settings["optimizer.lr"]) + int(settings["model.depth"]) / step
    print(f"step:{step}/{last} val_loss:{loss:.4f} train_time:33123ms step_avg:132.49ms", flush=True)
    with open(os.path.join(settings["run.dir"], f"state_step{step:06d}.pt"), "w") as file:
        file.write(str(step))
