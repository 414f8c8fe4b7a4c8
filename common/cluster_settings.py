"""The cluster's settings one by one: their names, what each may be, the defaults, and how people write them.

Invariant: every field of gugus.cluster.v1.ClusterSettings is here under its dotted path ("spare.nodes", "balance.hold_ms"), and the
client that reads a person's words and the manager that accepts a value go by this one table, so that both say the same. In the message
0 and empty stand for the default. Weights of placement are entries of a map: "placement_weights.spread".
"""

import difflib
import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from gugus.cluster.v1.cluster_pb2 import (
    BALANCE_MODE_OFF,
    PLACEMENT_POLICY_SPREAD,
    PREEMPTION_POLICY_NEVER,
    SHUTDOWN_POLICY_CONDITIONAL,
    SPARE_POLICY_WARN,
    ClusterSettings,
)

from common.errors import GugusError, invalid, several
from common.units import format_duration, parse_duration

WEIGHTS = "placement_weights"
"""The map of weights; each of its entries is a setting."""

MAX_WEIGHT = 100

MAX_LABEL_CHARS = 63
"""Longest key of a label of nodes."""

DAY_MS = 24 * 3_600_000

RESET = "default"
"""The word that takes a setting back to its default, as the empty text does."""

_NEAR = 0.5
_MOST_NEAR = 3


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. default: in the message's own terms. least, most: of numbers. fixed: why it cannot be changed, "" when it can."""

    name: str
    about: str
    default: int | float | str
    least: float = 0
    most: float = 0
    fixed: str = ""

    @property
    def field(self) -> FieldDescriptor:
        """Its field in the message; of a weight, the value of an entry of the map."""
        *parents, last = self.name.split(".")
        descriptor: Any = ClusterSettings.DESCRIPTOR
        for parent in parents:
            descriptor = descriptor.fields_by_name[parent].message_type
        found: FieldDescriptor = descriptor.fields_by_name["value" if self.is_weight else last]
        return found

    @property
    def is_weight(self) -> bool:
        """Whether it is an entry of the map of weights."""
        return self.name.startswith(f"{WEIGHTS}.")

    @property
    def accepted(self) -> str:
        """What it may be, in words."""
        if self.field.enum_type is not None:
            words = list(_words(self.field.enum_type).values())
            return f"{', '.join(words[:-1])} or {words[-1]}"
        if isinstance(self.default, str):
            return "the key of a label of nodes, like rack"
        return f"{self.shown(self.least)} to {self.shown(self.most)}"

    def shown(self, value: float | str) -> str:
        """Return a value as people write it."""
        if self.field.enum_type is not None:
            return _words(self.field.enum_type).get(int(value), str(value))
        if isinstance(value, str):
            return value or "none"
        if self.name.endswith("_ms"):
            return format_duration(value / 1000)
        return f"{value:g}%" if self.name.endswith("_percent") else f"{value:,g}" if value < 1e6 else f"{value:,}"

    def read(self, text: str) -> int | float | str:
        """Return what a text means, in the message's own terms; the range is `fault`'s to check. Raises ValueError in words."""
        if (enum := self.field.enum_type) is not None:
            word = text.strip().lower().replace("_", "-")
            for number, known in _words(enum).items():
                if word == known:
                    return number
            raise ValueError(f'"{text}" is none of its words: {self.accepted}')
        if isinstance(self.default, str):
            return text.strip()
        number_of = float if self.is_weight else _whole
        if self.name.endswith("_ms") and not text.strip().isdecimal():
            try:
                return round(parse_duration(text.strip()) * 1000)
            except ValueError:
                raise ValueError(f'"{text}" is no duration like 30s or 5m: {self.accepted}') from None
        try:
            return number_of(text.strip().removesuffix("%") if self.name.endswith("_percent") else text.strip())
        except ValueError:
            raise ValueError(f'"{text}" is no {"" if self.is_weight else "whole "}number: {self.accepted}') from None

    def fault(self, value: float | str) -> str:
        """Return what is wrong with a value in the message's own terms, "" when nothing is."""
        if self.field.enum_type is not None:
            known = value in _words(self.field.enum_type)
            return "" if known else f"{value} is none of its words: {self.accepted}"
        if isinstance(value, str):
            good = (
                len(value) <= MAX_LABEL_CHARS
                and value.isprintable()
                and not any(c.isspace() or c == "=" for c in value)
            )
            return "" if good else f'"{value[:80]}" is no key of a label, like rack or site'
        if math.isfinite(value) and self.least <= value <= self.most:
            return ""
        return f"{self.shown(value)} is out of range: {self.accepted}"


