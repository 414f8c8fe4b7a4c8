"""At the end of a run: the reasons of what was skipped, and a look around whether the tests left anything behind.

Leftovers fail the run. Looked for are processes that a test started, containers' cgroups, network links and mounts that
were not there before. What others make on the machine meanwhile is told apart by its names, or by its environment.
"""

import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

MARK = "GUGUS_TEST_SESSION"
"""Every process that a test starts inherits this variable."""

OURS = ("gl-", "gg", "gugus")
"""How names of links, cgroups and mounts of the project begin."""

SETTLE_SECONDS = 10.0
"""The kernel takes namespaces, with the links in them, down a moment after their last process."""

_OTHER_LABS = Path("/var/lib/gugus-lab")


@dataclass(frozen=True, slots=True)
class Traces:
    """What of the project there is on this machine."""

    links: frozenset[str]
    cgroups: frozenset[str]
    mounts: frozenset[str]

    @classmethod
    def now(cls) -> "Traces":
        """Look around."""
        others = _labs()
        net, groups = Path("/sys/class/net"), Path("/sys/fs/cgroup")
        links = {path.name for path in net.iterdir()} if net.is_dir() else set()
        tops = [groups, *groups.iterdir()] if groups.is_dir() else []
        cgroups = {path.name for top in tops if top.is_dir() for path in top.iterdir() if path.is_dir()}
        mounts = {line.split()[1] for line in _lines("/proc/self/mounts")}
        return cls(
            frozenset(name for name in links if name.startswith(OURS) and not name.startswith(others)),
            frozenset(name for name in cgroups if name.startswith(OURS) and not name.startswith(others)),
            frozenset(path for path in mounts if "gugus" in path or "pytest" in path),
        )

    def since(self, before: "Traces") -> list[str]:
        """What is new, in words."""
        return [
            *(f"network link {name}" for name in sorted(self.links - before.links)),
            *(f"cgroup {name}" for name in sorted(self.cgroups - before.cgroups)),
            *(f"mount {path}" for path in sorted(self.mounts - before.mounts)),
        ]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remember what was there, and mark whatever will be started. Logs never go where a test looks for output."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))
    os.environ[MARK] = uuid.uuid4().hex
    session.config.stash[_BEFORE] = Traces.now()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Look around once more; what is there too much fails the run."""
    before = session.config.stash.get(_BEFORE, None)
    if before is None:
        return
    end = time.monotonic() + SETTLE_SECONDS
    while (left := [*Traces.now().since(before), *_processes()]) and time.monotonic() < end:
        time.sleep(0.2)
    session.config.stash[_LEFT] = left
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left behind. The reasons of skipped tests come from pytest itself (-ra)."""
    left = config.stash.get(_LEFT, None)
    if left:
        terminalreporter.section("left behind by the tests", red=True)
        for text in left:
            terminalreporter.write_line(f"  {text}")
    elif left is not None:
        terminalreporter.write_line("nothing was left behind: no process, container, network link or mount")


_BEFORE = pytest.StashKey[Traces]()
_LEFT = pytest.StashKey[list[str]]()


def _processes() -> Iterator[str]:
    """Processes, other than this one and those that it comes from, that carry the session's mark."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        if int(folder.name) == os.getpid():
            continue
        with suppress(OSError, IndexError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if words:  # a zombie has none
                    yield f"process {folder.name}: {words[:150]}"


def _labs() -> tuple[str, ...]:
    """Links and cgroups of labs that are there for themselves, not for this run."""
    names = [path.name for path in _OTHER_LABS.glob("*/")] if _OTHER_LABS.is_dir() else []
    return tuple(f"gl-{name}" for name in names if name != "ci") or ("gl-gugus",)


def _lines(path: str) -> list[str]:
    with suppress(OSError):
        return Path(path).read_text().splitlines()
    return []
