learning_rate = 3e-3
