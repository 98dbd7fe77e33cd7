"""A trainer that can continue, as small as can be: it prints losses and saves the step that it has come to."""

import os
import time

out_dir = "out"
init_from = "scratch"
max_iters = 20
eval_interval = 10
learning_rate = 1e-3
data = ""
pauses = False
exec(open("configurator.py").read())  # noqa: SIM115

if data:
    open(data).close()
step = 0
if init_from == "resume":
    step = max(int(name[5:-3]) for name in os.listdir(out_dir) if name.startswith("ckpt_"))
    print(f"resuming from step {step}")
while step < max_iters:
    step += 1
    if step % eval_interval:
        continue
    print(f"step {step}: train loss {4 - step / 10:.4f}, val loss {4.1 - step / 10:.4f}", flush=True)
    with open(f"{out_dir}/ckpt_{step}.pt", "w") as file:
        file.write("weights")
    while pauses and not os.path.exists("go"):
        time.sleep(0.01)
