"""The root of the `gugus` command: its global options, its parts, and how failures leave it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar

import typer
from typer.exceptions import Abort, TyperException

from client.cli import failure, session
from client.cli.lazy import LazyGroup
from common.errors import GugusError, as_gugus_error, permission_denied

PARTS = (
    "cluster",
    "node",
    "guest",
    "pool",
    "image",
    "network",
    "project",
    "rule",
    "task",
    "events",
    "apply",
    "diff",
    "plan",
    "what-if",
    "simulate",
)

MODULES = {"guest": "guest_app", "diff": "apply", "what-if": "what_if"}
"""Modules of those that are not called like their module. Each module has an `app`."""

SINGLE = ("events", "apply", "diff", "simulate")
"""Those that are commands, not groups of them."""


class Root(LazyGroup):
    """Runs a command line; every failure becomes a message, what to do, and an exit code."""

    parts: ClassVar = {name: (MODULES.get(name, name),) for name in PARTS}

    def built(self, name: str, module: ModuleType) -> Any:
        """Return a group, or a single command, of a module's `app`."""
        group = typer.main.get_group(module.app)
        return group.commands[name] if name in SINGLE else group

    def main(self, args: Sequence[str] | None = None, *positional: Any, **extra: Any) -> Any:
        """Run and exit."""
        args = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        try:
            code = super().main(args, *positional, **extra)
        except TyperException as error:
            if (
                type(error).__name__ == "NoArgsIsHelpError"
            ):  # its message is the help that was asked for by saying nothing
                print(error.format_message(), file=sys.stderr)
                sys.exit(failure.USAGE)
            failure.report(failure.usage_error(error), as_json=failure.wants_json(args))
        except GugusError as error:
            failure.report(error, as_json=failure.wants_json(args))
        except (Abort, KeyboardInterrupt):
            print("interrupted.", file=sys.stderr)
            sys.exit(failure.INTERRUPTED)
        except PermissionError as error:
            denied = permission_denied(f"{error.filename}: {error.strerror}.", remedy="Run this as root.")
            failure.report(denied, as_json=failure.wants_json(args))
        except OSError as error:
            failure.report(as_gugus_error(error), as_json=failure.wants_json(args))
        sys.exit(code if isinstance(code, int) else failure.OK)


app = typer.Typer(
    name="gugus",
    cls=Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=failure.HELP,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    ctx: typer.Context,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", envvar="GUGUS_CONFIG", help="Which cluster and who asks."),
    ] = None,
    endpoint: Annotated[
        list[str] | None, typer.Option(metavar="HOST:PORT", help="Ask this manager; may be repeated.")
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Give up after so long, like 30s or 5m (calls: 30s, tasks: never)."),
    ] = None,
) -> None:
    """A cluster of virtual machines and containers."""
    ctx.obj = session.options(config_file, endpoint or (), timeout)


def main() -> None:
    """Run the command line of this process."""
    app()
