"""Hostile bytes from the network and on the disk: nothing executes, nothing hangs, the cluster goes on."""

import asyncio
import hashlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import zstandard
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.consensus.v1 import wire_pb2

from manager.consensus import Consensus, ConsensusConfig, CorruptState, Member, Role, TlsFiles, inbound, outbound
from manager.consensus.codec import MAX_FRAME_BYTES, WireError, decode_message
from manager.consensus.disk import FolderDisk
from manager.consensus.frames import framed
from manager.consensus.inbound import Listener
from manager.consensus.journal import MAX_ENTRIES
from manager.consensus.segment import entry_record
from manager.consensus.snapshot import Snapshot, write_snapshot
from manager.consensus.transport import TlsTransport
from manager.store import StoreState, Txn
from manager.store.kinds import new
from tests.unit.consensus.conftest import FAST, Ca, Cluster, free_port
from tests.unit.consensus.hostile import Client, Trap, frames_with
from tests.unit.consensus.memory import memory_core
from tests.unit.consensus.test_cluster import leader_of

NAMES = ["n1", "n2", "n3"]
HELLO_REFUSED = "says that it is"


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path)


@pytest.fixture
async def healthy(cluster: Cluster) -> Cluster:
    for name in NAMES:
        await cluster.start(name, NAMES)
    await write(cluster, b"before")
    return cluster


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what happens in another thread's loop
            await asyncio.sleep(0.02)


async def write(cluster: Cluster, payload: bytes, timeout_s: float = 15.0) -> None:
    """Write through whoever leads, and see it applied everywhere."""
    async with asyncio.timeout(timeout_s):
        while True:
            leaders = [m for m in cluster.up.values() if m.leadership().role is Role.LEADER]
            with suppress(Exception):
                await leaders[0].propose(payload, 2)
                break
            await asyncio.sleep(0.05)
        await until(lambda: all(payload in cluster.logs[name].applied for name in cluster.up))


def alive(cluster: Cluster) -> None:
    for name, member in cluster.up.items():
        view = member.leadership()
        assert view.role is not Role.STOPPED, f"{name}: {view.failure}"
    logs = [log.applied for name, log in cluster.logs.items() if name in cluster.up]
    assert all(log == logs[0] for log in logs)


# -- the network: who


def certificates(folder: Path, ca: Ca) -> dict[str, TlsFiles | None]:
    other = folder / "other-ca"
    other.mkdir()
    foreign = Ca(other).issue("n2")
    return {
        "no certificate": None,
        "another CA": foreign,
        "another cluster": ca.issue("n2", cluster="c2"),
        "a node": ca.issue("n2", role="node"),
        "an operator": ca.issue("n2", role="operator"),
        "no voter": ca.issue("n9"),
    }


async def test_pickles_of_anybody_who_is_no_voter_are_refused(healthy: Cluster, trap: Trap) -> None:
    ports = {name: healthy.member(name).port for name in NAMES}
    reasons: dict[str, set[str]] = {}
    with trap:
        for who, files in certificates(healthy.folder, healthy.ca).items():
            for data in trap.pickles()[-2:]:
                for said in (data, framed(data), *(framed(frame) for frame in frames_with(data)[-2:])):
                    reasons.setdefault(who, set()).add(await refusal(ports["n1"], files, healthy, said))
        await write(healthy, b"after")
    assert reasons["no certificate"] == reasons["another CA"] == {""}
    assert reasons["another cluster"] == {"its certificate says manager n2, not a manager of cluster c1"}
    assert reasons["a node"] == {"its certificate says node n2, not a manager of cluster c1"}
    assert reasons["an operator"] == {"its certificate says operator n2, not a manager of cluster c1"}
    assert all(reasons["no voter"]), "of a manager that is no voter no more than its Hello is read"
    alive(healthy)


