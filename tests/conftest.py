"""At the end of a run: the reasons of what was skipped, and a look around whether the tests left anything behind.

Leftovers fail the run. Looked for are processes that a test started, containers' cgroups, network links and mounts that
were not there before. What others make on the machine meanwhile is told apart by its names, or by its environment. What a
run that was killed could not take away, the next one does (tests.runs).
"""

import os
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

from tests import runs

OURS = ("gl-", "gg", "gugus")
"""How names of links, cgroups and mounts of the project begin."""

SETTLE_SECONDS = 10.0
"""The kernel takes namespaces, with the links in them, down a moment after their last process."""

_LABS = Path("/var/lib/gugus-lab")


@dataclass(frozen=True, slots=True)
class Traces:
    """What of the project there is on this machine."""

    links: frozenset[str]
    cgroups: frozenset[str]
    mounts: frozenset[str]

    @classmethod
    def now(cls, run: runs.Run) -> "Traces":
        """Look around."""
        others = _labs_but(run)
        net, groups = Path("/sys/class/net"), Path("/sys/fs/cgroup")
        links = {path.name for path in net.iterdir()} if net.is_dir() else set()
        tops = [groups, *groups.iterdir()] if groups.is_dir() else []
        cgroups = {path.name for top in tops if top.is_dir() for path in top.iterdir() if path.is_dir()}
        mounts = {line.split()[1] for line in _lines("/proc/self/mounts")}
        return cls(
            frozenset(name for name in links if name.startswith(OURS) and not name.startswith(others)),
            frozenset(name for name in cgroups if name.startswith(OURS) and not name.startswith(others)),
            frozenset(path for path in mounts if "gugus" in path and runs.PREFIX not in path),
        )

    def since(self, before: "Traces") -> list[str]:
        """What is new, in words."""
        return [
            *(f"network link {name}" for name in sorted(self.links - before.links)),
            *(f"cgroup {name}" for name in sorted(self.cgroups - before.cgroups)),
            *(f"mount {path}" for path in sorted(self.mounts - before.mounts)),
        ]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Clear up after killed runs, remember what is there, and mark whatever will be made. Logs never go where a test looks for output."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))
    stack = ExitStack()
    run, cleared = stack.enter_context(runs.begin())
    os.environ[runs.MARK] = run.id
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # pytest keeps its own folders for a while
    os.environ["TMPDIR"] = str(run.folder)
    tempfile.tempdir = None
    session.config.stash[_OURS] = (stack, run, cleared)
    session.config.stash[_BEFORE] = Traces.now(run)


@pytest.fixture(scope="session", autouse=True)
def _noted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Pytest's folder is this run's, unless somebody chose it, who may choose it again."""
    if request.config.option.basetemp is None:
        runs.current().note_folder(tmp_path_factory.getbasetemp())


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Look around once more; what is there too much fails the run, and is taken away."""
    before = session.config.stash.get(_BEFORE, None)
    if before is None:
        return
    stack, run, _ = session.config.stash[_OURS]
    end = time.monotonic() + SETTLE_SECONDS
    while (left := [*Traces.now(run).since(before), *_left_by(run)]) and time.monotonic() < end:
        time.sleep(0.2)
    session.config.stash[_LEFT] = left
    stack.close()
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left behind, by this run and by killed ones. The reasons of skipped tests come from pytest itself (-ra)."""
    if _OURS in config.stash and (cleared := config.stash[_OURS][2]):
        terminalreporter.section("taken away after runs that were killed")
        for text in cleared:
            terminalreporter.write_line(f"  {text}")
    left = config.stash.get(_LEFT, None)
    if left:
        terminalreporter.section("left behind by the tests", red=True)
        for text in left:
            terminalreporter.write_line(f"  {text}")
    elif left is not None:
        terminalreporter.write_line("nothing was left behind: no process, container, network link or mount")


_OURS = pytest.StashKey[tuple[ExitStack, runs.Run, list[str]]]()
_BEFORE = pytest.StashKey[Traces]()
_LEFT = pytest.StashKey[list[str]]()


def _left_by(run: runs.Run) -> list[str]:
    """What carries the run's id, in words."""
    return [
        *(f"process {pid}: {words[:150]}" for pid, words in run.processes().items()),
        *(f"network link or namespace {name}" for name in run.links()),
        *(f"mount {point}" for point in run.mounts()),
    ]


def _labs_but(run: runs.Run) -> tuple[str, ...]:
    """Links and cgroups of labs that are there for themselves, not for this run."""
    names = {path.name for path in _LABS.glob("*/")} if _LABS.is_dir() else set()
    return tuple(f"gl-{name}" for name in names.difference(run.labs)) or ("gl-gugus",)


def _lines(path: str) -> list[str]:
    with suppress(OSError):
        return Path(path).read_text().splitlines()
    return []
