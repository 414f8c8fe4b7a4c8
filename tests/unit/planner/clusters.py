"""Small clusters by hand, and any clusters for properties."""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from planner.plans import Cluster, Plan
from planner.rules import GuestAffinity, Guests, Mode, NodeAffinity, Rule
from planner.settings import Balance, Policy, Preemption, Settings, Spare, SparePolicy
from planner.types import GuestRequest, NodeView

GIB = 1 << 30
KIND = 1


def node(name: str, **changes: Any) -> NodeView:
    made = NodeView(name, online=True, cpus=4, memory_bytes=16 * GIB, kinds=frozenset({KIND}))
    return replace(made, **changes)


def guest(name: str, memory_gib: int = 4, **changes: Any) -> GuestRequest:
    return replace(GuestRequest(name, KIND, 1, memory_gib * GIB), **changes)


def apart(name: str, *names: str, **changes: Any) -> GuestAffinity:
    return replace(GuestAffinity(name, Guests(frozenset(names)), Mode.APART), **changes)


def together(name: str, *names: str, **changes: Any) -> GuestAffinity:
    return replace(GuestAffinity(name, Guests(frozenset(names)), Mode.TOGETHER), **changes)


def only_on(name: str, guests: str, nodes: dict[str, int], **changes: Any) -> NodeAffinity:
    return replace(NodeAffinity(name, Guests(frozenset(guests.split())), nodes), **changes)


def settled(cluster: Cluster, plan: Plan) -> Cluster:
    """The cluster after a plan was done."""
    return replace(cluster, guests=[replace(g, node=plan.assignments[g.name]) for g in cluster.guests])


NODE_NAMES = ("n1", "n2", "n3", "n4")
GUEST_NAMES = tuple(f"g{i}" for i in range(9))

nodes = st.lists(
    st.builds(
        node,
        st.sampled_from(NODE_NAMES),
        cpus=st.integers(1, 4),
        memory_bytes=st.integers(4, 32).map(lambda size: size * GIB),
        online=st.sampled_from((True, True, True, False)),
        cordoned=st.sampled_from((False, False, False, True)),
        disk_bytes=st.sampled_from((None, 50 * GIB)),
        labels=st.sampled_from(({"rack": "a"}, {"rack": "b"}, {})),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda one: one.name,
)

_guests = st.lists(
    st.builds(
        guest,
        st.sampled_from(GUEST_NAMES),
        st.integers(1, 12),
        cpus=st.integers(1, 6),
        disk_bytes=st.sampled_from((0, 10 * GIB)),
        priority=st.integers(0, 2),
        cpu_load=st.sampled_from((0.0, 0.3, 0.9)),
        memory_load=st.sampled_from((0.0, 0.5)),
        labels=st.sampled_from(({}, {"app": "db"})),
        pinned=st.sampled_from(("", "", "", "n1")),
    ),
    max_size=9,
    unique_by=lambda one: one.name,
)

_whom = st.builds(
    Guests,
    st.frozensets(st.sampled_from(GUEST_NAMES), min_size=2, max_size=3),
    st.sampled_from(({}, {}, {"app": "db"})),
)

_rules: st.SearchStrategy[list[Rule]] = st.lists(
    st.one_of(
        st.builds(
            NodeAffinity,
            st.sampled_from(("r1", "r2", "r3")),
            _whom,
            st.dictionaries(st.sampled_from(NODE_NAMES), st.integers(0, 2), min_size=1),
            st.booleans(),
            st.booleans(),
        ),
        st.builds(
            GuestAffinity,
            st.sampled_from(("r1", "r2", "r3")),
            _whom,
            st.sampled_from(Mode),
            st.booleans(),
            st.sampled_from(("", "rack")),
        ),
    ),
    max_size=3,
    unique_by=lambda rule: rule.name,
)

_settings = st.builds(
    Settings,
    cpu_overcommit_percent=st.sampled_from((100, 200)),
    policy=st.sampled_from(Policy),
    preemption=st.sampled_from(Preemption),
    spare=st.builds(
        Spare, st.sampled_from((0, 0, 1, 2)), st.sampled_from(("", "", "rack")), st.sampled_from(SparePolicy)
    ),
    balance=st.builds(Balance, max_moves=st.integers(0, 6), moves_at_once_per_node=st.integers(1, 2)),
)


@st.composite
def clusters(draw: st.DrawFn, *, placed: bool = False) -> Cluster:
    """Any cluster; placed: as many guests as can be have a place already, on whatever node fits first."""
    made = Cluster(draw(nodes), draw(_guests), draw(_rules), draw(_settings))
    if not placed:
        return made
    from planner.filters import fits  # what is refused is refused here, too

    fleet = made.fleet()
    order = draw(st.permutations(range(len(fleet.nodes))))
    for one in list(fleet.guests.values()):
        good = fits(fleet, one)
        at = next((i for i in order if good[i]), None)
        if at is not None:
            fleet.put(one, at)
    where = {name: fleet.names[i] for name, i in fleet.where.items()}
    return replace(made, guests=[replace(g, node=where.get(g.name, "")) for g in made.guests])
