data = "missing.txt"
