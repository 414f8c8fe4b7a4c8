"""A guest moves between two whole clusters with real pools; and wherever it fails, it is on exactly one side."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER
from gugus.agent.v1.volume_pb2 import DirPool, PoolSpec
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, GUEST_PHASE_STOPPED, POWER_OFF, POWER_ON, DiskSpec, Guest
from gugus.cluster.v1.task_pb2 import Task

from client import config
from client.across.move import Move
from client.across.plan import FROM, RAN, Wishes
from client.across.side import Side
from client.cli import failure
from client.sdk import Gugus
from client.tasks import check
from common.errors import GugusError, precondition, unavailable
from tests.unit.client.conftest import Gugus as Cli
from tests.unit.client.told import Told
from tests.unit.manager.cluster import guest_spec, running
from tests.unit.manager.conftest import haste
from tests.unit.manager.hypervisor import Hypervisor

__all__ = ["haste"]

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")

OURS, THEIRS = "local", "store"
WISHES = Wishes("web", pools={OURS: THEIRS})


@dataclass
class Two:
    """Two clusters, and what is between them."""

    folder: Path
    here: Gugus
    there: Gugus
    told: Told

    def move(self, wishes: Wishes = WISHES) -> Move:
        here, there = (
            Side(self.here, "ours", "ours", self.told),
            Side(self.there, "theirs", "theirs", self.told),
        )
        return Move(here, there, wishes, self.folder / "scratch", self.told)

    async def guests(self) -> tuple[list[str], list[str]]:
        """Return the names here and there."""
        here, there = [[guest.meta.name for guest in await side.guests.list()] for side in (self.here, self.there)]
        return here, there

    def content(self, guest: Guest, side: str, disk: int = 0) -> bytes:
        """Return what a guest's disk has."""
        volume = self.folder / side / "pool/gugus/disks" / f"{guest.spec.disks[disk].volume}.qcow2"
        program("qemu-img", "convert", "-U", "-O", "raw", str(volume), str(self.folder / "raw"))
        return (self.folder / "raw").read_bytes()

    async def traces(self) -> list[str]:
        """Return what is left of a move there, and in the scratch folder."""
        images = [image.volume.name for image in await self.there.images.list()]
        found = await self.there.pools.check(THEIRS)
        return [
            *images,
            *(s.volume.name for s in found.orphans),
            *(p.name for p in (self.folder / "scratch").iterdir()),
        ]


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Two]:
    (tmp_path / "scratch").mkdir()
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    async with (
        running(tmp_path / "ours", Hypervisor(tmp_path / "ours/n1")) as ours,
        running(tmp_path / "theirs", Hypervisor(tmp_path / "theirs/n1")) as theirs,
        ours.client() as here,
        theirs.client() as there,
    ):
        for gugus, side, pool in ((here, "ours", OURS), (there, "theirs", THEIRS)):
            await gugus.pools.create(PoolSpec(name=pool, dir=DirPool(path=str(tmp_path / side / "pool"))))
        yield Two(tmp_path, here, there, Told())


