"""`gugus apply` and `gugus diff` against a cluster."""

import json
from pathlib import Path

import pytest
from gugus.cluster.v1 import guest_pb2

from client.cli import failure
from tests.unit.client.conftest import Gugus
from tests.unit.client.fake import Cluster

TEXT = """
kind: Project
name: shop
spec: {limits: {cpus: 8}}
---
kind: Network
name: lan
spec: {bridge: {bridge: br-lan}}
---
kind: Guest
name: web
labels: {set: a}
spec:
  kind: vm
  cpus: 2
  project: shop
  disks: [{pool: local, image: tiny}]
  nics: [{network: lan}]
---
kind: Guest
name: db
labels: {set: a}
spec: {kind: vm, disks: [{pool: local, image: tiny}]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "all.yaml"
    file.write_text(TEXT)
    return file


def test_what_files_say_is_made_and_the_second_time_nothing_is_called(
    cluster: Cluster, gugus: Gugus, file: Path
) -> None:
    assert gugus("diff", "-f", str(file)).exit_code == 1
    first = gugus("apply", "-f", str(file))
    assert first.exit_code == 0, first.stderr
    assert "4 done." in first.stderr
    assert list(cluster.state.guests["web"].spec.nics[0].mac) != []
    cluster.state.requests.clear()
    second = gugus("apply", "-f", str(file))
    assert (second.exit_code, "4 unchanged." in second.stderr) == (0, True)
    assert cluster.state.requests == []
    same = gugus("diff", "-f", str(file))
    assert (same.exit_code, same.stdout, same.stderr) == (0, "", "nothing differs.\n")


def test_a_change_in_a_file_is_shown_then_made(cluster: Cluster, gugus: Gugus, file: Path) -> None:
    gugus("apply", "-f", str(file))
    cluster.state.guests["web"].spec.notes = "by hand"
    file.write_text(TEXT.replace("cpus: 2", "cpus: 3").replace("cpus: 8", "cpus: 9"))
    shown = gugus("diff", "-f", str(file))
    assert shown.stdout == "change project/shop\n    limits.cpus: 8 -> 9\nchange guest/web\n    cpus: 2 -> 3\n"
    assert gugus("apply", "-f", str(file), "--dry-run").stdout == shown.stdout
    told = json.loads(gugus("diff", "-f", str(file), "-o", "json").stdout)
    assert told[1] == {
        "step": "change",
        "target": "guest/web",
        "differences": [{"path": "cpus", "old": "2", "new": "3"}],
    }
    cluster.state.requests.clear()
    result = gugus("apply", "-f", str(file))
    assert "2 done, 2 unchanged." in result.stderr
    request = cluster.state.requests[-1]
    assert isinstance(request, guest_pb2.UpdateGuestRequest)
    assert (request.spec.cpus, request.spec.notes, request.spec.disks[0].volume) == (3, "by hand", "web-disk0")
    assert cluster.state.projects["shop"].spec.limits.cpus == 9


def test_exported_guests_differ_in_nothing(cluster: Cluster, gugus: Gugus, file: Path) -> None:
    gugus("apply", "-f", str(file))
    exported = gugus("guest", "export", "web").stdout
    assert exported.startswith("kind: Guest\nname: web\n")
    assert gugus("diff", "-f", "-", input=exported).exit_code == 0
    assert gugus("diff", "--exact", "-f", "-", input=exported).exit_code == 0


def test_prune_asks_and_deletes_only_its_own(cluster: Cluster, gugus: Gugus, file: Path) -> None:
    gugus("apply", "-f", str(file))
    gugus("guest", "create", "other", "--kind", "vm", "--pool", "local", "--image", "tiny")
    file.write_text(TEXT[: TEXT.index("---\nkind: Guest\nname: db")])
    prune = ["apply", "-f", str(file), "--prune", "--label", "set=a"]
    asked = gugus(*prune)
    assert (asked.exit_code, "Delete 1 guests with their disks (db)?" in asked.stderr) == (failure.USAGE, True)
    assert gugus(*prune, "--yes").exit_code == 0
    assert sorted(cluster.state.guests) == ["other", "web"]
    assert gugus("apply", "-f", str(file), "--prune").exit_code == failure.USAGE
    assert gugus("apply", "-f", str(file), "--label", "a=b").exit_code == failure.USAGE


def test_one_failure_holds_nothing_else_up(cluster: Cluster, gugus: Gugus, file: Path) -> None:
    file.write_text(TEXT.replace("name: web", "name: doomed"))
    result = gugus("apply", "-f", str(file))
    assert (result.exit_code, "3 done, 1 failed." in result.stderr) == (failure.FAILED, True)
    assert "guest/doomed" in result.stdout


def test_what_cannot_be_changed_in_place_is_refused(cluster: Cluster, gugus: Gugus, file: Path) -> None:
    gugus("apply", "-f", str(file))
    file.write_text(TEXT.replace("br-lan", "br-new"))
    result = gugus("apply", "-f", str(file))
    assert "network/lan cannot be changed in place (bridge.bridge)." in result.stdout
    assert result.exit_code == failure.FAILED


def test_a_wrong_file_exits_with_2_and_names_each_fault(gugus: Gugus, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("kind: Guest\nname: web\nspec:\n  cpus: many\n  memroy: 1\n")
    for command in ("diff", "apply"):
        result = gugus(command, "-f", str(file))
        assert result.exit_code == failure.USAGE
        assert f'  {file}:4: spec.cpus: "many" is not a whole number.' in result.stderr
        assert f'{file}:5: spec.memroy: there is no such field (did you mean "memory"?)' in result.stderr