async def refusal(port: int, files: TlsFiles | None, cluster: Cluster, said: bytes) -> str:
    with suppress(ConnectionError, ssl.SSLError):
        async with Client(port, files, cluster.folder / "ca.crt") as client:
            client.raw(said)
            return await client.answer()
    return ""


async def test_pickles_of_a_member_are_data_at_most(healthy: Cluster, trap: Trap) -> None:
    """A stolen certificate of n2: every byte field of every frame, as the hello and behind a right one."""
    files, ca = healthy.ca.issue("n2"), healthy.folder / "ca.crt"
    port = healthy.member("n1").port
    with trap:
        for data in trap.pickles():
            for frame in frames_with(data):
                async with Client(port, files, ca) as client:
                    client.frame(frame)
                    assert await client.answer(), "no hello, no conversation"
                async with Client(port, files, ca) as client:
                    client.hello("n2", "n1")
                    client.frame(frame)
                    client.frame(b"")
                    assert await client.answer(), "at the latest the empty frame is refused"
        await write(healthy, b"after")
    alive(healthy)


async def test_pickles_that_a_usurping_member_has_committed_stay_data(healthy: Cluster, trap: Trap) -> None:
    """With n2's key one can pretend to lead and have anything put into the log: outside of Raft's promises, but no code."""
    files, ca = healthy.ca.issue("n2"), healthy.folder / "ca.crt"
    with trap:
        for data in trap.pickles():
            view = healthy.up["n1"].leadership()
            for frame in frames_with(data, view.term + 1, view.last_log_index):
                async with Client(healthy.member("n1").port, files, ca) as client:
                    client.hello("n2", "n1")
                    client.frame(frame)
                    client.frame(b"")
                    await client.answer()
        await write(healthy, b"after")
    alive(healthy)


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        ({"sender": "n3"}, "says that it is 'n3'"),
        ({"recipient": "n3"}, "calling 'n3'"),
        ({"cluster_id": "c2"}, HELLO_REFUSED),
        ({"level": 0}, "n2: its release knows levels up to 0, ours needs 1 at least"),
        ({"level": 9, "oldest_level": 2}, "n2: its release needs level 2 at least, ours knows up to 1"),
    ],
)
async def test_a_hello_that_does_not_fit_is_refused_with_the_reason(
    cluster: Cluster, hello: dict[str, object], reason: str
) -> None:
    await cluster.start("n1", ["n1", "n2", "n3"])
    async with Client(cluster.member("n1").port, cluster.ca.issue("n2"), cluster.folder / "ca.crt") as client:
        client.hello(**{"sender": "n2", "recipient": "n1", **hello})  # type: ignore[arg-type]
        assert reason in await client.answer()


# -- the network: how much, and how slowly


async def test_silent_strangers_are_bounded_in_number_and_time_and_take_no_place(healthy: Cluster) -> None:
    port = healthy.member("n1").port
    actor = healthy.up["n1"]._actor
    assert actor is not None
    assert actor._transport is not None
    listener = actor._transport._listener
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
    try:
        for half in silent[:10]:
            half.sendall(b"\x16\x03\x01\x02\x00")  # a handshake that has begun
        await asyncio.sleep(1.0)
        assert len(listener._greeting) <= inbound.MAX_GREETING
        await healthy.stop("n3")
        await healthy.start("n3", NAMES)
        await write(healthy, b"in between", 8)
        await asyncio.sleep(inbound.GREETING_TIMEOUT_S)
        assert not listener._greeting, "their time is over"
    finally:
        for stranger in silent:
            stranger.close()
    alive(healthy)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"\x7f\xff\xff\xff", f"frame: {0x7FFFFFFF} bytes, at most {MAX_FRAME_BYTES}"),
        (framed(b""), "where a message is expected"),
        (framed(b"\x80\x04\x95"), "frame: "),
        (framed(b"\x0a\x00"), "frame: hello where a message is expected"),
    ],
)
async def test_a_member_that_sends_nonsense_is_told_so_and_closed(cluster: Cluster, said: bytes, reason: str) -> None:
    await cluster.start("n1", ["n1", "n2"])
    async with Client(cluster.member("n1").port, cluster.ca.issue("n2"), cluster.folder / "ca.crt") as client:
        client.hello("n2", "n1")
        client.raw(said)
        assert reason in await client.answer()


