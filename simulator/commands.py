"""The words of a scenario: what each command may be, and how it is read.

A command is a line of words ("power off n1") or, where it carries more, an object with one field whose name is the words ("guest add").
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from common.errors import Violation
from planner.fields import FLAG, NAME, Field, Form, Kind, choice, formed, listed, mapped, nullable, number, whole
from simulator.devices import MOODS
from simulator.document import GUEST, MOST_SECONDS, RULE, SETTINGS

MOST_TIMES = MOST_CPUS = 1_000_000

ALL = "all"
"""Stands for all nodes."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command that was understood. words: what tells it from others, like "power off". value: what its object was made into."""

    words: str
    text: str
    args: Mapping[str, str]
    value: Any = None


LINES: Mapping[str, str] = {
    "power on NODE": "The host's power comes; it is there after its boot.",
    "power off NODE": "Its power is cut.",
    "network on NODE": "It is reached again.",
    "network off NODE": "It reaches nobody, and is reached by nobody.",
    "freeze NODE": "The whole host hangs; only its watchdog does not.",
    "thaw NODE": "It goes on.",
    "agent hang NODE": "Its agent hangs; its guests go on.",
    "agent continue NODE": "The agent goes on.",
    "watchdog off NODE": "Its watchdog never fires any more, which nobody should do.",
    "watchdog on NODE": "Its watchdog guards it again.",
    "device MOOD NODE": f"Its fence devices do this from now on: {', '.join(MOODS)}.",
    "guest enable GUEST": "It is under HA.",
    "guest disable GUEST": "Out of use: stopped, and left alone when its node is lost.",
    "guest ignore GUEST": "HA has nothing to do with it.",
    "guest start GUEST": "It is to run; also the way out of error.",
    "guest stop GUEST": "It is not to run.",
    "guest remove GUEST": "It is deleted.",
    "guest crash GUEST": "It ends by itself.",
    "guest migrate GUEST [NODE]": "It is moved as it runs, if its kind can be.",
    "guest relocate GUEST [NODE]": "It is stopped, and started on another node.",
    "guest load GUEST CPUS": "It keeps so many CPUs busy from now on.",
    "guest lock GUEST REASON": "An operation holds it, like backup.",
    "guest unlock GUEST": "The operation is over.",
    "guest fail-start GUEST N times [on NODE]": "Its next N starts fail, anywhere or there.",
    "node maintenance on NODE": "Everything moves off, and nothing new comes.",
    "node maintenance off NODE": "What left for it comes back.",
    "node drain NODE": "Everything moves off for good; it stays cordoned.",
    "node cordon NODE": "It gets no more guests.",
    "node uncordon NODE": "It gets guests again.",
    "node reboot NODE": "The host goes down in order, and boots.",
    "node shutdown NODE": "The host goes down in order, and stays off.",
    "nodes reboot NODE...": "These hosts, or `all`, reboot one after another, as `gugus node reboot` has it.",
    "node fence NODE": "Its fence devices are used, or its lease is waited for.",
    "node confirm-off NODE": "A person says that the host is off.",
    "ha disarm [freeze]": "HA is switched off for the whole cluster; its guests stay as they are, if so.",
    "ha arm": "HA is switched on again.",
    "rule remove RULE": "A rule is deleted.",
    "wait SECONDS": "Time passes.",
}
"""Commands that are lines, and what they mean. Words in capitals stand for something; what is in brackets may be left out."""


class GuestState(StrEnum):
    """HA's word for a guest; `ignored` is not under HA."""

    IGNORED = "ignored"
    STARTED = "started"
    STOPPED = "stopped"
    DISABLED = "disabled"
    FENCE = "fence"
    RECOVERY = "recovery"
    RELOCATE = "relocate"
    ERROR = "error"
    FREEZE = "freeze"


class NodeWord(StrEnum):
    """A node's state."""

    JOINING = "joining"
    ONLINE = "online"
    SUSPECT = "suspect"
    FENCING = "fencing"
    FENCED = "fenced"


GUEST_EXPECTED = Form(
    (
        Field("state", nullable(choice(GuestState)), "HA's state of it.", None),
        Field("node", nullable(NAME), "The node that it is given to.", None),
        Field("not_node", nullable(NAME), "A node that it is not given to.", None),
        Field("runs", nullable(FLAG), "Whether it runs, where it is given to.", None),
        Field("reason", nullable(NAME), "A text that its reason has.", None),
        Field("recoveries", nullable(whole()), "How often it was recovered.", None),
        Field("restarts", nullable(whole()), "Restarts that count.", None),
        Field("relocations", nullable(whole()), "Relocations that count.", None),
    ),
    lambda **given: {name: value for name, value in given.items() if value is not None},
)


