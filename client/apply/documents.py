"""Documents: what files say of guests, pools, networks and projects. Several a file, divided by "---"."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from gugus.agent.v1.network_pb2 import NetworkSpec
from gugus.agent.v1.volume_pb2 import PoolSpec
from gugus.cluster.v1.guest_pb2 import Guest, GuestSpec
from gugus.cluster.v1.project_pb2 import ProjectSpec

from client.apply.fields import OUTPUT_ONLY, REFUSED
from client.apply.reader import Fault, Patch, Reader, error_of
from client.apply.spec import compose
from client.apply.writer import dump, to_plain
from client.local_files import unreadable
from common import validate
from common.errors import GugusError, Violation, invalid

SPECS: dict[str, Any] = {"Project": ProjectSpec, "Network": NetworkSpec, "Pool": PoolSpec, "Guest": GuestSpec}
"""Kinds of documents, in the order in which they are made, and their specs."""

STANDARD_INPUT = "-"

_WITH_LABELS = ("Guest",)
_WITH_NODES = ("Pool", "Network")
_NAMES = {"gugus.agent.v1.PoolSpec.name", "gugus.agent.v1.NetworkSpec.name"}
"""Names that specs repeat; a document has its own."""


@dataclass(frozen=True)
class Document:
    """What one document says. `labels` and `nodes` are None when it does not name them; `where` is its file and line."""

    kind: str
    name: str
    patch: Patch
    where: str
    labels: dict[str, str] | None = None
    nodes: tuple[str, ...] | None = None

    @property
    def target(self) -> str:
        """What it is about, as tasks and events name it."""
        return f"{self.kind.lower()}/{self.name}"


def load(paths: Sequence[str]) -> list[Document]:
    """Read documents from files, from the *.yaml and *.yml of folders, and from standard input ("-").

    Raises GugusError BAD_DOCUMENT naming every fault of all files, with its line.
    """
    documents, violations, first = list[Document](), list[Violation](), None
    for path in paths:
        for source, text in _texts(path):
            try:
                documents += parse(text, source)
            except GugusError as error:
                first = first or error
                violations += error.violations
    faults = [
        Fault(late.where, "", f"{late.target} stands in {early.where} as well")
        for i, late in enumerate(documents)
        for early in documents[:i]
        if early.target == late.target
    ]
    if first is None and faults:
        raise error_of(faults)
    if first is not None:
        first.violations = tuple(violations)
        raise first
    return documents


def parse(text: str, source: str) -> list[Document]:
    """Return the documents of a text. Raises GugusError BAD_DOCUMENT naming every fault with its line."""
    reader = Reader(source, REFUSED | _NAMES)
    found = [_document(reader, node) for node in compose(text, source)]
    if reader.faults:
        raise error_of(reader.faults)
    return [document for document in found if document is not None]


def of_guest(guest: Guest) -> str:
    """Return the document of a guest as it is now: everything but what the cluster chooses."""
    spec = to_plain(guest.spec, without={*OUTPUT_ONLY, "gugus.cluster.v1.GuestSpec.id"})
    labels = {"labels": dict(sorted(guest.meta.labels.items()))} if guest.meta.labels else {}
    return dump({"kind": "Guest", "name": guest.meta.name, **labels, "spec": spec})


def _texts(path: str) -> list[tuple[str, str]]:
    """Return the sources and texts that a path stands for."""
    if path == STANDARD_INPUT:
        return [("standard input", sys.stdin.read())]
    files = [Path(path)]
    if files[0].is_dir():
        files = sorted(file for file in files[0].iterdir() if file.suffix in (".yaml", ".yml") and file.is_file())
        if not files:
            raise invalid("--file", f"the folder {path} holds no *.yaml.")
    try:
        return [(str(file), file.read_text()) for file in files]
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable("--file", getattr(error, "filename", None) or path, error) from None


def _document(reader: Reader, node: yaml.Node) -> Document | None:
    parts = {name: value for name, _, value in reader.entries(node, "")}
    kind = _word(reader, parts.pop("kind", None))
    if kind not in SPECS:
        told = f'"{kind}" is' if kind else "is missing or"
        reader.fault(node, "kind", f"{told} not one of {', '.join(SPECS)}")
        return None
    name = _word(reader, parts.pop("name", None))
    if wrong := validate.name(name):
        reader.fault(node, "name", wrong)
    labels, nodes = parts.pop("labels", None), parts.pop("nodes", None)
    if labels is not None and kind not in _WITH_LABELS:
        reader.fault(labels, "labels", f"a {kind} has none")
    if nodes is not None and kind not in _WITH_NODES:
        reader.fault(nodes, "nodes", f"a {kind} has none")
    spec = parts.pop("spec", None)
    for unknown, value in parts.items():
        reader.fault(value, unknown, "is no part of a document; there are kind, name, labels, nodes, spec")
    return Document(
        kind,
        name,
        reader.message(spec, SPECS[kind].DESCRIPTOR, "spec") if spec is not None else {},
        f"{reader.source}:{node.start_mark.line + 1}",
        None if labels is None else {key: _word(reader, value) for key, _, value in reader.entries(labels, "labels")},
        None if nodes is None else _words(reader, nodes),
    )


def _word(reader: Reader, node: yaml.Node | None) -> str:
    if node is None:
        return ""
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    reader.fault(node, "", "is not a single word")
    return ""


def _words(reader: Reader, node: yaml.Node) -> tuple[str, ...]:
    if isinstance(node, yaml.SequenceNode):
        return tuple(_word(reader, item) for item in node.value)
    reader.fault(node, "nodes", "is not a list")
    return ()
