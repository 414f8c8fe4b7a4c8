"""What is wrong with a command line is told at once, in words, and each fault once."""

import asyncio
import json
import signal
from pathlib import Path

import pytest
from gugus.agent.v1.task_pb2 import TaskState
from gugus.cluster.v1 import guest_pb2
from gugus.cluster.v1.meta_pb2 import Meta
from gugus.cluster.v1.project_pb2 import Project, ProjectSpec, ProjectUse
from gugus.cluster.v1.task_pb2 import Task

from client.cli import failure
from client.guests import Guests
from client.tasks import Tasks
from common.errors import GugusError, Violation, invalid, not_found, precondition, several
from manager.guests.quota import Use, quota_faults
from tests.unit.client.conftest import Gugus
from tests.unit.client.fake import Cluster

NAMES = ("create", "web", "--kind", "vm")


def _told(capsys: pytest.CaptureFixture[str], error: GugusError) -> list[str]:
    with pytest.raises(SystemExit):
        failure.report(error, as_json=False)
    return capsys.readouterr().err.splitlines()


def test_several_faults_are_counted_and_listed_once(capsys: pytest.CaptureFixture[str]) -> None:
    joined = several([invalid("cpus", "is 0.", remedy="Give one."), invalid("memory", "is 1.")])
    assert _told(capsys, joined) == [
        "error: 2 things are wrong with the request:",
        "  cpus: is 0.",
        "  memory: is 1.",
        "  what to do: Give one.",
    ]
    assert _told(capsys, invalid("cpus", "is 0.")) == ["error: cpus: is 0."]


def test_limits_that_are_exceeded_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    limits = ProjectUse(cpus=1, guests=1)
    project = Project(meta=Meta(name="shop"), spec=ProjectSpec(limits=limits))
    told = _told(capsys, several(quota_faults(project, [], Use(cpus=2, guests=2))))
    assert told[:3] == [
        "error: 2 things are wrong with the request:",
        "  spec.cpus: 0 of 1 used in project shop, 2 more asked, 1 left",
        "  spec.project: 0 of 1 used in project shop, 2 more asked, 1 left",
    ]


def test_a_message_that_says_more_than_its_faults_stays(capsys: pytest.CaptureFixture[str]) -> None:
    error = precondition("NO_NODE_FITS", "no node has room.")
    error.violations = (Violation("n1", "has no lan."), Violation("n2", "is full."))
    assert _told(capsys, error) == ["error: no node has room.", "  n1: has no lan.", "  n2: is full."]


def test_faults_that_a_server_cut_off_are_not_counted_as_all(capsys: pytest.CaptureFixture[str]) -> None:
    error = several([invalid(f"disks[{place}].pool", "is missing.") for place in range(20)])
    assert _told(capsys, error)[0] == "error: 20 or more things are wrong with the request:"


def test_programs_get_the_message_as_it_was(gugus: Gugus) -> None:
    result = gugus("guest", *NAMES, "--pool", "local", "--weight", "much", "-o", "json")
    error = json.loads(result.stderr.splitlines()[-1])["error"]
    assert (result.exit_code, error["exit_code"]) == (failure.USAGE, failure.USAGE)
    assert [one["field"] for one in error["violations"]] == ["--image", "--weight"]
    assert error["message"].startswith("--image: is missing: the first disk is made from one; --weight: ")


def test_everything_wrong_with_a_new_guest_is_told_at_once(gugus: Gugus) -> None:
    result = gugus(
        *("guest", "create", "We_b", "--kind", "vm", "--node", "n1", "--prefer", "n2", "--boot-from", "disk1"),
        *("--disk", "foo=1,pool=local", "--disk", "size=1GiB,pool=local", "--disk", "pool=local,bus=x,cache=y"),
        *(
            "--nic",
            "model=e1000",
            "--cdrom",
            "iso",
            "--label",
            "a",
            "--label",
            "b",
            "--memory",
            "1MB",
            "--set",
            "cpu=2",
        ),
    )
    lines = result.stderr.splitlines()
    assert (result.exit_code, lines[0]) == (failure.USAGE, "error: 11 things are wrong with the request:")
    for start in (
        '  --disk: "foo=1,pool=local": "foo" is not known',
        '  --disk: "pool=local,bus=x,cache=y": bus: "x" is not one of',
        '  --disk: "pool=local,bus=x,cache=y": cache: "y" is not one of',
        '  --nic: "model=e1000" names no network',
        '  --cdrom: "iso" is not POOL/IMAGE',
        "  --memory: ",
        '  --set: cpu: "cpu" is no field there',
        "  NAME: ",
        "  --prefer: says nothing beside --node",
        '  --label: "a" is not KEY=VALUE',
        '  --label: "b" is not KEY=VALUE',
    ):
        assert len([line for line in lines if line.startswith(start)]) == 1, (start, result.stderr)


