"""Why a guest has no place, host by host."""

from collections import Counter
from collections.abc import Sequence

from planner.fleet import Fleet, needs_of
from planner.place import most_refuse, refusals_of
from planner.plans import Refusal, Unplaced
from planner.types import GuestRequest


def unplaced(fleet: Fleet, guests: Sequence[GuestRequest]) -> tuple[Unplaced, ...]:
    """Return for guests without a place the reason of every host. Guests that need the same share their reasons."""
    known: dict[object, tuple[str, tuple[Refusal, ...]]] = {}
    told = []
    for guest in guests:
        key = _alike(fleet, guest)
        if key not in known:
            refusals = tuple(
                Refusal(name, tuple(reasons))
                for name, reasons in zip(fleet.names, refusals_of(fleet, guest), strict=True)
            )
            known[key] = (_sentence(refusals), refusals)
        sentence, refusals = known[key]
        told.append(Unplaced(guest.name, sentence, refusals))
    return tuple(told)


def _alike(fleet: Fleet, guest: GuestRequest) -> object:
    affinities, groupings = fleet.rules.of(guest)
    rules = (*(one.rule.name for one in affinities), *(one.rule.name for one in groupings))
    needs = (guest.kind, guest.pools, guest.networks, guest.machine, guest.cpu_model, guest.abilities)
    return needs_of(guest), needs, guest.pinned, guest.excluded, rules


def _sentence(refusals: Sequence[Refusal]) -> str:
    if not refusals:
        return "There are no hosts."
    if any(not refusal.reasons for refusal in refusals):
        fit = [refusal.node for refusal in refusals if not refusal.reasons]
        return f"It would fit on {', '.join(fit)} alone, but not so that everything else holds."
    counts = Counter(reason.partition(":")[0] for refusal in refusals for reason in refusal.reasons)
    parts = most_refuse(counts)
    if len(refusals) == 1:
        return f"It fits nowhere: the only host refuses it ({parts})."
    return f"It fits nowhere: all {len(refusals)} hosts refuse it ({parts})."