_LEASE_FIXED = (
    "the length of node leases cannot be changed: a host is given up for dead once the lease that it was last answered has surely ended, "
    "and with leases of several lengths at once that moment would not be known"
)

_SETTINGS = (
    Setting("node_lease_ms", "Length of a node lease", 10_000, 3_000, 60_000, fixed=_LEASE_FIXED),
    Setting("cpu_overcommit_percent", "CPUs of guests, in sum, of the host's CPUs", 400, 100, 10_000),
    Setting("memory_overcommit_percent", "Memory of guests, in sum, of the host's memory for guests", 100, 100, 400),
    Setting("placement", "What makes a node good for a guest", PLACEMENT_POLICY_SPREAD),
    Setting("spare.nodes", "Nodes that may be lost at once with every HA guest finding a place", 0, 0, 2),
    Setting("spare.domain", "Label whose nodes of one value may be lost together", ""),
    Setting("spare.policy", "What becomes of a guest that would leave too little", SPARE_POLICY_WARN),
    Setting("preemption", "Whether guests of lower priority give their room to one that is recovered", PREEMPTION_POLICY_NEVER),
    Setting("balance.mode", "Who decides that guests move for evenness", BALANCE_MODE_OFF),
    Setting("balance.hold_ms", "How long a plan must have been worth it", 300_000, 10_000, DAY_MS),
    Setting("balance.gain_percent", "Least part of the score that a plan must win", 10, 1, 90),
    Setting("balance.max_moves", "Most migrations of one plan", 10, 1, 100),
    Setting("balance.max_moves_per_hour", "Most automatic migrations within an hour", 20, 1, 1_000),
    Setting("balance.smoothing_ms", "Time over which the load of guests is smoothed", 600_000, 10_000, DAY_MS),
    Setting("fencing.cap_percent", "Nodes that may be fenced by device at once", 25, 1, 100),
    Setting("fencing.max_cuts", "Cuts of one node's power within ten minutes", 5, 1, 100),
    Setting("shutdown", "What becomes of HA guests when their host goes down in order", SHUTDOWN_POLICY_CONDITIONAL),
    Setting("freeze_ms", "How long frozen guests wait for their host", 600_000, 60_000, 30 * DAY_MS),
)  # fmt: skip


