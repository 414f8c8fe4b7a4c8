"""gugus-watchdog: a small process that owns the watchdog device and keeps the promise when the agent cannot."""
