"""What is known of containers between calls: how each is defined (for ever) and how it runs (for this boot).

Invariant: a run is on disk before the container starts, so that no crash makes its generation forgotten.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from agent.compute.definitions import FILE_MODE, Definition, from_json, to_json
from agent.compute.lxc.processes import Cgroups
from agent.compute.processes import ProcessRecord, is_alive
from common.files import read_json, remove_durably, write_json


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a container, from the intent to start it to what became of it."""

    generation: int
    mode: str = ""
    halt_signal: str = ""
    monitor: ProcessRecord | None = None
    init: ProcessRecord | None = None
    cgroups: Cgroups = field(default_factory=Cgroups)
    asked: str = ""
    """"shutdown", "kill" or "checkpoint" once somebody asked for its end."""
    ended: bool = False
    end: str = ""
    """How it ended by itself: "poweroff", "reboot" or "crash"; "" when somebody asked for it."""
    reason: str = ""
    base: int = 0
    """Host's number of its root; 0 when it is privileged or this is not known."""
    note: str = ""
    """What an operator should know while it runs."""
    application: bool = False
    """Whether its first process is a program that is no init."""
    interfaces: dict[str, str] = field(default_factory=dict)
    """Name of each interface -> name of the host's end."""

    @property
    def alive(self) -> bool:
        """Whether its init exists. Raises OSError when that cannot be told."""
        return self.init is not None and is_alive(self.init)

    @property
    def monitored(self) -> bool:
        """Whether its monitor exists: as long as it does, it may start another init. Raises OSError."""
        return self.monitor is not None and is_alive(self.monitor)


class Definitions:
    """Definitions by guest name, one file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, definition: Definition) -> None:
        """Keep a definition. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._folder / f"{definition.spec.name}.json", to_json(definition), FILE_MODE)

    def remove(self, name: str) -> None:
        """Forget a definition. Raises OSError."""
        if (self._folder / f"{name}.json").exists():
            remove_durably(self._folder / f"{name}.json")

    def load(self, name: str) -> Definition | None:
        """Return the definition of a guest; None when there is none, or it cannot be read."""
        with suppress(OSError, ValueError, KeyError, TypeError, json_format.ParseError):
            return _definition(read_json(self._folder / f"{name}.json"))
        return None

    def load_all(self) -> dict[str, Definition]:
        """Return all definitions; a file that cannot be read is left out (the manager defines the guest again)."""
        found = ((file.stem, self.load(file.stem)) for file in _files(self._folder))
        return {name: definition for name, definition in found if definition is not None}


class Runs:
    """Runs by guest name, one file each, in a folder that does not outlive the boot."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, name: str, run: Run) -> None:
        """Keep a run. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._folder / f"{name}.json", asdict(run))

    def remove(self, name: str) -> None:
        """Forget a run. Raises OSError."""
        if (self._folder / f"{name}.json").exists():
            remove_durably(self._folder / f"{name}.json")

    def load(self, name: str) -> Run | None:
        """Return the run of a guest; None when there was none this boot, or what is there is no run. Raises OSError."""
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            return _run(read_json(self._folder / f"{name}.json"))
        return None

    def load_all(self) -> dict[str, Run]:
        """Return all runs of this boot. Raises OSError."""
        runs = ((file.stem, self.load(file.stem)) for file in _files(self._folder))
        return {name: run for name, run in runs if run is not None}


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.glob("*.json")) if not file.name.startswith("."))


def _definition(value: dict[str, Any]) -> Definition:
    if "disk" in value:  # as agents wrote it that knew of one disk
        value = {**value, "disks": [{**value["disk"], "read_only": value["read_only"]}]}
    return from_json(value)


def _run(value: dict[str, Any]) -> Run:
    def record(key: str) -> ProcessRecord | None:
        return ProcessRecord(**value[key]) if value.get(key) else None

    cgroups = value["cgroups"]
    if value.pop("crashed", False):  # as older agents wrote it
        value["end"] = "crash"
    known = {**value, "monitor": record("monitor"), "init": record("init")}
    return Run(**{**known, "cgroups": Cgroups(cgroups["cpu"], cgroups["memory"], tuple(cgroups["folders"]))})
