"""Fence devices: what cuts a host's power, and how it is spoken to.

When they are used, and what proves that they worked, is decided by `manager.ha.fence_plan`; this is the way to them.
"""

from manager.fencing.agents import FenceAgents
from manager.fencing.device import Device, FenceDevice

__all__ = ["Device", "FenceAgents", "FenceDevice"]
