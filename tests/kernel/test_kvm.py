"""What the agent's probe of KVM says is what a stock kernel finds: on this machine, whatever it is."""

import pytest

from agent.compute.kvm import accelerator
from tests.kernel import machine

pytestmark = pytest.mark.kernel


async def test_the_probe_says_of_this_machine_what_a_stock_kernel_finds() -> None:
    found = await accelerator.probe()
    assert (found.mode == "kvm") == machine.starts_on_kvm(), found.reason
