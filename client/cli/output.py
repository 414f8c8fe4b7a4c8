"""Results on stdout: tables for people, JSON and YAML for programs. Talk goes to stderr.

Invariant: JSON and YAML are protobuf's JSON form of the API's messages with the field names of the proto files, every
field present (64-bit numbers are texts, as protobuf has them); lists are arrays. They change only as the API does.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Any, TypeVar

import typer
import yaml
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message


class Output(StrEnum):
    """How a result is written."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Format = Annotated[Output, typer.Option("--output", "-o", help="For people (table) or for programs.")]

M = TypeVar("M", bound=Message)
Row = Sequence[str]


def say(text: str) -> None:
    """Say something to the person at the terminal, on stderr."""
    print(text, file=sys.stderr)


def show_list(
    items: Iterable[M], output: Output, columns: Sequence[str], row: Callable[[M], Row], *, none: str = ""
) -> None:
    """Write many messages: a table with a row each, or an array. `none` is said when a table would be empty."""
    items = list(items)
    if output is not Output.TABLE:
        write([plain(item) for item in items], output)
    elif items:
        table(columns, [row(item) for item in items])
    elif none:
        say(none)


def show(item: M, output: Output, fields: Callable[[M], Iterable[tuple[str, str]]]) -> None:
    """Write one message: its fields, a line each, or an object."""
    if output is Output.TABLE:
        pairs = [(name, value) for name, value in fields(item) if value]
        width = max((len(name) for name, _ in pairs), default=0)
        for name, value in pairs:
            first, *rest = value.splitlines()
            print(f"{name:<{width}}  {first}")
            for line in rest:
                print(f"{'':<{width}}  {line}")
    else:
        write(plain(item), output)


def show_done(item: Message | None, output: Output, sentence: str) -> None:
    """Write the outcome of a change: a sentence on stderr for people, the changed object for programs."""
    if output is Output.TABLE:
        say(sentence)
    else:
        write(plain(item) if item is not None else {}, output)


def plain(item: Message) -> dict[str, Any]:
    """Return a message as what JSON and YAML are made from."""
    return MessageToDict(item, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def write(value: Any, output: Output) -> None:
    """Write a value to stdout as JSON or YAML."""
    if output is Output.YAML:
        sys.stdout.write(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
    else:
        print(json.dumps(value, indent=2, ensure_ascii=False))


def write_line(item: Message, output: Output) -> None:
    """Write one message of an endless row: JSON on one line, or a YAML document. It is flushed at once."""
    if output is Output.YAML:
        sys.stdout.write("---\n" + yaml.safe_dump(plain(item), sort_keys=False, allow_unicode=True))
    else:
        print(json.dumps(plain(item), ensure_ascii=False))
    sys.stdout.flush()


def table(columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Write a table: with rich on a terminal, else plain columns two spaces apart that no width cuts."""
    if sys.stdout.isatty():
        from rich.console import Console  # here: without a terminal the command starts faster
        from rich.table import Table

        drawn = Table(*columns, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            drawn.add_row(*(_escape(cell) for cell in row))
        Console().print(drawn)
        return
    lines = [[column.upper() for column in columns], *([_one_line(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _escape(cell: str) -> str:
    return cell.replace("[", "\\[")


def _one_line(cell: str) -> str:
    return " ".join(cell.split()) or "-"
