"""Under a load of writes managers are killed and lose their power, again and again: no acknowledged write is lost.

Thirty rounds take three minutes. For a long run: GUGUS_STORE_ROUNDS=300 .venv/bin/python -m pytest tests/lab/test_45_store.py. The
figures come as one line of JSON, whatever pytest captures. A power cut of the lab takes processes and their memory, not what they wrote
and did not sync: for that there is tests/simulation.
"""

import asyncio
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from client.config import ClientConfig, load
from client.sdk import Gugus
from lab.api import Lab
from lab.cluster import operator_config
from lab.operator import Operator
from manager.store import StoreState
from tests.lab.conftest import Room
from tests.lab.copies import differences, read_copies
from tests.lab.faults import Fault, Faults
from tests.lab.history import OFF, Missing, Seen, wrong_history, wrong_watch
from tests.lab.load import (
    PATIENCE_S,
    Client,
    Doors,
    Notes,
    Watcher,
    hosts,
    make_host,
    read_all,
    remove_all,
)

ROUNDS = int(os.environ.get("GUGUS_STORE_ROUNDS", "30"))
CLIENTS = 6
HOP_SECONDS = 3.0
SETTLE_SECONDS = 1.0
"""After the last fault: what managers still had under way is done or given up."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened; `until`: a revision that all watchers came to when all writes were over."""

    notes: Notes
    watchers: dict[str, Watcher]
    faults: Sequence[Fault]
    copies: dict[str, StoreState]
    until: int


async def storm(room: Room, folder: Path) -> Outcome:
    """Let clients and watchers work while faults befall the managers; then read everything, and remove what was made."""
    config = load(operator_config(room.lab.plan))
    async with Gugus.connect(config, timeout_s=PATIENCE_S) as gugus:
        await remove_all(gugus)
        try:
            for name in hosts(ROUNDS):
                await make_host(gugus, name, folder / name)
            notes = Notes()
            watchers = {f"w{n}": Watcher(n, config, HOP_SECONDS if n == 2 else None) for n in range(3)}
            async with asyncio.TaskGroup() as group:
                watching = [group.create_task(watcher.run()) for watcher in watchers.values()]
                faults = await under_load(room.lab, config, notes)
                notes.operations += await read_all(gugus, sorted(notes.used))
                until = await mark(gugus)
                async with asyncio.timeout(PATIENCE_S):
                    while any(watcher.reached < until for watcher in watchers.values()):  # noqa: ASYNC110 (a look at three numbers)
                        await asyncio.sleep(0.05)
                for task in watching:
                    task.cancel()
            copies = await asyncio.to_thread(copies_of, room.lab)
            return Outcome(notes, watchers, faults, copies, until)
        finally:
            await remove_all(gugus)


async def under_load(lab: Lab, config: ClientConfig, notes: Notes) -> list[Fault]:
    """Have clients work from before the first fault until after the last one."""

    def begun(number: int) -> None:
        notes.round = number

    doors, stop, faults = Doors(config), asyncio.Event(), Faults(lab, begun)
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(Client(number, config, doors, notes).run(stop))
            found = await asyncio.to_thread(faults.run, ROUNDS)
            await asyncio.sleep(SETTLE_SECONDS)
            stop.set()
    finally:
        faults.end()  # the thread of one that was broken off goes on to the end of its round
        await doors.close()
    return found


async def mark(gugus: Gugus) -> int:
    """Change something that all watchers see, and return its revision."""
    name = hosts(0)[0]
    return (await gugus.nodes.cordon(name, not (await gugus.nodes.get(name)).spec.cordoned)).meta.revision


def copies_of(lab: Lab) -> dict[str, StoreState]:
    with Operator(operator_config(lab.plan)) as operator:
        return read_copies(lab, operator)


def wrong_copies(outcome: Outcome) -> str:
    """Return how the members' disks differ from one another, or from what was read at the end; "" when they do not."""
    if wrong := differences(outcome.copies):
        return wrong
    copy = next(iter(outcome.copies.values()))
    for op in outcome.notes.operations[-len(outcome.notes.used) :]:
        entry = copy.get(op.input.key)
        if isinstance(op.output, Seen) and not op.output.leaving and op.input.key != f"node/{hosts(0)[0]}":
            if entry is None or entry.mod_revision != op.output.revision:
                return f"the members have {entry}, the last read saw {op}"
        elif isinstance(op.output, Missing) and entry is not None:
            return f"the members have {entry}, the last read saw {op}"
    return ""


def figures(outcome: Outcome) -> dict[str, object]:
    """Return what is worth to be told; times in seconds."""
    operations, accepted = outcome.notes.operations, outcome.notes.accepted()
    waits = {True: list[float](), False: list[float]()}
    for fault in outcome.faults:
        waits[fault.led].append(min(ended for asked, ended in accepted if asked >= fault.at_s) - fault.at_s)
    healed = {power: [fault.healed_s for fault in outcome.faults if fault.power == power] for power in (True, False)}
    return {
        "rounds": len(outcome.faults),
        "power_cuts": sum(fault.power for fault in outcome.faults),
        "operations": len(operations),
        "writes_acknowledged": len(accepted),
        "outcomes_unknown": sum(op.output is None for op in operations),
        "objects": len(outcome.notes.used),
        "next_write_after_leader_s": spread(waits[True]),
        "next_write_after_follower_s": spread(waits[False]),
        "healed_after_kill_s": spread(healed[False]),
        "healed_after_power_cut_s": spread(healed[True]),
        "write_s": spread([ended - asked for asked, ended in accepted]),
        "watchers": {
            name: {
                "changes": sum(len(stretch.sights) for stretch in watcher.stretches),
                "streams": watcher.opened,
                "compacted": watcher.compacted,
            }
            for name, watcher in outcome.watchers.items()
        },
        "members_equal": sorted(outcome.copies),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {"p50": round(statistics.median(values), 3), "max": round(max(values), 3)}


def test_no_acknowledged_write_is_lost_while_managers_die_again_and_again(
    room: Room, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = asyncio.run(storm(room, tmp_path))
    with capsys.disabled():
        print(f"\n{json.dumps(figures(outcome))}")
    known = {f"node/{name}": OFF for name in hosts(ROUNDS)}
    assert not wrong_history(outcome.notes.operations, known)
    watched = {name: watcher.stretches for name, watcher in outcome.watchers.items()}
    assert not wrong_watch(watched, outcome.notes.operations, outcome.until)
    assert not wrong_copies(outcome)
