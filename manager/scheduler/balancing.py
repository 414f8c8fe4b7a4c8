"""When the cluster evens itself out: whom it may move, when a plan has been worth it for long enough, how many moves are left. Pure.

Invariant: the same looks at the same times give the same conclusions. A look that cannot see the cluster calm (`hindrance`),
or finds no plan worth it, breaks the hold: it begins anew with the next one that does.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER
from gugus.cluster.v1.cluster_pb2 import (
    BALANCE_MODE_AUTOMATIC,
    BALANCE_MODE_OFF,
    BALANCE_MODE_UNSPECIFIED,
    BalanceMode,
    BalanceSettings,
)
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, GUEST_PHASE_STOPPED, POWER_ON
from gugus.cluster.v1.migration_pb2 import MigrateGuestRequest
from gugus.cluster.v1.node_pb2 import (
    NODE_STATE_FENCED,
    NODE_STATE_FENCING,
    NODE_STATE_JOINING,
    NODE_STATE_ONLINE,
    NODE_STATE_SUSPECT,
    Node,
    NodeState,
)
from gugus.cluster.v1.plan_pb2 import BalanceNotes, WhatIf
from gugus.cluster.v1.task_pb2 import Task

from common.units import format_duration
from manager.ha.departure import leaving
from manager.ha.migration import copied_disks
from manager.scheduler import what_if
from manager.scheduler.load import enough_ns
from manager.scheduler.what_if import Stored
from planner.balance import plan_balance
from planner.objective import score
from planner.plans import Cluster, Move, Plan

ACTOR = "balance"
"""Who asks for what the cluster moves by itself."""

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

MOVE_COST = 0.5
"""planner.settings.Balance.move_cost of what nobody asked for: with the planner's 0.1, noise moves twice as many guests a day."""

EVEN_SCORE = 0.1
"""A score below counts as this one in the margin: a tenth of next to nothing is not worth a migration. About a standard
deviation of 3 % in each of the score's parts, which is what guests that come and go and work by fits and starts leave anyway."""

DEFAULT_HOLD_MS = 300_000
DEFAULT_MOVES_PER_HOUR = 20
DEFAULT_SMOOTHING_MS = 600_000
"""As cluster.v1.BalanceSettings has them."""

WINDOW_S = 3600
"""Migrations of so long ago count towards the budget of an hour, and so long a guest rests after one."""

SETTLING_NS = 120 * NS_PER_S
"""A manager that took over begins nothing before, however quickly loads are known: nodes and guests report back first."""

UNSETTLED = (NODE_STATE_JOINING, NODE_STATE_SUSPECT, NODE_STATE_FENCING)
"""States of nodes in which nothing is begun. One that is fenced may stay away for good: the others are evened out without it."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings of balancing, with their defaults. The plan's own limits are in the planner's settings."""

    mode: BalanceMode.ValueType
    hold_ns: int
    moves_per_hour: int
    smoothing_ns: int

    @property
    def automatic(self) -> bool:
        """Whether the cluster moves guests by itself."""
        return self.mode == BALANCE_MODE_AUTOMATIC


