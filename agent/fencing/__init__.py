"""Keeping the promise on this host: the node lease, the thread that kills at its end, and what the watchdog is told."""
