from pathlib import Path

import pytest

from common import config
from common.config import AgentConfig, ConfigError, ManagerConfig, Voter, dump, load_agent, load_manager

AGENT = AgentConfig(name="n1", cluster_id="c1", address="10.0.0.1", managers=("10.0.0.1:7443",), watchdog_device="")
MANAGER = ManagerConfig(
    name="n1", cluster_id="c1", cluster_name="lab", address="10.0.0.1", voters=(Voter(name="n1", address="10.0.0.1"),)
)


def refuse(tmp_path: Path, text: str) -> str:
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_agent(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_dumped_configurations_read_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(dump(AGENT))
    assert load_agent(path) == AGENT
    path.write_text(dump(MANAGER))
    assert load_manager(path) == MANAGER


def test_unknown_key_is_answered_by_the_nearest_known_one(tmp_path: Path) -> None:
    message = refuse(tmp_path, dump(AGENT) + "hypervisor: [kvm]\n")
    assert 'unknown key "hypervisor"' in message
    assert 'Did you mean "hypervisors"?' in message


def test_wrong_types_name_the_key_and_what_is_right(tmp_path: Path) -> None:
    assert "\"port\" must be a whole number, found '7445'" in refuse(tmp_path, dump(AGENT) + 'port: "7445"\n')
    assert '"port" must be a whole number, found True' in refuse(tmp_path, dump(AGENT) + "port: true\n")
    assert '"hypervisors" must be a list' in refuse(tmp_path, dump(AGENT) + "hypervisors: kvm\n")
    assert '"hypervisors[0]" must be a text' in refuse(tmp_path, dump(AGENT) + "hypervisors: [1]\n")
    assert '"state_dir" must be an absolute path' in refuse(tmp_path, dump(AGENT) + "state_dir: var\n")
    assert '"name" must be a text, found nothing' in refuse(tmp_path, dump(AGENT) + "name:\n")


def test_missing_key_bad_port_and_bad_endpoint_are_refused(tmp_path: Path) -> None:
    assert 'the key "cluster_id" is missing' in refuse(tmp_path, "name: n1\naddress: 10.0.0.1\n")
    assert "from 1 to 65535, found 70000" in refuse(tmp_path, dump(AGENT) + "port: 70000\n")
    assert '"10.0.0.1" is not "host:port"' in refuse(tmp_path, dump(AGENT) + 'managers: ["10.0.0.1"]\n')


def test_files_that_are_no_configuration_are_refused(tmp_path: Path) -> None:
    assert "is not YAML" in refuse(tmp_path, "name: [")
    assert "expected keys and values, found nothing" in refuse(tmp_path, "")
    with pytest.raises(ConfigError, match="does not exist") as caught:
        load_agent(tmp_path / "none.yaml")
    assert "join" in caught.value.remedy


def test_voter_inside_a_manager_configuration_is_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "manager.yaml"
    path.write_text(dump(MANAGER).replace("raft_port: 7444\n  port", "raft_prot: 7444\n  port"))
    with pytest.raises(ConfigError, match="raft_prot") as caught:
        load_manager(path)
    assert "voters[0]" in str(caught.value)


@pytest.mark.parametrize("endpoint", ["host", "host:", ":1", "host:0", "host:65536", "::1:80", "host:x", "host:１"])
def test_bad_endpoints_are_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"host:port|is not a number"):
        config.split_endpoint(endpoint)


def test_endpoints_round_trip_with_ipv6() -> None:
    assert config.split_endpoint(config.join_endpoint("fd00::1", 7443)) == ("fd00::1", 7443)
    assert config.split_endpoint("n1:7443") == ("n1", 7443)
