"""KVM where it works: the emulated CPU has SVM, so the booted kernel can run guests of its own."""

import pytest

from agent.compute.kvm import accelerator
from tests.kernel import machine

pytestmark = pytest.mark.kernel


async def test_the_probe_finds_kvm_where_a_stock_kernel_runs_on_it() -> None:
    found = await accelerator.probe()
    assert found.mode == "kvm", found.reason
    assert machine.starts_on_kvm()
