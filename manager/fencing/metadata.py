"""The metadata of a fence agent (XML on its standard output, FenceAgentAPI), and parameters checked against it. Pure.

Every parameter at fault is named at once, with what would be right.
"""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from common.errors import Violation
from manager.ha.fence_plan import Action

RESERVED = frozenset({"action", "option", "agent", "nodename", "port_as_ip"})
"""Given by the manager itself, or meaningless for one host."""

RISKY = re.compile(r"(.*_script|.*_path|debug.*|verbose.*|log.*file|ssh_options|cmd_prompt|quiet|version|help)")
"""Parameters that name programs to run or files to write, or that make an agent talk of its secrets."""

SECRET = re.compile(r".*(passw|secret|token|priv|community|hexadecimal_kg).*")
"""Parameters whose values are secrets, by the names that the fence-agents of Debian give them."""

_TRUE_FALSE = frozenset({"0", "1", "true", "false", "yes", "no", "on", "off"})


class BadMetadata(Exception):
    """The program did not print the metadata of a fence agent that cuts power; the text says why."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter. `kind`: "string", "integer", "second", "boolean" or "select". `instead`: its newer name when it is deprecated."""

    name: str
    kind: str
    required: bool
    options: tuple[str, ...]
    has_default: bool
    instead: str = ""


@dataclass(frozen=True, slots=True)
class Metadata:
    """What an agent can do and wants to know."""

    agent: str
    parameters: Mapping[str, Parameter]
    actions: frozenset[str]


def parse(agent: str, text: str) -> Metadata:
    """Read the metadata that an agent printed. Raises BadMetadata."""
    try:
        root = ElementTree.fromstring(text)  # noqa: S314
    except ElementTree.ParseError as error:
        raise BadMetadata(f"its metadata is no XML: {error}") from None
    actions = frozenset(action.get("name", "") for action in root.iterfind("actions/action"))
    missing = [action.value for action in Action if action.value not in actions]
    if missing:
        raise BadMetadata(f"it has no action {', '.join(missing)}, so that it can prove nothing of a host's power")
    found = {}
    for item in root.iterfind("parameters/parameter"):
        content = item.find("content")
        name = item.get("name", "")
        found[name] = Parameter(
            name,
            content.get("type", "string") if content is not None else "string",
            item.get("required") == "1",
            tuple(option.get("value", "") for option in content.iterfind("option")) if content is not None else (),
            content is not None and content.get("default") is not None,
            (_newer(root, name) or name) if item.get("deprecated") == "1" else "",
        )
    return Metadata(agent, found, actions)


def check(metadata: Metadata, parameters: Mapping[str, str], secrets: Mapping[str, str]) -> list[Violation]:
    """Return every parameter at fault; none when the agent can be called with them."""
    wrong = [
        *(
            Violation(f"parameters.{name}", text)
            for name, value in parameters.items()
            if (text := _plain(metadata, name, value))
        ),
        *(
            Violation(f"secrets.{name}", text)
            for name, value in secrets.items()
            if (text := _secret(metadata, name, value))
        ),
    ]
    wrong += [
        Violation(f"secrets.{name}", "is among the parameters, too") for name in sorted({*parameters} & {*secrets})
    ]
    given = {*parameters, *secrets}
    for name, parameter in metadata.parameters.items():
        if parameter.required and not parameter.has_default and not parameter.instead and name not in given | RESERVED:
            wrong.append(Violation(f"parameters.{name}", f"is missing: {metadata.agent} needs it"))
    return wrong


def _plain(metadata: Metadata, name: str, value: str) -> str:
    if SECRET.fullmatch(name) and not RISKY.fullmatch(name):
        return "is a secret: give it as one (`--secret`), so that it is never shown"
    return _secret(metadata, name, value)


def _secret(metadata: Metadata, name: str, value: str) -> str:
    if name in RESERVED:
        return "is given by the manager itself"
    if RISKY.fullmatch(name):
        return "is not allowed: it names a program or a file of the manager's host, or makes secrets be logged"
    parameter = metadata.parameters.get(name)
    if parameter is None:
        near = get_close_matches(name, [known for known in metadata.parameters if known not in RESERVED], 1)
        return f"is no parameter of {metadata.agent}" + (f"; did you mean {near[0]}?" if near else "")
    if parameter.instead and parameter.instead != name:
        return f"is an old name: use {parameter.instead}"
    if "\n" in value or "\r" in value or "\0" in value:
        return "has a line break: one line is passed on"
    if name == "method" and value != "onoff":
        return 'must be "onoff": only what was switched off can be proven off'
    return _fits(parameter, value)


def _fits(parameter: Parameter, value: str) -> str:
    match parameter.kind:
        case "integer" | "second" if not re.fullmatch(r"-?\d+(\.\d+)?", value):
            return f'"{value}" is no number'
        case "boolean" if value.lower() not in _TRUE_FALSE:
            return f'"{value}" is neither true nor false'
        case "select" if parameter.options and value not in parameter.options:
            return f'"{value}" is none of {", ".join(parameter.options)}'
        case _:
            return ""


def _newer(root: ElementTree.Element, name: str) -> str:
    return next(
        (item.get("name", "") for item in root.iterfind("parameters/parameter") if item.get("obsoletes") == name), ""
    )