def test_a_single_disk_is_not_repeated(gugus: Gugus) -> None:
    result = gugus("guest", *NAMES, "--disk", "pool=local,bus=x")
    assert result.stderr.startswith('error: --disk: bus: "x" is not one of ')


def test_files_that_cannot_be_read_are_told_in_words(gugus: Gugus, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff")
    result = gugus(
        *("guest", *NAMES, "--disk", "1GiB/local", "--ssh-key", "/nope", "--user-data", "/nope"),
        *("--vendor-data", str(tmp_path / "binary")),
    )
    assert result.stderr.splitlines()[1:] == [
        "  --ssh-key: /nope cannot be read: No such file or directory.",
        "  --user-data: /nope cannot be read: No such file or directory.",
        f"  --vendor-data: {tmp_path / 'binary'} cannot be read: it is not text in UTF-8.",
    ]
    wrong = gugus("apply", "-f", "/nope")
    assert wrong.stderr == "error: --file: /nope cannot be read: No such file or directory.\n"


LISTS = {
    "vm": ("--usb", "1-2", "--pci", "0000:01:00.0", "--cpu-flag", "+aes", "--smbios", "serial=X", "--package", "nginx"),
    "container": ("--mount", "/a:/b", "--env", "A=B", "--device", "/dev/fuse", "--feature", "nesting", "--init", "/x"),
}
OTHERS = ("--tag", "a", "--dns", "10.0.0.1", "--ip", "dhcp", "--cpu-limit", "0.5", "--notes", "x")


@pytest.mark.parametrize("kind", ["vm", "container"])
def test_an_empty_value_is_the_default_of_any_option(cluster: Cluster, gugus: Gugus, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "key.pub"
    file.write_text("ssh-ed25519 AAAA me\n")
    given = (*LISTS[kind], *OTHERS, "--ssh-key", str(file), "--password-hash", str(file))
    made = gugus("guest", "create", "web", "--kind", kind, "--disk", "1GiB/local", *given)
    assert made.exit_code == 0, made.stderr
    before = guest_pb2.GuestSpec()
    before.CopyFrom(cluster.state.requests[-1].spec)
    emptied = [word for flag in given[::2] for word in (flag, "")]
    result = gugus("guest", "set", "web", *emptied)
    assert result.exit_code == 0, result.stderr
    spec = cluster.state.guests["web"].spec
    left = [
        field.name
        for part in (spec.virtual_machine, spec.container, spec.first_boot)
        for field, value in part.ListFields()
        if not hasattr(value, "ByteSize") or value.ByteSize()
    ]
    assert (left, list(spec.tags), spec.notes, spec.cpu_limit_milli) == ([], [], "", 0)
    assert before.first_boot.password_hash
    assert "guest web is so already." in gugus("guest", "set", "web", *emptied).stderr


def test_what_stands_beside_an_empty_value_is_all_that_is_left(cluster: Cluster, gugus: Gugus) -> None:
    gugus("guest", "create", "web", "--kind", "container", "--disk", "1GiB/local", "--feature", "nesting")
    gugus("guest", "set", "web", "--feature", "", "--feature", "fuse", "--mount", "", "--mount", "/a:/b")
    box = cluster.state.guests["web"].spec.container
    assert (box.features.nesting, box.features.fuse, [mount.target for mount in box.mounts]) == (False, True, ["/b"])


def _with_unused(cluster: Cluster, gugus: Gugus) -> None:
    gugus("guest", *NAMES, "--disk", "1GiB/local", "--disk", "1GiB/local")
    guest = cluster.state.guests["web"]
    disk = guest.status.unused_disks.add(name="data", pool="slow", volume="web-data", size_bytes=2 << 30)
    disk.settings.read_only = True
    guest.status.unused_disks.add(name="disk1", pool="slow", volume="web-old")


def test_an_unused_disk_is_taken_up_as_it_was(cluster: Cluster, gugus: Gugus) -> None:
    _with_unused(cluster, gugus)
    for text in ("volume=web-data,size=3GiB", "volume=web-old"):
        result = gugus("guest", "disk", "add", "web", text)
        assert result.exit_code == 0, result.stderr
    request = cluster.state.requests[-1]
    assert [(disk.name, disk.pool, disk.volume) for disk in request.spec.disks[2:]] == [
        ("data", "slow", "web-data"),
        ("disk3", "slow", "web-old"),
    ]
    assert (request.spec.disks[2].size_bytes, request.spec.disks[2].settings.read_only) == (3 << 30, True)


def test_a_volume_that_is_no_unused_one_is_told_which_there_are(cluster: Cluster, gugus: Gugus) -> None:
    _with_unused(cluster, gugus)
    missing = gugus("guest", "disk", "add", "web", "volume=web-dta")
    assert missing.exit_code == failure.NOT_FOUND
    assert "The guest has web-data, web-old." in missing.stderr
    new = gugus("guest", "create", "other", "--kind", "vm", "--disk", "volume=web-data,pool=slow")
    assert (new.exit_code, "a new guest has none" in new.stderr) == (failure.USAGE, True)


def test_an_unnamed_part_gets_a_name_that_no_other_has(cluster: Cluster, gugus: Gugus) -> None:
    gugus("guest", *NAMES, "--disk", "1GiB/local", "--disk", "1GiB/local", "--network", "lan", "--network", "lan")
    for command in (["disk", "remove", "web", "disk0"], ["nic", "remove", "web", "eth0"]):
        gugus("guest", *command)
    for command in (["disk", "add", "web", "1GiB/local"], ["nic", "add", "web", "dmz"]):
        result = gugus("guest", *command)
        assert result.exit_code == 0, result.stderr
    spec = cluster.state.requests[-1].spec
    assert [part.name for part in (*spec.disks, *spec.nics)] == ["disk1", "disk2", "eth1", "eth2"]


def test_a_name_that_is_there_is_not_taken_for_a_near_one(
    cluster: Cluster, gugus: Gugus, monkeypatch: pytest.MonkeyPatch
) -> None:
    gugus("guest", *NAMES, "--disk", "1GiB/local")

    async def gone(*_: object) -> None:
        raise not_found("guest", "web")

    monkeypatch.setattr(Guests, "explain", gone)
    assert gugus("guest", "explain", "web").stderr == 'error: guest "web" does not exist.\n'


@pytest.mark.parametrize(("state", "said"), [("FAILED", "has ended already: failed"), ("RUNNING", "was asked to end")])
def test_a_task_that_has_ended_is_not_asked_to(
    gugus: Gugus, monkeypatch: pytest.MonkeyPatch, state: str, said: str
) -> None:
    async def cancel(*_: object) -> Task:
        return Task(state=TaskState.Value(f"TASK_STATE_{state}"))

    monkeypatch.setattr(Tasks, "cancel", cancel)
    result = gugus("task", "cancel", "t1")
    assert (result.exit_code, result.stderr) == (0, f"the task t1 {said}.\n")


@pytest.mark.parametrize(
    ("method", "words"),
    [("update", ["guest", "set", "web", "--notes", "x"]), ("stop", ["guest", "stop", "web"])],
)
def test_an_interruption_before_the_task_is_known_says_so(
    gugus: Gugus, monkeypatch: pytest.MonkeyPatch, method: str, words: list[str]
) -> None:
    gugus("guest", *NAMES, "--disk", "1GiB/local")

    async def interrupted(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(5)

    monkeypatch.setattr(Guests, method, interrupted)
    result = gugus(*words)
    assert result.exit_code == failure.INTERRUPTED
    assert result.stderr.startswith("interrupted; whether it was begun nobody has said yet. `gugus task list`")
