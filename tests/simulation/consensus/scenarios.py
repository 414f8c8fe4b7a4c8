"""Rare courses of events, played on purpose: what takes one seed in a hundred thousand, in a few steps.

Each scenario is a function of a `Stage`. It raises Violation when the promise that it is about is broken: with the rule in
place it never does, with the rule left out it must (`test_scenarios`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import zstandard

from manager.consensus.library import Message
from manager.consensus.types import Limits, MembershipRefused, Timings

from .stage import ROOMY, SETTLE_S, Stage
from .timeline import Violation
from .world import Options

# -- the log


def an_old_message_comes_again(stage: Stage) -> None:
    """H1: a follower that gets an append again keeps what it acknowledged since."""
    leader, follower, other = stage.roles()
    stage.separate([other], [leader, follower])
    link = (leader.name, follower.name)
    old: list[Callable[[], None]] = []
    stage.network.held[link] = old
    stage.put(leader, "a/x", "1")
    stage.run(0.1)
    stage.network.held.pop(link)
    for arrive in old:
        arrive()
    stage.run(0.1)
    stage.written(leader, "a/x", "2")
    before = stage.core(follower).journal.last_index
    for arrive in old:
        arrive()
    stage.run(0.1)
    if stage.core(follower).journal.last_index < before:
        raise Violation(f"{follower.name} threw away entries that it had acknowledged")


def a_commit_index_comes_without_its_entries(stage: Stage) -> None:
    """H2: a member with a long tail of its own hears of commits far beyond what the message shows to be in common."""
    old, new, third = stage.roles()
    stage.separate([old], [new, third])
    for number in range(40):
        stage.put(old, "a/x", f"lost {number}")
    stage.run(0.3)
    stage.make_leader(new)
    for number in range(40):
        stage.put(new, "a/y", f"kept {number}")
    stage.run(0.5)
    stage.network.lets_pass = lambda _, to, message: to != old.name or not message.get("entries")
    stage.heal()
    stage.run(3)
    stage.network.lets_pass = lambda _from, _to, _message: True
    stage.until(lambda: stage.core(old).applied_index >= stage.core(new).commit_index, 5, f"{old.name} catches up")


def an_acknowledgement_of_an_old_term_arrives(stage: Stage) -> None:
    """H3, with five members: what was acknowledged in another term says nothing of this term's entries."""
    a, b, c, d, e = stage.roles()
    stage.separate([a, c], [b, d, e])
    late = (c.name, a.name)
    stage.network.held[late] = []
    for number in range(10):
        stage.put(a, "a/x", f"never {number}")
    stage.run(0.3)  # c has them and says so, which does not arrive
    stage.network.lets_pass = lambda at, to, _: (
        (at, to) != (a.name, c.name)
    )  # no more of a reaches c; they stay connected
    stage.make_leader(b)
    stage.join(a, b)
    stage.until(lambda: stage.core(a).leader == b.name, 5, "the old leader follows")
    stage.run(1)
    stage.separate([a], [b, d, e])
    for peer in (d, e):
        stage.join(a, peer)
    stage.separate([b], [c, d, e])
    stage.make_leader(a)
    stage.separate([a], [e])
    replies = [stage.put(a, "a/y", f"on two of five {number}") for number in range(8)]
    stage.run(0.2)
    stage.network.release(late)
    stage.run(0.3)
    if any(reply.done for reply in replies):
        raise Violation("acknowledged what two of five members have")


def a_long_conflict(stage: Stage) -> None:
    """H4: a leader whose log differs from a member's in many entries must find in a few round trips where they agree."""
    old, second, third = stage.roles()
    stage.separate([old], [second, third])
    for number in range(60):
        stage.put(old, "a/x", f"lost {number}")
    stage.run(0.3)
    stage.make_leader(second)
    for number in range(60):
        stage.put(second, "a/y", f"kept {number}")
    stage.run(1)
    stage.separate([second], [third])
    stage.join(old, third)
    stage.run(1.2)  # third has not heard a leader for long enough to campaign
    stage.make_leader(third)
    for number in range(60):
        stage.put(third, "a/z", f"kept {number}")
    stage.until(
        lambda: stage.core(old).applied_index >= stage.core(third).journal.last_index,
        3,
        f"{old.name} agrees with {third.name}",
    )


# -- elections


def two_cannot_hear_each_other(stage: Stage) -> None:
    """H5: the leader and one voter are cut apart, the third hears both; nothing may change."""
    leader, lonely, _ = stage.roles()
    term = stage.core(leader).term
    stage.separate([leader], [lonely])
    stage.run(10)
    if not stage.core(leader).is_leader or stage.core(leader).term != term:
        raise Violation(f"{leader.name} led in term {term}; now the term is {stage.core(leader).term}")