@dataclass(frozen=True, slots=True)
class Expected:
    """What must be so, at the latest after so many seconds."""

    guests: Mapping[str, Mapping[str, Any]]
    nodes: Mapping[str, NodeWord]
    log: Sequence[str]
    not_log: Sequence[str]
    within_s: float


EXPECTED = Form(
    (
        Field("guests", mapped(formed(GUEST_EXPECTED)), "Guests, by name.", {}),
        Field("nodes", mapped(choice(NodeWord)), "Nodes' states, by name.", {}),
        Field("log", listed(NAME), "Texts that lines of the log have by then.", ()),
        Field("not_log", listed(NAME), "Texts that no line of the log has by then.", ()),
        Field(
            "within_s",
            number(0, MOST_SECONDS),
            "It may take so many seconds; the next command comes once it is so.",
            0.0,
        ),
    ),
    lambda **given: Expected(**given),
)

OBJECTS: Mapping[str, Kind] = {
    "guest add": formed(GUEST),
    "rule set": RULE,
    "settings set": formed(SETTINGS),
    "expect": formed(EXPECTED),
}
"""Commands that are objects."""


def _read(value: Any, path: str, faults: list[Violation]) -> Any:
    if isinstance(value, str):
        return _line(value, path, faults)
    if isinstance(value, dict) and len(value) == 1:
        words, inner = next(iter(value.items()))
        if words in OBJECTS:
            made = OBJECTS[words].read(inner, f"{path}.{words}", faults)
            name = f" {inner['name']}" if isinstance(inner, dict) and "name" in inner else ""
            return Command(words, f"{words}{name}", {}, made)
        if isinstance(inner, str | int | float) and not isinstance(inner, bool):
            return _line(f"{words} {inner}", path, faults)
        what = f'there is no command "{words}" with an object{_near(str(words), [*OBJECTS])}'
    else:
        what = f'{value} is no command: give a text like "power off n1", or one of {", ".join(OBJECTS)} with an object'
    faults.append(Violation(path, f"{what}."))
    return None


def _line(text: str, path: str, faults: list[Violation]) -> Any:
    given = text.split()
    for pattern in LINES:
        args = _matched(pattern.split(), given)
        if args is not None:
            words = " ".join(word for word in pattern.split() if _fixed(word) and word != "times" and word[0] != "[")
            made = Command(words, text, args)
            return made if _numbers(made, path, faults) else None
    close = difflib.get_close_matches(text, LINES, n=1, cutoff=0.3)
    what = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(LINES)}."
    faults.append(Violation(path, f'"{text}" is no command; {what}'))
    return None


def _fixed(word: str) -> bool:
    return not word.strip("[]").isupper()


def _matched(pattern: Sequence[str], given: Sequence[str]) -> dict[str, str] | None:
    """Return the arguments if a command has this pattern."""
    args: dict[str, str] = {}
    at = 0
    for word in pattern:
        if word == "NODE...":
            args["NODES"] = " ".join(given[at:])
            return args if at < len(given) else None
        bare = word.strip("[]")
        optional = bare != word or bare == "times"
        if at >= len(given):
            if optional:
                continue
            return None
        if not _fixed(word):
            args[bare] = given[at]
        elif bare != given[at]:
            if bare == "times":
                continue
            return None
        at += 1
    return args if at == len(given) else None


def _numbers(command: Command, path: str, faults: list[Violation]) -> bool:
    before = len(faults)
    if "SECONDS" in command.args:
        text = command.args["SECONDS"]
        seconds = _number(text.removesuffix("s"))
        if seconds is None or not 0 <= seconds <= MOST_SECONDS:
            faults.append(Violation(path, f"{text} is no time to wait: give seconds from 0 to {MOST_SECONDS}."))
    if "N" in command.args:
        text = command.args["N"]
        if not text.isdigit() or not 0 < int(text) <= MOST_TIMES:
            faults.append(Violation(path, f"{text} is no count: give a whole number from 1 to {MOST_TIMES}."))
    if "CPUS" in command.args:
        text = command.args["CPUS"]
        cpus = _number(text)
        if cpus is None or not 0 <= cpus <= MOST_CPUS:
            faults.append(Violation(path, f"{text} is no number of CPUs: give one from 0 to {MOST_CPUS}."))
    if "MOOD" in command.args and command.args["MOOD"] not in MOODS:
        mood = command.args["MOOD"]
        faults.append(Violation(path, f'a device cannot "{mood}"{_near(mood, MOODS)}.'))
    return len(faults) == before


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _near(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(names)}"


def _schema() -> dict[str, Any]:
    lines = {"type": "string", "description": "; ".join(f"{line}: {means}" for line, means in LINES.items())}
    objects = [
        {"type": "object", "properties": {words: kind.schema}, "required": [words], "additionalProperties": False}
        for words, kind in OBJECTS.items()
    ]
    return {"anyOf": [lines, *objects]}


COMMAND = Kind(_schema(), _read)
"""What a command may be."""
