"""Simulated guests outlive the agent, and one file is one running copy."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from gugus.agent.v1 import guest_pb2

from agent.compute.definitions import Definition
from agent.compute.simulated import SimulatedHypervisor
from common.errors import GugusError


async def test_a_guest_lives_in_a_file_until_it_is_killed(
    tmp_path: Path, make_guest: Callable[..., Definition]
) -> None:
    guest = make_guest()
    first = SimulatedHypervisor(tmp_path / "state", tmp_path / "run")
    await first.open()
    await first.define(guest.spec, guest.disks, guest.nics)
    await first.start("web", 3)
    await first.start("web", 4)
    assert json.loads((tmp_path / "run/simulated/web.json").read_text())["generation"] == 3

    second = SimulatedHypervisor(tmp_path / "state", tmp_path / "run")
    await second.open()
    seen = await second.observe("web")
    assert seen is not None
    assert (seen.state, seen.generation) == (guest_pb2.GUEST_STATE_RUNNING, 3)
    with pytest.raises(GugusError, match="running"):
        await second.undefine("web")
    report = await second.emergency_kill(["web", "gone-long-ago"])
    assert report.gone == {"web", "gone-long-ago"}
    seen = await second.observe("web")
    assert seen is not None
    assert seen.state == guest_pb2.GUEST_STATE_STOPPED
    await second.undefine("web")
    assert await second.observe("web") is None


async def test_a_power_cut_ends_guests_and_keeps_definitions(
    tmp_path: Path, make_guest: Callable[..., Definition]
) -> None:
    guest = make_guest()
    before = SimulatedHypervisor(tmp_path / "state", tmp_path / "run-of-boot-1")
    await before.define(guest.spec, guest.disks, guest.nics)
    await before.start("web", 1)
    after = SimulatedHypervisor(tmp_path / "state", tmp_path / "run-of-boot-2")
    await after.open()
    seen = await after.observe("web")
    assert seen is not None
    assert not seen.running


async def test_an_unknown_guest_is_not_started(tmp_path: Path) -> None:
    with pytest.raises(GugusError) as caught:
        await SimulatedHypervisor(tmp_path, tmp_path).start("nope", 1)
    assert caught.value.reason == "GUEST_NOT_FOUND"
