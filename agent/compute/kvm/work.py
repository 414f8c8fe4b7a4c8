"""One running domain that is being changed, as the modules see it that change it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gugus.agent.v1 import resources_pb2

from agent.compute.definitions import Definition
from agent.compute.kvm import devices
from agent.compute.kvm.xml.mark import Mark

Shape = Callable[[str, resources_pb2.NicSettings], None]
"""Sets the rates of an interface of the host. Raises GugusError."""


class Refused(Exception):
    """A change that cannot be made now; the text says why."""


@dataclass(slots=True)
class Work:
    """One running domain that is being changed, in a thread of libvirt's pool."""

    connection: Any
    domain: Any
    mark: Mark
    running: Definition
    wanted: Definition
    cgroup_v2: bool
    shape: Shape
    usb_places: dict[str, tuple[int, int]] = field(default_factory=dict)
    patient_until_s: float = math.inf
    """Until then the guest is waited for (time.monotonic)."""

    def look(self) -> devices.Live:
        """Read what the domain has now."""
        return devices.read(self.domain.XMLDesc(0))
