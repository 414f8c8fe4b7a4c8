"""What the lab does to the machine, where nothing is there to do it to."""

from typing import NoReturn

import pytest

from lab import machine


def test_cutting_the_power_of_what_is_off_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fence device is used on hosts that are off already, and what it takes is time without the guest."""

    def waits(*_: object, **__: object) -> NoReturn:
        raise AssertionError("it waited")

    monkeypatch.setattr(machine, "wait_for", waits)
    machine.kill_cgroup("gl-nosuch-n1")
