"""In which groups things are begun that depend on one another: those that come before others first, else by their rank. Pure."""

from collections.abc import Collection, Mapping


def waves(after: Mapping[str, Collection[str]], rank: Mapping[str, int]) -> list[list[str]]:
    """Return all names of `rank` in groups, one after another: each name comes after those of `after[name]`, and else by its rank.

    What comes after something counts more than ranks. Names that are not in `rank` are waited for by nobody; of a circle, those with the
    least rank go first.
    """
    left, groups = set(rank), list[list[str]]()
    while left:
        free = {name for name in left if not left.intersection(after.get(name, ())) - {name}} or left
        least = min(rank[name] for name in free)
        group = sorted(name for name in free if rank[name] == least)
        groups.append(group)
        left.difference_update(group)
    return groups


def circle(name: str, after: Mapping[str, Collection[str]]) -> list[str]:
    """Return a way from a name through what it comes after back to itself, as names in order; empty when there is none."""
    ways, seen = [[name]], set[str]()
    while ways:
        way = ways.pop(0)
        for before in after.get(way[-1], ()):
            if before == name:
                return [*way, name]
            if before not in seen:
                seen.add(before)
                ways.append([*way, before])
    return []
