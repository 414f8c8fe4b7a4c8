"""`gugus guest snapshot`, `clone`, `template` and `disk move|flatten`: what is asked of the cluster, and what is shown."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Self

import pytest
from gugus.agent.v1.snapshot_pb2 import SNAPSHOT_CONSISTENCY_MEMORY
from gugus.agent.v1.task_pb2 import TASK_STATE_SUCCEEDED
from gugus.cluster.v1.clone_pb2 import CLONE_MODE_FULL, CLONE_MODE_LINKED, CLONE_MODE_UNSPECIFIED, CloneGuestRequest
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.meta_pb2 import Meta
from gugus.cluster.v1.snapshot_pb2 import SNAPSHOT_STATE_READY, Snapshot
from gugus.cluster.v1.task_pb2 import Task
from typer.testing import CliRunner

from client.cli import app, session

Run = Callable[..., Any]
ENDED = Task(meta=Meta(name="t1"), state=TASK_STATE_SUCCEEDED)


class Fake:
    """A cluster that does at once what it is asked, and remembers it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.found: list[Snapshot] = []
        self.snapshots = SimpleNamespace(
            create=self._doing("create"),
            delete=self._doing("delete"),
            rollback=self._doing("rollback"),
            list=self._list,
            get=self._get,
        )
        self.clones = SimpleNamespace(
            clone=self._doing("clone"),
            template=self._doing("template"),
            move_disk=self._doing("move"),
            flatten_disk=self._doing("flatten"),
        )
        self.tasks = SimpleNamespace(wait=self._wait)
        self.guests = SimpleNamespace(list=self._guests)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def _doing(self, what: str) -> Any:
        async def do(*words: Any, **options: Any) -> Task:
            self.asked.append((what, words, options))
            return ENDED

        return do

    async def _wait(self, task: Task, *_: object, **__: object) -> Task:
        return task

    async def _list(self, guest: str) -> list[Snapshot]:
        return self.found

    async def _get(self, guest: str, name: str) -> Snapshot:
        return next(one for one in self.found if one.name == name)

    async def _guests(self, **_: object) -> list[Guest]:
        return [Guest(meta=Meta(name=name)) for name in ("db", "web")]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    monkeypatch.setattr(session, "open_cluster", lambda chosen: made)
    return made


@pytest.fixture
def run() -> Run:
    return lambda *words: CliRunner().invoke(app, ["guest", *words])


def test_snapshot_is_taken_of_one_guest(fake: Fake, run: Run) -> None:
    result = run("snapshot", "create", "web", "before", "--memory", "-d", "the upgrade", "--no-freeze")
    assert result.exit_code == 0, result.output
    assert fake.asked == [
        ("create", ("web", "before"), {"memory": True, "description": "the upgrade", "no_freeze": True})
    ]


def test_snapshot_is_taken_of_several_guests_named_or_all(fake: Fake, run: Run) -> None:
    assert run("snapshot", "create", "web", "db", "before").exit_code == 0
    assert run("snapshot", "create", "--all", "before").exit_code == 0
    assert sorted(words for _, words, _ in fake.asked) == [("db", "before")] * 2 + [("web", "before")] * 2


def test_snapshot_of_nobody_is_refused(fake: Fake, run: Run) -> None:
    assert run("snapshot", "create", "before").exit_code != 0
    assert not fake.asked


def test_snapshots_are_listed_as_a_tree(fake: Fake, run: Run) -> None:
    fake.found = [
        Snapshot(name="a", state=SNAPSHOT_STATE_READY),
        Snapshot(name="b", parent="a", memory=True, memory_bytes=1 << 20, consistency=SNAPSHOT_CONSISTENCY_MEMORY),
        Snapshot(name="c", parent="b", current=True),
        Snapshot(name="d", parent="a"),
    ]
    lines = run("snapshot", "list", "web").stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == ["a", "└ b", "└── c *", "└ d"]
    assert "1MiB" in lines[2]
    listed = json.loads(run("snapshot", "list", "web", "-o", "json").stdout)
    assert [one["name"] for one in listed] == ["a", "b", "c", "d"]
    assert "1MiB" in run("snapshot", "show", "web", "b").stdout


def test_rollback_asks_first(fake: Fake, run: Run) -> None:
    assert run("snapshot", "rollback", "web", "a").exit_code != 0
    assert not fake.asked
    assert run("snapshot", "rollback", "web", "a", "--yes", "--start").exit_code == 0
    assert fake.asked == [("rollback", ("web", "a"), {"start": True})]


def test_what_cannot_be_undone_is_asked_first(fake: Fake, run: Run) -> None:
    for words in (("snapshot", "delete", "web", "a"), ("template", "web")):
        refused = run(*words)
        assert refused.exit_code != 0
        assert "Repeat the command with --yes." in refused.stderr
    assert not fake.asked
    assert run("snapshot", "delete", "web", "a", "--yes").exit_code == 0
    assert run("template", "web", "-y").exit_code == 0
    assert fake.asked == [("delete", ("web", "a"), {}), ("template", ("web",), {})]


@pytest.mark.parametrize(
    ("option", "mode"),
    [((), CLONE_MODE_UNSPECIFIED), (("--full",), CLONE_MODE_FULL), (("--linked",), CLONE_MODE_LINKED)],
)
def test_clone_options_become_the_request(fake: Fake, run: Run, option: tuple[str, ...], mode: int) -> None:
    words = ["clone", "web", "shop", *option, "--pool", "fast", "--snapshot", "a", "--id", "150", "--start"]
    words += ["--hostname", "h", "--notes", "n", "--project", "p", "--node", "n2", "--rate", "50MiB"]
    assert run(*words).exit_code == 0
    ((_, (request,), _),) = fake.asked
    assert request == CloneGuestRequest(
        source="web",
        name="shop",
        mode=mode,  # type: ignore[arg-type]
        pool="fast",
        snapshot="a",
        id=150,
        start=True,
        hostname="h",
        notes="n",
        project="p",
        preferred_node="n2",
        bytes_per_s=50 << 20,
    )


def test_clone_is_not_full_and_linked(fake: Fake, run: Run) -> None:
    assert run("clone", "web", "shop", "--full", "--linked").exit_code != 0
    assert not fake.asked


def test_templates_and_disks(fake: Fake, run: Run) -> None:
    assert run("template", "web", "--yes").exit_code == 0
    assert run("disk", "move", "web", "data", "fast", "--rate", "1MiB").exit_code == 0
    assert run("disk", "flatten", "web", "root").exit_code == 0
    assert fake.asked == [
        ("template", ("web",), {}),
        ("move", ("web", "data", "fast"), {"bytes_per_s": 1 << 20}),
        ("flatten", ("web", "root"), {"bytes_per_s": 0}),
    ]
