"""Two releases in one cluster: every way there and back (docs/decisions/0007)."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.unit.consensus.conftest import Ca, free_port
from tests.unit.releases.build import next_release

NAMES = ["n1", "n2", "n3"]
SCRIPT = Path(__file__).with_name("member.py")
STEP_S = 20.0
KEPT_ENTRIES = 5
"""`keep_entries` of the members."""


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return next_release(tmp_path_factory.mktemp("next"))


class Process:
    """A member of some release."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, name: str, *arguments: object) -> Any:
        """Have a command done; return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, arguments]).encode() + b"\n")
        return await self.heard()

    async def heard(self) -> Any:
        """Return the next line that it says."""
        assert self._process.stdout is not None
        async with asyncio.timeout(STEP_S):
            return json.loads(await self._process.stdout.readline() or b'{"error": "gone", "text": ""}')

    async def end(self) -> None:
        """Let it stop in order."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        async with asyncio.timeout(STEP_S):
            await self._process.wait()


class Cluster:
    """Three members, each of the old or of the new release."""

    def __init__(self, folder: Path, newer: Path) -> None:
        self._folder, self._newer = folder, newer
        self._ca = Ca(folder)
        self.ports = {name: free_port() for name in NAMES}
        self.up: dict[str, Process] = {}

    async def start(self, name: str, *, new: bool, joining: bool = False) -> Any:
        """Start a member; return what it says first: "up", or why not."""
        self.ports.setdefault(name, free_port())
        self._ca.issue(name)
        setup = {"me": name, "folder": str(self._folder), "ports": self.ports, "joining": joining}
        path = os.pathsep.join([str(self._newer)] if new else [])
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(SCRIPT), json.dumps(setup),
            env={**os.environ, "PYTHONPATH": path}, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        member = Process(process)
        said = await member.heard()
        if said == "up":
            self.up[name] = member
        else:
            await member.end()
        return said

    async def stop(self, name: str) -> None:
        """Stop a member in order."""
        await self.up.pop(name).end()

    async def swap(self, name: str, *, new: bool) -> None:
        """Install the other release on a member: stop, start on the same folder."""
        await self.stop(name)
        assert await self.start(name, new=new) == "up"

    async def leader(self) -> str:
        """Return who leads and can read."""
        async with asyncio.timeout(STEP_S):
            while True:
                for name, member in self.up.items():
                    if (await member.ask("status"))["role"] == "leader" and "error" not in await member.ask("state"):
                        return name
                await asyncio.sleep(0.05)

    async def led_by(self, wanted: str) -> Process:
        """Have a member lead."""
        async with asyncio.timeout(STEP_S):
            while (leader := await self.leader()) != wanted:
                await self.up[leader].ask("lead", wanted)
                await asyncio.sleep(0.3)
        return self.up[wanted]

    async def done(self, name: str, *arguments: object) -> Any:
        """Have a command done by whoever leads, again until it is: commands here may be repeated."""
        async with asyncio.timeout(STEP_S):
            while True:
                answer = await self.up[await self.leader()].ask(name, *arguments)
                if not (isinstance(answer, dict) and "error" in answer):
                    return answer
                await asyncio.sleep(0.1)

    async def equal(self) -> None:
        """Wait until all members have the same state."""
        async with asyncio.timeout(STEP_S):
            while True:
                states = [await member.ask("state") for member in self.up.values()]
                if all(state == states[0] for state in states):
                    return
                await asyncio.sleep(0.05)

    async def levels(self) -> list[int]:
        """Return the level that each member is at, by name."""
        return [(await self.up[name].ask("status"))["level"] for name in sorted(self.up)]

    async def raised(self) -> None:
        """Wait until all members are at level 2."""
        async with asyncio.timeout(STEP_S):
            while set(await self.levels()) != {2}:  # noqa: ASYNC110 - it happens in other processes
                await asyncio.sleep(0.05)


@pytest.fixture
async def cluster(tmp_path: Path, newer: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path, newer)
    yield cluster
    for name in list(cluster.up):
        with suppress(TimeoutError):
            await cluster.stop(name)


