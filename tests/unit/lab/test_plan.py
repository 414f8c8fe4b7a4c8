"""Names and addresses of a lab follow from its name and subnet, and those of two labs never meet."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.plan import MOST_NODES, LabError, LabPlan, free_subnet, subnets_in

names = st.from_regex(r"[a-z][a-z0-9]{0,7}", fullmatch=True)


def plan(name: str = "ci", subnet: int = 7, count: int = 3) -> LabPlan:
    return LabPlan(name, "real", subnet, count, Path("/var/lib/gugus-lab") / name)


def test_nodes_are_numbered_from_eleven() -> None:
    assert [(n.name, n.address) for n in plan().nodes()] == [
        ("n1", "10.77.7.11"),
        ("n2", "10.77.7.12"),
        ("n3", "10.77.7.13"),
    ]


@given(name=names)
def test_every_link_name_fits_the_kernel(name: str) -> None:
    big = plan(name, count=MOST_NODES)
    assert all(len(link) <= 15 for link in [big.bridge, *(node.container for node in big.nodes())])


@given(first=names, second=names)
def test_two_labs_share_no_link(first: str, second: str) -> None:
    def links(name: str) -> set[str]:
        big = plan(name, count=MOST_NODES)
        return {big.bridge, big.table, *(node.container for node in big.nodes())}

    assert first == second or not links(first) & links(second)


@pytest.mark.parametrize("name", ["", "Gugus", "a-b", "ninechars", "1st", "a/b"])
def test_a_bad_lab_name_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="lab name"):
        plan(name)


def test_an_unknown_node_is_answered_with_the_known_ones() -> None:
    with pytest.raises(LabError, match="n1, n2, n3"):
        plan().node("n4")


def test_the_lowest_free_subnet_is_taken() -> None:
    assert free_subnet([1, 2, 4]) == 3
    assert list(subnets_in(["10.77.5.1/24", "192.168.1.1", "10.77.9.1"])) == [5, 9]
