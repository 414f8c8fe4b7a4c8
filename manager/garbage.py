"""The garbage collector, told that a manager's state is no garbage.

A full collection walks over every object: with 100,000 of them in the store it stops all threads for some 50 ms. What is there after the
start is taken out of its sight (gc.freeze), and it looks less often: nearly everything here is freed by reference counts.
"""

import gc

THRESHOLDS = (20_000, 20, 100)
"""Allocations before the youngest generation is looked at (700 by default), and how many looks before the next older one is."""


def settle() -> None:
    """Take what is there for lasting. Called once the state is loaded; may be called again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
