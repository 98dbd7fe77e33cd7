"""A trainer of a YAML file and dotted keys, in the style of mingpt: it logs with the logging module."""

import logging
import os
import sys
from typing import Any

from pause import pause_at  # type: ignore[import-not-found]

logging.basicConfig(level=logging.INFO, format="%(asctime)s - %(levelname)s - %(name)s - %(message)s")


def read_yaml(path: str) -> dict[str, dict[str, Any]]:
    """Two levels of keys, and numbers."""
    found: dict[str, dict[str, Any]] = {}
    section = ""
    with open(path) as file:
        for line in file:
            key, _, value = line.partition(":")
            if not line.startswith(" "):
                section = key
                found[section] = {}
            elif key.strip() and not key.strip().startswith("#"):
                found[section][key.strip()] = float(value)
    return found


folder, config, *overrides = sys.argv[1:]
settings = read_yaml(config)
checkpoint = ""
for word in overrides:
    key, _, value = word[2:].partition("=")
    if key == "checkpoint":
        checkpoint = value
        continue
    section, _, name = key.partition(".")
    assert name in settings[section], f"no such key: {key}"
    settings[section][name] = float(value)

first = 1
if checkpoint:
    with open(checkpoint) as file:
        first = int(file.read()) + 1
    logging.info("resuming from %s", os.path.basename(checkpoint))
for step in range(first, int(settings["trainer"]["max_iters"]) + 1):
    pause_at(step)
    loss = settings["optimizer"]["lr"] + 2 / step
    logging.info("step %d: train_loss=%.4f val_loss=%.4f", step, loss, loss + 0.25)
    with open(os.path.join(folder, f"model_{step}.pt"), "w") as file:
        file.write(str(step))
