"""One member of a cluster in a process of its own, of whichever release its PYTHONPATH holds. Answers lines of JSON.

It imports nothing of `tests`: that would bring this checkout's release in.
"""

import asyncio
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from gugus.cluster.v1.guest_pb2 import Guest
from gugus.store.v1 import store_pb2

from manager.consensus import Consensus, ConsensusConfig, Limits, Member, Timings, TlsFiles
from manager.consensus.level import LEVEL
from manager.store import Store, StoreState
from manager.store.kinds import new

ANSWERS, sys.stdout = sys.stdout, sys.stderr  # logs go elsewhere
FAST = Timings(election_min_s=0.5, election_max_s=0.9, heartbeat_s=0.1, leader_fallback_s=0.8, retransmit_s=0.3)
SMALL = Limits(compact_after_entries=20, keep_entries=5, chunk_bytes=1_000)
TIMEOUT_S = 5.0


class Replica:
    """What the store needs of consensus."""

    def __init__(self, consensus: Consensus) -> None:
        self._consensus = consensus

    async def propose(self, payload: bytes) -> bytes:
        """Commit a payload."""
        return await self._consensus.propose(payload, TIMEOUT_S)

    async def read_barrier(self) -> None:
        """Wait for what was acknowledged."""
        await self._consensus.read_barrier(TIMEOUT_S)


class Commands:
    """What a test may ask for; every answer is JSON."""

    def __init__(self, consensus: Consensus, state: StoreState) -> None:
        self._consensus, self._state = consensus, state
        self._store = Store(Replica(consensus), state)

    async def status(self) -> dict[str, Any]:
        """Tell how we are."""
        view = self._consensus.leadership()
        return {
            "role": view.role, "level": view.level, "knows": LEVEL, "failure": view.failure,
            "applied": view.applied_index, "snapshot": view.snapshot_index, "voters": [v.name for v in view.voters],
        }  # fmt: skip

    async def state(self) -> dict[str, Any]:
        """Tell the state in a form that is equal when the states are."""
        pieces = b"".join(self._state.snapshot())
        return {"revision": self._state.revision, "sha256": hashlib.sha256(pieces).hexdigest()}

    async def create(self, name: str, fields: dict[str, str]) -> int:
        """Create a guest; with fields that only a newer release knows, where it is one."""
        guest = new(Guest, name)
        for field, value in fields.items():
            setattr(guest.spec if field == "glow" else guest, field, value)
        return (await self._store.create(guest, request_id=f"create {name}")).meta.revision

    async def label(self, name: str, label: str) -> int:
        """Change a guest as every release does: read, change a part, write."""

        def mutate(guest: Guest) -> Guest:
            guest.meta.labels[label] = "yes"
            return guest

        return (await self._store.update(Guest, name, mutate)).meta.revision

    async def get(self, name: str) -> dict[str, Any]:
        """Read a guest: its bytes as they are stored, and what a newer release sees in them."""
        guest = await self._store.require(Guest, name)
        entry = self._state.get(f"guest/{name}")
        assert entry is not None
        return {
            "shine": getattr(guest, "shine", None), "glow": getattr(guest.spec, "glow", None),
            "labels": sorted(guest.meta.labels), "value": entry.value.hex(),
        }  # fmt: skip

    async def touch(self, name: str, forced: bool = False) -> int:
        """Use what only level 2 has. A proposer looks at the level that it has applied itself, unless it is broken."""
        if self._consensus.leadership().level < 2 and not forced:
            raise PermissionError("level")
        txn = store_pb2.Txn(touches=[f"guest/{name}"])  # type: ignore[call-arg]  # the next release has it
        result = store_pb2.TxnResult.FromString(await self._consensus.propose(txn.SerializeToString(), TIMEOUT_S))
        return result.revision

    async def lead(self, name: str) -> str:
        """Hand leadership over."""
        return await self._consensus.transfer_leadership(name)

    async def add(self, name: str, port: int) -> None:
        """Add a voter."""
        await self._consensus.add_voter(Member(name, "127.0.0.1", port), TIMEOUT_S)


async def main(setup: dict[str, Any]) -> None:
    """Serve until standard input ends."""
    folder, me = Path(setup["folder"]), setup["me"]
    members = {name: Member(name, "127.0.0.1", port) for name, port in setup["ports"].items()}
    files = TlsFiles(folder / "ca.crt", folder / f"manager-{me}-c1.crt", folder / f"manager-{me}-c1.key")
    state = StoreState()
    consensus = Consensus(
        ConsensusConfig(
            me, tuple(members.values()), folder / f"data-{me}", files, "127.0.0.1", members[me].port,
            setup["joining"], FAST, SMALL,
        ),
        state,
    )  # fmt: skip
    await consensus.start()
    commands = Commands(consensus, state)
    answer("up")
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        name, arguments = json.loads(line)
        try:
            answer(await getattr(commands, name)(*arguments))
        except Exception as error:
            answer({"error": type(error).__name__, "text": str(error)})
    await consensus.stop()


def answer(value: object) -> None:
    """Say one line."""
    ANSWERS.write(json.dumps(value) + "\n")
    ANSWERS.flush()


if __name__ == "__main__":
    try:
        asyncio.run(main(json.loads(sys.argv[1])))
    except Exception as error:
        answer({"error": type(error).__name__, "text": str(error)})
        sys.exit(1)
