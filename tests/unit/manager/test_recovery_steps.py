"""A recovery on a folder alone: what it makes, and that one that is killed anywhere is finished by the next."""

import argparse
import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gugus.cluster.v1.cluster_pb2 import Cluster, ManagerLease, Token
from gugus.cluster.v1.event_pb2 import Event
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, GUEST_PHASE_UNKNOWN, Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED, NODE_STATE_JOINING, NODE_STATE_ONLINE, Node
from gugus.store.v1 import store_pb2

from client import config as client_config
from common.config import AgentConfig, ManagerConfig, Voter, dump, load_agent, load_manager
from common.errors import GugusError
from common.identity.ca import CertificateAuthority, identity_of, key_of
from common.identity.names import Identity, Role
from common.identity.store import Pki
from manager import main
from manager.consensus import Member
from manager.consensus.disk import FolderDisk
from manager.consensus.offline import examine, read_state
from manager.consensus.snapshot import SNAPSHOT_FILE, Snapshot, write_snapshot
from manager.daemon import Manager
from manager.recovery import survey
from manager.recovery.command import command
from manager.recovery.rebirth import STEP
from manager.store import StoreState
from manager.store.kinds import Stored, T, decode, encode, key, key_for, new

OLD_ID = "0123456789abcdef"
VOTERS = tuple(Member(f"n{number}", f"127.0.0.{number}", 1) for number in (1, 2, 3))  # nothing answers at port 1


def objects() -> Iterator[Stored]:
    """The state of a cluster of three."""
    cluster = new(Cluster, "test")
    cluster.cluster_id = OLD_ID
    yield cluster
    lease = new(ManagerLease, "acting")
    lease.holder, lease.epoch, lease.ttl_ms = "n3", 17, 3000
    yield lease
    for name, state in (("n1", NODE_STATE_ONLINE), ("n2", NODE_STATE_FENCED), ("n3", NODE_STATE_ONLINE)):
        node = new(Node, name)
        node.spec.address, node.spec.agent_port = f"127.0.0.{name[1:]}", 7445
        node.status.state, node.status.voter, node.status.boot_id = state, True, "boot"
        yield node
    for name, home in (("web", "n2"), ("db", "n1"), ("new", "")):
        guest = new(Guest, name)
        guest.meta.generation, guest.status.node, guest.status.phase = 5, home, GUEST_PHASE_RUNNING
        guest.spec.ha.enabled = guest.status.ha_armed = True
        yield guest
    yield new(Token, "t1")
    told = new(Event, "e1")
    told.at.GetCurrentTime()
    told.message = "n2 was fenced"
    yield told


def write_state(folder: Path, voters: tuple[Member, ...] = VOTERS) -> None:
    piece = store_pb2.Snapshot(version=1, revision=41)
    for obj in objects():
        piece.objects.add(key=key(obj), value=encode(obj), create_revision=1, mod_revision=41, version=1)
    disk = FolderDisk(folder)
    write_snapshot(disk, SNAPSHOT_FILE, Snapshot(900, 4, voters), [piece.SerializeToString()])
    disk.close()


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """A surviving voter, n1, which was promoted: it has no operator's certificate and no client.yaml."""
    etc, pki = tmp_path / "etc", Pki(tmp_path / "etc" / "pki")
    authority = CertificateAuthority.create(OLD_ID, "test")
    pki.save_ca(authority)
    for role in (Role.NODE, Role.MANAGER):
        pki.save(role, authority.issue(Identity(OLD_ID, role, "n1"), addresses=["127.0.0.1"]))
    state = tmp_path / "manager"
    write_state(state / "raft")
    manager = ManagerConfig(
        name="n1", cluster_id=OLD_ID, cluster_name="test", address="127.0.0.1", pki_dir=pki.folder, state_dir=state,
        voters=(Voter(name="n1", address="127.0.0.1"), Voter(name="n3", address="127.0.0.3")), bootstrap=True, run_dir=tmp_path / "run",
    )  # fmt: skip
    agent = AgentConfig(
        name="n1", cluster_id=OLD_ID, address="127.0.0.1", port=1234, managers=("127.0.0.3:7443",), pki_dir=pki.folder
    )
    (etc / "manager.yaml").write_text(dump(manager))
    (etc / "agent.yaml").write_text(dump(agent))
    return etc


def recover(etc: Path, **changed: Any) -> None:
    words = {"config": etc / "manager.yaml", "cluster": "test", "yes": True, "no_start": True} | changed
    command(argparse.Namespace(**words))


