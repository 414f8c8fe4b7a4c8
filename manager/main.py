"""`gugus-manager`: starts the manager daemon, and ends it in order when systemd asks for it. `recover` makes a new cluster of its state."""

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
from manager.recovery import command as recover
from manager.recovery import found

EXIT_FAILURE = 1
EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: a restart will not help; the unit does not restart on it."""


def main() -> None:
    """Run until SIGTERM or SIGINT, or run a sub-command."""
    arguments = _parser().parse_args()
    if arguments.once is not None:
        _once(arguments)
        return
    try:
        config = load_manager(arguments.config)
        logs.setup("manager", node=config.name, level=arguments.log_level)
        manager = Manager(config)
    except (GugusError, OSError) as error:
        sys.exit(_refuse(str(error)))
    try:
        asyncio.run(_run(manager))
    except (CorruptState, GugusError) as error:
        sys.exit(_refuse(str(error)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gugus-manager", description="A manager of a Gugus cluster.")
    parser.add_argument("--config", type=Path, default=DEFAULT_MANAGER_CONFIG, help="default: %(default)s")
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    parser.set_defaults(once=None)
    commands = parser.add_subparsers(metavar="COMMAND")
    # Sub-commands share --config; SUPPRESS keeps a value that was given before the sub-command.
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", type=Path, default=argparse.SUPPRESS, help="configuration file")
    commands.add_parser("run", parents=[shared], help="run the manager (the default)")
    text = "make a new cluster of this host's state when the majority of the voters is lost for ever"
    recovering = commands.add_parser("recover", parents=[shared], help=text, description=text)
    recover.add_arguments(recovering)
    recovering.set_defaults(once=recover.command)
    text = "make a state of one on standard input, for `gugus cluster restore`"
    founding = commands.add_parser("found", parents=[shared], help=text, description=text)
    found.add_arguments(founding)
    founding.set_defaults(once=found.command)
    return parser


def _once(arguments: argparse.Namespace) -> None:
    try:
        arguments.once(arguments)
    except (GugusError, OSError) as error:
        sys.stderr.write(f"gugus-manager: {error}\n")
        sys.exit(EXIT_FAILURE)


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
