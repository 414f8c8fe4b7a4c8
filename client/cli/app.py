"""The root of the `gugus` command: its global options, its parts, and how failures leave it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import Abort, TyperException

from client.cli import cluster, events, failure, guest, network, node, pool, session, task
from common.errors import GugusError, as_gugus_error, permission_denied


class Root(TyperGroup):
    """Runs a command line; every failure becomes a message, what to do, and an exit code."""

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
app.add_typer(cluster.app, name="cluster")
app.add_typer(node.app, name="node")
app.add_typer(guest.app, name="guest")
app.add_typer(pool.app, name="pool")
app.add_typer(network.app, name="network")
app.add_typer(task.app, name="task")
app.command("events")(events.events)


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
