"""A scenario: read from a document, with every fault told at once, by its field and line."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from gugus.cluster.v1.cluster_pb2 import Cluster, ClusterSettings

from common.errors import GugusError, Violation, invalid, several
from planner.fields import Schema
from simulator.clockwork import S
from simulator.commands import ALL, COMMAND, Command, Expected
from simulator.document import MOST_MANAGERS, Raw, document, titled
from simulator.world import Setup

AFTERWARDS_S = 120.0
"""A scenario that does not say how long it lasts goes on for so long after its last command: longer than a recovery."""

_FORM = document(COMMAND)
_REMEDY = "`gugus simulate --schema` prints what a scenario may hold."


@dataclass(frozen=True, slots=True)
class Scenario:
    """What there is at the beginning, and what happens. seconds: how long it lasts, None for some time after the last command."""

    setup: Setup
    commands: Sequence[Command]
    seconds: float | None
    seed: int


def schema() -> Schema:
    """Return the JSON schema of a scenario."""
    return titled(_FORM)


def load(text: str, name: str) -> Scenario:
    """Read a scenario's file. Raises GugusError BAD_SCENARIO with every fault: its line and field, what is wrong, and what is right."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        root = yaml.compose(text, Loader=loader)
        parsed = yaml.load(text, Loader=loader)  # noqa: S506  it is a safe one
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        what = f"{name}{where}: {getattr(error, 'problem', None) or 'it is neither JSON nor YAML'}."
        raise invalid("FILE", what, remedy="Correct it there.", reason="BAD_SCENARIO") from None
    lines: dict[str, int] = {}
    if root is not None:
        _number_lines(root, "", lines)
    return read(parsed, lines)


def read(value: Any, lines: Mapping[str, int] | None = None) -> Scenario:
    """Return what a document says. lines: of its fields. Raises GugusError BAD_SCENARIO."""
    faults: list[Violation] = []
    raw: Raw = _FORM.read(value, "", faults)
    if not faults:
        faults = _strangers(raw)
    if faults:
        raise _told(faults, lines or {})
    return Scenario(_setup(raw), tuple(raw.commands), raw.seconds, raw.seed)


def _told(faults: Sequence[Violation], lines: Mapping[str, int]) -> GugusError:
    errors = []
    for fault in faults:
        line = _line_of(fault.field, lines)
        where = f"line {line}: " if line else ""
        errors.append(
            invalid(fault.field or "document", f"{where}{fault.message}", remedy=_REMEDY, reason="BAD_SCENARIO")
        )
    return several(errors)


def _number_lines(node: Any, path: str, lines: dict[str, int]) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = f"{path}.{key.value}" if path else str(key.value)
            lines[inner] = key.start_mark.line + 1
            _number_lines(value, inner, lines)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            _number_lines(item, f"{path}[{i}]", lines)


def _line_of(path: str, lines: Mapping[str, int]) -> int:
    """Return the line of a field, or of the nearest thing around it that is there."""
    while path not in lines and path:
        cut = max(path.rfind("."), path.rfind("["))
        path = path[:cut] if cut > 0 else ""
    return lines.get(path, 0)


class _Names:
    """Names that are known while a scenario is read from its beginning to its end."""

    def __init__(self, raw: Raw) -> None:
        self.faults: list[Violation] = []
        self.known: dict[str, list[str]] = {
            "node": [wish.node.meta.name for wish in raw.nodes],
            "guest": [wish.guest.meta.name for wish in raw.guests],
            "rule": [rule.meta.name for rule in raw.rules],
            "pool": [pool.name for pool in raw.pools],
        }
        self.witnesses = {wish.node.meta.name for wish in raw.nodes if wish.node.spec.witness}
        self.devices = {wish.node.meta.name for wish in raw.nodes if wish.node.spec.fence.devices}

    def once(self, kind: str, where: str) -> None:
        """Names are given once."""
        first: dict[str, int] = {}
        for i, name in enumerate(self.known[kind]):
            if name in first:
                what = f'"{name}" is the name of {where}[{first[name]}] already; give each its own.'
                self.faults.append(Violation(f"{where}[{i}].name", what))
            first.setdefault(name, i)

    def there(self, kind: str, name: str, path: str) -> None:
        """A name is of something that is there."""
        names = self.known[kind]
        if name and name not in names:
            close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            near = (
                f"did you mean {close[0]}?" if close else f"there are {', '.join(dict.fromkeys(names[:10])) or 'none'}."
            )
            self.faults.append(Violation(path, f'there is no {kind} "{name}" here; {near}'))


