"""A trainer for the tests: it runs the config's own code, with `out_dir` and `overrides` at hand."""

import sys

config = next(arg for arg in sys.argv[1:] if not arg.startswith("--"))
overrides = dict(arg[2:].split("=", 1) for arg in sys.argv[1:] if arg.startswith("--"))
out_dir = overrides.pop("out_dir", "")
with open(config, encoding="utf-8") as file:
    exec(compile(file.read(), config, "exec"))
