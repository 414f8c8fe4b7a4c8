"""The timeline of a power cut: when the cluster noticed, when it had the proof, when each guest ran elsewhere.

Invariant: pure. All times are seconds since the cut, by the wall clock of the one machine that the lab runs on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gugus.cluster.v1.event_pb2 import Event

SUSPECT, FENCED = "NODE_SUSPECT", "NODE_FENCED"


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened: when, about what, and in which words."""

    after_s: float
    about: str
    text: str

    def line(self) -> str:
        """As it is printed."""
        return f"  +{self.after_s:5.1f} s  {self.about:<12} {self.text}"


@dataclass(frozen=True, slots=True)
class Timeline:
    """The cut of one node's power and what followed."""

    node: str
    cut_s: float
    moments: tuple[Moment, ...]
    detected_s: float | None
    fenced_s: float | None
    recovered_s: float | None


def timeline(
    node: str, cut_s: float, events: Iterable[Event], appeared: Mapping[str, float], running: Mapping[str, float]
) -> Timeline:
    """Put together what the cluster said and what was seen from outside.

    `appeared`: guest -> when its new copy was seen by the judge. `running`: guest -> when the cluster first said that
    it runs elsewhere. All in seconds of the wall clock; a guest counts as recovered when both hold.
    """
    after = [event for event in events if at_s(event) >= cut_s]
    moments = [Moment(at_s(event) - cut_s, event.about, f"{event.reason}: {event.message}") for event in after]
    moments += [
        Moment(when - cut_s, f"guest/{guest}", "seen running elsewhere, by its process")
        for guest, when in appeared.items()
    ]
    whole = bool(running) and appeared.keys() == running.keys()
    recovered = max([*appeared.values(), *running.values()]) - cut_s if whole else None
    return Timeline(
        node=node,
        cut_s=cut_s,
        moments=tuple(sorted(moments, key=lambda moment: moment.after_s)),
        detected_s=_first(after, node, SUSPECT, cut_s),
        fenced_s=_first(after, node, FENCED, cut_s),
        recovered_s=recovered,
    )


def at_s(event: Event) -> float:
    """When an event happened, in seconds of the wall clock."""
    return event.at.seconds + event.at.nanos / 1e9


def _first(events: Sequence[Event], node: str, reason: str, cut_s: float) -> float | None:
    times = [at_s(event) - cut_s for event in events if event.about == f"node/{node}" and event.reason == reason]
    return min(times, default=None)
