"""How much memory each guest's balloon leaves it, by the pressure on the host. Pure: from a state to goals.

The host is to have a fifth of its memory free, as Proxmox VE does it (pve-docs, qm: "Memory"): above that guests grow
back to what they were given, below it they give memory up, down to what is reserved for each. What they have above that
is shared out by weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HOST_GOAL = 0.8
"""Part of the host's memory that may be in use."""

SLACK = 0.01
"""Part of the host's memory by which the goal may be missed before anything is done, so that balloons rest."""

LEAST_STEP_BYTES = 16 * 1024 * 1024
"""Smaller changes of a balloon are not worth the guest's work."""

DEFAULT_WEIGHT = 1000


@dataclass(frozen=True, slots=True)
class Balloon:
    """A running guest's balloon. Bytes: what it has now, what it keeps under any pressure, what it was given."""

    present_bytes: int
    floor_bytes: int
    given_bytes: int
    weight: int = DEFAULT_WEIGHT


@dataclass(frozen=True, slots=True)
class Host:
    """The host's memory in bytes: all of it, and what is available (MemAvailable in proc(5))."""

    total_bytes: int
    available_bytes: int


def goals(host: Host, balloons: Mapping[str, Balloon]) -> dict[str, int]:
    """Return the new size in bytes of each guest whose balloon is to change."""
    movable = {name: b for name, b in balloons.items() if 0 < b.floor_bytes < b.given_bytes}
    room = int(host.total_bytes * HOST_GOAL) - (host.total_bytes - host.available_bytes)
    if not movable or abs(room) < host.total_bytes * SLACK:
        return {}
    above = sum(max(0, b.present_bytes - b.floor_bytes) for b in movable.values())
    names = sorted(movable)
    parts = share_out(
        max(0, above + room),
        [movable[name].given_bytes - movable[name].floor_bytes for name in names],
        [movable[name].weight or DEFAULT_WEIGHT for name in names],
    )
    wanted = {name: movable[name].floor_bytes + part for name, part in zip(names, parts, strict=True)}
    return {name: goal for name, goal in wanted.items() if _worth(movable[name], goal)}


def share_out(amount: int, limits: Sequence[int], weights: Sequence[int]) -> list[int]:
    """Share an amount out by weight, none above its limit; what one cannot take goes to the others."""
    parts = [0] * len(limits)
    open_ = [index for index, limit in enumerate(limits) if limit > 0]
    while amount > 0 and open_:
        total = sum(weights[index] for index in open_)
        offers = {index: amount * weights[index] // total for index in open_}
        full = [index for index in open_ if parts[index] + offers[index] >= limits[index]]
        if not full:
            for index in open_:
                parts[index] += offers[index]
            break
        for index in full:
            amount -= limits[index] - parts[index]
            parts[index] = limits[index]
        open_ = [index for index in open_ if index not in full]
    return parts


def _worth(balloon: Balloon, goal: int) -> bool:
    """Whether a change is large enough, or reaches an end of the range."""
    if goal == balloon.present_bytes:
        return False
    return abs(goal - balloon.present_bytes) >= LEAST_STEP_BYTES or goal in (balloon.floor_bytes, balloon.given_bytes)
