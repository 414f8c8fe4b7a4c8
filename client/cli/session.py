"""From a command to the cluster and back: one connection a command, tasks followed to their end.

Invariant: whatever goes wrong leaves here as a GugusError that says what would be right.
"""

import asyncio
import difflib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import typer
from gugus.cluster.v1.task_pb2 import Task

from client import config
from client.caller import DEFAULT_TIMEOUT_S
from client.cli.output import Output, say, show_done
from client.cli.progress import Progress, warnings_of
from client.sdk import Gugus
from client.tasks import check
from common.errors import GugusError, invalid
from common.units import parse_duration
from common.validate import endpoint as check_endpoint

T = TypeVar("T")

COMPLETION_TIMEOUT_S = 1.5
"""A shell that waits longer for names is worse than one that knows none."""


@dataclass(frozen=True, slots=True)
class Options:
    """What stands before the command: where the cluster is, and how long to wait for it."""

    config: Path | None = None
    endpoints: tuple[str, ...] = ()
    timeout_s: float | None = None


def options(config_file: Path | None, endpoints: Sequence[str], timeout: str | None) -> Options:
    """Check the global options. Raises GugusError."""
    for endpoint in endpoints:
        if wrong := check_endpoint(endpoint):
            raise invalid("--endpoint", f"{wrong}, like 192.0.2.1:7443.")
    try:
        timeout_s = parse_duration(timeout) if timeout else None
    except ValueError as error:
        raise invalid("--timeout", f"{error}.") from None
    return Options(config_file, tuple(endpoints), timeout_s)


def open_cluster(chosen: Options) -> Gugus:
    """Return the cluster that the options name. Raises ConfigError."""
    settings = config.load(chosen.config)
    if chosen.endpoints:
        settings = config.with_endpoints(settings, chosen.endpoints)
    timeout_s = DEFAULT_TIMEOUT_S if chosen.timeout_s is None else chosen.timeout_s
    return Gugus.connect(settings, timeout_s=timeout_s, on_wait=say)


def run(ctx: typer.Context, work: Callable[[Gugus], Awaitable[T]]) -> T:
    """Do work on the cluster of the global options. Raises GugusError; a name not found is answered by the nearest."""

    async def main() -> T:
        async with open_cluster(_options(ctx)) as gugus:
            try:
                return await work(gugus)
            except GugusError as error:
                error.remedy = error.remedy or await _nearest(gugus, error)
                raise

    return asyncio.run(main())


def run_task(
    ctx: typer.Context,
    output: Output,
    begin: Callable[[Gugus], Coroutine[Any, Any, Task]],
    done: str,
    *,
    wait: bool = True,
) -> None:
    """Begin a task and, with `wait`, follow it to its end. Without, its id goes to stdout.

    done: what is said when it succeeded. Raises GugusError; TaskFailed when the task did not succeed.
    """

    async def work(gugus: Gugus) -> Task:
        task = await begun(gugus, begin)
        return check(await follow(gugus, task, _options(ctx).timeout_s)) if wait else task

    task = run(ctx, work)
    if not wait and output is Output.TABLE:
        for text in warnings_of(task):
            say(text)
        say(f"begun; `gugus task follow {task.meta.name}` follows it.")
        print(task.meta.name)
    else:
        show_done(task, output, done)


async def begun(gugus: Gugus, begin: Callable[[Gugus], Coroutine[Any, Any, T]]) -> T:
    """Begin a task, and return what that returns. An interruption says that it may go on."""
    try:
        return await begin(gugus)
    except asyncio.CancelledError:
        say("interrupted; whether it was begun nobody has said yet. `gugus task list` shows what goes on.")
        raise


async def follow(gugus: Gugus, task: Task | str, timeout_s: float | None) -> Task:
    """Wait for a task's end with its progress on stderr. An interruption says that the task goes on."""
    id_ = task if isinstance(task, str) else task.meta.name
    with Progress() as progress:
        try:
            return await gugus.tasks.wait(task, progress.show, timeout_s=timeout_s)
        except asyncio.CancelledError:
            progress.stop()
            say(
                f"interrupted; the task goes on. `gugus task follow {id_}` follows it, `gugus task cancel {id_}` ends it."
            )
            raise


def timeout_of(ctx: typer.Context) -> float | None:
    """Return the --timeout that was given, in seconds."""
    return _options(ctx).timeout_s


def completer(list_: Callable[[Gugus], Awaitable[Sequence[Any]]]) -> Callable[[typer.Context, str], list[str]]:
    """Return a shell completion of the names that `list_` finds; silent when the cluster is."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        async def names() -> list[str]:
            root = ctx.find_root().params
            file, endpoints = root.get("config_file"), root.get("endpoint") or ()
            async with open_cluster(
                Options(Path(file) if file else None, tuple(endpoints), COMPLETION_TIMEOUT_S)
            ) as gugus:
                return [item.meta.name for item in await list_(gugus)]

        with suppress(GugusError, OSError):
            return [name for name in asyncio.run(names()) if name.startswith(incomplete)]
        return []

    return complete


complete_guest = completer(lambda gugus: gugus.guests.list())
complete_node = completer(lambda gugus: gugus.nodes.list())
complete_pool = completer(lambda gugus: gugus.pools.list())
complete_network = completer(lambda gugus: gugus.networks.list())
complete_project = completer(lambda gugus: gugus.projects.list())
complete_rule = completer(lambda gugus: gugus.rules.list())
complete_task = completer(lambda gugus: gugus.tasks.list())


async def _nearest(gugus: Gugus, error: GugusError) -> str:
    """Return the remedy for a name that does not exist, or "" when none is near."""
    kind, name = error.metadata.get("kind", ""), error.metadata.get("name", "")
    if error.code is not grpc.StatusCode.NOT_FOUND or not name:
        return ""
    lists: dict[str, Callable[[], Awaitable[Sequence[Any]]]] = {
        "guest": gugus.guests.list,
        "node": gugus.nodes.list,
        "pool": gugus.pools.list,
        "network": gugus.networks.list,
        "project": gugus.projects.list,
        "rule": gugus.rules.list,
        "image": gugus.pools.images,
        "task": gugus.tasks.list,
    }
    if kind not in lists:
        return ""
    with suppress(GugusError):
        names = [item.meta.name for item in await lists[kind]()]
        if name in names:  # the cluster has it: a node does not, or it has come meanwhile
            return ""
        if near := difflib.get_close_matches(name, names, n=1):
            return f'Did you mean "{near[0]}"?'
        return f"There are: {', '.join(names[:10])}." if names else f"There is no {kind} yet."
    return ""


def _options(ctx: typer.Context) -> Options:
    chosen = ctx.find_root().obj
    return chosen if isinstance(chosen, Options) else Options()