def a_member_comes_back(stage: Stage) -> None:
    """H6: a member that was alone for a while does not raise the term of those who were well."""
    leader, away, other = stage.roles()
    term = stage.core(leader).term
    stage.separate([away], [leader, other])
    stage.run(8)
    stage.heal()
    stage.run(3)
    if not stage.core(leader).is_leader or stage.core(leader).term != term:
        raise Violation(f"{away.name} came back, and term {term} became {stage.core(leader).term}")


def a_deposed_leader_meets_one_who_knows(stage: Stage) -> None:
    """H7, with the fallback left out: a leader learns that its term is over from whoever answers it."""
    old, new, third = stage.roles()
    stage.separate([old], [new, third])
    stage.make_leader(new)
    stage.run(0.5)
    stage.join(old, third)
    stage.until(lambda: not stage.core(old).is_leader, 2, f"{old.name} knows that its term is over")


def a_leader_is_alone(stage: Stage) -> None:
    """A leader that hears no majority stops to lead, by its own clock; the world looks all the time."""
    leader, *others = stage.roles()
    stage.separate([leader], others)
    stage.run(4)


def a_removed_member_goes_on(stage: Stage) -> None:
    """A member that was removed while it was away, and does not know it, raises nobody's term when it is back."""
    leader, removed, other = stage.roles()
    stage.separate([removed], [leader, other])
    stage.shrink(leader, removed)
    term = stage.core(leader).term
    stage.run(4)
    stage.heal()
    stage.run(6)
    if not stage.core(leader).is_leader or stage.core(leader).term != term:
        raise Violation(f"{removed.name} was removed, and term {term} became {stage.core(leader).term}")


def the_last_but_one_is_removed(stage: Stage) -> None:
    """Of two: when the removal is confirmed, the removed one may be switched off, whatever happens to the other next."""
    last, removed = stage.roles()
    stage.shrink(last, removed)
    removed.power_off()
    last.power_off()
    last.boot()
    stage.until(lambda: stage.core(last).is_leader, 10, f"{last.name} leads alone")


def old_voters_start_again(stage: Stage) -> None:
    """Of five voters two of the three founders restart, cut off from the rest: they must not be content with two of three."""
    leader, other, _ = stage.roles()
    for member in stage.newcomers[:2]:
        stage.grow(leader, member)
    stage.written(leader, "a/x", "1")
    rest = [host for host in stage.world.hosts.values() if host.core is not None and host not in (leader, other)]
    stage.separate([leader, other], rest)
    for host in (leader, other):
        host.power_off()
        host.boot()
    stage.run(8)
    stage.written(next(host for host in rest if stage.core(host).is_leader), "a/x", "2")
    stage.heal()
    stage.until(lambda: len({stage.core(host).applied_index for host in stage.hosts}) == 1, 8, "all agree")


def a_voter_was_away_while_all_others_were_replaced(stage: Stage) -> None:
    """A voter that knows none of the present members any more must still catch up."""
    leader, away, other = stage.roles()
    stage.separate([away], [leader, other])
    fresh = stage.newcomers[:2]
    for member in fresh:
        stage.grow(leader, member)
    stage.shrink(leader, other)
    other.power_off()
    new = stage.world.hosts[fresh[0].name]
    stage.hand_over(leader, new)
    stage.shrink(new, leader)
    leader.power_off()
    stage.heal()
    stage.until(lambda: stage.core(away).applied_index >= stage.core(new).commit_index, 10, f"{away.name} catches up")


def a_founder_comes_back_with_an_empty_disk(stage: Stage) -> None:
    """A member that once was the only one, was removed, and joins again: the old list in the log must not make it lead."""
    (founder,) = stage.roles()
    brief, *others = (stage.world.hosts[member.name] for member in stage.world.members[1:4])
    leader = others[0]
    stage.grow(founder, stage.member(brief))
    stage.shrink(founder, brief)  # now a list of the founder alone is in the log
    for other in others:
        stage.grow(founder, stage.member(other))
    first = stage.core(founder).journal.last_index
    stage.hand_over(founder, leader)
    stage.shrink(leader, founder)
    founder.power_off()
    founder.replace_disk()
    founder.boot((*stage.core(leader).voters, stage.member(founder)), joining=True)
    for alone in range(2, first):  # it has the log up to here, and nothing more comes
        stage.network.lets_pass = partial(_up_to, alone, founder.name)
        stage.change(leader, lambda core, done: core.membership.add(stage.member(founder), 3.0, done))
        stage.until(partial(stage.has, founder, alone), 3, f"{founder.name} has {alone} entries")
        stage.separate([founder], others)
        stage.run(4)
        if stage.core(founder).is_leader:
            raise Violation(
                f"{founder.name} leads {sorted(stage.core(founder).voter_names)} with {alone} entries of an old log"
            )
        stage.heal()


