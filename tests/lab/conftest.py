"""One real cluster for all of these tests: three nodes called `ci`, formed once, mended after each test, always removed.

Files are numbered: the gentle tests come first, the violent ones last. A judge outside of the cluster watches all along.
"""

import atexit
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from gugus.agent.v1.task_pb2 import TASK_STATE_SUCCEEDED
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, Guest, GuestSpec
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE

from client.sdk import Gugus
from lab import cluster as clusters
from lab import demo_guests
from lab.api import Lab
from lab.demo import why_not_real
from lab.images import two_copies
from lab.images.debian import debian_image
from lab.judge import Copy, Judge
from lab.operator import Operator
from tests import runs

NAME = "ci"
DEBIAN = "debian"
NODES = 3
BOOT_SECONDS = 60.0
HEAL_SECONDS = 60.0


@dataclass
class Room:
    """The machine room and the cluster in it, as a test speaks of them."""

    lab: Lab
    operator: Operator
    judge: Judge
    made: list[str] = field(default_factory=list)

    @property
    def gugus(self) -> Gugus:
        """The SDK."""
        return self.operator.gugus

    @property
    def acting(self) -> str:
        """The node whose manager acts for the cluster."""
        return self.operator.wait("a manager to act", lambda: self.operator.status().acting, HEAL_SECONDS)

    def other_than(self, *names: str) -> str:
        """Some node that is none of these."""
        return next(node.name for node in self.lab.plan.nodes() if node.name not in names)

    def shell(self, node: str, *words: str, check: bool = True, text: str | None = None) -> str:
        """Run a command in a node and return what it wrote."""
        return self.lab.exec(node, words, text=text, check=check).stdout

    def create(self, name: str, spec: GuestSpec, request_id: str = "") -> Guest:
        """Make a guest, which is deleted after the test, and wait for its task."""
        self.made.append(name)
        task = self.operator.do(self.gugus.guests.create(name, spec, request_id=request_id))
        assert task.state == TASK_STATE_SUCCEEDED
        return self.operator.guest(name)

    def run_both(self, node: str) -> None:
        """Have the virtual machine `web` and the container `db` run on a node under HA, and write to their disks."""
        self.create("web", demo_guests.vm_spec(node))
        self.create("db", demo_guests.container_spec(node))
        for name in ("web", "db"):
            self.wait_running(name, node)
        for name in ("web", "db"):
            self.operator.wait(f"{name} to write to its disk", lambda name=name: self.beats(name), BOOT_SECONDS)  # type: ignore[misc]

    def wait_running(self, name: str, node: str = "", seconds: float = BOOT_SECONDS) -> Copy:
        """Wait until a guest runs, by the store and by its one process; on this node, or any but none."""

        def there() -> Copy | None:
            guest, copies = self.operator.guest(name), self.judge.now.of(name)
            if guest.status.phase != GUEST_PHASE_RUNNING or len(copies) != 1:
                return None
            copy = next(iter(copies))
            return copy if copy.node == guest.status.node and node in ("", copy.node) else None

        return self.operator.wait(f"{name} to run on {node or 'some node'}", there, seconds)

    def is_given_anew(self, name: str, generation: int) -> bool:
        """Whether a guest was given to a host again since it had this generation."""
        return self.operator.guest(name).meta.generation > generation

    def is_elsewhere(self, name: str, node: str) -> bool:
        """Whether a guest was given to another node than this one."""
        return self.operator.guest(name).status.node not in ("", node)

    def beats(self, name: str) -> int:
        """How many heartbeats are on a guest's disk."""
        return len(demo_guests.beats(self.lab.plan, self.operator.guest(name)))

    def assert_one_writer(self, name: str) -> None:
        """A disk tells of no two copies that wrote at the same time."""
        assert not two_copies(demo_guests.beats(self.lab.plan, self.operator.guest(name)))

    def event_after(self, since_s: float, about: str, reason: str) -> bool:
        """Whether the cluster told this of something since a moment (wall clock)."""
        return any(
            event.about == about and event.reason == reason and event.at.seconds + event.at.nanos / 1e9 >= since_s
            for event in self.operator.events()
        )

    def wait_online(self, node: str) -> None:
        """Wait until a node holds its lease."""
        self.operator.wait(
            f"{node} to be online", lambda: self.operator.node(node).status.state == NODE_STATE_ONLINE, HEAL_SECONDS
        )

    def mend(self) -> None:
        """Bring every node back, delete the guests of the test, and wait until the cluster is whole."""
        self.lab.up(NODES)
        clusters.form(self.lab)
        if self.made:
            demo_guests.remove_guests(self.operator, tuple(self.made))
            gone = set(self.made)
            self.operator.wait(
                "their processes to be gone",
                lambda: not any(copy.guest in gone for copy in self.judge.now.copies),
                HEAL_SECONDS,
            )
            self.made.clear()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests that use the room are marked `lab`."""
    for item in items:
        if "room" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.lab)


@pytest.fixture(scope="session")
def session_room() -> Iterator[Room]:
    """The lab with its cluster, network, pool and images; a stale lab of an earlier run is removed first."""
    if reason := why_not_real():
        pytest.skip(f"no real lab: {reason}")
    lab = runs.current().take_lab(NAME)
    lab.down()
    atexit.register(lab.down)
    try:
        lab.up(NODES)
        with Operator(clusters.form(lab)) as operator, Judge(lab) as judge:
            demo_guests.prepare(operator, lab.plan)
            yield Room(lab, operator, judge)
            assert judge.max_copies() <= 1
    finally:
        lab.down()
        atexit.unregister(lab.down)


@pytest.fixture(scope="session")
def debian(session_room: Room) -> str:
    """The name of an image with a whole Debian: cloud-init, systemd and the QEMU guest agent."""
    built = debian_image(demo_guests.image_cache())
    where = session_room.lab.plan.shared / "images" / built.name
    if not where.exists():
        shutil.copyfile(built, where)
    with where.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    source = demo_guests.Source(DEBIAN, Path("/srv/shared/images") / built.name, sha256)
    demo_guests.import_image(session_room.operator, source)
    return DEBIAN


@pytest.fixture
def room(session_room: Room) -> Iterator[Room]:
    """The room, whole before and after each test; two copies of a guest at any time fail the test."""
    began_s = time.time()
    yield session_room
    session_room.mend()
    twice = [look for look in session_room.judge.looks if look.at_s >= began_s and look.twice]
    assert not twice, f"two copies of one guest ran at once: {twice}"


@pytest.fixture
def eventually(room: Room) -> Callable[..., object]:
    """Wait for a condition: `eventually("words", condition)`."""
    return lambda what, condition, seconds=HEAL_SECONDS: room.operator.wait(what, condition, seconds)
