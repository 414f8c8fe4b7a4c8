"""Spare room of what is stored: kept up to date in small steps, it says what a look from scratch says."""

from collections.abc import Sequence

from gugus.agent.v1.guest_pb2 import GUEST_KIND_VIRTUAL_MACHINE
from gugus.agent.v1.node_pb2 import HypervisorFacts
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED, NODE_STATE_ONLINE, Node
from gugus.cluster.v1.rule_pb2 import Rule
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.scheduler.spare_room import SpareRoom, asked_in_words, in_words
from planner.plans import Shortfall
from planner.settings import Settings, Spare

GIB = 1 << 30


def node(name: str, *, gib: int = 16, online: bool = True, rack: str = "") -> Node:
    made = Node()
    made.meta.name = name
    made.status.state = NODE_STATE_ONLINE if online else NODE_STATE_FENCED
    made.status.facts.cpus, made.status.facts.memory_allocatable_bytes = 8, gib * GIB
    made.status.facts.hypervisors.append(HypervisorFacts(ready=True, kinds=[GUEST_KIND_VIRTUAL_MACHINE]))
    if rack:
        made.meta.labels["rack"] = rack
    return made


def guest(name: str, where: str, gib: int, *, ha: bool = True, label: str = "") -> Guest:
    made = Guest()
    made.meta.name, made.status.node = name, where
    made.spec.kind, made.spec.memory_bytes, made.spec.ha.enabled = GUEST_KIND_VIRTUAL_MACHINE, gib * GIB, ha
    if label:
        made.meta.labels["role"] = label
    return made


def apart() -> Rule:
    rule = Rule()
    rule.meta.name = "apart"
    rule.spec.guest_labels["role"] = "db"
    rule.spec.apart.SetInParent()
    return rule


def looked(spare: Spare, nodes: Sequence[Node], guests: Sequence[Guest], rules: Sequence[Rule] = ()) -> list[Shortfall]:
    return SpareRoom().look(1, nodes, guests, rules, Settings(spare=spare)).short()


NODES = [node("n1"), node("n2"), node("n3")]


def test_the_room_of_all_counts_and_a_place_is_kept_for_those_under_ha() -> None:
    spare = Spare(hosts=1)
    assert not looked(spare, NODES, [guest("a", "n1", 16), guest("b", "n2", 16)])
    three = [guest("a", "n1", 16), guest("b", "n2", 16), guest("c", "n3", 1)]
    assert {one.guest for one in looked(spare, NODES, three)} == {"a", "b", "c"}
    plain = [guest("a", "n1", 16), guest("b", "n2", 16, ha=False), guest("c", "n3", 1, ha=False)]
    assert [(one.lost, one.guest) for one in looked(spare, NODES, plain)] == [(("n1",), "a")]


def test_a_rack_is_lost_as_a_whole_and_a_lost_node_is_no_help() -> None:
    nodes = [node("n1", rack="a"), node("n2", rack="a"), node("n3", rack="b")]
    guests = [guest("a", "n1", 10), guest("b", "n2", 10)]
    assert not looked(Spare(hosts=1), nodes, guests)
    assert {one.lost for one in looked(Spare(domain="rack"), nodes, guests)} == {("n1", "n2")}
    assert looked(Spare(hosts=1), [*nodes[:2], node("n3", online=False)], guests)


def test_words() -> None:
    short = [Shortfall((f"n{i}",), f"g{j}", "") for i in range(1, 6) for j in range(1, 6)]
    assert in_words(short[:1]) == "if n1 were lost, g1 would find no place"
    assert in_words(short[:2]) == "if n1 were lost, g1 and g2 would find no place"
    assert in_words([Shortfall(("n1", "n2"), "g1", "")]) == "if n1 and n2 were lost, g1 would find no place"
    told = in_words(short)
    assert "g1, g2, g3 and 2 more" in told
    assert told.endswith("and some after 2 more losses")
    assert asked_in_words(Settings(spare=Spare(hosts=2, domain="rack"))) == "any two nodes or any rack"


SIZES = st.integers(1, 12)
GUESTS = st.builds(
    guest, st.sampled_from("abcdef"), st.sampled_from(["n1", "n2", "n3", ""]), SIZES, ha=st.booleans(), label=st.sampled_from(["", "db"])
)  # fmt: skip
SPARES = st.sampled_from([Spare(), Spare(hosts=1), Spare(hosts=2), Spare(domain="rack")])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.lists(GUESTS, max_size=8), st.booleans(), st.booleans()), min_size=1, max_size=5),
    SPARES,
    GUESTS,
)
def test_small_steps_and_a_fresh_look_say_the_same(
    steps: list[tuple[list[Guest], bool, bool]], spare: Spare, wish: Guest
) -> None:
    room = SpareRoom()
    for revision, (guests, with_rule, all_online) in enumerate(steps):
        stored = list({one.meta.name: one for one in guests}.values())
        nodes = [node("n1", rack="a"), node("n2", rack="a"), node("n3", rack="b", online=all_online)]
        rules = [apart()] if with_rule else []
        asked = Settings(spare=spare)
        fresh = SpareRoom().look(0, nodes, stored, rules, asked).short()
        assert room.look(revision, nodes, stored, rules, asked).short() == fresh
        added = room.short_with(wish, "n1", [one for one in stored if not one.status.node])
        assert room.short() == fresh  # asking changes nothing
        wish.status.node = "n1"
        if all(one.status.node for one in stored):
            after = [*(one for one in stored if one.meta.name != wish.meta.name), wish]
            then = {(one.lost, one.guest) for one in SpareRoom().look(0, nodes, after, rules, asked).short()}
            assert {(one.lost, one.guest) for one in added} == then - {(one.lost, one.guest) for one in fresh}