class Table:
    """All settings. weights: the scores of placement by name with the weights that they have by default."""

    def __init__(self, weights: dict[str, float]) -> None:
        made = [
            Setting(f"{WEIGHTS}.{name}", f'Weight of the score "{name}"', weight, 0, MAX_WEIGHT)
            for name, weight in weights.items()
        ]
        place = next(i for i, one in enumerate(_SETTINGS) if one.name == "placement") + 1
        self.settings = (*_SETTINGS[:place], *made, *_SETTINGS[place:])
        self._by_name = {one.name: one for one in self.settings}

    def find(self, name: str) -> Setting:
        """Return a setting by its name; "balance.hold" and "Spare-Nodes" find theirs, too. Raises INVALID_ARGUMENT with the nearest."""
        exact = self._by_name.get(name.strip())
        wanted = _plain(name)
        found = exact or next((one for one in self.settings if wanted in _plain_names(one.name)), None)
        if found is None:
            raise invalid(
                name[:80] or "name",
                f"is no setting{self._near(name)}.",
                remedy="`gugus cluster settings` lists them all.",
            )
        return found

    def changed(self, settings: ClusterSettings, wished: ClusterSettings, names: Collection[str]) -> ClusterSettings:
        """Return settings of which those with these names are as wished. Raises INVALID_ARGUMENT with every fault."""
        found, faults = list[Setting](), list[GugusError]()
        for name in names:
            try:
                found.append(self.find(name))
            except GugusError as error:
                faults.append(error)
        after = ClusterSettings()
        after.CopyFrom(settings)
        for one in dict.fromkeys(found):
            put(after, one, value_of(wished, one))
        faults += [fault for one in dict.fromkeys(found) if (fault := self.fault(wished, one)) is not None]
        if faults:
            raise several(faults)
        return after

    def fault(self, wished: ClusterSettings, one: Setting) -> GugusError | None:
        """Return what is wrong with a wish, None when nothing is."""
        if one.fixed:
            return _fixed(one)
        value = value_of(wished, one)
        if value is not None and (text := one.fault(value)):
            return invalid(one.name, f"{text}.")
        return None

    def read(self, texts: Iterable[str]) -> tuple[ClusterSettings, list[str]]:
        """Return what NAME=VALUE texts ask for, and the names. Raises INVALID_ARGUMENT with every fault of all of them."""
        wished, names, faults = ClusterSettings(), dict[str, str](), list[GugusError]()
        for text in texts:
            try:
                one, value = self._divided(text)
                if names.setdefault(one.name, text) != text:
                    raise invalid(one.name, f'is given twice: "{names[one.name]}" and "{text}".')
                put(wished, one, value)
            except GugusError as error:
                faults.append(error)
        if faults:
            raise several(faults)
        return wished, list(names)

    def differences(self, before: ClusterSettings, after: ClusterSettings) -> list[str]:
        """Return what differs, each like "spare.nodes: 0 (default) -> 1"."""
        return [
            f"{one.name}: {told(before, one)} -> {told(after, one)}"
            for one in self.settings
            if value_of(before, one) != value_of(after, one)
        ]

    def _divided(self, text: str) -> tuple[Setting, int | float | str | None]:
        name, equals, value = text.partition("=")
        if not equals:
            raise invalid(text[:80] or "setting", "is not NAME=VALUE, like spare.nodes=1.")
        one = self.find(name)
        if one.fixed:
            raise _fixed(one)
        if value.strip() in ("", RESET):
            return one, None
        try:
            meant = one.read(value)
        except ValueError as error:
            raise invalid(one.name, f"{error}.") from None
        if text := one.fault(meant):
            raise invalid(one.name, f"{text}.")
        return one, meant

    def _near(self, name: str) -> str:
        known = [_plain(one.name) for one in self.settings]
        lasts = {plain.rpartition(".")[2]: plain for plain in known}
        wanted = _plain(name)
        close = difflib.get_close_matches(wanted, known, n=_MOST_NEAR, cutoff=_NEAR)
        close += [
            lasts[last]
            for last in difflib.get_close_matches(wanted.rpartition(".")[2], lasts, n=_MOST_NEAR, cutoff=_NEAR)
        ]
        names = [one.name for plain in dict.fromkeys(close) for one in self.settings if _plain(one.name) == plain]
        return f"; near it are {', '.join(names[:_MOST_NEAR])}" if names else ""


def value_of(settings: ClusterSettings, one: Setting) -> int | float | str | None:
    """Return what a setting is set to, None when it has its default. An explicit weight of 0 is set."""
    if one.is_weight:
        return settings.placement_weights.get(one.name.partition(".")[2])
    message: Any = settings
    *parents, last = one.name.split(".")
    for parent in parents:
        message = getattr(message, parent)
    value: int | str = getattr(message, last)
    return value or None


def put(settings: ClusterSettings, one: Setting, value: float | str | None) -> None:
    """Set a setting in the message, None to its default."""
    if one.is_weight:
        settings.placement_weights.pop(one.name.partition(".")[2], None)
        if value is not None:
            settings.placement_weights[one.name.partition(".")[2]] = float(value)
        return
    message: Any = settings
    *parents, last = one.name.split(".")
    for parent in parents:
        message = getattr(message, parent)
    if value is None:
        message.ClearField(last)
    else:
        setattr(message, last, value)


def told(settings: ClusterSettings, one: Setting) -> str:
    """Return the value of a setting in words, and whether that is its default."""
    value = value_of(settings, one)
    return f"{one.shown(one.default)} (default)" if value is None else one.shown(value)


def _fixed(one: Setting) -> GugusError:
    return invalid(
        one.name, f"{one.fixed}.", remedy=f"Leave it out; it stays {one.shown(one.default)}.", reason="SETTING_FIXED"
    )


def _words(enum: EnumDescriptor) -> dict[int, str]:
    """Return the words of an enum by number, without the unspecified one."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {v.number: v.name.removeprefix(prefix).lower().replace("_", "-") for v in enum.values if v.number}


def _whole(text: str) -> int:
    if not text.lstrip("-").isdecimal():
        raise ValueError
    return int(text)


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_")


def _plain_names(name: str) -> Iterator[str]:
    """Yield the ways in which people write a name, units left out or not."""
    plain = _plain(name)
    yield plain
    yield plain.removesuffix("_ms").removesuffix("_percent")