def state_of(config: ManagerConfig) -> StoreState:
    disk, state = FolderDisk(config.state_dir / "raft"), StoreState()
    read_state(disk, state)
    disk.close()
    return state


def get(state: StoreState, kind: type[T], name: str) -> T:
    entry = state.get(key_for(kind, name))
    assert entry is not None
    return decode(kind, entry.value, entry.mod_revision)


def assert_recovered(etc: Path) -> None:
    """Everything names one new cluster, and nothing of before is believed."""
    config = load_manager(etc / "manager.yaml")
    assert config.cluster_id != OLD_ID
    assert (config.voters, config.bootstrap) == ((Voter(name="n1", address="127.0.0.1"),), False)
    assert load_agent(etc / "agent.yaml").cluster_id == config.cluster_id
    assert load_agent(etc / "agent.yaml").managers == ("127.0.0.1:7443",)
    client = client_config.load(etc / "client.yaml")
    assert (client.cluster_id, client.endpoints) == (config.cluster_id, ("127.0.0.1:7443",))
    client.examine(client.credentials())
    pki = Pki(config.pki_dir)
    assert pki.load_ca().cluster_id == config.cluster_id
    for role in Role:
        assert identity_of(pki.crt(role).read_bytes()).cluster_id == config.cluster_id
        assert pki.key(role).stat().st_mode & 0o777 == 0o600
    state = state_of(config)
    assert get(state, Cluster, "test").cluster_id == config.cluster_id
    assert get(state, Node, "n1").status.key_sha256 == key_of(pki.crt(Role.NODE).read_bytes())
    disk = FolderDisk(config.state_dir / "raft")
    remains = examine(disk)
    assert remains.voters == (Member("n1", "127.0.0.1", 7444, remains.uid),)
    assert remains.uid
    disk.close()
    names = {
        path.name for path in config.state_dir.iterdir() if not path.name.endswith(".tmp")
    }  # of a killed `write_atomic`
    assert [name for name in names if name.startswith("raft.before-recover-")]
    assert len(names) == 2, f"nothing half-made is left: {names}"


