"""ROS domains for tests: each belongs to one test process of this machine, as long as it lives."""

import fcntl
import os
import random
import tempfile
from contextlib import contextmanager
from pathlib import Path

LOCKS = Path(tempfile.gettempdir()) / f"flmm_ros_domains_{os.getuid()}"


@contextmanager
def free_domain():
    """Gives the number of a domain from 1 to 100, as text, that no other test has until the block ends."""
    LOCKS.mkdir(exist_ok=True)
    for number in random.SystemRandom().sample(range(1, 101), 100):  # the last one's nodes may still be leaving
        with open(LOCKS / str(number), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield str(number)
            return
    raise RuntimeError("expected a free ROS domain from 1 to 100, got none")