def _strangers(raw: Raw) -> list[Violation]:
    names = _Names(raw)
    for kind, where in (("node", "nodes"), ("guest", "guests"), ("rule", "rules"), ("pool", "pools")):
        names.once(kind, where)
    if all(wish.node.spec.witness for wish in raw.nodes):
        names.faults.append(Violation("nodes", "name at least one node that runs guests, which a witness does not."))
    for i, manager in enumerate(raw.managers):
        names.there("node", manager, f"managers[{i}]")
    if len(set(raw.managers)) != len(raw.managers) or len(raw.managers) > MOST_MANAGERS:
        names.faults.append(Violation("managers", f"name each node once, and {MOST_MANAGERS} at most."))
    for i, wish in enumerate(raw.guests):
        _guest_names(names, wish.guest, f"guests[{i}]")
    for i, rule in enumerate(raw.rules):
        _rule_names(names, rule, f"rules[{i}]")
    for i, command in enumerate(raw.commands):
        _command_names(names, command, f"commands[{i}]")
    return names.faults


def _guest_names(names: _Names, guest: Any, path: str) -> None:
    if guest.status.node in names.witnesses:
        names.faults.append(Violation(f"{path}.node", f"{guest.status.node} is a witness, which runs no guests."))
    names.there("node", guest.status.node, f"{path}.node")
    names.there("node", guest.spec.pinned_node, f"{path}.pinned")
    names.there("node", guest.spec.preferred_node, f"{path}.preferred")
    for i, other in enumerate(guest.spec.boot.after):
        names.there("guest", other, f"{path}.boot.after[{i}]")


def _rule_names(names: _Names, rule: Any, path: str) -> None:
    for node in sorted(rule.spec.nodes.priorities):
        names.there("node", node, f"{path}.nodes.{node}")
    for i, guest in enumerate(rule.spec.guests):
        names.there("guest", guest, f"{path}.guests[{i}]")
    if not rule.spec.guests and not rule.spec.guest_labels:
        names.faults.append(Violation(path, "covers nobody; name guests, or guest_labels."))
    if rule.spec.WhichOneof("kind") == "nodes" and not rule.spec.nodes.priorities:
        names.faults.append(Violation(f"{path}.nodes", "is empty; name at least one node with its priority."))


def _command_names(names: _Names, command: Command, path: str) -> None:
    for kind in ("node", "guest", "rule"):
        if kind.upper() in command.args:
            names.there(kind, command.args[kind.upper()], path)
    for name in command.args.get("NODES", ALL).split():
        if name != ALL:
            names.there("node", name, path)
    if command.words == "device" and command.args["NODE"] in names.known["node"]:
        if command.args["NODE"] not in names.devices:
            names.faults.append(Violation(path, f"{command.args['NODE']} has no fence devices; give it some (fence)."))
    elif command.words == "guest add":
        guest = command.value.guest
        if guest.meta.name in names.known["guest"]:
            names.faults.append(Violation(f"{path}.guest add.name", f'"{guest.meta.name}" is a guest already.'))
        _guest_names(names, guest, f"{path}.guest add")
        if guest.meta.name not in names.known["guest"]:
            names.known["guest"].append(guest.meta.name)
    elif command.words == "rule set":
        _rule_names(names, command.value, f"{path}.rule set")
        if command.value.meta.name not in names.known["rule"]:
            names.known["rule"].append(command.value.meta.name)
    elif command.words == "guest remove" and command.args["GUEST"] in names.known["guest"]:
        names.known["guest"].remove(command.args["GUEST"])
    elif command.words == "rule remove" and command.args["RULE"] in names.known["rule"]:
        names.known["rule"].remove(command.args["RULE"])
    elif isinstance(command.value, Expected):
        for guest, wanted in command.value.guests.items():
            names.there("guest", guest, f"{path}.expect.guests.{guest}")
            for field in ("node", "not_node"):
                names.there("node", wanted.get(field, ""), f"{path}.expect.guests.{guest}.{field}")
        for node in command.value.nodes:
            names.there("node", node, f"{path}.expect.nodes.{node}")


def _setup(raw: Raw) -> Setup:
    names = [wish.node.meta.name for wish in raw.nodes]
    few = next(count for count in (5, 3, 1) if len(names) >= count)
    voters = list(raw.managers) or names[:few]
    settings = ClusterSettings()
    settings.CopyFrom(raw.settings)
    for wish in raw.nodes:
        wish.node.status.voter = wish.node.meta.name in voters
    return Setup(
        nodes=[wish.node for wish in raw.nodes],
        voters=voters,
        guests=[wish.guest for wish in raw.guests],
        loads={wish.guest.meta.name: wish.load for wish in raw.guests if wish.load},
        rules=raw.rules,
        pools=raw.pools,
        cluster=Cluster(settings=settings),
        off=frozenset(wish.node.meta.name for wish in raw.nodes if not wish.power),
        cut=frozenset(wish.node.meta.name for wish in raw.nodes if not wish.network),
        boot_ns=round(raw.boot_s * S),
    )