def test_state_of_a_recovered_cluster(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recover(etc)
    assert_recovered(etc)
    state = state_of(load_manager(etc / "manager.yaml"))
    assert state.revision == 41 + STEP
    cluster, lease = get(state, Cluster, "test"), get(state, ManagerLease, "acting")
    assert (list(cluster.former_ids), cluster.generation_floor) == ([OLD_ID], STEP)
    assert (lease.holder, lease.epoch) == ("", 17 + STEP)
    for name in ("n1", "n2", "n3"):
        node = get(state, Node, name)
        assert (node.status.state, node.status.former, node.status.voter) == (NODE_STATE_JOINING, True, name == "n1")
    assert get(state, Node, "n1").spec.agent_port == 1234
    web = get(state, Guest, "web")
    assert (web.meta.generation, web.status.node, web.status.phase) == (5 + STEP, "n2", GUEST_PHASE_UNKNOWN)
    assert web.status.inherited
    assert not state.list("token/")[1]
    assert any("was recovered on n1" in decode(Event, e.value, 0).message for e in state.list("event/")[1])
    told = capsys.readouterr().out
    for word in (
        "n2 (127.0.0.2), n3 (127.0.0.3)",
        "revision 41",
        "log index 900",
        "n2 was fenced",
        "gugus-agent join --rejoin",
    ):
        assert word in told


def test_kept_state_is_as_it_was(etc: Path) -> None:
    before = (load_manager(etc / "manager.yaml").state_dir / "raft" / SNAPSHOT_FILE).read_bytes()
    recover(etc)
    (kept,) = load_manager(etc / "manager.yaml").state_dir.glob("raft.before-recover-*")
    assert (kept / SNAPSHOT_FILE).read_bytes() == before


class Killed(BaseException):
    """The process ends here; no handler of the code runs that a kill would not run, bar clean-ups that change nothing on disk."""


class Axe:
    """Kills before the nth change of a name on a disk, and lets nothing change any more after that."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._left: int | None = None
        self._dead = False
        for name in ("rename", "replace", "unlink", "mkdir", "rmdir", "link", "chmod", "fchmod"):
            monkeypatch.setattr(os, name, self._cut(getattr(os, name)))

    @contextlib.contextmanager
    def falls(self, at: int) -> Iterator[None]:
        self._left, self._dead = at, False
        try:
            yield
        finally:
            self._left, self._dead = None, False

    def _cut(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def cut(*words: Any, **options: Any) -> Any:
            if self._left is not None:
                if self._dead or self._left == 0:
                    self._dead = True
                    raise Killed
                self._left -= 1
            return call(*words, **options)

        return cut


def test_recovery_killed_before_any_change_is_finished_by_the_next(
    etc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axe, fell, at = Axe(monkeypatch), True, 0
    fresh = tmp_path.with_name(f"{tmp_path.name}-fresh")
    shutil.copytree(tmp_path, fresh)
    while fell:
        try:
            with axe.falls(at):
                recover(etc)
            fell = False
        except Killed:
            pass
        if fell:
            config = load_manager(etc / "manager.yaml")
            assert (config.state_dir / "raft").exists() or (config.state_dir / "recovery.json").exists()
            recover(etc)
        assert_recovered(etc)
        shutil.rmtree(tmp_path)
        shutil.copytree(fresh, tmp_path)
        at += 1
    assert at > 15
    shutil.rmtree(fresh)


async def test_manager_does_not_start_on_a_half_recovered_folder(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("manager.recovery.carry_out.put_in_force", killed)
        with pytest.raises(Killed):
            recover(etc)
    with pytest.raises(GugusError) as caught:
        await Manager(load_manager(etc / "manager.yaml")).run()
    assert caught.value.reason == "RECOVERY_UNFINISHED"


def test_recovery_that_fails_before_it_changed_anything_is_given_up(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    state = load_manager(etc / "manager.yaml").state_dir
    with monkeypatch.context() as patch:
        patch.setattr("manager.recovery.folders.found_anew", no_room)
        with pytest.raises(OSError, match="No space"):
            recover(etc)
    assert [path.name for path in state.iterdir()] == ["raft"], "the manager may start again"
    recover(etc)
    assert_recovered(etc)


def refused(etc: Path, **changed: Any) -> GugusError:
    """Return why a recovery is refused; it leaves everything as it is."""
    before = {path: path.read_bytes() for path in etc.parent.rglob("*") if path.is_file()}
    with pytest.raises(GugusError) as caught:
        recover(etc, **changed)
    assert {path: path.read_bytes() for path in etc.parent.rglob("*") if path.is_file()} == before
    return caught.value


def test_wrong_name_and_no_terminal_are_refused(etc: Path) -> None:
    assert "prod" in refused(etc, cluster="prod").message
    assert refused(etc, cluster="").reason == "INVALID_ARGUMENT"
    assert "--cluster test --yes" in refused(etc, cluster="", yes=False).remedy


def test_cluster_that_is_not_lost_is_not_recovered(etc: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    raft = load_manager(etc / "manager.yaml").state_dir / "raft"
    with monkeypatch.context() as patch:
        patch.setattr(survey, "_answers", lambda voter: voter.name == "n2")
        assert refused(etc).reason == "MAJORITY_LIVES"
    with monkeypatch.context() as patch:
        patch.setattr(survey, "held_s", lambda _: 7.0)
        assert "lease" in refused(etc).message
    shutil.rmtree(raft)
    write_state(raft, VOTERS[:1])
    assert refused(etc).reason == "NOTHING_LOST"
    shutil.rmtree(raft)
    write_state(raft, VOTERS[1:])
    assert refused(etc).reason == "NOT_A_VOTER"


def test_folder_that_is_damaged_or_gone_is_named(etc: Path) -> None:
    raft = load_manager(etc / "manager.yaml").state_dir / "raft"
    data = (raft / SNAPSHOT_FILE).read_bytes()
    (raft / SNAPSHOT_FILE).write_bytes(data[:-1] + b"x")
    assert refused(etc).reason == "STATE_UNREADABLE"
    shutil.rmtree(raft)
    assert refused(etc).reason == "NO_STATE"


def test_running_manager_is_not_recovered(etc: Path) -> None:
    from manager.recovery.lock import only_user

    with only_user(load_manager(etc / "manager.yaml").state_dir):
        assert refused(etc).reason == "STATE_IN_USE"


@pytest.mark.parametrize(
    "words", [[], ["--config", "/x"], ["run"], ["run", "--config", "/x"], ["--log-level", "DEBUG"]]
)
def test_without_a_sub_command_the_manager_runs(words: list[str]) -> None:
    assert main._parser().parse_args(words).once is None


def test_sub_commands_take_the_configuration_before_and_after_their_name() -> None:
    for words in (["--config", "/x", "recover"], ["recover", "--config", "/x"]):
        parsed = main._parser().parse_args(words)
        assert (parsed.once, parsed.config) == (command, Path("/x"))
