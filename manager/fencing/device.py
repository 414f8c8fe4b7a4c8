"""The interface of a fence device: one action, one outcome, and never a success that nobody saw."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from manager.ha.fence_plan import Action, Outcome


@dataclass(frozen=True, slots=True)
class Device:
    """One device as it is spoken to. `parameters` hold the secret ones, too: it is never shown, logged or stored."""

    name: str
    agent: str
    timeout_s: float
    parameters: Mapping[str, str] = field(repr=False)
    secret_names: frozenset[str] = frozenset()


class FenceDevice(Protocol):
    """A way to devices."""

    async def act(self, device: Device, action: Action) -> tuple[Outcome, str]:
        """Carry an action out and return what came of it, and why in words when it failed.

        Raises nothing: an error and a time-out are outcomes. A caller that is cancelled leaves nothing at work.
        """
        ...
