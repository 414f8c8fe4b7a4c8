"""`gugus guest exec`: a program in a guest, its streams and its exit code here."""

import asyncio
import signal
import sys
from collections.abc import Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import Annotated

import typer
from gugus.agent.v1 import access_pb2

from client.access import Execution
from client.cli import failure, terminal
from client.cli.guest_app import Name, app
from client.cli.session import run
from client.sdk import Gugus
from common.errors import GugusError, invalid

NOT_RUN = 125
"""Exit code when the program could not be run at all; programs use those below by habit (docker and env(1) have the same)."""

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@app.command(
    name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog=f"Exit code: the program's; 128 + signal when a signal ended it; {NOT_RUN} when it could not be run.",
)  # fmt: skip
def exec_(
    ctx: typer.Context,
    name: Name,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="Program and arguments; no shell.")],
    tty: Annotated[
        bool, typer.Option("--tty", "-t", help="Run it on a terminal, which is this one. Containers only.")
    ] = False,
    no_stdin: Annotated[
        bool, typer.Option("--no-stdin", "-n", help="Give it no input, also when there is some (in loops of scripts).")
    ] = False,
    env: Annotated[list[str] | None, typer.Option("--env", "-e", metavar="NAME=VALUE", help="May be repeated.")] = None,
    cwd: Annotated[str, typer.Option("--cwd", "-w", metavar="FOLDER", help="Where it runs.")] = "",
    user: Annotated[str, typer.Option("--user", "-u", metavar="USER", help="As whom, by name or number.")] = "",
) -> None:
    """Run a program in a guest. Virtual machines need the QEMU guest agent.

    gugus guest exec web -- apt-get install -y nginx
    """
    if tty and not terminal.is_terminal():
        raise invalid("--tty", "needs a terminal, and this is none.", remedy="Leave it out.")
    if command[0] == "--":  # kept, for options after it are the program's
        command = command[1:]
    if not command:
        raise invalid("COMMAND", "is missing; name a program.")
    variables = _variables(env or ())
    try:
        code = run(ctx, lambda gugus: _execute(gugus, name, command, variables, cwd, user, tty, no_stdin))
    except GugusError as error:
        with suppress(SystemExit):
            failure.report(error, as_json=False)
        raise typer.Exit(NOT_RUN) from error
    raise typer.Exit(code)


async def _execute(
    gugus: Gugus,
    name: str,
    command: list[str],
    variables: dict[str, str],
    cwd: str,
    user: str,
    tty: bool,
    no_stdin: bool,
) -> int:
    async with gugus.access.execute(
        name,
        command,
        environment=variables,
        working_directory=cwd,
        user=user,
        terminal=terminal.size() if tty else None,
    ) as running:
        silent = no_stdin or (sys.stdin.isatty() and not tty)
        feeding = asyncio.create_task(_feed(running, silent))
        sizes = asyncio.Event()
        resizing = asyncio.create_task(_resize(running, sizes))
        pending: set[asyncio.Task[None]] = set()

        def pass_on(number: int) -> None:
            task = asyncio.create_task(running.signal(number))
            pending.add(task)
            task.add_done_callback(pending.discard)

        handlers: dict[signal.Signals, Callable[[], None]] = {number: partial(pass_on, number) for number in _PASSED_ON}
        if tty:
            handlers[signal.SIGWINCH] = sizes.set
        try:
            with terminal.on_signals(handlers):
                if tty:
                    with terminal.raw():
                        await _show(running)
                else:
                    await _show(running)
        finally:
            for task in (feeding, resizing, *pending):
                task.cancel()
            await asyncio.gather(feeding, resizing, *pending, return_exceptions=True)
    return running.exit_code if running.exit_code is not None else NOT_RUN


async def _show(running: Execution) -> None:
    async for answer in running:
        _write(answer)


def _write(answer: access_pb2.ExecuteResponse) -> None:
    if answer.stdout:
        terminal.show(answer.stdout)
    if answer.stderr:
        terminal.show(answer.stderr, error=True)


async def _feed(running: Execution, silent: bool) -> None:
    if not silent:
        async with aclosing(terminal.keys()) as keys:
            async for data in keys:
                await running.write(data)
    await running.end_input()


async def _resize(running: Execution, sizes: asyncio.Event) -> None:
    while True:
        await sizes.wait()
        sizes.clear()
        await running.resize(*terminal.size())


def _variables(texts: list[str] | tuple[()]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise invalid("--env", f'"{name}" is not NAME=VALUE, like LANG=C.UTF-8.')
        found[name] = value
    return found
