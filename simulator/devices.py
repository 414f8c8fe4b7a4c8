"""Fence devices in the simulation, and a manager's use of them: the real `manager.ha.fence_plan` in the smallest shell.

A device may be slow, hang, refuse, say that it did what it did not do, answer late, and act late. It never reads `off` from a host that
is on: no protocol can mend that. The product's shell is manager.controllers.fencing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gugus.cluster.v1.guest_pb2 import POWER_ON
from gugus.cluster.v1.node_pb2 import (
    FENCE_AFTER_OFF,
    NODE_STATE_FENCED,
    NODE_STATE_FENCING,
    NODE_STATE_ONLINE,
    NODE_STATE_SUSPECT,
    Node,
)

from manager.ha import fence_plan
from manager.ha.fence_plan import (
    SILENT_NS,
    Action,
    Answer,
    FenceView,
    Fire,
    HoldBack,
    Levels,
    Limits,
    Opinion,
    Outcome,
    Round,
    Shot,
    decide_fire,
)
from manager.ha.node_machine import SUSPECT_AFTER_NS, NodeDecision, NodeView, Off
from simulator.clockwork import MS, S

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulator.manager import Manager
    from simulator.world import World

TIMEOUT = 10 * S
ANY_MOOD = ("works", "works", "works", "late", "hangs", "refuses", "idles")
"""What a device does that faults befall. idles: it says that it did what it did not do."""

MOODS = ("works", "late", "hangs", "refuses", "idles")


class Device:
    """The power switch of one host. mood: what it does, "" for what the world lets it do."""

    def __init__(self, world: World, host: str) -> None:
        self.world, self.host = world, host
        self.mood = ""

    def ask(self, source: str, action: Action, done: Callable[[Outcome], None]) -> None:
        """Carry a request of a manager out, sooner or later or never; answer it once, at the latest when its patience ends."""
        rng, queue, source_host = self.world.rng, self.world.queue, self.world.hosts[source]
        mood = self.mood or ("works" if self.world.calm else rng.choice(ANY_MOOD))
        acts = rng.randrange(50 * MS, 500 * MS) if mood != "late" else rng.randrange(30 * S)
        open_ = [True]
        process = source_host.manager.process

        def answer(outcome: Outcome) -> None:
            if open_[0] and process == source_host.manager.process:
                open_[0] = False
                source_host.do(lambda: done(outcome))

        def act() -> None:
            outcome = self._act(action, idle=mood == "idles")
            queue.after(rng.randrange(MS, 50 * MS), lambda: answer(outcome))

        queue.after(TIMEOUT, lambda: answer(Outcome.FAILED))
        if mood == "refuses":
            queue.after(acts, lambda: answer(Outcome.FAILED))
        elif mood != "hangs":
            queue.after(acts, act)

    def _act(self, action: Action, *, idle: bool) -> Outcome:
        host = self.world.hosts[self.host]
        if action is Action.STATUS:
            return Outcome.IS_ON if host.powered else Outcome.IS_OFF
        if not idle and action is Action.OFF:
            self.world.tell(f"node/{self.host}", "its fence device cuts the power")
            self.world.cuts.append((self.world.queue.now, self.host))
            host.power_off()
        elif not idle and self.world.calm:
            host.boot()
        elif not idle:
            host.power_on()
        return Outcome.DONE


class Fencing:
    """One manager's rounds, opinions and proofs; made anew at each takeover."""

    def __init__(self, manager: Manager) -> None:
        self.manager, self.world = manager, manager.world
        self.rounds: dict[str, Round] = {}
        self.offs: dict[str, Off] = {}
        self.opinions: dict[str, Opinion] = {}
        self.returns: dict[str, list[int]] = {}
        self.fired: dict[str, list[int]] = {}
        self._told: dict[str, str] = {}
        self._asked_at = -1
        self._any = False

    def tick(self) -> None:
        """Ask other hosts where that is due, and begin rounds."""
        if not self._devices():
            return
        now = self.manager.now()
        for name, node in self.manager.replica.nodes.items():
            if self._quiet_ns(name) >= SILENT_NS and fence_plan.opinion_due(self._view(node), now):
                self._ask_others(name)
            if node.status.state == NODE_STATE_FENCING and node.status.fence.fired and name not in self.rounds:
                self._begin(node)

    def fire(self, name: str) -> str:
        """Return why the devices of a node are to be used now."""
        node = self.manager.replica.nodes[name]
        if not node.spec.fence.devices:
            return ""
        views = [self._view(other) for other in self.manager.replica.nodes.values()]
        view = next(v for v in views if v.node == name)
        found = decide_fire(view, views, self.manager.now(), self._limits())
        if isinstance(found, HoldBack) and self._told.get(name) != found.reason.partition("(")[0]:
            self._told[name] = found.reason.partition("(")[0]
            self.world.tell(f"node/{name}", found.reason)
        return found.reason if isinstance(found, Fire) else ""

    def off(self, name: str) -> Off | None:
        """Return the word that a node was off: a device's, or a person's."""
        fence = self.manager.replica.nodes[name].status.fence
        if fence.confirmed_by:
            seen = self.manager.now() - SUSPECT_AFTER_NS
            return Off(fence.confirmed_boot_id, fence.confirmed_lapse_number, seen, f"{fence.confirmed_by} saw it off")
        return self.offs.get(name)

    def note(self, node: Node, view: NodeView, decision: NodeDecision) -> None:
        """Put into a transition what it means for fencing."""
        if decision.state == NODE_STATE_ONLINE:
            if view.state == NODE_STATE_SUSPECT:
                self.returns.setdefault(view.name, []).append(self.manager.now())
            if self.world.rules.proofs_end:
                self.offs.pop(view.name, None)
            self._told.pop(view.name, None)
            node.status.ClearField("fence")
        elif decision.state == NODE_STATE_FENCING:
            node.status.fence.fired = bool(node.spec.fence.devices) and bool(view.fire or view.asked)

    def _devices(self) -> bool:
        replica = self.manager.replica
        if self._asked_at != replica.changes:
            self._asked_at = replica.changes
            self._any = any(node.spec.fence.devices for node in replica.nodes.values())
        return self._any

    def _limits(self) -> Limits:
        settings, limits = self.manager.replica.cluster.settings.fencing, Limits()
        return Limits(settings.cap_percent or limits.cap_percent, settings.max_cuts or limits.max_cuts)

    def _quiet_ns(self, name: str) -> int:
        manager = self.manager
        heard = manager.beats[name][1].heard_ns if name in manager.beats else manager.takeover
        return manager.now() - max(heard, manager.takeover)

    def _view(self, node: Node) -> FenceView:
        name, replica = node.meta.name, self.manager.replica
        guests = [g for g in replica.on(name) if g.spec.ha.enabled and g.spec.power == POWER_ON]
        return FenceView(
            node=name,
            state=node.status.state,
            quiet_ns=self._quiet_ns(name),
            levels=levels_of(node),
            opinion=self.opinions.get(name),
            off_seen_ns=self.manager.off_seen.get(name),
            fired_ns=tuple(self.fired.get(name, ())),
            returned_ns=tuple(self.returns.get(name, ())),
            asked_by=node.status.fence.asked_by,
            guests=len(guests),
        )

    def _ask_others(self, name: str) -> None:
        asked = self.manager.now()
        self.opinions[name] = Opinion(asked)
        for other, node in self.manager.replica.nodes.items():
            if other != name and node.status.state == NODE_STATE_ONLINE:
                self._ask(other, name, asked)

    def _ask(self, other: str, name: str, asked: int) -> None:
        me, world = self.manager.host.name, self.world

        def look() -> None:
            victim = world.hosts[name]
            reached = world.reaches(other, name) and victim.powered and not victim.frozen
            world.send(other, me, "", lambda: tell(reached))

        def tell(reached: bool) -> None:
            opinion = self.opinions.get(name)
            if opinion is None or opinion.asked_ns != asked:
                return
            said = (*(opinion.reached_by if reached else opinion.missed_by), other)
            more = {"reached_by": said} if reached else {"missed_by": said}
            self.opinions[name] = Opinion(
                asked, **{"reached_by": opinion.reached_by, "missed_by": opinion.missed_by, **more}
            )

        world.send(me, other, "", look)

    def _begin(self, node: Node) -> None:
        name, status = node.meta.name, node.status
        self.fired.setdefault(name, []).append(self.manager.now())
        self.rounds[name] = Round(name, status.boot_id, status.lapse_number, levels_of(node))
        self._shoot(name)

    def _shoot(self, name: str) -> None:
        manager, node = self.manager, self.manager.replica.nodes[name]
        if not manager.machine.acting(manager.now()) or manager.fencing is not self:
            return
        if node.status.state != NODE_STATE_FENCING:
            self._end(name)
            return
        wait = self.rounds[name].not_before_ns - manager.now()
        if wait > 0:
            self.world.queue.after(wait, lambda: manager.host.do(lambda: self._shoot(name)))
            return
        self.rounds[name] = self.rounds[name].fired()
        began, answers = manager.now(), list[Answer]()
        shots = self.rounds[name].shots()

        def answered(shot: Shot, outcome: Outcome) -> None:
            answers.append(Answer(shot, outcome))
            if len(answers) == len(shots):
                self._took(name, answers, began)

        for shot in shots:
            self.world.devices[name].ask(manager.host.name, shot.action, lambda o, s=shot: answered(s, o))  # type: ignore[misc]

    def _took(self, name: str, answers: list[Answer], began: int) -> None:
        self.rounds[name] = self.rounds[name].took(answers, began, self.manager.now())
        off = self.rounds[name].off
        if off is None:
            self._shoot(name)
        else:
            self.offs[name] = off
            self._end(name)

    def _end(self, name: str) -> None:
        """Give the power back once the node is fenced; a node that went on without its device's proof gets it, too."""
        manager = self.manager
        if not manager.machine.acting(manager.now()) or manager.fencing is not self:
            return
        node = manager.replica.nodes[name]
        if node.status.state in (NODE_STATE_FENCING, NODE_STATE_SUSPECT):
            self.world.queue.after(200 * MS, lambda: manager.host.do(lambda: self._end(name)))
            return
        del self.rounds[name]
        after = node.status.fence.after or node.spec.fence.after
        if node.status.state == NODE_STATE_FENCED and after != FENCE_AFTER_OFF:
            self.world.devices[name].ask(manager.host.name, Action.ON, lambda outcome: None)


def levels_of(node: Node) -> Levels:
    """Return the names of a node's devices, level by level."""
    levels: dict[int, list[str]] = {}
    for device in sorted(node.spec.fence.devices, key=lambda one: (one.level or 1, one.name)):
        levels.setdefault(device.level or 1, []).append(device.name)
    return tuple(tuple(names) for names in levels.values())
