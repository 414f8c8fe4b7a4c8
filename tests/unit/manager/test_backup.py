"""Backups: one revision while writes go on, sealed, verified; and whatever is wrong with a file is said in words."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from gugus.cluster.v1 import backup_pb2, backup_pb2_grpc
from gugus.cluster.v1.backup_pb2 import BackupMessage
from gugus.cluster.v1.event_pb2 import Event
from gugus.store.v1 import store_pb2

from client.backup import seal, take
from client.backup.file import DIGEST_BYTES, PREAMBLE, inspect, read
from client.sdk import Gugus
from common.errors import GugusError, from_rpc_error
from common.identity.names import Role, any_of
from common.rpc.channel import open_channel
from manager.events import event
from manager.store import StoreState, Txn
from tests.unit.manager.cluster import Cluster, running

PASSPHRASE = "correct horse battery"


@pytest.fixture(autouse=True)
def cheap_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deriving keys is slow on purpose, and not what is tested."""
    monkeypatch.setattr(seal, "COST", 2**4)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path) as cluster:
        yield cluster


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def state_of(file: Path, passphrase: str = PASSPHRASE) -> StoreState:
    """Return the state that a file holds."""
    state = StoreState()
    state.restore([message.state for message in read(file, passphrase) if message.WhichOneof("content") == "state"])
    return state


async def test_backup_is_one_revision_while_writes_go_on(cluster: Cluster, tmp_path: Path) -> None:
    async def write() -> None:
        while True:
            pair = event("test/pair", "LEFT", "x" * 3000), event("test/pair", "RIGHT", "x" * 3000)
            await cluster.store.txn(Txn().put(pair[0]).put(pair[1]))

    writers = [asyncio.create_task(write()) for _ in range(4)]
    async with cluster.client() as gugus:
        for number in range(5):
            await asyncio.sleep(0.05)
            marked = event("test/mark", f"MARK_{number}", "acknowledged before the backup")
            at = (await cluster.store.txn(Txn().put(marked))).revision
            taken = await take.take(gugus, tmp_path / f"backup-{number}", PASSPHRASE)
            state = state_of(taken.path)
            assert state.revision == taken.header.revision >= at
            assert state.get(f"event/{marked.meta.name}") is not None
            events = [Event.FromString(entry.value).reason for entry in state.list("event/")[1]]
            assert events.count("LEFT") == events.count("RIGHT"), "a transaction is in it as a whole or not at all"
    for writer in writers:
        writer.cancel()
        with suppress(asyncio.CancelledError):
            await writer