async def test_before_the_hello_a_frame_is_small(cluster: Cluster) -> None:
    await cluster.start("n1", ["n1", "n2"])
    async with Client(cluster.member("n1").port, cluster.ca.issue("n2"), cluster.folder / "ca.crt") as client:
        client.raw((2_000).to_bytes(4, "big"))
        assert await client.answer() == "frame: 2000 bytes, at most 1024"


async def test_half_a_frame_has_its_time(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound, "FRAME_TIMEOUT_S", 0.3)
    await cluster.start("n1", ["n1", "n2"])
    async with Client(cluster.member("n1").port, cluster.ca.issue("n2"), cluster.folder / "ca.crt") as client:
        client.hello("n2", "n1")
        client.raw(framed(bytes(100))[:50])
        assert "the rest of a frame did not come within 0.3 s" in await client.answer(2)


async def test_frames_that_come_without_a_break_never_run_out_of_time(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every piece that arrives ends in the middle of a frame, and each frame is complete in time."""
    monkeypatch.setattr(inbound, "FRAME_TIMEOUT_S", 0.3)
    await cluster.start("n1", ["n1", "n2"])
    frame = framed(wire_pb2.Frame(vote=wire_pb2.Vote(term=0)).SerializeToString())
    async with Client(cluster.member("n1").port, cluster.ca.issue("n2"), cluster.folder / "ca.crt") as client:
        client.hello("n2", "n1")
        client.raw(frame[:3])
        for _ in range(20):
            await asyncio.sleep(0.05)
            client.raw(frame[3:] + frame[:3])
        with pytest.raises(TimeoutError):
            await client.answer(0.1)


def test_a_removed_member_cannot_make_the_leader_step_down() -> None:
    core = memory_core("n1", ["n1"], lambda *_: None, 1)
    while not core.is_leader:
        core.turn()
    for kind in ("higher_term", "append_entries", "request_vote", "timeout_now"):
        frame = wire_pb2.Frame()
        getattr(frame, kind).term = core.term + 5
        message = decode_message(frame.SerializeToString())
        assert message is not None
        core.receive("n2", message)
        core.turn()
    assert core.is_leader


async def test_a_newer_connection_of_a_member_replaces_the_older(cluster: Cluster) -> None:
    await cluster.start("n1", ["n1", "n2"])
    port, files, ca = cluster.member("n1").port, cluster.ca.issue("n2"), cluster.folder / "ca.crt"
    async with Client(port, files, ca) as older, Client(port, files, ca) as newer:
        older.hello("n2", "n1")
        await asyncio.sleep(0.2)
        newer.hello("n2", "n1")
        assert await older.answer() == ""
        newer.frame(b"")
        assert await newer.answer()


async def test_frames_of_a_newer_release_are_passed_over(cluster: Cluster) -> None:
    await cluster.start("n1", ["n1", "n2"])
    newer_kind = b"\xfa\x07\x03new"  # field 127, length-delimited
    newer_field = wire_pb2.Frame(vote=wire_pb2.Vote(term=0)).SerializeToString()
    async with Client(cluster.member("n1").port, cluster.ca.issue("n2"), cluster.folder / "ca.crt") as client:
        client.hello("n2", "n1")
        client.frame(newer_kind)
        client.frame(newer_field[:1] + bytes([len(newer_kind)]) + newer_kind)
        with pytest.raises(TimeoutError):
            await client.answer(0.5)


def test_a_million_tiny_entries_are_refused_at_once() -> None:
    tiny = wire_pb2.Entry(index=0).SerializeToString()
    body = (b"\x2a" + bytes([len(tiny)]) + tiny) * ((MAX_FRAME_BYTES - 100) // (len(tiny) + 2))
    frame = b"\x12" + _varint(len(body)) + body
    started = time.perf_counter()
    with pytest.raises(WireError, match=f"entries, at most {MAX_ENTRIES}"):
        decode_message(frame)
    assert time.perf_counter() - started < 1.0


def _varint(value: int) -> bytes:
    low = value & 0x7F
    return bytes([low]) if value < 0x80 else bytes([low | 0x80]) + _varint(value >> 7)


class Lines:
    """A logger, whatever level other tests have set: the event and the reason of each line, which must not come twice."""

    def __init__(self) -> None:
        self.lines: dict[str, str] = {}

    def info(self, event: str, *, reason: str, **_: object) -> None:
        assert event not in self.lines, f"twice: {event}"
        self.lines[event] = reason

    warning = info


async def test_a_removed_member_that_goes_on_dialling_is_cheap_and_quiet(cluster: Cluster) -> None:
    one = await cluster.start("n1", ["n1"])
    await leader_of(cluster)  # before that it listens to strangers
    called: list[str] = []
    refused = Listener.refused

    def counted(listener: Listener, peer: str, reason: str) -> None:
        called.append(reason)
        refused(listener, peer, reason)

    logs = Lines()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Listener, "refused", counted)
        patch.setattr(inbound, "_log", logs)
        patch.setattr(outbound, "_log", logs)
        async with dialling(cluster, "n9", ["n1"]) as connected:
            await asyncio.sleep(4)
    assert set(called) == {"n9 is no voter of this cluster"}
    assert 3 <= len(called) <= 8, "pauses grow: 0.05, 0.1, 0.2, ... up to ten seconds"
    assert len(connected) == len(called)
    assert sorted(logs.lines) == ["no raft connection", "raft connection refused"], "each side says it once"
    assert logs.lines["no raft connection"] == "refused: n9 is no voter of this cluster"
    await one.propose(b"undisturbed", 5)


@asynccontextmanager
async def dialling(cluster: Cluster, name: str, contacts: list[str]) -> AsyncIterator[list[str]]:
    """Run the transport of a member alone; yield whom it reached."""
    connected: list[str] = []
    config = ConsensusConfig(
        name,
        (cluster.member(name),),
        cluster.folder,
        cluster.ca.issue(name),
        "127.0.0.1",
        cluster.member(name).port,
    )
    transport = TlsTransport(config, lambda *_: None, connected.append, lambda _: None, lambda *_: None, lambda _: None)
    transport.set_contacts({contact: cluster.member(contact) for contact in contacts})
    try:
        yield connected
    finally:
        await transport.stop()


async def test_who_was_refused_is_tried_again_at_once_when_it_calls(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A joining member is refused until the leader adds it; then nobody waits for a pause to end."""
    monkeypatch.setattr(outbound, "BACKOFF_FIRST_S", 30.0)
    one = await cluster.start("n1", ["n1"])
    await write(cluster, b"alone")
    await cluster.start("n2", ["n1", "n2"], joining=True)
    await asyncio.sleep(0.3)
    async with asyncio.timeout(5):
        await one.add_voter(cluster.member("n2"), 5)


# -- the disk


def config(folder: Path, ca: Ca) -> ConsensusConfig:
    port = free_port()
    return ConsensusConfig(
        "n1", (Member("n1", "127.0.0.1", port),), folder / "data", ca.issue("n1"), "127.0.0.1", port, timings=FAST
    )


async def started(config: ConsensusConfig) -> tuple[Consensus, StoreState]:
    state = StoreState()
    consensus = Consensus(config, state)
    await consensus.start()
    return consensus, state


@pytest.fixture
async def stopped(tmp_path: Path) -> ConsensusConfig:
    """A member that has written something and stopped."""
    made = config(tmp_path, Ca(tmp_path))
    consensus, _ = await started(made)
    await until(lambda: consensus.leadership().role is Role.LEADER)
    for name in ("a", "b"):
        await consensus.propose(Txn().put(new(Guest, name)).message.SerializeToString(), 5)
    await consensus.stop()
    return made


Damage = Callable[[bytes, bytes], bytes]


@pytest.mark.parametrize(
    "damage",
    [
        lambda pickled, _: pickled,
        lambda pickled, data: data + pickled,
        lambda pickled, data: pickled + data[len(pickled) :],
        lambda pickled, data: data[:40] + pickled + data[40 + len(pickled) :],
    ],
    ids=["instead", "behind", "over the head", "in the middle"],
)
async def test_a_pickle_in_any_file_of_the_data_folder_is_not_unpickled(
    stopped: ConsensusConfig, trap: Trap, damage: Damage
) -> None:
    intact = {file: file.read_bytes() for file in stopped.data_dir.iterdir()}
    assert {"journal-00000001", "snapshot"} <= {file.name for file in intact}
    for file, data in intact.items():
        file.write_bytes(damage(trap.pickles()[-1], data))
        with trap:
            refused = await why_not_started(stopped)
        assert file.name in refused or (not refused and file.name != "snapshot"), "a spare, or a torn tail that is cut"
        put_back(stopped.data_dir, intact)


def put_back(folder: Path, intact: dict[Path, bytes]) -> None:
    for file in folder.iterdir():
        file.unlink()
    for file, data in intact.items():
        file.write_bytes(data)


async def why_not_started(config: ConsensusConfig) -> str:
    """Start a member and stop it again; return why it refused, "" when it came up with all that it had."""
    try:
        consensus, state = await started(config)
    except CorruptState as error:
        return str(error)
    try:
        await until(lambda: [entry.key for entry in state.list()[1]] == ["guest/a", "guest/b"])
    finally:
        await consensus.stop()
    return ""


async def test_well_formed_files_full_of_pickles_are_refused(stopped: ConsensusConfig, trap: Trap) -> None:
    """Every checksum is right: whoever wrote them knew how."""
    pickled = trap.pickles()[-1]
    journal = stopped.data_dir / "journal-00000001"
    intact = {file: file.read_bytes() for file in stopped.data_dir.iterdir()}
    end = len(intact[journal].rstrip(b"\0"))
    command = wire_pb2.Command(data=pickled).SerializeToString()
    for entry in (pickled, b"\x00" + pickled, b"\x00" + command):
        record = entry_record((entry, 5, 9), 5, 0)
        journal.write_bytes(intact[journal][:end] + record + bytes(10_000))
        with trap, suppress(ValueError):
            await why_not_started(stopped)
        put_back(stopped.data_dir, intact)
    disk = FolderDisk(stopped.data_dir)
    write_snapshot(disk, "snapshot", Snapshot(1, 0, stopped.voters), [pickled])
    disk.close()
    with trap, pytest.raises(CorruptState, match="snapshot: snapshot of the store"):
        await started(stopped)


@pytest.mark.parametrize("size", [4 * 1024 * 1024 + 1, 1 << 30])
async def test_a_piece_that_is_a_bomb_is_refused_by_its_announced_size(stopped: ConsensusConfig, size: int) -> None:
    packer = zstandard.ZstdCompressor().compressobj(size=size)
    bomb = bytearray()
    for _ in range(size // (1 << 20)):
        bomb += packer.compress(bytes(1 << 20))
    bomb += packer.compress(bytes(size % (1 << 20))) + packer.flush()
    assert len(bomb) < 200_000
    path = stopped.data_dir / "snapshot"
    disk = FolderDisk(stopped.data_dir)
    write_snapshot(disk, "snapshot", Snapshot(1, 0, stopped.voters), [])
    disk.close()
    body = path.read_bytes()[:-36] + len(bomb).to_bytes(4, "big") + bytes(bomb) + bytes(4)
    path.write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(CorruptState, match=r"snapshot: a piece before byte \d+ is too large"):
        await started(stopped)
