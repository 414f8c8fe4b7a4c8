import pytest
from gugus.cluster.v1.task_pb2 import Task

from client.cli import failure
from client.cli.progress import Progress
from tests.unit.client.conftest import Gugus
from tests.unit.client.fake import Cluster


def test_settings_are_shown_with_what_is_default_and_what_is_accepted(gugus: Gugus, cluster: Cluster) -> None:
    cluster.state.cluster.settings.spare.nodes = 1
    cluster.state.cluster.settings.placement_weights["calm"] = 3
    shown = gugus("cluster", "settings")
    assert shown.exit_code == failure.OK, shown.stderr
    lines = {line.split()[0]: line for line in shown.stdout.splitlines()}
    assert "(default)" not in lines["spare.nodes"]
    assert "0 to 2" in lines["spare.nodes"]
    assert "warn (default)" in lines["spare.policy"]
    assert "3  " in lines["placement_weights.calm"]
    assert "20 (default)" in lines["placement_weights.rules"]
    assert "10s (default)" in lines["node_lease_ms"]
    assert "(fixed)" in lines["node_lease_ms"]
    assert '"nodes": 1' in gugus("cluster", "settings", "-o", "json").stdout


def test_settings_are_set_together_and_taken_back(gugus: Gugus, cluster: Cluster) -> None:
    done = gugus(
        "cluster",
        "set",
        "spare.nodes=1",
        "balance.mode=automatic",
        "placement_weights.calm=2",
        "fencing.cap_percent=50",
    )
    assert done.exit_code == failure.OK, done.stderr
    assert "spare.nodes: 0 (default) -> 1" in done.stderr
    (request,) = cluster.state.requests
    assert list(request.update_mask.paths) == [
        "spare.nodes",
        "balance.mode",
        "placement_weights.calm",
        "fencing.cap_percent",
    ]
    assert gugus("cluster", "set", "spare.nodes=", "placement_weights.calm=default").exit_code == failure.OK
    assert cluster.state.cluster.settings.spare.nodes == 0
    assert not cluster.state.cluster.settings.placement_weights
    assert "already" in gugus("cluster", "set", "spare.nodes=0").stderr


def test_what_is_short_with_new_settings_is_said_at_once(gugus: Gugus, cluster: Cluster) -> None:
    cluster.state.status.findings.add(reason="SPARE_ROOM_SHORT", sentence="Too little room is left.")
    assert "warning: Too little room is left." in gugus("cluster", "set", "spare.nodes=2").stderr
    assert "warning" not in gugus("cluster", "set", "preemption=never").stderr


def test_slips_are_told_all_at_once_and_nothing_is_asked(gugus: Gugus, cluster: Cluster) -> None:
    slips = gugus(
        "cluster", "set", "spare.node=1", "spare.nodes=5", "balance.mode=auto", "node_lease_ms=3000", "nonsense"
    )
    assert slips.exit_code == failure.USAGE
    for words in (
        "near it are spare.nodes",
        "0 to 2",
        "off, advise or automatic",
        "leases",
        "NAME=VALUE",
        "gugus cluster settings",
    ):
        assert words in slips.stderr
    assert cluster.state.requests == []
    assert gugus("cluster", "set").exit_code == failure.USAGE


def test_a_warning_in_a_task_s_log_is_said_once_whatever_comes_after(capsys: pytest.CaptureFixture[str]) -> None:
    task = Task(kind="create-guest", target="guest/web")
    task.log.add(text="warning: too little room is left")
    task.log.add(text="making volumes")
    with Progress() as progress:
        progress.show(task)
        task.log.add(text="runs on n1")
        progress.show(task)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "warning: too little room is left"
    assert told[1:] == ["create-guest guest/web: making volumes", "create-guest guest/web: runs on n1"]