async def test_a_rolling_upgrade_with_a_way_back(cluster: Cluster) -> None:
    for name, new in zip(NAMES, (False, False, True), strict=True):
        assert await cluster.start(name, new=new) == "up"

    # Writes from all sides; what only the newer release knows is kept by the older ones.
    newer = await cluster.led_by("n3")
    await newer.ask("create", "a", {"shine": "gold", "glow": "warm"})
    assert (await newer.ask("touch", "a"))["error"] == "PermissionError", "the cluster is at level 1"
    older = await cluster.led_by("n1")
    await older.ask("create", "b", {})
    await older.ask("label", "a", "by-old")
    seen = await older.ask("get", "a")
    assert seen["shine"] is None, "an old release knows nothing of it"
    newer = await cluster.led_by("n3")
    await newer.ask("label", "a", "by-new")
    seen = await newer.ask("get", "a")
    assert (seen["shine"], seen["glow"], seen["labels"]) == ("gold", "warm", ["by-new", "by-old"])
    await cluster.equal()
    assert await cluster.levels() == [1, 1, 1]

    # Snapshots both ways: each release installs one that the other made.
    await snapshot_from_to(cluster, "n1", "n3", new=True)
    await snapshot_from_to(cluster, "n3", "n1", new=False)

    # Back again with one, and then forward with all.
    await cluster.swap("n3", new=False)
    await cluster.done("label", "a", "all-old")
    await cluster.equal()
    for name in NAMES:
        assert await cluster.levels() == [1, 1, 1]
        await cluster.swap(name, new=True)
        await cluster.done("label", "a", f"with-new-{name}")
        await cluster.equal()
    await cluster.raised()
    seen = await cluster.done("get", "a")
    assert (seen["shine"], seen["glow"]) == ("gold", "warm")
    assert seen["labels"] == ["all-old", "by-new", "by-old", *(f"with-new-{name}" for name in NAMES)]

    # What only level 2 has; there is no way back any more, and whoever tries is told.
    await cluster.done("touch", "a")
    await cluster.equal()
    await cluster.stop("n1")
    said = await cluster.start("n1", new=False)
    assert said == {
        "error": "WrongRelease",
        "text": "the cluster is at level 2; this release knows levels up to 1: install the release that the other managers run",
    }
    assert await cluster.start("n4", new=False, joining=True) == "up", "it knows nothing of the cluster yet"
    refused = await cluster.up[await cluster.leader()].ask("add", "n4", cluster.ports["n4"])
    assert refused["error"] == "MembershipRefused"
    assert "n4" in refused["text"]
    assert "speaks level 1, the cluster is at level 2: install a newer release there" in refused["text"]
    await cluster.stop("n4")
    assert await cluster.start("n1", new=True) == "up"
    await cluster.done("touch", "b")
    await cluster.equal()


async def snapshot_from_to(cluster: Cluster, leader: str, behind: str, *, new: bool) -> None:
    """Let a member miss more than the log keeps, and catch up by the leader's snapshot."""
    await cluster.led_by(leader)
    reached = (await cluster.up[behind].ask("status"))["applied"]
    await cluster.stop(behind)
    for index in range(60):
        await cluster.done("label", "b", f"{behind}-{index}")
    kept_from = (await cluster.up[leader].ask("status"))["snapshot"] - KEPT_ENTRIES
    assert kept_from > reached, "the log alone cannot help it"
    assert await cluster.start(behind, new=new) == "up"
    await cluster.equal()
    assert (await cluster.up[behind].ask("status"))["snapshot"] > reached


async def test_a_member_that_cannot_apply_what_is_in_the_log_stops_instead_of_diverging(cluster: Cluster) -> None:
    """A newer leader with a defect uses level 2 while the cluster is at 1."""
    for name, new in zip(NAMES, (False, True, True), strict=True):
        assert await cluster.start(name, new=new) == "up"
    leader = await cluster.led_by("n3")
    await leader.ask("create", "a", {})
    await leader.ask("touch", "a", True)
    failure = await failure_of(cluster.up["n1"])
    assert failure.startswith("FromNewerRelease: Txn: it has fields that this release does not know; install")
    await cluster.stop("n1")
    await cluster.done("label", "a", "two-of-three")
    said = await cluster.start("n1", new=False)
    assert "FromNewerRelease" in (said["error"] if said != "up" else await failure_of(cluster.up["n1"]))


async def failure_of(member: Process) -> str:
    """Wait until a member has stopped by itself; return why."""
    async with asyncio.timeout(STEP_S):
        while not (failure := (await member.ask("status"))["failure"]):  # noqa: ASYNC110 - in another process
            await asyncio.sleep(0.05)
    return str(failure)