def program(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


async def make(two: Two, power: Any = POWER_OFF, name: str = "web") -> Guest:
    """Make a guest with a linked and an empty disk."""
    image = two.folder / "disk.qcow2"
    await asyncio.to_thread(program, "qemu-img", "create", "-q", "-f", "qcow2", str(image), "8M")
    await asyncio.to_thread(program, "qemu-io", "-c", "write -P 5 0 1M", str(image))
    check(await two.here.tasks.wait(await two.here.images.upload(OURS, "debian", image)))
    spec = guest_spec(power)
    del spec.disks[:]
    spec.disks.extend([DiskSpec(pool=OURS, image="debian"), DiskSpec(name="data", pool=OURS, size_bytes=4 << 20)])
    spec.notes, spec.id = "a web server", 142
    spec.tags.append("prod")
    check(await two.here.tasks.wait(await two.here.guests.create(name, spec, labels={"tier": "web"})))
    return await two.here.guests.get(name)


async def test_a_stopped_guest_moves_with_all_that_is_its_own(two: Two) -> None:
    before = await make(two)
    content = two.content(before, "ours")
    moved = await two.move().run()
    assert await two.guests() == ([], ["web"])
    assert two.content(moved, "theirs") == content
    assert [disk.size_bytes for disk in moved.spec.disks] == [8 << 20, 4 << 20]
    assert [(disk.name, disk.pool, disk.image, disk.base_volume) for disk in moved.spec.disks] == [
        ("disk0", THEIRS, "", ""),
        ("data", THEIRS, "", ""),
    ]
    assert (moved.spec.notes, moved.spec.id, list(moved.spec.tags)) == ("a web server", 142, ["prod"])
    assert (dict(moved.meta.labels), moved.spec.power, moved.spec.pinned_node) == ({"tier": "web"}, POWER_OFF, "")
    assert await two.traces() == []


async def test_a_running_guest_is_asked_for_a_stop_and_then_runs_there(two: Two) -> None:
    await make(two, POWER_ON)
    with pytest.raises(GugusError, match=r"cannot go over while they run.*--stop"):
        await two.move().run()
    assert (await two.here.guests.get("web")).status.phase == GUEST_PHASE_RUNNING
    moved = await two.move(replace(WISHES, stop=True, new_name="shop", node="n1")).run()
    assert (moved.meta.name, moved.status.phase, moved.spec.preferred_node) == ("shop", GUEST_PHASE_RUNNING, "n1")
    assert await two.guests() == ([], ["shop"])
    assert dict(moved.meta.labels) == {"tier": "web"}


async def test_a_guest_that_is_kept_stays_here_stopped(two: Two) -> None:
    await make(two, POWER_ON)
    await two.move(replace(WISHES, stop=True, keep=True)).run()
    kept = await two.here.guests.get("web")
    assert (kept.status.phase, dict(kept.meta.labels)) == (GUEST_PHASE_STOPPED, {"tier": "web"})
    assert (await two.there.guests.get("web")).status.phase == GUEST_PHASE_RUNNING
    with pytest.raises(GugusError, match="has a guest web"):
        await two.move(replace(WISHES, keep=True)).run()


async def test_all_obstacles_are_told_at_once_and_nothing_happens(two: Two) -> None:
    guest = await make(two, POWER_ON)
    guest.spec.protected = True
    check(await two.here.tasks.wait(await two.here.guests.update("web", guest.spec)))
    with pytest.raises(GugusError) as caught:
        await two.move(Wishes("web", new_name="Bad", pools={"none": "x"}, networks={"lan": "x"}, node="n9")).run()
    assert [violation.field for violation in caught.value.violations] == [
        *("--name", "protected", "--name", "--pool", "pool local", "--network", "--to")
    ]
    assert (await two.guests(), await two.traces()) == ((["web"], []), [])


async def test_snapshots_keep_it_here_unless_they_are_given_up(two: Two) -> None:
    before = await make(two)
    check(await two.here.tasks.wait(await two.here.snapshots.create("web", "old")))
    with pytest.raises(GugusError, match="--drop-snapshots"):
        await two.move().run()
    content = two.content(before, "ours")
    moved = await two.move(replace(WISHES, drop_snapshots=True)).run()
    assert two.content(moved, "theirs") == content
    assert (await two.guests(), list(await two.there.snapshots.list()), await two.traces()) == (([], ["web"]), [], [])


STEPS = (
    ("here", "images", "export"),
    ("here", "images", "download"),
    ("there", "images", "upload"),
    ("there", "guests", "create"),
    ("there", "clones", "flatten_disk"),
    ("there", "images", "delete"),
    ("there", "guests", "change"),
    ("there", "guests", "start"),
)


@pytest.mark.parametrize("step", STEPS, ids=[".".join(step) for step in STEPS])
async def test_wherever_it_fails_the_guest_runs_here_and_nothing_is_there(
    two: Two, step: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(two, POWER_ON)
    side, area, call = step
    target, failed = getattr(getattr(two, side), area), list[bool]()
    real = getattr(target, call)

    async def fail(*args: Any, **options: Any) -> Any:
        if not failed:
            failed.append(True)
            if call in ("start", "create"):  # it is done, and the answer is lost
                await real(*args, **options)
            raise unavailable("NO_MANAGER", "nobody answers.")
        return await real(*args, **options)

    monkeypatch.setattr(target, call, fail)
    with pytest.raises(GugusError, match="nobody answers"):
        await two.move(replace(WISHES, stop=True)).run()
    here = await two.here.guests.get("web")
    assert (here.status.phase, dict(here.meta.labels)) == (GUEST_PHASE_RUNNING, {"tier": "web"})
    assert (await two.guests(), await two.traces()) == ((["web"], []), [])
    await two.move(replace(WISHES, stop=True)).run()
    assert (await two.guests(), await two.traces()) == (([], ["web"]), [])


class Killed(BaseException):
    """The client is gone, and has done nothing more."""


KILLED = [
    *(pytest.param(step, True, id=f"after {'.'.join(step)}") for step in STEPS[1:]),
    *(
        pytest.param((side, area, call), done, id=f"{'after' if done else 'before'} {side}.{area}.{call}")
        for side, area, call, done in (
            ("here", "images", "download", False),
            ("here", "guests", "delete", False),
            ("here", "guests", "delete", True),
            ("there", "guests", "update", False),
        )
    ),
]


@pytest.mark.parametrize(("step", "done"), KILLED)
async def test_the_same_command_goes_on_after_the_client_was_killed(
    two: Two, step: tuple[str, str, str], done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(two, POWER_ON)
    side, area, call = step
    target = getattr(getattr(two, side), area)
    real = getattr(target, call)

    async def kill(*args: Any, **options: Any) -> Any:
        if done:
            answer = await real(*args, **options)
            if isinstance(answer, Task):
                await getattr(two, side).tasks.wait(answer)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(target, call, kill)
        with pytest.raises(Killed):
            await two.move(replace(WISHES, stop=True)).run()
    moved = await two.move(replace(WISHES, stop=True)).run()
    assert (moved.status.phase, dict(moved.meta.labels)) == (GUEST_PHASE_RUNNING, {"tier": "web"})
    assert (await two.guests(), await two.traces()) == (([], ["web"]), [])


async def test_a_guest_that_may_run_there_stays_down_here(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    await make(two, POWER_ON)
    real = two.there.guests.start

    async def lost(*args: Any, **options: Any) -> Any:
        raise unavailable("NO_MANAGER", "nobody answers.")

    async def start(*args: Any, **options: Any) -> Any:
        check(await two.there.tasks.wait(await real(*args, **options)))
        return await lost()

    with monkeypatch.context() as patch:
        patch.setattr(two.there.guests, "start", start)
        patch.setattr(two.there.guests, "delete", lost)
        with pytest.raises(GugusError, match="nobody answers"):
            await two.move(replace(WISHES, stop=True)).run()
    here = await two.here.guests.get("web")
    assert (here.status.phase, RAN in here.meta.labels) == (GUEST_PHASE_STOPPED, True)
    assert any("may run in theirs" in words for words in two.told.words)
    await two.move(replace(WISHES, stop=True)).run()
    assert await two.guests() == ([], ["web"])


async def test_a_guest_that_was_started_here_meanwhile_is_not_lost(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    await make(two)
    real = two.there.clones.flatten_disk

    async def meanwhile(*args: Any, **options: Any) -> Any:
        check(await two.here.tasks.wait(await two.here.guests.start("web")))
        return await real(*args, **options)

    monkeypatch.setattr(two.there.clones, "flatten_disk", meanwhile)
    with pytest.raises(GugusError, match="started or changed"):
        await two.move().run()
    assert (await two.here.guests.get("web")).status.phase == GUEST_PHASE_RUNNING
    assert (await two.guests(), await two.traces()) == ((["web"], []), [])


async def test_what_refuses_to_be_deleted_here_stays_here_alone(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    await make(two)
    real = two.there.guests.change

    async def meanwhile(*args: Any, **options: Any) -> Any:
        done = await real(*args, **options)
        monkeypatch.setattr(two.here.guests, "delete", refuse)
        return done

    async def refuse(*args: Any, **options: Any) -> Any:
        raise precondition("GUEST_PROTECTED", "guest web is protected.")

    monkeypatch.setattr(two.there.guests, "change", meanwhile)
    with pytest.raises(GugusError, match="protected"):
        await two.move().run()
    assert (await two.guests(), await two.traces()) == ((["web"], []), [])


async def test_a_guest_that_both_sides_have_started_is_left_to_people(two: Two) -> None:
    before = await make(two, POWER_ON)
    await two.move(replace(WISHES, stop=True, keep=True)).run()
    there = await two.there.guests.get("web")
    labels = {FROM: f"{before.meta.uid}.other"}
    check(await two.there.tasks.wait(await two.there.guests.update("web", there.spec, labels=labels)))
    with pytest.raises(GugusError, match="Delete one of them"):
        await two.move().run()
    assert await two.guests() == (["web"], ["web"])


async def test_a_container_moves_with_its_files(two: Two, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("a root file system belongs to other user ids: only root makes it")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/hostname").write_text("web")
    await asyncio.to_thread(program, "tar", "-C", str(root), "-czf", str(tmp_path / "root.tar.gz"), ".")
    check(await two.here.tasks.wait(await two.here.images.upload(OURS, "root", tmp_path / "root.tar.gz")))
    spec = guest_spec(POWER_OFF)
    spec.kind = GUEST_KIND_CONTAINER
    spec.disks[0].CopyFrom(DiskSpec(pool=OURS, image="root"))
    check(await two.here.tasks.wait(await two.here.guests.create("web", spec)))
    volume = (await two.here.guests.get("web")).spec.disks[0].volume
    (next((tmp_path / "ours/pool").rglob(volume)) / "etc/written").write_text("here")
    moved = await two.move().run()
    there = next((tmp_path / "theirs/pool").rglob(moved.spec.disks[0].volume))
    assert {p.name: p.read_text() for p in (there / "etc").iterdir()} == {"hostname": "web", "written": "here"}
    assert (await two.guests(), await two.traces()) == (([], ["web"]), [])


async def command(two: Two, *words: str) -> tuple[int, str, str]:
    """Run `gugus guest migrate web --to-cluster` as people do; return its exit code and what it wrote."""
    files = []
    for name, side in (("ours", two.here), ("theirs", two.there)):
        files.append(two.folder / f"{name}.yaml")
        await asyncio.to_thread(files[-1].write_text, config.dump(side._caller._config))
    argv = (
        "-c",
        "from client.cli import main; main()",
        "--config",
        str(files[0]),
        "guest",
        "migrate",
        "web",
        "--to-cluster",
        str(files[1]),
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *argv, "--scratch", str(two.folder / "scratch"), *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_the_command_checks_asks_and_moves(two: Two) -> None:
    await make(two)
    code, out, err = await command(two, "--check")
    assert (code, "there is no pool local" in out) == (failure.FAILED, True), err
    mapped = ("--pool", f"{OURS}={THEIRS}")
    code, out, err = await command(two, "--check", *mapped)
    assert (code, "nothing" in out, "disk0 (8MiB), data (4MiB)" in out) == (failure.OK, True, True), err
    code, out, err = await command(two, *mapped)
    assert (code, "--yes" in err) == (failure.USAGE, True)
    code, out, err = await command(two, "--check", "--to-cluster", str(two.folder / "ours.yaml"), "-o", "json")
    assert (code, "the cluster that it is in" in out) == (failure.FAILED, True), err
    code, out, err = await command(two, "--yes")
    assert (code, "nothing was changed" in err) == (failure.CONFLICT, True)
    code, out, err = await command(two, *mapped, "--yes", "--name", "shop")
    assert (code, "guest web has moved; it is shop there." in err) == (failure.OK, True), err
    assert await two.guests() == ([], ["shop"])


@pytest.mark.parametrize(
    "words", [["a", "b"], ["a", "--no-wait"], ["a", "--pool", "fast"], ["a", "--pool", "x=y=", "--pool", "x=z"]]
)
def test_words_that_make_no_sense_are_refused(gugus: Cli, settings_file: Path, words: list[str]) -> None:
    assert gugus("guest", "migrate", *words, "--to-cluster", str(settings_file)).exit_code == failure.USAGE
    assert gugus("guest", "migrate", "a", "--to", "n2", "--keep").exit_code == failure.USAGE