def a_voter_comes_back_without_its_disk(stage: Stage) -> None:
    """One of three lost what it had acknowledged, and is started as at first; with one who was away it must be no majority."""
    *present, away = stage.hosts
    stage.separate([away], present)  # from the start: its log is empty
    stage.until(lambda: any(stage.core(host).is_leader for host in present), 10, "two of three have a leader")
    leader, lost = sorted(present, key=lambda host: not stage.core(host).is_leader)
    stage.run(SETTLE_S)
    stage.written(leader, "a/x", "kept")
    setup = lost.setup
    assert setup is not None
    lost.power_off()
    lost.replace_disk()
    lost.boot(setup.voters)
    stage.separate([leader], [lost])
    stage.join(lost, away)
    stage.run(8)
    if any(stage.core(host).is_leader for host in (lost, away)):
        raise Violation(f"{lost.name} and {away.name} found a leader, and lack what was acknowledged")
    stage.heal()
    stage.until(lambda: any(stage.core(host).is_leader for host in (leader, away)), 10, "a leader of two who have all")
    stage.run(1)
    stage.shrink(next(host for host in (leader, away) if stage.core(host).is_leader), lost)


def a_lost_voter_counts_for_nothing(stage: Stage) -> None:
    """With one of three lost, another one must not be removed: the rest would never be a majority again."""
    leader, lost, other = stage.roles()
    setup = lost.setup
    assert setup is not None
    lost.power_off()
    lost.replace_disk()
    lost.boot(setup.voters)
    stage.run(1)
    removal = stage.change(leader, lambda core, done: core.membership.remove(other.name, done))
    stage.run(1)
    if not isinstance(removal.result, MembershipRefused):
        raise Violation(f"{other.name} may be removed while {lost.name} is lost: {removal.result!r}")


def _up_to(index: int, receiver: str, _from: str, to: str, message: Message) -> bool:
    """Let no entry behind an index reach somebody."""
    return to != receiver or not message.get("entries") or message["entries"][-1][1] <= index


def a_removed_leader_has_more_than_who_is_left(stage: Stage) -> None:
    """Of two: one commits its own removal, and has entries that the other lacks, who does not know of the commit; it must find out."""
    left, removed = stage.roles()
    stage.network.lets_pass = lambda at, _to, message: at != removed.name or message["type"] != "next_node_idx"
    stage.change(left, lambda core, done: core.membership.remove(removed.name, done))
    stage.run(SETTLE_S)
    asked = stage.core(removed).journal.last_index
    stage.until(lambda: not stage.core(left).is_leader, 3, f"{left.name} falls back")
    stage.network.lets_pass = lambda _from, _to, _message: True
    stage.network.weather.delay_s = (0.1, 0.15)  # time to propose something before anybody can answer
    stage.make_leader(removed)
    stage.network.lets_pass = partial(_knows_nothing_new, left.name, asked, stage.core(removed).journal.last_index)
    stage.put(removed, "a/x", "more")
    stage.until(lambda: removed.name not in stage.core(removed).voter_names, 5, f"{removed.name} applies its removal")
    stage.run(SETTLE_S)
    stage.network.lets_pass = lambda _from, _to, _message: True
    stage.until(lambda: stage.core(left).is_leader, 10, f"{left.name} leads")


def _knows_nothing_new(receiver: str, asked: int, own: int, at: str, to: str, message: Message) -> bool:
    """Let somebody know neither of entries behind `own` nor of a commit index from `asked` on."""
    return to != receiver or (message.get("commit_index", 0) < asked and _up_to(own, receiver, at, to, message))


# -- reads


def a_deposed_leader_is_asked(stage: Stage) -> None:
    """A leader without a majority answers no read, for others may have written since; the fallback is left out."""
    old, new, third = stage.roles()
    stage.written(old, "a/x", "1")
    stage.separate([old], [new, third])
    stage.make_leader(new)
    stage.written(new, "a/x", "2")
    stage.read(old, "a/x")
    stage.run(1)
    stage.judge()


# -- disks


