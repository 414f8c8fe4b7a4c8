"""`gugus cluster backup` and `restore` at the command line: passphrases, refusals, and what a person is told."""

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from client.backup import seal
from client.backup.contents import Contents
from client.backup.restore import check
from client.backup.take import take
from client.cli import app, failure
from client.first_host import FirstHost
from common.clock import boottime_ns
from common.config import load_manager
from common.errors import GugusError
from common.identity.ca import CertificateAuthority
from common.identity.names import Role
from common.identity.store import Pki
from tests.unit.manager.test_backup import PASSPHRASE, gugus, messages


@pytest.fixture(autouse=True)
def cheap_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deriving keys is slow on purpose, and not what is tested."""
    monkeypatch.setattr(seal, "COST", 2**4)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A backup with a CA, and a state that is none of a cluster."""
    sent, authority = list(messages()), CertificateAuthority.create("abc", "test")
    sent[1].identity.ca_certificate, sent[1].identity.ca_key = authority.cert_pem, authority.key_pem
    sent[1].identity.port, sent[1].identity.raft_port = 7443, 7444
    sent[1].identity.enrol_port, sent[1].identity.metrics_port = 7446, 7447
    sent[1].identity.gateway_port = 8449
    asyncio.run(take(gugus(sent), tmp_path / "backup", PASSPHRASE))
    return tmp_path / "backup"


@pytest.fixture
def passphrase(tmp_path: Path) -> str:
    path = tmp_path / "passphrase"
    path.write_text(f"{PASSPHRASE}\n")
    path.chmod(0o600)
    return str(path)


def run(*args: str, text: str = "") -> Result:
    return CliRunner().invoke(app, ["cluster", *args], input=text)


def test_file_is_inspected_without_its_passphrase(file: Path) -> None:
    result = run("backup", str(file), "--inspect", "-o", "json")
    assert result.exit_code == 0, result.stderr
    assert "cluster test (abc) at revision 7" in result.stderr
    told = json.loads(result.stdout)
    assert (told["backup"]["cluster_name"], told["verified"]) == ("test", False)


def test_file_is_verified_with_it(file: Path, passphrase: str) -> None:
    result = run("backup", str(file), "--verify", "--passphrase-file", passphrase)
    assert result.exit_code == 0, result.stderr
    assert "all of it can be read" in result.stderr
    assert run("backup", str(file), "--verify", "--passphrase-file", "-", text=f"{PASSPHRASE}\n").exit_code == 0
    wrong = run("backup", str(file), "--verify", "--passphrase-file", "-", text="another one\n")
    assert wrong.exit_code == failure.CONFLICT
    assert "not sealed with this passphrase" in wrong.stderr


def test_damaged_file_says_so(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])
    result = run("backup", str(file), "--inspect")
    assert result.exit_code == failure.CONFLICT
    assert "cut off" in result.stderr


@pytest.mark.parametrize(("text", "word"), [("short\n", "at least 12"), ("", "0 characters")])
def test_weak_passphrase_is_refused_before_anything_is_asked_of_the_cluster(
    text: str, word: str, tmp_path: Path
) -> None:
    result = run("backup", str(tmp_path / "new"), "--passphrase-file", "-", text=text)
    assert result.exit_code == failure.USAGE
    assert word in result.stderr


def test_without_a_terminal_a_passphrase_file_is_needed(tmp_path: Path) -> None:
    result = run("backup", str(tmp_path / "new"))
    assert result.exit_code == failure.USAGE
    assert "no terminal" in result.stderr


def test_passphrase_file_that_others_can_read_is_warned_of(file: Path, passphrase: str) -> None:
    Path(passphrase).chmod(0o644)
    assert "chmod 600" in run("backup", str(file), "--verify", "--passphrase-file", passphrase).stderr


def restore(file: Path, passphrase: str, *more: str, name: str = "test") -> Result:
    folder = file.parent
    where = ["--etc", str(folder / "etc"), "--state", str(folder / "lib"), "--run", str(folder / "run")]
    args = ["restore", str(file), "--name", name, "--address", "192.0.2.1", "--node", "n1", "--no-start", *where]
    return run(*args, "--passphrase-file", passphrase, *more)


def test_restore_asks_first_and_wants_the_right_name(file: Path, passphrase: str) -> None:
    asked = restore(file, passphrase)
    assert asked.exit_code == failure.USAGE
    assert "Repeat the command with --yes" in asked.stderr
    assert "Do it only when the old cluster is lost for ever" in asked.stderr
    other = restore(file, passphrase, "--yes", name="prod")
    assert (other.exit_code, 'of the cluster "test", not "prod"' in other.stderr) == (failure.USAGE, True)
    assert not (file.parent / "etc").exists()


def test_backup_whose_ca_is_of_no_use_leaves_nothing(tmp_path: Path, passphrase: str) -> None:
    file = tmp_path / "backup"
    asyncio.run(take(gugus(list(messages())), file, PASSPHRASE))
    result = restore(file, passphrase, "--yes")
    assert result.exit_code == failure.CONFLICT
    assert "the CA in the backup cannot be used" in result.stderr
    assert not (file.parent / "lib").exists()


def test_state_of_no_cluster_is_not_put_in_force(file: Path, passphrase: str) -> None:
    result = restore(file, passphrase, "--yes")
    assert result.exit_code == failure.CONFLICT
    assert "it holds no cluster" in result.stderr
    assert load_manager(file.parent / "etc" / "manager.yaml").gateway_port == 8449, "all ports are those of before"
    assert not (file.parent / "lib" / "manager" / "raft").exists()


def test_host_of_another_cluster_is_left_as_it_is(file: Path, passphrase: str, tmp_path: Path) -> None:
    where = ["--etc", str(tmp_path / "etc"), "--state", str(tmp_path / "lib"), "--run", str(tmp_path / "run")]
    run("init", "--name", "mine", "--address", "192.0.2.1", "--node", "n1", "--no-start", *where)
    mine = load_manager(tmp_path / "etc" / "manager.yaml")
    result = restore(file, passphrase, "--yes")
    assert result.exit_code == failure.CONFLICT
    assert "manager.yaml is of an earlier" in result.stderr
    assert load_manager(tmp_path / "etc" / "manager.yaml") == mine
    assert Pki(mine.pki_dir).credentials(Role.MANAGER).identity.cluster_id == mine.cluster_id


def first_host(tmp_path: Path) -> FirstHost:
    return FirstHost(
        cluster_name="test", address="192.0.2.1", node="n1", etc=tmp_path, state=tmp_path, run=tmp_path,
        hypervisors=("simulated",), watchdog_device="",
    )  # fmt: skip


def test_name_of_a_node_in_the_backup_is_taken_only_knowingly(tmp_path: Path) -> None:
    contents = Contents(nodes={"n1": "192.0.2.7"})
    with pytest.raises(GugusError) as caught:
        check(first_host(tmp_path), contents, takes_over=False)
    assert (caught.value.reason, "--takes-over" in caught.value.remedy) == ("NODE_NAME_TAKEN", True)
    check(first_host(tmp_path), contents, takes_over=True)


def test_host_whose_cluster_lives_is_not_made_another_one(tmp_path: Path) -> None:
    (tmp_path / "lease.json").write_text(json.dumps({"deadline_ns": boottime_ns() + 9_000_000_000}))
    with pytest.raises(GugusError) as caught:
        check(first_host(tmp_path), Contents(), takes_over=False)
    assert caught.value.reason == "CLUSTER_LIVES"
