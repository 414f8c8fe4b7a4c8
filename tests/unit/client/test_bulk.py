"""Many guests at once: who is meant, in what order, and what is known of each at any moment."""

import asyncio
from typing import Any

import pytest
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER, GUEST_KIND_VIRTUAL_MACHINE
from gugus.agent.v1.task_pb2 import TaskState
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.task_pb2 import Task

from client.bulk import Result, Runner, Selection, in_boot_order, select
from client.tasks import Tasks
from common.errors import GugusError, precondition, to_status


def _guest(name: str, *tags: str, order: int = 0, **labels: str) -> Guest:
    guest = Guest()
    guest.meta.name = name
    guest.meta.labels.update(labels)
    guest.spec.kind = GUEST_KIND_CONTAINER if name.startswith("c") else GUEST_KIND_VIRTUAL_MACHINE
    guest.spec.tags.extend(tags)
    guest.spec.boot.order = order
    guest.spec.project = "shop" if "shop" in tags else ""
    guest.status.node = f"n{len(name)}"
    guest.spec.template = "template" in tags
    return guest


ALL = [
    _guest("b", "web", "shop", tier="front"),
    _guest("a", "web"),
    _guest("c", "db", tier="back"),
    _guest("ct", "web", "template"),
]


@pytest.mark.parametrize(
    ("selection", "names"),
    [
        (Selection(names=("b", "a", "b")), ["a", "b"]),
        (Selection(names=("ct",)), ["ct"]),
        (Selection(tags=("web",)), ["a", "b"]),
        (Selection(tags=("web", "shop")), ["b"]),
        (Selection(node="n1"), ["a", "b", "c"]),
        (Selection(project="shop"), ["b"]),
        (Selection(labels={"tier": "back"}), ["c"]),
        (Selection(labels={"tier": ""}), ["b", "c"]),
        (Selection(kind=GUEST_KIND_CONTAINER), ["c"]),
        (Selection(tags=("web",), labels={"tier": "back"}), []),
        (Selection(everything=True), ["a", "b", "c"]),
    ],
)
def test_those_are_meant_that_are_named_or_match_all_that_is_set(selection: Selection, names: list[str]) -> None:
    assert [guest.meta.name for guest in select(ALL, selection)] == names


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        (Selection(), "GUEST: is missing. Name guests, or select them with --tag"),
        (Selection(names=("a",), tags=("web",)), "stands beside what selects guests"),
        (Selection(everything=True, node="n1"), "--all: says nothing beside what selects some"),
        (Selection(names=("x",)), 'guest "x" does not exist'),
        (Selection(names=("x", "a", "y")), "guests x, y do not exist"),
    ],
)
def test_a_selection_that_means_nothing_clear_is_refused(selection: Selection, said: str) -> None:
    with pytest.raises(GugusError) as caught:
        select(ALL, selection)
    assert said in str(caught.value)


def test_guests_start_by_their_numbers_and_those_without_last_and_stop_the_other_way() -> None:
    guests = [_guest("a"), _guest("b", order=2), _guest("c", order=1), _guest("d", order=2)]
    up = [[guest.meta.name for guest in group] for group in in_boot_order(guests, up=True)]
    assert up == [["c"], ["b", "d"], ["a"]]
    assert [[guest.meta.name for guest in group] for group in in_boot_order(guests, up=False)] == up[::-1]


class _Tasks(Tasks):
    """Tasks that end when they are told to."""

    def __init__(self) -> None:
        self.gates: dict[str, asyncio.Event] = {}
        self.open = 0
        self.most = 0

    async def begin(self, name: str) -> Task | None:
        self.open += 1
        self.most = max(self.most, self.open)
        if name == "refused":
            self.open -= 1
            raise precondition("GUEST_IS_TEMPLATE", "it is a template.", remedy="Clone it.")
        if name == "same":
            self.open -= 1
            return None
        task = Task(state=TaskState.TASK_STATE_RUNNING)
        task.meta.name = f"task-{name}"
        return task

    async def wait(self, task: Any, on_progress: Any = None, *, timeout_s: float | None = None) -> Task:
        name = task.meta.name.removeprefix("task-")
        if name in self.gates:
            await self.gates[name].wait()
        else:
            await asyncio.sleep(0)
        self.open -= 1
        task.state = TaskState.TASK_STATE_FAILED if name == "doomed" else TaskState.TASK_STATE_SUCCEEDED
        if name == "doomed":
            task.error.CopyFrom(to_status(precondition("FULL", "the pool is full.")))
        return task  # type: ignore[no-any-return]


def _results(runner: Runner) -> list[Result]:
    return [outcome.result for outcome in runner.outcomes.values()]


async def test_each_ends_in_its_own_result_and_none_holds_the_others_up() -> None:
    tasks = _Tasks()
    outcomes = await Runner(tasks, tasks.begin, parallel=2).run([["a", "doomed", "refused"], ["same", "z"]])
    assert [(o.name, o.result, o.task, o.reason) for o in outcomes] == [
        ("a", Result.DONE, "task-a", ""),
        ("doomed", Result.FAILED, "task-doomed", "the pool is full."),
        ("refused", Result.FAILED, "", "it is a template. Clone it."),
        ("same", Result.UNCHANGED, "", ""),
        ("z", Result.DONE, "task-z", ""),
    ]


async def test_no_more_are_under_way_than_allowed() -> None:
    tasks = _Tasks()
    await Runner(tasks, tasks.begin, parallel=3).run([[f"g{i}" for i in range(20)]])
    assert tasks.most == 3


async def test_a_group_waits_for_the_one_before_it_and_its_pause() -> None:
    tasks = _Tasks()
    tasks.gates["a"] = asyncio.Event()
    runner = Runner(tasks, tasks.begin)
    work = asyncio.create_task(runner.run([["a"], ["b"]], [0.05]))
    await asyncio.sleep(0.02)
    assert _results(runner) == [Result.UNDER_WAY, Result.WAITING]
    tasks.gates["a"].set()
    await asyncio.sleep(0.02)
    assert _results(runner) == [Result.DONE, Result.WAITING]
    await work
    assert _results(runner) == [Result.DONE, Result.DONE]


async def test_an_interruption_leaves_a_clear_account() -> None:
    tasks = _Tasks()
    tasks.gates["b"] = asyncio.Event()
    runner = Runner(tasks, tasks.begin, parallel=2)
    work = asyncio.create_task(runner.run([["a", "b"], ["c"]]))
    await asyncio.sleep(0.05)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    told = {name: (outcome.result, outcome.task) for name, outcome in runner.outcomes.items()}
    assert told == {
        "a": (Result.DONE, "task-a"),
        "b": (Result.UNDER_WAY, "task-b"),
        "c": (Result.WAITING, ""),
    }


async def test_without_waiting_all_are_only_begun() -> None:
    tasks = _Tasks()
    outcomes = await Runner(tasks, tasks.begin, wait=False).run([["a", "doomed"]])
    assert [outcome.result for outcome in outcomes] == [Result.UNDER_WAY, Result.UNDER_WAY]
