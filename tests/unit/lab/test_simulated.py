"""A simulated lab on this machine's loopback: every command can be repeated, and down leaves nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.api import Lab, LabError


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab("unit", state_dir=tmp_path / "labs")
    yield lab
    lab.down()


def test_power_comes_and_goes_and_down_leaves_nothing(lab: Lab, tmp_path: Path) -> None:
    assert lab.up(2, simulated=True).state == "up"
    assert lab.up(simulated=True).state == "up"
    folder = lab.plan.node("n1").folder
    (folder / "run/token").write_text("lost with the power")
    (folder / "lib/kept").write_text("on disk")
    assert lab.power_off("n1").power == "off"
    assert lab.power_off("n1").power == "off"
    assert not (folder / "run/token").exists()
    assert (folder / "lib/kept").exists()
    assert lab.status().state == "partial"
    assert lab.power_on("n1").boots == 2
    lab.down()
    lab.down()
    assert lab.status().state == "down"
    assert not (tmp_path / "labs").exists()


def test_a_hung_node_runs_nothing_until_it_is_thawed(lab: Lab) -> None:
    lab.up(1, simulated=True)
    assert lab.freeze("n1").frozen
    with pytest.raises(LabError, match="hangs"):
        lab.exec("n1", ["true"])
    assert not lab.thaw("n1").frozen
    assert lab.exec("n1", ["sh", "-c", "echo $GUGUS_NODE; exit 3"]).returncode == 3
    assert [event["event"] for event in lab.events()] == ["power-on", "freeze", "thaw"]


def test_a_cut_is_refused_with_the_way_out(lab: Lab) -> None:
    lab.up(2, simulated=True)
    with pytest.raises(LabError, match="a real lab can"):
        lab.cut("n1", "n2")
