# Super hard first: a curriculum that begins with nine of ten characters masked, in long stretches.
# First the model learns what is common in the language, and only then what the neighbours tell.
# The size of the model, the learning rate and the device are left to the trainer's own defaults.

training_type = "unmasking"
dataset = "shakespeare_char"
wandb_run_name = "super_hard_first"

# A stage ends when the validation loss has not improved for val_loss_stale_count evaluations.
unmasking_stages = [
    {
        "type": "sticky",
        "target_masked_ratio": 0.9,
        "p1_probability": 0.1,
        "p2_probability": 0.8,
        "val_loss_stale_count": 3,
    },
    {
        "type": "sticky",
        "target_masked_ratio": 0.6,
        "p1_probability": 0.1,
        "p2_probability": 0.6,
        "val_loss_stale_count": 3,
    },
    {"type": "random", "max_masked_ratio": 0.9, "val_loss_stale_count": 5},
]

eval_interval = 25
eval_iters = 12  # a multiple of the number of stages, so that each has the same share of an evaluation
max_iters = 1000
lr_decay_iters = 1000
warmup_iters = 20
seed = 1337
