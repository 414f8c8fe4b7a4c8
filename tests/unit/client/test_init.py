import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from client import config as client_config
from client.cli import app, failure
from common.config import load_agent, load_manager
from common.identity.ca import identity_of
from common.identity.names import Identity, Role
from common.identity.store import Pki


def init(folder: Path, *more: str, name: str = "demo") -> Result:
    where = ["--etc", str(folder / "etc"), "--state", str(folder / "state"), "--run", str(folder / "run")]
    args = ["cluster", "init", "--name", name, "--address", "192.0.2.1", "--node", "n1", *where, "--no-start", *more]
    return CliRunner().invoke(app, args)


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_makes_all_that_the_first_host_needs(tmp_path: Path) -> None:
    result = init(tmp_path, "--hypervisor", "simulated", "-o", "json")
    assert result.exit_code == 0, result.stderr
    cluster_id = json.loads(result.stdout)["cluster_id"]
    agent, manager = load_agent(tmp_path / "etc/agent.yaml"), load_manager(tmp_path / "etc/manager.yaml")
    assert (agent.cluster_id, agent.managers, agent.hypervisors) == (cluster_id, ("192.0.2.1:7443",), ("simulated",))
    assert (manager.bootstrap, manager.voters[0].raft_endpoint) == (True, "192.0.2.1:7444")
    settings = client_config.load(tmp_path / "etc/client.yaml")
    assert settings.credentials().identity == Identity(cluster_id, Role.OPERATOR, "admin")
    pki = Pki(manager.pki_dir)
    assert pki.credentials(Role.NODE).identity == Identity(cluster_id, Role.NODE, "n1")
    assert pki.credentials(Role.MANAGER).identity == Identity(cluster_id, Role.MANAGER, "n1")
    assert pki.load_ca().cluster_id == cluster_id


def test_private_keys_are_their_owner_s_alone(tmp_path: Path) -> None:
    init(tmp_path)
    keys = sorted((tmp_path / "etc/pki").glob("*.key"))
    assert [key.name for key in keys] == ["ca.key", "manager.key", "node.key", "operator.key"]
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_a_repetition_changes_nothing(tmp_path: Path) -> None:
    init(tmp_path)
    before = content(tmp_path)
    again = init(tmp_path, "-o", "json")
    assert (again.exit_code, json.loads(again.stdout)["changed"]) == (0, False)
    assert content(tmp_path) == before


@pytest.mark.parametrize("lost", ["client.yaml", "agent.yaml", "pki/operator.crt", "pki/manager.key"])
def test_a_half_made_init_is_finished(tmp_path: Path, lost: str) -> None:
    init(tmp_path)
    (tmp_path / "etc" / lost).unlink()
    before = content(tmp_path)
    assert init(tmp_path).exit_code == 0
    after = content(tmp_path)
    assert (tmp_path / "etc" / lost) in after
    pair = lost.rpartition(".")[0]
    assert all(after[path] == data for path, data in before.items() if pair not in str(path))
    if lost.startswith("pki"):
        assert identity_of((tmp_path / "etc" / f"{pair}.crt").read_bytes()).name in ("admin", "n1")


def test_another_cluster_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    init(tmp_path)
    before = content(tmp_path)
    refused = init(tmp_path, name="other")
    assert refused.exit_code == failure.CONFLICT
    assert 'cluster_name is "demo", not "other"' in refused.stderr
    assert content(tmp_path) == before


def test_a_host_that_joined_as_a_node_is_refused(tmp_path: Path) -> None:
    init(tmp_path)
    (tmp_path / "etc/manager.yaml").unlink()
    refused = init(tmp_path)
    assert refused.exit_code == failure.CONFLICT
    assert "this host is part of a cluster" in refused.stderr
    assert not (tmp_path / "etc/manager.yaml").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--address", "n1.example"], "--address"),
        (["--name", "Demo!"], "--name"),
        (["--hypervisor", "xen"], "there are kvm, lxc, simulated"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_made(tmp_path: Path, more: list[str], said: str) -> None:
    result = init(tmp_path, *more)
    assert result.exit_code == failure.USAGE
    assert said in result.stderr
    assert content(tmp_path) == {}
