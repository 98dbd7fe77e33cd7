learning_rate = 2e-3
pauses = True
