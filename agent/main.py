"""`gugus-agent`: runs a host's agent (the default), or joins the host to a cluster."""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # before grpc is loaded

from agent import daemon, join
from agent.facts import version
from common import logs
from common.config import DEFAULT_AGENT_CONFIG, load_agent
from common.errors import GugusError

EXIT_FAILURE = 1


def main(argv: list[str] | None = None) -> None:
    """Run the command line; exits with 0, 1 (it failed, and said why) or 2 (wrong usage)."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "join":
            join.command(arguments)
        else:
            _run(arguments.config, arguments.log_level)
    except GugusError as error:
        print(f"gugus-agent: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILURE)
    except OSError as error:
        print(f"gugus-agent: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILURE)


def _run(config_path: Path, log_level: str) -> None:
    config = load_agent(config_path)
    logs.setup("gugus-agent", node=config.name, level=log_level)

    async def run() -> None:
        await daemon.Agent(config, config_path).run()

    daemon.run(run())
    # Taking the interpreter apart changes nothing any more, and takes part of the lease that the next process takes over.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--config", type=Path, default=DEFAULT_AGENT_CONFIG, help="configuration file (default: %(default)s)"
    )
    common.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    parser = argparse.ArgumentParser(prog="gugus-agent", description="The agent of one host.", parents=[common])
    parser.add_argument("--version", action="version", version=version())
    parser.set_defaults(command="run")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    # Sub-commands share --config; SUPPRESS keeps a value that was given before the sub-command.
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", type=Path, default=argparse.SUPPRESS, help="configuration file")
    shared.add_argument("--log-level", default=argparse.SUPPRESS, choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    commands.add_parser("run", parents=[shared], help="run the agent (the default)")
    join.add_arguments(commands.add_parser("join", parents=[shared], help="join this host to a cluster"))
    return parser


if __name__ == "__main__":
    main()
