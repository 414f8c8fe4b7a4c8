"""The members' copies of the state, read from their disks while no member runs, and compared at one index of the log."""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from lab.api import Lab
from lab.operator import Operator
from lab.plan import NodePlan
from manager.consensus.disk import FolderDisk
from manager.consensus.offline import examine, read_state
from manager.store import StoreState
from tests.lab.faults import UNIT, WHOLE_SECONDS, is_whole

RAFT = "var/lib/gugus/manager/raft"
TRIES = 3
"""A member may make a snapshot of what came after the index that is compared; then it is done anew."""


class _UpTo:
    """A state that takes no entry behind an index."""

    def __init__(self, index: int) -> None:
        self.index, self.state = index, StoreState()

    def apply(self, index: int, payload: bytes) -> bytes:
        """Apply an entry."""
        return self.state.apply(index, payload) if index <= self.index else b""

    def snapshot(self) -> Iterator[bytes]:
        """Return the state's pieces."""
        return self.state.snapshot()

    def restore(self, pieces: Iterable[bytes]) -> None:
        """Begin with a snapshot."""
        self.state.restore(pieces)


def read_copies(lab: Lab, operator: Operator) -> dict[str, StoreState]:
    """Stop all managers, read each one's state as of one index that all of them had applied, and start them again."""
    for _ in range(TRIES):
        operator.wait("all managers to be well", lambda: is_whole(operator.status()), WHOLE_SECONDS)
        index = min(voter.status.applied_index for voter in operator.status().voters)
        with _stopped(lab):
            found = {node.name: _read(node, index) for node in lab.plan.nodes()}
        copies = {name: state for name, state in found.items() if state is not None}
        if len(copies) == len(found):
            return copies
    raise AssertionError(f"members made snapshots in each of {TRIES} tries")


def differences(copies: dict[str, StoreState]) -> str:
    """Return what is not the same in all copies, objects and remembered requests alike; "" when nothing is."""
    digests = {name: hashlib.sha256(b"".join(state.snapshot())).hexdigest() for name, state in copies.items()}
    if len(set(digests.values())) == 1:
        return ""
    objects = {name: set(state.list()[1]) for name, state in copies.items()}
    common = set.intersection(*objects.values())
    apart = {name: sorted(f"{e.key}@{e.mod_revision}" for e in found - common)[:5] for name, found in objects.items()}
    return f"{digests}; revisions { ({n: s.revision for n, s in copies.items()}) }; only there: {apart}"


def _read(node: NodePlan, index: int) -> StoreState | None:
    disk, machine = FolderDisk(node.upper / RAFT), _UpTo(index)
    try:
        remains = examine(disk)
        if remains.snapshot_index > index:
            return None
        assert remains.last_index >= index, f"{node.name} had applied {index}; its disk ends at {remains.last_index}"
        read_state(disk, machine)
    finally:
        disk.close()
    return machine.state


@contextmanager
def _stopped(lab: Lab) -> Iterator[None]:
    nodes = lab.plan.nodes()
    with ThreadPoolExecutor(len(nodes)) as pool:
        list(pool.map(lambda node: lab.exec(node.name, ["systemctl", "stop", UNIT], check=True), nodes))
        try:
            yield
        finally:
            list(pool.map(lambda node: lab.exec(node.name, ["systemctl", "start", UNIT], check=True), nodes))
