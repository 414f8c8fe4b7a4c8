"""A rolling reboot: whose turn it is, and when a host is back and well. Pure; what was done so far is in the task's notes.

Invariant: of the managers' hosts at most one is down at a time, and that of the acting manager comes last, alone, after it has handed over;
after the first failure nobody's turn comes any more.
"""

from collections.abc import Collection, Iterable

from gugus.cluster.v1.node_pb2 import (
    NODE_STATE_ONLINE,
    REBOOT_STEP_DONE,
    REBOOT_STEP_DRAIN,
    REBOOT_STEP_FAILED,
    REBOOT_STEP_REBOOT,
    REBOOT_STEP_RESTORE,
    REBOOT_STEP_SKIPPED,
    REBOOT_STEP_UNSPECIFIED,
    Node,
    NodeReboot,
    RollingReboot,
)

UNDER_WAY = frozenset({REBOOT_STEP_DRAIN, REBOOT_STEP_REBOOT, REBOOT_STEP_RESTORE})
OVER = frozenset({REBOOT_STEP_DONE, REBOOT_STEP_SKIPPED, REBOOT_STEP_FAILED})

DEFAULT_BACK_WITHIN_MS = 900_000
"""RebootNodesRequest.back_within_ms when it is 0: memory tests and firmware of large servers take up to ten minutes."""

MAX_PARALLEL = 8


def planned(nodes: Iterable[Node], acting: str, earlier: RollingReboot | None) -> RollingReboot:
    """Return the notes of a rolling reboot that begins: plain nodes, then managers' hosts, the acting one's last.

    earlier: notes of one for the same nodes that was broken off; what it has done is not done again, and a node that it left in maintenance
    does not stay in it.
    """
    before = {one.node: one for one in earlier.nodes} if earlier else {}
    over = done(earlier) if earlier else set()
    made = RollingReboot()
    for node in sorted(nodes, key=lambda n: (n.meta.name == acting, n.status.voter, n.meta.name)):
        name = node.meta.name
        was = before.get(name, NodeReboot())
        if name in over:
            made.nodes.add(
                node=name,
                step=REBOOT_STEP_SKIPPED,
                reason="an earlier rolling reboot, which was broken off, has done it",
            )
            continue
        ours = was.step != REBOOT_STEP_UNSPECIFIED and not was.stays_in_maintenance
        made.nodes.add(node=name, stays_in_maintenance=node.spec.maintenance and not ours)
    return made


def of_the_same(last: RollingReboot, nodes: Collection[str]) -> RollingReboot | None:
    """Return the notes of the last rolling reboot, which was broken off, if it was of the same nodes."""
    return last if {one.node for one in last.nodes} == set(nodes) else None


def done(earlier: RollingReboot) -> set[str]:
    """Return the nodes that a rolling reboot, or the ones that it went on from, has done with."""
    return {one.node for one in earlier.nodes if one.step in (REBOOT_STEP_DONE, REBOOT_STEP_SKIPPED)}


def due(notes: RollingReboot, voters: Collection[str], acting: str, parallel: int) -> list[str]:
    """Return the nodes whose turn comes now."""
    if any(one.step == REBOOT_STEP_FAILED for one in notes.nodes):
        return []
    busy = [one.node for one in notes.nodes if one.step in UNDER_WAY]
    waiting = [one.node for one in notes.nodes if one.step == REBOOT_STEP_UNSPECIFIED]
    begin: list[str] = []
    for name in waiting:
        down = [*busy, *begin]
        if len(down) >= parallel:
            break
        if name in voters and any(other in voters for other in down):
            continue
        if name == acting and (down or len(waiting) > 1):
            continue
        begin.append(name)
    return begin


def not_well(one: NodeReboot, node: Node) -> str:
    """Return why a node is not back from its reboot and as well as before; "" when it is."""
    status = node.status
    if status.state != NODE_STATE_ONLINE:
        return f"it is not online: {status.reason}"
    if status.boot_id == one.boot_id:
        return "it has not gone down yet"
    if status.facts.boot_id != status.boot_id:
        return "its agent has not told yet what it has"
    if lost := [h.driver for h in status.facts.hypervisors if not h.ready]:
        return f"its hypervisor {', '.join(lost)} is not ready"
    missing = sorted({*one.pools} - {*status.facts.pools}) + sorted({*one.networks} - {*status.facts.networks})
    return f"{', '.join(missing)} is not ready there yet" if missing else ""
