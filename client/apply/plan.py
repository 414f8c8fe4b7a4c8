"""What has to be done for the cluster to be as documents say: a pure function from documents and what is there to actions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from google.protobuf.message import Message
from gugus.cluster.v1.guest_pb2 import Guest, GuestSpec
from gugus.cluster.v1.network_pb2 import Network
from gugus.cluster.v1.pool_pb2 import Pool
from gugus.cluster.v1.project_pb2 import Project

from client.apply.differ import Difference, differences
from client.apply.documents import SPECS, Document
from client.apply.overlay import overlay
from client.apply.reader import Fault, error_of
from client.apply.writer import to_plain

GUEST, POOL, NETWORK, PROJECT = "Guest", "Pool", "Network", "Project"


class Step(StrEnum):
    """What is done with one object."""

    CREATE = "create"
    UPDATE = "change"
    DELETE = "delete"
    NOTHING = "unchanged"


@dataclass(frozen=True)
class Present:
    """What is there, by name."""

    guests: Mapping[str, Guest] = field(default_factory=dict)
    pools: Mapping[str, Pool] = field(default_factory=dict)
    networks: Mapping[str, Network] = field(default_factory=dict)
    projects: Mapping[str, Project] = field(default_factory=dict)

    def of(self, kind: str) -> Mapping[str, Any]:
        """Return the objects of a kind of documents."""
        return {GUEST: self.guests, POOL: self.pools, NETWORK: self.networks, PROJECT: self.projects}[kind]


@dataclass(frozen=True)
class Action:
    """What is done with one object, and what differs. `document` is None for what is deleted."""

    step: Step
    kind: str
    name: str
    document: Document | None = None
    differences: tuple[Difference, ...] = ()

    @property
    def target(self) -> str:
        """What it is about, as tasks and events name it."""
        return f"{self.kind.lower()}/{self.name}"


def plan(
    documents: Sequence[Document],
    present: Present,
    *,
    exact: bool = False,
    prune: Mapping[str, str] | None = None,
) -> list[Action]:
    """Return an action for each document, in the order of carrying out, then one for each guest to delete.

    exact: what a guest's document leaves out returns to its default instead of staying as it is. prune: guests with these
    labels that no document names are deleted; each guest's document must have the labels, too. Raises BAD_DOCUMENT.
    """
    kinds = list(SPECS)
    ordered = sorted(documents, key=lambda document: kinds.index(document.kind))
    actions = [_action(document, present, exact) for document in ordered]
    return actions + (_pruned(documents, present.guests, prune) if prune else [])


def wanted_spec(document: Document, present: Any, *, exact: bool = False) -> Any:
    """Return the spec that an object is to have: what is there, with what its document names put upon it."""
    spec: Message = SPECS[document.kind]()
    if present is not None:
        spec.CopyFrom(_kept(present.spec) if exact and document.kind == GUEST else present.spec)
    overlay(spec, document.patch)
    if document.kind in (POOL, NETWORK):
        spec.name = document.name  # type: ignore[attr-defined]
    if exact and present is not None and document.kind == GUEST:
        _settle(spec, present.spec)
    return spec


def wanted_labels(document: Document, present: Any) -> dict[str, str]:
    """Return the labels that an object is to have."""
    there = dict(present.meta.labels) if present is not None else {}
    return there if document.labels is None else document.labels


def _action(document: Document, present: Present, exact: bool) -> Action:
    object_ = present.of(document.kind).get(document.name)
    wanted = wanted_spec(document, object_, exact=exact)
    if object_ is None:
        made = Difference(document.target, None, ", ".join(to_plain(wanted)) or "all at its default")
        return Action(Step.CREATE, document.kind, document.name, document, (made,))
    found = differences(object_.spec, wanted)
    found += _of_words("labels", dict(object_.meta.labels), document.labels)
    if document.nodes is not None and sorted(document.nodes) != sorted(object_.nodes):
        found.append(Difference("nodes", ", ".join(object_.nodes) or "all", ", ".join(document.nodes) or "all"))
    step = Step.UPDATE if found else Step.NOTHING
    return Action(step, document.kind, document.name, document, tuple(found))


def _of_words(path: str, old: Mapping[str, str], new: Mapping[str, str] | None) -> list[Difference]:
    if new is None:
        return []
    return [
        Difference(f"{path}[{key}]", old.get(key), new.get(key))
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _pruned(documents: Sequence[Document], guests: Mapping[str, Guest], labels: Mapping[str, str]) -> list[Action]:
    named = {document.name for document in documents if document.kind == GUEST}
    without = [
        Fault(
            document.where,
            "labels",
            f"{document.target} lacks {key}={value}, by which --prune knows what it may delete",
        )
        for document in documents
        for key, value in labels.items()
        if document.kind == GUEST and (document.labels or {}).get(key) != value
    ]
    if without:
        raise error_of(without)
    return [
        Action(Step.DELETE, GUEST, name, None, (Difference(f"guest/{name}", "is there", None),))
        for name, guest in sorted(guests.items())
        if name not in named and _has(guest.meta.labels, labels)
    ]


def _has(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in wanted.items())


def _kept(spec: GuestSpec) -> GuestSpec:
    """Return what of a spec stays when all else returns to its default: what it is, its disks and its interfaces."""
    kept = GuestSpec(kind=spec.kind, id=spec.id, power=spec.power, template=spec.template, pinned_node=spec.pinned_node)
    if spec.virtual_machine.machine:
        kept.virtual_machine.machine = spec.virtual_machine.machine
    for disk in spec.disks:
        kept.disks.add(
            name=disk.name,
            pool=disk.pool,
            image=disk.image,
            size_bytes=disk.size_bytes,
            volume=disk.volume,
            base_volume=disk.base_volume,
        )
    for nic in spec.nics:
        kept.nics.add(name=nic.name, network=nic.network, mac=nic.mac)
    return kept


_DEFAULTS = {"cpus": (1,), "memory_bytes": (512 << 20, 256 << 20), "shutdown_timeout_ms": (60_000,)}
"""Fields whose default the manager writes down: left out, they are as they are when that is the default."""


def _settle(spec: Any, present: Any) -> None:
    for name, defaults in _DEFAULTS.items():
        if not getattr(spec, name) and getattr(present, name) in defaults:
            setattr(spec, name, getattr(present, name))
