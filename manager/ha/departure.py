"""What becomes of a node whose host goes down in order: pure functions of its departure, as stored, and of what its beats say.

A departure is over once the node is heard without one: in another boot, or in the same one when the agent alone came back (a soft-reboot).
It decides who waits for whom, and nothing about safety: that the guests of a node run there no more is proven as for any other node
(`node_machine`). So wall clocks may bound a freeze: one that is wrong ends it early or late.
"""

from gugus.cluster.v1.cluster_pb2 import (
    SHUTDOWN_POLICY_CONDITIONAL,
    SHUTDOWN_POLICY_FAIL_OVER,
    SHUTDOWN_POLICY_FREEZE,
    SHUTDOWN_POLICY_MIGRATE,
    SHUTDOWN_POLICY_UNSPECIFIED,
    ClusterSettings,
    ShutdownPolicy,
)
from gugus.cluster.v1.heartbeat_pb2 import HeartbeatRequest
from gugus.cluster.v1.node_pb2 import (
    HOST_EXIT_REBOOT,
    HOST_EXIT_UNSPECIFIED,
    NODE_STATE_FENCED,
    NODE_STATE_ONLINE,
    Departure,
    HostExit,
    Node,
)

DEFAULT_FREEZE_MS = 600_000
"""ClusterSettings.freeze_ms when it is 0: a server takes 3 to 8 minutes from a reboot to its agent
(memory tests, firmware of controllers)."""

MOVE_BUDGET_MS = 1_500_000
"""How long a host may be kept up while its guests move away. systemd ends a shutdown by force after 30 minutes (JobTimeoutSec of
reboot.target and poweroff.target), and what is left after this takes up to two."""

MS_PER_S = 1000
NS_PER_S = 1_000_000_000


def resolved(wanted: ShutdownPolicy.ValueType, exit_: HostExit.ValueType) -> ShutdownPolicy.ValueType:
    """Return what a policy means for a host that goes down so: FREEZE, FAIL_OVER or MIGRATE."""
    if wanted in (SHUTDOWN_POLICY_UNSPECIFIED, SHUTDOWN_POLICY_CONDITIONAL):
        return SHUTDOWN_POLICY_FREEZE if exit_ == HOST_EXIT_REBOOT else SHUTDOWN_POLICY_FAIL_OVER
    return wanted


def begun(node: Node, beat: HeartbeatRequest | None, settings: ClusterSettings) -> Departure | None:
    """Return the departure that a node's newest beat begins, without its time; None when it begins none."""
    if beat is None or beat.exit == HOST_EXIT_UNSPECIFIED or node.status.state != NODE_STATE_ONLINE:
        return None
    if beat.boot_id != node.status.boot_id or node.status.departure.boot_id == beat.boot_id:
        return None
    return Departure(boot_id=beat.boot_id, exit=beat.exit, policy=resolved(settings.shutdown, beat.exit))


def called_off(node: Node, beat: HeartbeatRequest | None) -> bool:
    """Return whether a node that said that its host goes down says so no more, in the same boot."""
    here = beat is not None and beat.exit == HOST_EXIT_UNSPECIFIED and beat.boot_id == node.status.boot_id
    return here and leaving(node) and node.status.state == NODE_STATE_ONLINE


def settle_return(node: Node) -> None:
    """Take a departure off a node that is back. What moved away for it is still to come back, which `Departure.task` says."""
    if node.status.departure.task:
        node.status.departure.boot_id = ""
    else:
        node.status.ClearField("departure")


def leaving(node: Node) -> bool:
    """Return whether a node's host goes down in order: it gets nothing new."""
    return node.status.HasField("departure") and node.status.departure.boot_id == node.status.boot_id != ""


def shutting_down(node: Node) -> bool:
    """Return whether what runs on a node is being shut down with its host: nobody is to start it there again."""
    return leaving(node) and node.status.departure.policy != SHUTDOWN_POLICY_MIGRATE


def awaited(node: Node) -> bool:
    """Return whether the HA guests of a node that goes down wait for it."""
    return leaving(node) and node.status.departure.policy == SHUTDOWN_POLICY_FREEZE


def is_back(node: Node) -> bool:
    """Return whether a node is back whose guests moved away for its departure, and has told what it has by now."""
    online = node.status.state == NODE_STATE_ONLINE and node.status.facts.boot_id == node.status.boot_id
    return online and bool(node.status.departure.task) and not leaving(node)


def answer(node: Node, beat: HeartbeatRequest) -> ShutdownPolicy.ValueType:
    """Return what a host that goes down is to do by now; unspecified while that is not decided."""
    departure = node.status.departure
    asked = beat.exit != HOST_EXIT_UNSPECIFIED and departure.boot_id == beat.boot_id
    return departure.policy if asked else SHUTDOWN_POLICY_UNSPECIFIED


def freezes(node: Node, now_s: float, settings: ClusterSettings) -> bool:
    """Return whether the HA guests of a node that is proven dead are to wait for it. now_s: the wall clock."""
    departure = node.status.departure
    frozen = node.status.state == NODE_STATE_FENCED and departure.policy == SHUTDOWN_POLICY_FREEZE
    return frozen and lasts(departure.at.ToNanoseconds() / NS_PER_S, now_s, settings)


def lasts(since_s: float, now_s: float, settings: ClusterSettings) -> bool:
    """Return whether a freeze that began at a moment of the wall clock is not over yet."""
    return now_s - since_s < freeze_s(settings)


def freeze_s(settings: ClusterSettings) -> float:
    """Return for how long guests wait for their node."""
    return (settings.freeze_ms or DEFAULT_FREEZE_MS) / MS_PER_S


def words(departure: Departure) -> str:
    """Return what becomes of a host and its guests, in words."""
    how = "reboots" if departure.exit == HOST_EXIT_REBOOT else "is shut down"
    return f"its host {how}: {_DOES[departure.policy]}"


_DOES = {
    SHUTDOWN_POLICY_FREEZE: "its HA guests are shut down and wait for it",
    SHUTDOWN_POLICY_FAIL_OVER: "its HA guests are shut down and start elsewhere",
    SHUTDOWN_POLICY_MIGRATE: "its guests move away first",
}
