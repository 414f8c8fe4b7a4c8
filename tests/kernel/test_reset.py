"""A machine whose agent renews no more, and one of whose HA guests cannot be proven dead, is reset in time."""

import sys
from pathlib import Path

import pytest

from common.leases import KILL_BUDGET_MS, NS_PER_MS
from tests.kernel import machine

pytestmark = pytest.mark.kernel

TIMEOUT_S = 180.0
"""Measured: 25 s to boot, 25 s for the story."""


def test_the_kernel_resets_the_machine_no_later_than_lease_end_and_kill_budget(tmp_path: Path) -> None:
    events = machine.SHARED / "events"
    story = [sys.executable, "-m", "tests.kernel.inside.reset", str(events)]
    ended = machine.boot(story, tmp_path, TIMEOUT_S)
    assert ended.code is None, ended
    assert "softdog: Initiating system reboot" in ended.console
    assert "Power down" not in ended.console

    lines = [line.split(maxsplit=1) for line in (tmp_path / "events").read_text().splitlines()]
    at = {what: int(ns) for ns, what in lines}  # the last of each: "alive" is the reset
    lease_end_ns, reset_ns = at["last lease ends"], at["alive"]
    print(f"reset {(reset_ns - lease_end_ns) // NS_PER_MS} ms after lease end")
    assert at["first lease ends"] < reset_ns
    assert lease_end_ns <= at["web is dead"] <= reset_ns
    assert reset_ns <= lease_end_ns + KILL_BUDGET_MS * NS_PER_MS
