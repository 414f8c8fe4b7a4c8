"""What becomes of a guest that was to run and ended by itself: its policies."""

from gugus.agent.v1.guest_pb2 import GUEST_END_CRASH, GUEST_END_HOST, GUEST_END_POWEROFF, GUEST_END_REBOOT, GuestEnd
from gugus.agent.v1.resources_pb2 import END_POLICY_RESTART, END_POLICY_STOP, END_POLICY_UNSPECIFIED
from gugus.cluster.v1.guest_pb2 import GuestSpec

_WORDS = {
    GUEST_END_POWEROFF: "it shut itself down",
    GUEST_END_REBOOT: "it asked for a reboot",
    GUEST_END_CRASH: "it crashed",
    GUEST_END_HOST: "its host went down",
}


def stays_down(spec: GuestSpec, ended: GuestEnd.ValueType) -> bool:
    """Return whether a guest that ended so is to stay down, as if a user had stopped it.

    An end that nobody knows of counts as a crash. The end of a host is no guest's own.
    """
    if ended == GUEST_END_HOST:
        return False
    if ended == GUEST_END_POWEROFF:
        default = END_POLICY_RESTART if spec.ha.enabled else END_POLICY_STOP
        return (spec.policies.on_shutdown or default) == END_POLICY_STOP
    policy = spec.policies.on_reboot if ended == GUEST_END_REBOOT else spec.policies.on_crash
    return (policy if policy != END_POLICY_UNSPECIFIED else END_POLICY_RESTART) == END_POLICY_STOP


def words(ended: GuestEnd.ValueType) -> str:
    """Return how a guest ended, in words."""
    return _WORDS.get(ended, "it ended by itself")
