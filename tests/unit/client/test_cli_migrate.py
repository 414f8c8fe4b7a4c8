"""`gugus guest migrate`: options become the policy, many guests go at once, and what is in the way is told."""

import pytest
from gugus.agent.v1.migration_pb2 import MIGRATION_COMPRESSION_ZSTD, MIGRATION_TIMEOUT_ACTION_SUSPEND
from gugus.agent.v1.node_pb2 import HypervisorFacts

from client.cli import failure, node
from tests.unit.client.conftest import Gugus
from tests.unit.client.fake import Cluster

CREATE = ["--kind", "vm", "--pool", "shared", "--image", "tiny", "--no-wait"]


def _make(cluster: Cluster, gugus: Gugus, *names: str) -> None:
    for name in names:
        assert gugus("guest", "create", name, *CREATE, "--tag", "web").exit_code == 0
    cluster.state.requests.clear()


def test_options_become_the_policy(cluster: Cluster, gugus: Gugus) -> None:
    _make(cluster, gugus, "web")
    result = gugus(
        *("guest", "migrate", "web", "--to", "n2", "--bandwidth", "50MiB", "--downtime", "100ms", "--post-copy"),
        *(
            "--no-auto-converge",
            "--compression",
            "zstd",
            "--channels",
            "4",
            "--timeout",
            "5m",
            "--timeout-action",
            "suspend",
        ),
        *("--shutdown-timeout", "30s"),
    )
    assert result.exit_code == 0, result.stderr
    assert "guest web has moved." in result.stderr
    (request,) = cluster.state.requests
    policy = request.policy
    assert (request.name, request.target) == ("web", "n2")
    assert (policy.bandwidth_bytes_per_s, policy.downtime_limit_ms, policy.channels) == (50 << 20, 100, 4)
    assert (policy.auto_converge, policy.post_copy, policy.compression) == (False, True, MIGRATION_COMPRESSION_ZSTD)
    assert (policy.timeout_s, policy.timeout_action) == (300, MIGRATION_TIMEOUT_ACTION_SUSPEND)
    assert policy.shutdown_timeout_ms == 30_000


def test_containers_go_as_they_run_when_that_is_asked_for(cluster: Cluster, gugus: Gugus) -> None:
    _make(cluster, gugus, "web")
    assert gugus("guest", "migrate", "web").exit_code == 0
    assert gugus("guest", "migrate", "web", "--live").exit_code == 0
    assert [request.policy.checkpoint for request in cluster.state.requests] == [False, True]
    refused = gugus("guest", "migrate", "web", "--live", "--to-cluster", "other.yaml")
    assert (refused.exit_code, "--live" in refused.stderr) == (failure.USAGE, True)


def test_many_go_at_once_and_each_ends_in_a_line(cluster: Cluster, gugus: Gugus) -> None:
    _make(cluster, gugus, "a", "b", "doomed")
    result = gugus("guest", "migrate", "--node", "n1", "--tag", "web")
    assert sorted(request.name for request in cluster.state.requests) == ["a", "b", "doomed"]
    assert (result.exit_code, "2 done, 1 failed." in result.stderr) == (failure.FAILED, True)


def test_what_is_in_the_way_is_told_before_anything_is_done(cluster: Cluster, gugus: Gugus) -> None:
    _make(cluster, gugus, "web")
    result = gugus("guest", "migrate", "web", "--check")
    assert "It lacks avx." in result.stdout
    assert "node/n2:" not in result.stdout, "the column says so"
    assert result.exit_code == failure.FAILED
    assert gugus("guest", "migrate", "--all", "--check").exit_code == failure.USAGE


def test_a_bandwidth_of_nothing_is_not_no_limit(cluster: Cluster, gugus: Gugus) -> None:
    _make(cluster, gugus, "web")
    result = gugus("guest", "migrate", "web", "--to", "n2", "--bandwidth", "0")
    assert result.exit_code == failure.USAGE
    assert "Leave it out for no limit." in result.stderr
    assert not cluster.state.requests


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"criu_version": "3.17.1"}, "live migration of containers: yes (CRIU 3.17.1)"),
        ({"criu_problem": "criu not installed"}, "live migration of containers: no (criu not installed)"),
    ],
)
def test_a_node_says_whether_containers_can_go_as_they_run(facts: dict[str, str], told: str) -> None:
    found = HypervisorFacts(driver="lxc", ready=True, mode="unprivileged", **facts)  # type: ignore[arg-type]
    assert node._hypervisor(found) == f"lxc: unprivileged\n{told}"
