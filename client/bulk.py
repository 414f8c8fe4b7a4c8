"""Many guests at once: which ones, in what order, so many at a time, and what became of each.

Selecting and ordering are pure; `Runner` does the work through whatever it is given, and knows at every moment what became
of whom, so that an interruption leaves a clear account.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from gugus.agent.v1.guest_pb2 import GuestKind
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.task_pb2 import Task

from client.tasks import Tasks, check
from common.errors import GugusError, invalid, not_found
from common.waves import waves

DEFAULT_PARALLEL = 4
"""Guests under way at the same time: enough to be quick, and few enough for the disks of one host."""

MAX_PARALLEL = 64

LAST = 2**32
"""Place in the order of guests that have none: after all others."""


@dataclass(frozen=True)
class Selection:
    """Which guests are meant: those of `names`, or those that match everything else that is set."""

    names: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    node: str = ""
    project: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    kind: GuestKind.ValueType = GuestKind.GUEST_KIND_UNSPECIFIED
    everything: bool = False

    @property
    def filters(self) -> bool:
        """Whether it selects by anything but names."""
        return bool(self.tags or self.node or self.project or self.labels or self.kind or self.everything)

    @property
    def single(self) -> str:
        """The one guest that is named; "" when it is not exactly one."""
        return self.names[0] if len(self.names) == 1 and not self.filters else ""


def examine(selection: Selection) -> None:
    """Raise INVALID_ARGUMENT when a selection says nothing, or both names guests and selects them."""
    narrowed = selection.tags or selection.node or selection.project or selection.labels or selection.kind
    if not selection.names and not selection.filters:
        raise invalid(
            "GUEST",
            "is missing.",
            remedy="Name guests, or select them with --tag, --node, --project, --label, --kind or --all.",
        )
    if selection.names and selection.filters:
        raise invalid("GUEST", "stands beside what selects guests.", remedy="Give names, or --tag and its like.")
    if selection.everything and narrowed:
        raise invalid("--all", "says nothing beside what selects some.", remedy="Leave one of them out.")


def select(guests: Sequence[Guest], selection: Selection) -> list[Guest]:
    """Return the guests that are meant, by name. Guests that are only selected, not named, are no templates.

    Raises INVALID_ARGUMENT, and GUEST_NOT_FOUND naming every guest that does not exist.
    """
    examine(selection)
    by_name = {guest.meta.name: guest for guest in guests}
    if selection.names:
        if missing := [name for name in dict.fromkeys(selection.names) if name not in by_name]:
            error = not_found("guest", missing[0])
            if missing[1:]:
                error.message = f"guests {', '.join(missing)} do not exist."
            raise error
        return [by_name[name] for name in sorted(set(selection.names))]
    return [guest for name, guest in sorted(by_name.items()) if _matches(guest, selection)]


def in_boot_order(guests: Sequence[Guest], *, up: bool) -> list[list[Guest]]:
    """Return guests in the groups in which they are started one after another (`up`), or stopped.

    Those of one number go together, from 1 on, and those without one last, but each after those that it starts after; stopping goes the
    opposite way (BootSpec.order, BootSpec.after).
    """
    by_name = {guest.meta.name: guest for guest in guests}
    ranks = {name: guest.spec.boot.order or LAST for name, guest in by_name.items()}
    groups = waves({name: guest.spec.boot.after for name, guest in by_name.items()}, ranks)
    return [[by_name[name] for name in group] for group in (groups if up else reversed(groups))]


class Result(StrEnum):
    """What became of one."""

    WAITING = "not begun"
    UNDER_WAY = "goes on"
    DONE = "done"
    UNCHANGED = "unchanged"
    FAILED = "failed"


@dataclass
class Outcome:
    """What became of one: its result, its task's id when there is one, and why it failed."""

    name: str
    result: Result = Result.WAITING
    task: str = ""
    error: GugusError | None = None

    @property
    def reason(self) -> str:
        """Why it failed, with what to do; "" when it did not."""
        return str(self.error) if self.error else ""


Begin = Callable[[str], Awaitable[Task | None]]
"""Begins the work on one: its task, or None when there was nothing to do."""


class Runner:
    """Does something with many, group by group, `parallel` at a time. `outcomes` tells at any time how each stands."""

    def __init__(self, tasks: Tasks, begin: Begin, *, parallel: int = DEFAULT_PARALLEL, wait: bool = True) -> None:
        self._tasks, self._begin, self._wait = tasks, begin, wait
        self._slots = asyncio.Semaphore(parallel)
        self.outcomes: dict[str, Outcome] = {}
        self.on_change: Callable[[Outcome, Task | None], None] = lambda outcome, task: None

    async def run(self, groups: Sequence[Sequence[str]], pauses_s: Sequence[float] = ()) -> list[Outcome]:
        """Return the outcomes in the order of the groups. A failure holds nothing else up.

        pauses_s: how long to wait after each group before the next one is begun.
        """
        self.outcomes = {name: Outcome(name) for group in groups for name in group}
        for number, group in enumerate(groups):
            async with asyncio.TaskGroup() as together:
                for name in group:
                    together.create_task(self._one(self.outcomes[name]))
            if number < min(len(groups) - 1, len(pauses_s)) and pauses_s[number]:
                await asyncio.sleep(pauses_s[number])
        return list(self.outcomes.values())

    async def _one(self, outcome: Outcome) -> None:
        async with self._slots:
            try:
                outcome.result = Result.UNDER_WAY
                self.on_change(outcome, None)
                task = await self._begin(outcome.name)
                outcome.task = task.meta.name if task is not None else ""
                if task is None:
                    outcome.result = Result.UNCHANGED
                elif self._wait:
                    check(await self._tasks.wait(task, lambda task: self.on_change(outcome, task)))
                    outcome.result = Result.DONE
            except GugusError as error:
                outcome.result, outcome.error = Result.FAILED, error
            self.on_change(outcome, None)


def _matches(guest: Guest, selection: Selection) -> bool:
    spec = guest.spec
    return (
        not spec.template
        and set(selection.tags) <= set(spec.tags)
        and selection.node in ("", guest.status.node)
        and selection.project in ("", spec.project)
        and selection.kind in (GuestKind.GUEST_KIND_UNSPECIFIED, spec.kind)
        and all(
            key in guest.meta.labels and value in ("", guest.meta.labels[key])
            for key, value in selection.labels.items()
        )
    )
