"""Fence devices in the simulation, and a manager's use of them: the real `manager.ha.fence_plan` in the smallest shell.

A device may be slow, hang, refuse, say that it did what it did not do, answer late, and act late. It never reads `off` from a host that
is on: no protocol can mend that. The product's shell is manager.controllers.fencing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED, NODE_STATE_FENCING, NODE_STATE_ONLINE, NODE_STATE_SUSPECT

from manager.ha import fence_plan
from manager.ha.fence_plan import Action, Answer, FenceView, Fire, Limits, Opinion, Outcome, Round, Shot, decide_fire
from manager.ha.node_machine import SUSPECT_AFTER_NS, Off
from tests.simulation.ha.clockwork import MS, S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.ha.manager import Manager
    from tests.simulation.ha.world import World

TIMEOUT = 10 * S
LIMITS = Limits(max_cuts=1_000)
"""A storm is one long flap: the damper would leave everything to the leases."""


class Device:
    """The power switch of one host."""

    def __init__(self, world: World, host: str) -> None:
        self.world, self.host = world, host

    def ask(self, source: str, action: Action, done: Callable[[Outcome], None]) -> None:
        """Carry a request of a manager out, sooner or later or never; answer it once, at the latest when its patience ends."""
        rng, queue, source_host = self.world.rng, self.world.queue, self.world.hosts[source]
        mood = (
            "works" if self.world.calm else rng.choice(["works", "works", "works", "late", "hangs", "refuses", "idles"])
        )
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
            self.world.log(f"{self.host}: its device cuts the power")
            self.world.cuts.append((self.world.queue.now, self.host))
            host.power_off()
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

    def tick(self) -> None:
        """Ask other hosts where that is due, and begin rounds."""
        for name in self.world.names:
            if fence_plan.opinion_due(self._view(name), self.manager.now()):
                self._ask_others(name)
            node = self.manager.replica.node(name)
            if node.state == NODE_STATE_FENCING and node.fired and name not in self.rounds:
                self._begin(name)

    def fire(self, name: str) -> str:
        """Return why the devices of a node are to be used now."""
        if not self.world.rules.devices:
            return ""
        views = [self._view(other) for other in self.world.names]
        view = next(v for v in views if v.node == name)
        found = decide_fire(view, views, self.manager.now(), LIMITS)
        return found.reason if isinstance(found, Fire) else ""

    def off(self, name: str) -> Off | None:
        """Return the word that a node was off: a device's, or a person's."""
        node = self.manager.replica.node(name)
        if node.confirmed is not None:
            boot, lapse = node.confirmed
            return Off(boot, lapse, self.manager.now() - SUSPECT_AFTER_NS, "a person saw it off")
        return self.offs.get(name)

    def _view(self, name: str) -> FenceView:
        manager = self.manager
        heard = manager.beats[name][1].heard_ns if name in manager.beats else manager.takeover
        return FenceView(
            node=name,
            state=manager.replica.node(name).state,
            quiet_ns=manager.now() - max(heard, manager.takeover),
            levels=(("a",), ("b", "c")) if self.world.rules.devices else (),
            opinion=self.opinions.get(name),
            off_seen_ns=manager.off_seen.get(name),
            fired_ns=tuple(self.fired.get(name, ())),
        )

    def _ask_others(self, name: str) -> None:
        asked = self.manager.now()
        self.opinions[name] = Opinion(asked)
        for other in self.world.names:
            if other != name and self.manager.replica.node(other).state == NODE_STATE_ONLINE:
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

    def _begin(self, name: str) -> None:
        node = self.manager.replica.node(name)
        self.fired.setdefault(name, []).append(self.manager.now())
        self.rounds[name] = Round(name, node.boot_id, node.lapse_number, (("a",), ("b", "c")))
        self._shoot(name)

    def _shoot(self, name: str) -> None:
        manager, node = self.manager, self.manager.replica.node(name)
        if not manager.machine.acting(manager.now()) or manager.fencing is not self:
            return
        if node.state != NODE_STATE_FENCING:
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
        if manager.replica.node(name).state in (NODE_STATE_FENCING, NODE_STATE_SUSPECT):
            self.world.queue.after(200 * MS, lambda: manager.host.do(lambda: self._end(name)))
            return
        del self.rounds[name]
        if manager.replica.node(name).state == NODE_STATE_FENCED:
            self.world.devices[name].ask(manager.host.name, Action.ON, lambda outcome: None)
