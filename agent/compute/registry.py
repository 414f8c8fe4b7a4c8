"""The hypervisor drivers by name. Adding a driver adds a line to DRIVERS."""

from collections.abc import Mapping
from importlib import import_module
from typing import cast

from agent.compute.hypervisor import Hypervisor
from common.config import AgentConfig
from common.errors import invalid

DRIVERS: Mapping[str, str] = {
    "kvm": "agent.compute.kvm.driver",
    "lxc": "agent.compute.lxc.driver",
    "simulated": "agent.compute.simulated",
}
"""Driver name -> module, which has `create(config: AgentConfig) -> Hypervisor`.

Modules are imported when they are used, so that a host needs the libraries of its own hypervisors only.
"""


def create(driver: str, config: AgentConfig) -> Hypervisor:
    """Make a driver for this host. Raises INVALID_ARGUMENT for a name that is none."""
    if driver not in DRIVERS:
        raise invalid("hypervisors", f'"{driver}" is no hypervisor driver.', remedy=f"Known: {', '.join(DRIVERS)}.")
    return cast(Hypervisor, import_module(DRIVERS[driver]).create(config))