@dataclass(frozen=True, slots=True)
class Recent:
    """What moved within the last hour: how many migrations the cluster began by itself, and guests that somebody chose a node for."""

    begun: int = 0
    rested: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Held:
    """Since when plans have been worth it, and the nodes that each of them would have moved guests off."""

    since_ns: int
    origins: frozenset[str]


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What a look came to. `why`: why something or nothing is begun now; empty when nothing would be won."""

    plan: Plan
    held: Held | None
    begins: bool
    why: str = ""


def policy_of(settings: BalanceSettings) -> Policy:
    """Return the settings with their defaults."""
    return Policy(
        mode=BALANCE_MODE_OFF if settings.mode == BALANCE_MODE_UNSPECIFIED else settings.mode,
        hold_ns=(settings.hold_ms or DEFAULT_HOLD_MS) * NS_PER_MS,
        moves_per_hour=settings.max_moves_per_hour or DEFAULT_MOVES_PER_HOUR,
        smoothing_ns=(settings.smoothing_ms or DEFAULT_SMOOTHING_MS) * NS_PER_MS,
    )


def conclude(
    stored: Stored, policy: Policy, recent: Recent, hindrance: str, held: Held | None, now_ns: int
) -> Conclusion:
    """Return what to do after a look. hindrance: why nothing may be begun; held: of the look before."""
    left = max(0, policy.moves_per_hour - recent.begun) if policy.automatic else stored.settings.balance.max_moves
    most = min(left, stored.settings.balance.max_moves)
    plan = planned(stored, staying(stored, recent.rested), most, unasked=True)
    if not left:
        hindrance = (
            hindrance
            or f"{recent.begun} of {policy.moves_per_hour} migrations of an hour were begun within the last one"
        )
    if hindrance or not plan.moves:
        why = f"{hindrance}." if hindrance else " ".join(plan.notes)
        return Conclusion(plan, None, begins=False, why=why)
    held = _held(held, plan, now_ns)
    lasted_ns = now_ns - held.since_ns
    if not policy.automatic:
        return Conclusion(plan, held, begins=False, why="a person decides: `gugus cluster balance` does it.")
    if lasted_ns < policy.hold_ns:
        lasted, hold = (format_duration(ns / NS_PER_S) for ns in (lasted_ns, policy.hold_ns))
        why = f"it has been worth it for {lasted}, and must be for {hold}."
        return Conclusion(plan, held, begins=False, why=why)
    return Conclusion(plan, held, begins=True, why="a balance begins.")


def recent(moves: Iterable[Task], now_s: float) -> Recent:
    """Return what the tasks of migrations tell of the last hour, whatever came of them. now_s: seconds of the wall clock."""
    begun, rested = 0, set[str]()
    for move in moves:
        if not counts(move, now_s):
            continue
        begun += move.actor == ACTOR
        if MigrateGuestRequest.FromString(
            move.request
        ).target:  # who let the cluster choose had another reason to move it
            rested.add(move.target.removeprefix("guest/"))
    return Recent(begun, frozenset(rested))


def of_the_budget(task: Task, now_s: float) -> bool:
    """Return whether a task is one that the cluster began by itself within the last hour: it stays in the state for that long."""
    return task.actor == ACTOR and counts(task, now_s)


def counts(move: Task, now_s: float) -> bool:
    """Return whether a migration was begun within the last hour."""
    return now_s - move.meta.created_at.ToNanoseconds() / NS_PER_S < WINDOW_S


def planned(
    stored: Stored, staying: Collection[str], max_moves: int, *, resuming: bool = False, unasked: bool = False
) -> Plan:
    """Return the plan that evens the cluster out without moving some guests; its costs count the disks that have to be copied.

    resuming: it goes on with one that was begun. unasked: nobody asked for it, so that it must win more.
    """
    cluster = stored.cluster()
    pools = {pool.meta.name: pool for pool in stored.pools}
    copied = {guest.meta.name: sum(disk.size_bytes for disk in copied_disks(guest, pools)) for guest in stored.guests}
    guests = [
        replace(one, pinned=one.node) if one.name in staying else replace(one, disk_bytes=copied.get(one.name, 0))
        for one in cluster.guests
    ]
    limits = replace(stored.settings.balance, max_moves=max_moves)
    if unasked:
        limits = replace(limits, move_cost=MOVE_COST)
    settings = replace(cluster.settings, balance=limits)
    plan = plan_balance(Cluster(cluster.nodes, guests, cluster.rules, settings), resuming=resuming)
    return _worth_it(plan, limits.gain_margin) if unasked and not resuming else plan


def score_of(stored: Stored) -> float:
    """Return how uneven the cluster is; 0 is best."""
    return score(stored.cluster().fleet()).total


def even(stored: Stored, max_moves: int) -> WhatIf:
    """The cluster is evened out when a person asks for it; who is not moved then stays."""
    limit = max_moves or stored.settings.balance.max_moves
    return what_if.timed(stored, what_if.told_of(planned(stored, held_up(stored), limit), ()))


def held_up(stored: Stored) -> dict[str, str]:
    """Return the guests that cannot be moved now, whoever asks, and why."""
    online = {node.meta.name for node in stored.nodes if node.status.state == NODE_STATE_ONLINE}
    found = {}
    for guest in stored.guests:
        if guest.status.HasField("lock") or guest.status.HasField("migration"):
            found[guest.meta.name] = "something else is done with it"
        elif guest.status.node and guest.status.node not in online:
            found[guest.meta.name] = f"{guest.status.node} is not online"
        elif why := what_if.bound(guest):
            found[guest.meta.name] = why
    return found


def staying(stored: Stored, rested: Collection[str]) -> dict[str, str]:
    """Return the guests that the cluster does not move by itself, and why: only those move that notice nothing of it.

    rested: guests that were moved within the last hour.
    """
    found = held_up(stored)
    pools = {pool.meta.name: pool for pool in stored.pools}
    for guest in stored.guests:
        name, runs = guest.meta.name, guest.spec.power == POWER_ON
        if name in found:
            continue
        if name in rested:
            found[name] = "it was moved within the last hour"
        elif guest.status.phase != (GUEST_PHASE_RUNNING if runs else GUEST_PHASE_STOPPED):
            found[name] = "it is not as it is to be"
        elif runs and guest.spec.kind == GUEST_KIND_CONTAINER:
            found[name] = "a container stands still while it moves"
        elif not runs and copied_disks(guest, pools):
            found[name] = "it does not run, and its disks would have to be copied"
    return found


def hindrance(policy: Policy, *, under_way: bool, unsettled: str, acted_ns: int) -> str:
    """Return why nothing may be begun now, whatever would be won; "" when nothing is in the way.

    under_way: whether a balance is. unsettled: what `unsettled` says. acted_ns: for how long this manager has acted.
    """
    if under_way:
        return "a balance is under way"
    if unsettled:
        return unsettled
    if acted_ns < max(SETTLING_NS, enough_ns(policy.smoothing_ns)):
        return "this manager has just taken over, and looks at what guests use first"
    return ""


def unsettled(nodes: Iterable[Node], *, disarmed: bool, draining: Collection[str], rebooting: bool = False) -> str:
    """Return why nothing is begun as the nodes are, without a full stop; "" when they are calm.

    draining: nodes that are emptied, or that guests come back to. rebooting: hosts are, one after another.
    """
    if rebooting:
        return "hosts are rebooted one after another"
    if disarmed:
        return "HA is switched off for the whole cluster"
    for node in nodes:
        name = node.meta.name
        if node.status.state in UNSETTLED:
            return f"node {name} is {NodeState.Name(node.status.state).removeprefix('NODE_STATE_').lower()}"
        if leaving(node) and node.status.state != NODE_STATE_FENCED:
            return f"the host of node {name} is going down"
        if node.spec.maintenance:
            return f"node {name} is in maintenance"
        if name in draining:
            return f"guests are moved off node {name} or back to it"
    return ""


def first_wave(plan: Plan) -> list[Move]:
    """Return the moves of a plan that may run side by side before all others."""
    return [move for move in plan.moves if move.wave == plan.moves[0].wave]


def told(notes: BalanceNotes, failed: Mapping[str, str], score_after: float, why: str = "") -> str:
    """Return what came of a balance. failed: guests that could not be moved, with the reasons; why: it ended early."""
    done = notes.begun - len(failed)
    text = f"{done} guests moved" if done != 1 else "1 guest moved"
    if notes.begun:
        text += f"; the score was {notes.score_before:.4f} and is {score_after:.4f}"
    text += "".join(f"; {guest} could not: {error}" for guest, error in sorted(failed.items()))
    return text + (f"; {why}" if why else "")


def summary(plan: Plan) -> str:
    """Return what a plan does and wins, in a sentence."""
    count, waves = len(plan.moves), len({move.wave for move in plan.moves})
    moves = f"{count} migration{'s' if count != 1 else ''} in {waves} wave{'s' if waves != 1 else ''}"
    verb = "lowers" if count == 1 else "lower"
    return f"{moves} {verb} the score from {plan.before.total:.4f} to {plan.after.total:.4f}."


def _worth_it(plan: Plan, margin: float) -> Plan:
    """Return a plan, or that nothing is done, if it wins too little of a cluster that is even already."""
    gain, least = plan.before.total - plan.after.total, margin * EVEN_SCORE
    if not plan.moves or gain >= least:
        return plan
    note = f"{summary(plan)} That is less than {least:.4f}: the cluster is even enough."
    homes = {move.guest: move.from_node for move in reversed(plan.moves)}
    return replace(plan, assignments={**plan.assignments, **homes}, moves=(), after=plan.before, notes=(note,))


def _held(held: Held | None, plan: Plan, now_ns: int) -> Held:
    """Go on with a hold, or begin one: a conclusion is the same as long as some node has too much in all of the plans."""
    origins = frozenset(move.from_node for move in plan.moves)
    if held is None or not held.origins & origins:
        return Held(now_ns, origins)
    return Held(held.since_ns, held.origins & origins)
