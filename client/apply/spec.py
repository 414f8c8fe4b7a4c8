"""Specs as YAML and back: any message of the API's specs, by its descriptor."""

from collections.abc import Collection
from typing import TypeVar

import yaml
from google.protobuf.message import Message

from client.apply.overlay import overlay
from client.apply.reader import Fault, Patch, Reader, error_of, is_null
from client.apply.writer import to_yaml

__all__ = ["compose", "from_yaml", "read_patch", "to_yaml"]

M = TypeVar("M", bound=Message)


def from_yaml(text: str, kind: type[M], *, source: str = "text") -> M:
    """Return the message that a YAML text describes. Raises GugusError BAD_DOCUMENT naming every fault with its line."""
    message = kind()
    overlay(message, read_patch(text, kind, source=source))
    return message


def read_patch(text: str, kind: type[Message], *, source: str = "text", refused: Collection[str] = ()) -> Patch:
    """Return what a YAML text says of a message. Raises GugusError BAD_DOCUMENT naming every fault with its line."""
    nodes = compose(text, source)
    reader = Reader(source, refused)
    if len(nodes) > 1:
        reader.fault(nodes[1], "", "is a second document; there is to be one")
    patch = reader.message(nodes[0], kind.DESCRIPTOR) if nodes and not is_null(nodes[0]) else Patch()
    if reader.faults:
        raise error_of(reader.faults)
    return patch


def compose(text: str, source: str, *, lines: bool = True) -> list[yaml.Node]:
    """Return the documents of a YAML text as nodes, with their lines. Raises GugusError BAD_DOCUMENT when it is not YAML.

    lines: whether the error names the line.
    """
    try:
        return [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark and lines else source
        raise error_of([Fault(where, "", f"is not YAML: {error.problem or error.context}")]) from None
    except yaml.YAMLError as error:
        raise error_of([Fault(source, "", f"is not YAML: {' '.join(str(error).split())}")]) from None
