"""What the trainers of this directory share: a place at which a test can interrupt them."""

import os
import time


def pause_at(step: int) -> None:
    """Wait in step 3 until the test makes the file `go`."""
    while step == 3 and not os.path.exists("go"):
        time.sleep(0.01)
