"""A run of the tests: what it makes carries its id, so that the next run finds what a killed one left, and nothing else.

The id is in the name of its folder, of its links and network namespaces, and in the environment of every process that it
starts. The folder is locked while the run lives (lab.scratch). Its labs, which have names of their own, are noted in it.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lab.api import Lab, LabError
from lab.machine import (
    cgroup_folders,
    kill_cgroup,
    mounts_under,
    remove_cgroup,
    remove_link,
    send_signal,
    unmount_under,
    wait_for,
)
from lab.scratch import has_owner, owned, sweep

MARK = "GUGUS_TEST_SESSION"
"""Every process that a test starts inherits this variable: the id of the run."""

HOME, PREFIX = Path("/var/tmp"), "gugus-test-"
LINKS, NAMESPACES = Path("/sys/class/net"), Path("/run/netns")
LXC_LOCKS = Path("/run/lxc/lock")
"""Where liblxc keeps a lock of each container that it ever saw, by its path."""

KILL_SECONDS = 10.0
MONITOR_SECONDS = 3.0
"""How long the monitor of a container that was killed may take to clean up after it; it takes milliseconds."""

_NOTE = ".gugus-test"
_PAYLOAD, _MONITOR = "lxc.payload.", "lxc.monitor."


@dataclass(frozen=True)
class Run:
    """A run. folder: its own, which containers may reach."""

    folder: Path

    @property
    def id(self) -> str:
        """Eight letters, digits or underscores: they fit into a link's name."""
        return self.folder.name.removeprefix(PREFIX)

    @property
    def folders(self) -> list[Path]:
        """Its own, and the one elsewhere that is noted to be this run's."""
        with suppress(OSError):
            noted = self._noted.readlink()
            if (noted / _NOTE).read_text() == self.id:
                return [noted, self.folder]
        return [self.folder]

    @property
    def labs(self) -> list[str]:
        """The names of its labs."""
        return sorted(note.name for note in self._labs.glob("*"))

    def note_folder(self, path: Path) -> None:
        """Remember a folder elsewhere that is this run's, with all that is in it."""
        (path / _NOTE).write_text(self.id)
        self._noted.symlink_to(path)

    def take_lab(self, name: str) -> Lab:
        """Return the lab of this name, which the run may now make. Raises RuntimeError when a run that goes on has it."""
        note = self._labs / name
        self._labs.mkdir(exist_ok=True)
        note.touch()
        for folder in HOME.glob(f"{PREFIX}*"):
            if folder != self.folder and name in Run(folder).labs and has_owner(folder):
                note.unlink()
                raise RuntimeError(f"another run of the tests, which goes on, has the lab {name} ({folder})")
        return Lab(name)

    def processes(self) -> dict[int, str]:
        """Those that inherited the id, and those whose root is in a folder of the run; with what they were started as."""
        mark, tops = f"{MARK}={self.id}".encode(), tuple(f"{folder}/" for folder in self.folders)
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                # A zombie has no words.
                if words and (
                    mark in (process / "environ").read_bytes().split(b"\0") or _root(process).startswith(tops)
                ):
                    found[int(process.name)] = words
        found.pop(os.getpid(), None)
        return found

    def links(self) -> list[str]:
        """Network links, and namespaces, with the id in their name."""
        return [path.name for top in (LINKS, NAMESPACES) for path in top.glob(f"*{self.id}*")]

    def mounts(self) -> list[str]:
        """What is mounted in the folders."""
        return [point for folder in self.folders for point in mounts_under(folder)]

    def clear(self, *, dead: bool = True) -> list[str]:
        """Take everything away that the run made; return what there was beside files, in words. The folder goes last.

        dead: the noted folder, too. What cannot be taken away is tried again by the next run.
        """
        found = []
        try:
            found += list(self._clear_labs())
            found += [f"process {pid}: {words[:150]}" for pid, words in self._kill().items()]
            found += list(self._clear_links())
            found += [f"mount {point}" for point in self.mounts()]
            for folder in self.folders:
                shutil.rmtree(LXC_LOCKS / str(folder).lstrip("/"), ignore_errors=True)
                unmount_under(folder)
                if dead or folder == self.folder:
                    shutil.rmtree(folder, ignore_errors=True)
        except LabError as error:
            found.append(f"{self.folder} stays: {error}")
        return found

    @property
    def _noted(self) -> Path:
        return self.folder / "noted"

    @property
    def _labs(self) -> Path:
        return self.folder / "labs"

    def _clear_labs(self) -> Iterator[str]:
        for name in self.labs:
            lab = Lab(name)
            if lab.status().state != "down":
                yield f"lab {name}"
            lab.down()

    def _kill(self) -> dict[int, str]:
        """Kill the processes, those in containers first, frozen or not: their monitors then clean up after them."""
        found = self.processes()
        cgroups = {name for pid in found for name in _lxc_cgroups(pid)}
        for name in cgroups:
            if _PAYLOAD in name:
                kill_cgroup(name)
        wait_for(lambda: not any(map(cgroup_folders, cgroups)), MONITOR_SECONDS)
        if not wait_for(lambda: not _kill(self.processes().keys()), KILL_SECONDS):
            raise LabError(f"processes survive SIGKILL: {self.processes()}")
        for name in cgroups:
            remove_cgroup(name)
        return found

    def _clear_links(self) -> Iterator[str]:
        for path in LINKS.glob(f"*{self.id}*"):
            remove_link(path.name)
            yield f"network link {path.name}"
        for path in NAMESPACES.glob(f"*{self.id}*"):
            subprocess.run(["ip", "netns", "delete", path.name], check=False, timeout=10)
            yield f"network namespace {path.name}"


@contextmanager
def begin() -> Iterator[tuple[Run, list[str]]]:
    """Begin a run, after taking away what dead ones left, which is told in words. Its end takes away what it made itself."""
    cleared: list[str] = []
    sweep(HOME, PREFIX, lambda folder: cleared.extend(Run(folder).clear()))
    with owned(HOME, PREFIX) as folder:
        folder.chmod(0o755)
        run = Run(folder)
        try:
            yield run, cleared
        finally:
            run.clear(dead=False)


def current() -> Run:
    """The run that this process belongs to."""
    return Run(HOME / f"{PREFIX}{os.environ[MARK]}")


def _kill(pids: Iterable[int]) -> bool:
    """Kill processes; tells whether there were any."""
    pids = list(pids)
    for pid in pids:
        send_signal(pid, signal.SIGKILL)
    return bool(pids)


def _root(process: Path) -> str:
    """Where the root of a process in /proc is on its file system, as mounted there last (proc(5), mountinfo: fields 4 and 5)."""
    lines = (line.split() for line in (process / "mountinfo").read_text().splitlines())
    return next((fields[3] for fields in reversed(list(lines)) if fields[4] == "/"), "")


def _lxc_cgroups(pid: int) -> Iterator[str]:
    """The container's control groups that a process is in (cgroups(7), "hierarchy:controllers:path")."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            parts = Path(line.split(":", 2)[2]).parts
            for depth, part in enumerate(parts):
                if part.startswith((_PAYLOAD, _MONITOR)):
                    yield "/".join(parts[1 : depth + 1])
