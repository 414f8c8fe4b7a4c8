"""Where the `gugus` command begins: an interruption is nothing to print a stack trace for, also while Python still imports."""

import os
import signal

INTERRUPTED = 130
"""128 + SIGINT, as shells have it; `client.cli.failure` names it, too, and a test holds them together."""


def main() -> None:
    """Run the command line of this process."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else somebody wants it ignored, as nohup does
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    from client.cli import main as run

    signal.signal(signal.SIGINT, before)
    run()
