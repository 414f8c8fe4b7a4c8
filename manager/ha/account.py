"""HA's account of a guest, in its status: what `guest_machine` decides, written down. Changes the guest it is given and nothing else."""

from gugus.cluster.v1.cluster_pb2 import DISARM_MODE_FREEZE, HaSwitch
from gugus.cluster.v1.guest_pb2 import (
    HA_STATE_DISABLED,
    HA_STATE_ERROR,
    HA_STATE_FREEZE,
    HA_STATE_RELOCATE,
    HA_STATE_STARTED,
    HA_STATE_STOPPED,
    HA_STATE_UNSPECIFIED,
    POWER_ON,
    POWER_PAUSED,
    Guest,
)

from manager.ha.guest_machine import (
    DEFAULT_MAX_RELOCATE,
    DEFAULT_MAX_RESTART,
    Action,
    Event,
    Facts,
    State,
    advance,
)

WANTED = frozenset({POWER_ON, POWER_PAUSED})
"""Powers of guests that are to run."""

HELD = frozenset({HA_STATE_RELOCATE, HA_STATE_ERROR})
"""States in which a guest that is to run is not started."""

FROZEN = "HA was switched off with --freeze: no guest under HA is started before `gugus cluster ha arm`"
"""Why a guest that is to run is not started (`GuestStatus.ha_frozen`)."""

STEADY_S = 60.0
"""A guest that has run for so long did not fail: what it failed at before is forgotten."""


def follow(guest: Guest) -> bool:
    """Bring the state up to what is asked of the guest: HA on or off, in use or not, its power. Returns whether it changed."""
    event = _wish(guest)
    return event is not None and happen(guest, event, event.value) is not None


def happen(guest: Guest, event: Event, reason: str, *, elsewhere: bool = False) -> Action | None:
    """Let something happen to a guest. elsewhere: a node fits that it has not failed on.

    Returns what is to be done about it; None when the event changes nothing.
    """
    row = advance(guest.status.ha.state, event, _facts(guest, elsewhere=elsewhere))
    if row is None:
        return None
    if row.next == HA_STATE_UNSPECIFIED:
        guest.status.ClearField("ha")
        return row.action
    account = guest.status.ha
    account.state, account.reason = row.next, reason
    if row.next != HA_STATE_RELOCATE:
        account.task = ""
    if row.next != HA_STATE_FREEZE:
        account.ClearField("frozen_at")
    if row.action is Action.CLEAR:
        _clear(guest)
    elif row.action is Action.RESTART:
        account.restarts += 1
    elif row.action in (Action.RELOCATE, Action.GIVE_UP):
        _give_up_on_node(guest)
    if row.action in (Action.RELOCATE, Action.GIVE):
        account.restarts = 0
    if row.action is Action.RELOCATE:
        account.relocations += 1
    if row.action is Action.GIVE_UP:
        account.failed_spec_number = guest.spec_number
    return row.action


def switch(guest: Guest, ha: HaSwitch) -> bool:
    """Note on a guest whether HA is switched off for all, and whether it is to stay as it is. Returns whether that is news."""
    before = guest.status.ha_disarmed, guest.status.ha_frozen
    guest.status.ha_disarmed = ha.disarmed
    guest.status.ha_frozen = ha.disarmed and ha.mode == DISARM_MODE_FREEZE and guest.spec.ha.enabled
    return (guest.status.ha_disarmed, guest.status.ha_frozen) != before


def held(guest: Guest) -> bool:
    """Return whether the guest's node is to hold it under HA, so that it dies there with the node's lease."""
    return guest.spec.ha.enabled and not guest.status.ha_disarmed


def steady(guest: Guest, running_for_s: float) -> bool:
    """Return whether a guest that runs has run for long enough that its failures are to be forgotten."""
    account = guest.status.ha
    counted = account.restarts or account.relocations or account.state == HA_STATE_ERROR
    return bool(counted) and running_for_s >= STEADY_S


def changed(guest: Guest) -> bool:
    """Return whether a guest in error has another spec than the one that it failed with."""
    account = guest.status.ha
    return account.state == HA_STATE_ERROR and account.failed_spec_number != guest.spec_number


def limits(guest: Guest) -> tuple[int, int]:
    """Return how often a guest is restarted on one node, and how many other nodes it is tried on."""
    spec = guest.spec.ha
    restarts = spec.max_restart if spec.HasField("max_restart") else DEFAULT_MAX_RESTART
    return restarts, spec.max_relocate if spec.HasField("max_relocate") else DEFAULT_MAX_RELOCATE


def _wish(guest: Guest) -> Event | None:
    """Return the event that what is asked for makes, None when the state follows it already."""
    asked, state = _asked(guest), guest.status.ha.state
    if asked == state or state in _FOLLOWS.get(asked, frozenset()):
        return None
    return _ASKS[asked]


def _asked(guest: Guest) -> State:
    ha = guest.spec.ha
    if not ha.enabled:
        return HA_STATE_UNSPECIFIED
    if ha.disabled:
        return HA_STATE_DISABLED
    return HA_STATE_STARTED if guest.spec.power in WANTED and not guest.spec.template else HA_STATE_STOPPED


_ASKS = {
    HA_STATE_UNSPECIFIED: Event.IGNORE,
    HA_STATE_DISABLED: Event.DISABLE,
    HA_STATE_STARTED: Event.START,
    HA_STATE_STOPPED: Event.STOP,
}

_FOLLOWS = {HA_STATE_STARTED: HELD}
"""States that follow what is asked for although they have another name. A guest in error was asked to run already."""


def _facts(guest: Guest, *, elsewhere: bool) -> Facts:
    account = guest.status.ha
    max_restart, max_relocate = limits(guest)
    wanted = guest.spec.power in WANTED
    return Facts(account.restarts, account.relocations, max_restart, max_relocate, elsewhere, wanted)


def _clear(guest: Guest) -> None:
    account = guest.status.ha
    account.restarts = account.relocations = account.failed_spec_number = 0
    del account.failed_nodes[:]
    guest.status.failures = 0


def _give_up_on_node(guest: Guest) -> None:
    account, node = guest.status.ha, guest.status.node
    if account.state in (HA_STATE_RELOCATE, HA_STATE_ERROR) and node and node not in account.failed_nodes:
        account.failed_nodes.append(node)
