"""Default weights of the scores of placement, by name. Values only: who lists them needs no numbers library."""

from collections.abc import Mapping
from types import MappingProxyType

from planner.settings import Policy

_WISHES = {"preferred": 10.0, "rules": 20.0}
"""What outweighs all others together."""

POLICIES: Mapping[Policy, Mapping[str, float]] = MappingProxyType(
    {
        Policy.SPREAD: {"spread": 1.0, "free-memory": 1.0, "free-cpu": 0.5, "free-disk": 0.25, "calm": 1.0, **_WISHES},
        Policy.PACK: {"filled-memory": 1.0, "filled-cpu": 1.0, "in-use": 1.0, "calm": 0.25, **_WISHES},
    }
)
"""Default weights of the scores under each policy; those that a policy does not name count nothing."""

NAMES: tuple[str, ...] = (
    "spread",
    "free-memory",
    "free-cpu",
    "free-disk",
    "filled-memory",
    "filled-cpu",
    "in-use",
    "calm",
    "preferred",
    "rules",
)
"""All scores, in the order in which they are told."""


def defaults_of(policy: Policy) -> dict[str, float]:
    """Return the default weight of every score under a policy."""
    return {name: POLICIES[policy].get(name, 0.0) for name in NAMES}