def a_snapshot_rots(stage: Stage) -> None:
    """A value in a stopped member's snapshot changes, and all but the checksum over the whole fits: it must not start."""
    leader, victim, _ = stage.roles()
    for number in range(12):
        stage.written(leader, f"a/{number}", "right")
    stage.run(2)
    victim.power_off()
    file = victim.platter.files["snapshot"]
    file.durable[:] = file.content[:] = _with_another_value(bytes(file.durable), b"right", b"wrong")
    try:
        victim.boot()
    except Violation as refused:
        if "refuses its own disk" not in str(refused):
            raise
    else:
        raise Violation(f"{victim.name} started from a damaged snapshot")


def _with_another_value(data: bytes, old: bytes, new: bytes) -> bytes:
    """Return a snapshot file with a value changed, in frames as good as before; see `Snapshot` in wire.proto."""
    start, digest = data.index(b"\n") + 1, data[-32:]
    result, position, number = data[:start], start, 0
    while length := int.from_bytes(data[position : position + 4], "big"):
        frame = data[position + 4 : position + 4 + length]
        if number:  # the first one is the head, and not compressed
            content = zstandard.ZstdDecompressor().decompress(frame)
            frame = zstandard.ZstdCompressor(level=1).compress(content.replace(old, new))
        result += len(frame).to_bytes(4, "big") + frame
        position, number = position + 4 + length, number + 1
    return result + bytes(4) + digest


def a_disk_is_full_for_a_while(stage: Stage) -> None:
    """A member without room refuses writes, goes on following, lets another one lead, and is well again with room."""
    leader, *others = stage.roles()
    leader.platter.full = True
    replies = []
    for number in range(120):
        host = next((h for h in stage.hosts if h.core is not None and h.core.is_leader), leader)
        replies.append(stage.put(host, "a/x", f"{number} {'x' * 200}"))
        stage.run(0.02)
    stage.core(leader)
    if not any(reply.done for reply in replies[-10:]):
        raise Violation("nobody took over from a leader whose disk is full")
    leader.platter.full = False
    stage.until(
        lambda: len({stage.core(host).applied_index for host in [leader, *others]}) == 1,
        8,
        f"{leader.name} catches up with room",
    )
    final = stage.roles()[0]
    stage.written(final, "a/y", "last")
    stage.judge()


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario and the stage that it needs."""

    play: Callable[[Stage], None]
    founders: int = 3
    timings: Timings = field(default_factory=Timings)
    limits: Limits = ROOMY
    lonely_s: float = Timings().election_max_s

    def run(self, mutation: Options | None = None) -> None:
        """Play it, with what a mutation changes. Raises Violation."""
        changed = mutation or Options()
        timings = self.timings if changed.timings == Timings() else changed.timings
        stage = Stage(
            self.founders,
            build=changed.build,
            timings=timings,
            limits=self.limits,
            patches=changed.patches,
            lonely_s=self.lonely_s,
        )
        with stage.playing():
            self.play(stage)


NEVER_FALLS_BACK = Timings(leader_fallback_s=1_000.0)
"""A leader that goes on without a majority, as the stock library's does for 30 s."""

SCENARIOS = {
    scenario.play.__name__: scenario
    for scenario in (
        Scenario(an_old_message_comes_again),
        Scenario(a_commit_index_comes_without_its_entries),
        Scenario(an_acknowledgement_of_an_old_term_arrives, founders=5, timings=NEVER_FALLS_BACK, lonely_s=math.inf),
        Scenario(a_long_conflict, limits=replace(ROOMY, append_bytes=300)),
        Scenario(two_cannot_hear_each_other),
        Scenario(a_member_comes_back),
        Scenario(a_deposed_leader_meets_one_who_knows, timings=NEVER_FALLS_BACK, lonely_s=math.inf),
        Scenario(a_leader_is_alone),
        Scenario(a_removed_member_goes_on),
        Scenario(the_last_but_one_is_removed, founders=2),
        Scenario(a_founder_comes_back_with_an_empty_disk, founders=1, limits=replace(ROOMY, append_bytes=1)),
        Scenario(a_voter_comes_back_without_its_disk),
        Scenario(a_lost_voter_counts_for_nothing),
        Scenario(a_removed_leader_has_more_than_who_is_left, founders=2, limits=replace(ROOMY, append_bytes=1)),
        Scenario(old_voters_start_again),
        Scenario(a_voter_was_away_while_all_others_were_replaced),
        Scenario(a_deposed_leader_is_asked, timings=NEVER_FALLS_BACK, lonely_s=math.inf),
        Scenario(a_snapshot_rots, limits=replace(ROOMY, compact_after_entries=5)),
        Scenario(a_disk_is_full_for_a_while, limits=Limits(segment_bytes=2_000)),
    )
}
