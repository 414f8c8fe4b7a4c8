"""The options that select guests (`--tag`, `--node` and their like), once for all commands that work on many."""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer
from gugus.agent.v1.guest_pb2 import GuestKind

from client.bulk import Selection, examine
from client.cli.session import complete_node, complete_project
from client.cli.words import labels as read_labels


class Kind(StrEnum):
    """What a guest is."""

    VM = "vm"
    CONTAINER = "container"


KINDS = {Kind.VM: GuestKind.GUEST_KIND_VIRTUAL_MACHINE, Kind.CONTAINER: GuestKind.GUEST_KIND_CONTAINER}

Tag = Annotated[list[str] | None, typer.Option(metavar="TAG", help="Those with this tag; may be repeated.")]
OnNode = Annotated[str, typer.Option(metavar="NODE", help="Those on this node.", autocompletion=complete_node)]
OfProject = Annotated[
    str, typer.Option(metavar="PROJECT", help="Those of this project.", autocompletion=complete_project)
]
Label = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Those with this label; may be repeated.")]
OfKind = Annotated[Kind | None, typer.Option(help="Those of this kind.")]
All = Annotated[bool, typer.Option("--all", help="All guests.")]


@dataclass(frozen=True, slots=True)
class Filters:
    """What was typed of these options. Its fields are their names and defaults."""

    tag: Tag = None
    node: OnNode = ""
    project: OfProject = ""
    label: Label = None
    kind: OfKind = None
    all_: All = False

    def selection(self, names: Sequence[str] | None) -> Selection:
        """Return what these options and names select. Raises GugusError when they select nothing, or contradict each other."""
        chosen = Selection(
            tuple(names or ()),
            tuple(self.tag or ()),
            self.node,
            self.project,
            read_labels(self.label or ()),
            KINDS[self.kind] if self.kind else GuestKind.GUEST_KIND_UNSPECIFIED,
            self.all_,
        )
        examine(chosen)
        return chosen


_OPTIONS = tuple(inspect.signature(Filters, eval_str=True).parameters.values())


def with_filters(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options in the place of its parameter `filters`, which gets what was typed."""
    signature = inspect.signature(command, eval_str=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    shown: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        shown += _OPTIONS if name == "filters" else [parameter]

    @functools.wraps(command)
    def with_them(*args: Any, **named: Any) -> None:
        typed = {option.name: named.pop(option.name) for option in _OPTIONS}
        command(*args, filters=Filters(**typed), **named)

    seen: Any = with_them
    seen.__signature__ = signature.replace(parameters=[each.replace(kind=keyword) for each in shown])
    seen.__annotations__ = {each.name: each.annotation for each in shown}
    return with_them
