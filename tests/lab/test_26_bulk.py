"""Many guests at once: a file of them comes true, a second time changes nothing, and the host tells what they use."""

import ssl
import urllib.request

from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, GUEST_PHASE_STOPPED

from common.config import AGENT_METRICS_PORT
from lab import demo_guests
from lab.cluster import operator_config
from tests.lab.conftest import Room

NAMES = ("web", "db", "db2")
FILE = f"""
kind: Guest
name: web
labels: {{set: bulk}}
spec:
  kind: vm
  memory: 128MiB
  tags: [bulk]
  preferred_node: n1
  boot: {{order: 1}}
  disks: [{{pool: {demo_guests.POOL}, image: {demo_guests.VM_IMAGE}}}]
  nics: [{{network: {demo_guests.NETWORK}}}]
---
kind: Guest
name: db
labels: {{set: bulk}}
spec:
  kind: container
  memory: 64MiB
  tags: [bulk]
  preferred_node: n1
  boot: {{order: 2}}
  disks: [{{pool: {demo_guests.POOL}, image: {demo_guests.CONTAINER_IMAGE}}}]
---
kind: Guest
name: db2
labels: {{set: bulk}}
spec: {{kind: container, memory: 64MiB, tags: [bulk], disks: [{{pool: {demo_guests.POOL}, image: {demo_guests.CONTAINER_IMAGE}}}]}}
"""


def gugus(room: Room, *words: str, text: str | None = None) -> str:
    """Run the command on the first node; it must not fail."""
    return room.shell("n1", "gugus", *words, text=text)


def phases(room: Room) -> set[int]:
    return {room.operator.guest(name).status.phase for name in NAMES}


def test_a_file_of_guests_comes_true_and_they_are_handled_together(room: Room) -> None:
    room.made += NAMES
    gugus(room, "apply", "-f", "-", text=FILE)
    assert phases(room) == {GUEST_PHASE_RUNNING}
    before = {name: room.operator.guest(name).meta.revision for name in NAMES}
    gugus(room, "apply", "-f", "-", text=FILE)
    gugus(room, "diff", "--exact", "-f", "-", text=gugus(room, "guest", "export", "web"))
    assert {name: room.operator.guest(name).meta.revision for name in NAMES} == before

    gugus(room, "guest", "set", "db", "--cpu-limit", "0.5", "--notes", "by hand")
    gugus(room, "apply", "-f", "-", text=FILE.replace("64MiB", "96MiB"))
    db = room.operator.guest("db").spec
    assert (db.memory_bytes, db.cpu_limit_milli, db.notes) == (96 << 20, 500, "by hand")
    assert "gugus_guest_memory_usage_bytes" in told(room)

    gugus(room, "guest", "stop", "--tag", "bulk", "--force")
    assert phases(room) == {GUEST_PHASE_STOPPED}
    gugus(room, "guest", "start", "--label", "set=bulk")
    assert phases(room) == {GUEST_PHASE_RUNNING}
    only_web = FILE[: FILE.index("---")]
    gugus(room, "apply", "-f", "-", "--prune", "--label", "set=bulk", "--yes", text=only_web)
    assert [guest.meta.name for guest in room.operator.guests() if guest.meta.name in NAMES] == ["web"]


def told(room: Room) -> str:
    """The metrics of the first node's agent."""
    keys = operator_config(room.lab.plan).parent
    context = ssl.create_default_context(cafile=str(keys / "ca.crt"))
    context.check_hostname = False  # its certificate carries the node's name
    context.load_cert_chain(keys / "operator.crt", keys / "operator.key")
    address = room.lab.plan.node("n1").address
    with urllib.request.urlopen(
        f"https://{address}:{AGENT_METRICS_PORT}/metrics", context=context, timeout=10
    ) as answer:
        text: str = answer.read().decode()
    return text
