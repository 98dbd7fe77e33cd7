"""
Settings from the command line, the nanoGPT way. The training script exec's this file, so that it reads and
writes the script's own globals:

    python train_run.py config/some_config.py --batch_size=8

Arguments count from left to right: one without "=" is a config file, Python that is exec'd over the settings;
--key=value replaces one setting, and its value must have the very type of the value that it replaces.

It is as strict, and as short of words, as the original: an int is no float, `false` is a string, and a second
"=" is one too many. Whoever starts a training must write what it accepts, and this one is here to prove it.
"""

import sys
from ast import literal_eval

for arg in sys.argv[1:]:
    if "=" not in arg:
        assert not arg.startswith("--")
        config_file = arg
        print(f"Overriding config with {config_file}:")
        with open(config_file) as f:
            print(f.read())
        with open(config_file) as f:  # opened again, as there: a config from a pipe is empty now
            exec(f.read())
    else:
        assert arg.startswith("--")
        key, val = arg.split("=")
        key = key[2:]
        if key not in globals():
            raise ValueError(f"Unknown config key: {key}")
        try:
            attempt = literal_eval(val)
        except (SyntaxError, ValueError):
            attempt = val  # no literal, so a plain string
        assert type(attempt) is type(globals()[key])
        print(f"Overriding: {key} = {attempt}")
        globals()[key] = attempt
