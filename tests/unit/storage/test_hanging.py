"""A pool whose file system hangs: it says so in time, and costs nobody else a thread."""

import asyncio
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gugus.agent.v1 import volume_pb2

from agent.state import AgentState
from agent.storage import files, folders, source, store
from agent.storage.dir import DirPool
from agent.storage.pool import VolumeRequest
from agent.turns import Turns
from common.errors import GugusError

LOOKS = 40
"""More than the event loop's default pool has threads, and more than a pool lets hang."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The server of a file system, which is gone until it is set."""
    monkeypatch.setattr(files, "LOOK_TIMEOUT_S", 0.05)
    event = threading.Event()
    yield event
    event.set()


def shared_pool(path: Path, name: str = "nfs") -> DirPool:
    return DirPool(volume_pb2.PoolSpec(name=name, dir=volume_pb2.DirPool(path=str(path), shared=True)))


async def test_a_new_epoch_is_admitted_although_a_pool_hangs(
    tmp_path: Path, server: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = shared_pool(tmp_path)
    await pool.activate()
    monkeypatch.setattr(pool, "_look", server.wait)
    for _ in range(LOOKS):
        status = await pool.status()
        assert not status.ready
        assert "does not answer" in status.reason
    turns = Turns(AgentState(tmp_path / "state"))
    async with asyncio.timeout(10):
        await turns.admit(8)


async def test_a_pool_that_answers_again_is_ready(
    tmp_path: Path, server: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = shared_pool(tmp_path)
    await pool.activate()
    look = pool._look
    monkeypatch.setattr(pool, "_look", lambda: server.wait() and look())
    for _ in range(LOOKS):
        assert not (await pool.status()).ready
    server.set()
    async with asyncio.timeout(10):
        while not (await pool.status()).ready:  # noqa: ASYNC110 (threads have no event of this loop)
            await asyncio.sleep(0.01)


async def test_a_mount_that_hangs_stops_no_event_loop(
    tmp_path: Path, server: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_dir", lambda _: server.wait())
    with pytest.raises(GugusError, match="does not answer") as caught:
        await shared_pool(tmp_path).activate()
    assert caught.value.reason == "CALL_STUCK"


async def test_an_import_that_hangs_can_be_cancelled(
    tmp_path: Path, server: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "STOP_TIMEOUT_S", 0.05)
    monkeypatch.setattr(store, "TIDY_TIMEOUT_S", 0.05)
    pool = shared_pool(tmp_path)
    await pool.activate()
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang(*_: object) -> None:
        loop.call_soon_threadsafe(begun.set)
        server.wait()

    monkeypatch.setattr(source, "_copy", hang)
    monkeypatch.setattr(folders, "remove_tree", hang)
    task = asyncio.create_task(pool.import_volume("image", "/somewhere", "", lambda *_: None))
    await begun.wait()
    task.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_file_work_takes_no_thread_of_the_event_loop(tmp_path: Path) -> None:
    class Refusing(ThreadPoolExecutor):
        def submit(self, *_args: Any, **_kwargs: Any) -> Future[Any]:
            raise AssertionError("file work of a pool in the default threads")

    asyncio.get_running_loop().set_default_executor(Refusing())
    image = tmp_path / "image.raw"
    image.write_bytes(b"\0" * 510 + b"\x55\xaa")
    pool = DirPool(volume_pb2.PoolSpec(name="local", dir=volume_pb2.DirPool(path=str(tmp_path / "pool"))))
    await pool.activate()
    await pool.import_volume("image", str(image), "", lambda *_: None)
    request = VolumeRequest(name="root", format=volume_pb2.VOLUME_FORMAT_FILESYSTEM, privileged=True)
    await pool.create_volume(request)
    assert [volume.name for volume in await pool.list_volumes()] == ["image", "root"]
    await pool.delete_volume("root")
    await pool.delete_volume("image")
    assert (await pool.status()).ready


async def test_a_forgotten_pool_keeps_no_threads(tmp_path: Path, server: threading.Event) -> None:
    def threads() -> int:
        return sum(thread.name.startswith(("look-left", "work-left")) for thread in threading.enumerate())

    pool = shared_pool(tmp_path, "left")
    await pool.status()
    assert threads() == files.LOOK_THREADS + files.WORK_THREADS
    del pool
    async with asyncio.timeout(10):
        while threads():
            await asyncio.sleep(0.05)
            gc.collect()  # exceptions of calls refer to what they were raised in
