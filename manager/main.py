"""`gugus-manager`: starts the manager daemon, and ends it in order when systemd asks for it."""

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from common import logs
from common.config import DEFAULT_MANAGER_CONFIG, load_manager
from common.errors import GugusError
from manager.consensus import CorruptState
from manager.daemon import Manager

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: a restart will not help; the unit does not restart on it."""


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="gugus-manager", description="A manager of a Gugus cluster.")
    parser.add_argument("--config", type=Path, default=DEFAULT_MANAGER_CONFIG, help="default: %(default)s")
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    arguments = parser.parse_args()
    try:
        config = load_manager(arguments.config)
        logs.setup("manager", node=config.name, level=arguments.log_level)
        manager = Manager(config)
    except (GugusError, OSError) as error:
        sys.exit(_refuse(str(error)))
    try:
        asyncio.run(_run(manager))
    except CorruptState as error:
        sys.exit(_refuse(str(error)))


async def _run(manager: Manager) -> None:
    running = asyncio.ensure_future(manager.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        logs.get_logger("manager").info("stopped")


def _refuse(text: str) -> int:
    sys.stderr.write(f"gugus-manager: {text}\n")
    return EXIT_CONFIG


if __name__ == "__main__":
    main()