async def test_file_is_private_sealed_and_replaced_only_by_force(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    async with cluster.client() as gugus:
        await take.take(gugus, file, PASSPHRASE)
        assert file.stat().st_mode & 0o777 == 0o600
        data = file.read_bytes()
        assert data.startswith(PREAMBLE)
        for secret in (b"PRIVATE KEY", b"manager_lease", b"node/n1"):
            assert secret not in data
        with pytest.raises(GugusError) as caught:
            await take.take(gugus, file, PASSPHRASE)
        assert caught.value.reason == "BACKUP_ALREADY_EXISTS"
        assert file.read_bytes() == data
        await take.take(gugus, file, PASSPHRASE, force=True)
    assert file.read_bytes() != data
    assert names(tmp_path) == {"backup", "n1", "operator"}
    (identity, *_) = read(file, PASSPHRASE)
    assert identity.identity.ca_key == cluster.authority.key_pem
    found = inspect(file)
    assert (found.header.backup.cluster_name, found.header.backup.cluster_id) == ("test", cluster.cluster_id)
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


async def test_a_host_gets_no_backup(cluster: Cluster) -> None:
    credentials = cluster.pki("n1", Role.NODE).credentials(Role.NODE)
    channel = open_channel(cluster.endpoint(), credentials, verify=any_of(Role.MANAGER, cluster.cluster_id))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in backup_pb2_grpc.BackupServiceStub(channel).Backup(backup_pb2.BackupRequest()):
            pass
    await channel.close()
    assert from_rpc_error(caught.value).reason == "ROLE_NOT_ALLOWED"


# Files without a cluster.


def messages(pieces: int = 3, revision: int = 7) -> Iterator[BackupMessage]:
    header = backup_pb2.BackupHeader(cluster_name="test", cluster_id="abc", revision=revision)
    yield BackupMessage(header=header)
    yield BackupMessage(identity=backup_pb2.BackupIdentity(ca_key=b"secret"))
    end, digest = backup_pb2.BackupEnd(), hashlib.sha256()
    for number in range(pieces):
        piece = store_pb2.Snapshot(version=1, revision=revision)
        piece.objects.add(key=f"event/{number}", value=b"x" * 1000)
        data = piece.SerializeToString()
        digest.update(data)
        end.pieces, end.bytes = end.pieces + 1, end.bytes + len(data)
        yield BackupMessage(state=data)
    end.sha256 = digest.digest()
    yield BackupMessage(end=end)


class FakeBackups:
    """A manager whose stream breaks off: `rounds` are what each attempt sends."""

    def __init__(self, *rounds: list[BackupMessage]) -> None:
        self._rounds = rounds

    async def stream(self) -> AsyncGenerator[BackupMessage, None]:
        for sent in self._rounds:
            for message in sent:
                yield message


def gugus(*rounds: list[BackupMessage]) -> Gugus:
    fake: Any = type("Fake", (), {"backups": FakeBackups(*rounds)})()
    return fake  # type: ignore[no-any-return]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    asyncio.run(take.take(gugus(list(messages())), tmp_path / "backup", PASSPHRASE))
    return tmp_path / "backup"


async def test_stream_that_breaks_is_begun_anew(tmp_path: Path) -> None:
    broken = list(messages(revision=6))[:3]
    taken = await take.take(gugus(broken, broken, list(messages())), tmp_path / "backup", PASSPHRASE)
    assert taken.header.revision == 7
    assert len(state_of(taken.path).list("event/")[1]) == 3


async def test_stream_that_always_breaks_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(GugusError) as caught:
        await take.take(gugus(*[list(messages())[:3]] * 5), tmp_path / "backup", PASSPHRASE)
    assert caught.value.reason == "BACKUP_BROKEN_OFF"
    assert not names(tmp_path)


async def test_what_a_manager_tells_wrong_is_found_when_it_is_read_back(tmp_path: Path) -> None:
    short = [message for number, message in enumerate(messages()) if number != 3]
    with pytest.raises(GugusError) as caught:
        await take.take(gugus(short), tmp_path / "backup", PASSPHRASE)
    assert caught.value.reason == "BACKUP_DAMAGED"
    assert not names(tmp_path)


def refused(file: Path, passphrase: str = PASSPHRASE) -> GugusError:
    with pytest.raises(GugusError) as caught:
        list(read(file, passphrase))
    return caught.value


def test_wrong_passphrase_is_told_from_damage(file: Path) -> None:
    assert refused(file, "another one").reason == "WRONG_PASSPHRASE"
    inspect(file)


def test_every_changed_byte_and_every_cut_is_found(file: Path, tmp_path: Path) -> None:
    data, spoiled = file.read_bytes(), tmp_path / "spoiled"
    for position in range(0, len(data), 7):
        spoiled.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        assert refused(spoiled).reason in ("NOT_A_BACKUP", "BACKUP_FORM_UNKNOWN", "BACKUP_DAMAGED")
        spoiled.write_bytes(data[:position])
        assert refused(spoiled).reason in ("NOT_A_BACKUP", "BACKUP_FORM_UNKNOWN", "BACKUP_DAMAGED")


def frames_of(data: bytes) -> tuple[bytes, list[bytes]]:
    """Return what stands before the frames, and the frames with their lengths."""
    position = len(PREAMBLE)
    position += 4 + int.from_bytes(data[position : position + 4], "big")
    start, frames = data[:position], []
    while position < len(data) - DIGEST_BYTES:
        end = position + 4 + int.from_bytes(data[position : position + 4], "big")
        frames.append(data[position:end])
        position = end
    return start, frames


def test_frames_that_were_cut_moved_or_doubled_are_found_under_a_right_checksum(file: Path) -> None:
    start, frames = frames_of(file.read_bytes())
    changed = [frames[:-1], [*frames[:2], *frames[3:]], [frames[1], frames[0], *frames[2:]], [*frames, frames[-1]]]
    for kept in changed:
        body = start + b"".join(kept)
        file.write_bytes(body + hashlib.sha256(body).digest())
        assert refused(file).reason in ("BACKUP_DAMAGED", "WRONG_PASSPHRASE")


def test_header_is_bound_to_what_is_sealed(file: Path) -> None:
    start, frames = frames_of(file.read_bytes())
    forged = backup_pb2.FileHeader.FromString(start[len(PREAMBLE) + 4 :])
    forged.backup.cluster_name = "prod"
    head = forged.SerializeToString()
    body = PREAMBLE + len(head).to_bytes(4, "big") + head + b"".join(frames)
    file.write_bytes(body + hashlib.sha256(body).digest())
    assert refused(file).reason == "WRONG_PASSPHRASE"


def test_header_may_not_ask_for_all_memory(file: Path) -> None:
    start, frames = frames_of(file.read_bytes())
    greedy = backup_pb2.FileHeader.FromString(start[len(PREAMBLE) + 4 :])
    greedy.scrypt.cost = 2**30
    head = greedy.SerializeToString()
    body = PREAMBLE + len(head).to_bytes(4, "big") + head + b"".join(frames)
    file.write_bytes(body + hashlib.sha256(body).digest())
    assert refused(file).reason == "BACKUP_DAMAGED"


def test_other_files_are_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("Dear operator,")
    assert refused(tmp_path / "letter").reason == "NOT_A_BACKUP"
    (tmp_path / "future").write_text("gugus backup 9\nwho knows")
    assert refused(tmp_path / "future").reason == "BACKUP_FORM_UNKNOWN"
    assert refused(tmp_path / "nothing").reason == "BACKUP_NOT_FOUND"
    assert refused(tmp_path).reason == "INVALID_ARGUMENT"
