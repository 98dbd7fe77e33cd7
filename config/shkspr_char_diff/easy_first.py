# Easy first: a curriculum that begins with a few masked characters and climbs to nearly all of them.
# While little is masked, every masked character has neighbours to go by; the later stages take them away.
# The size of the model, the learning rate and the device are left to the trainer's own defaults.

training_type = "unmasking"
dataset = "shakespeare_char"
wandb_run_name = "easy_first"

# A stage ends when the validation loss has not improved for val_loss_stale_count evaluations.
unmasking_stages = [
    {
        "type": "sticky",
        "target_masked_ratio": 0.15,
        "p1_probability": 0.2,
        "p2_probability": 0.2,
        "val_loss_stale_count": 1,
    },
    {
        "type": "sticky",
        "target_masked_ratio": 0.4,
        "p1_probability": 0.15,
        "p2_probability": 0.4,
        "val_loss_stale_count": 2,
    },
    {
        "type": "sticky",
        "target_masked_ratio": 0.7,
        "p1_probability": 0.1,
        "p2_probability": 0.6,
        "val_loss_stale_count": 2,
    },
    {"type": "random", "max_masked_ratio": 0.9, "val_loss_stale_count": 5},
]

eval_interval = 25
eval_iters = 12  # a multiple of the number of stages, so that each has the same share of an evaluation
max_iters = 1000
lr_decay_iters = 1000
warmup_iters = 20
seed = 1337
