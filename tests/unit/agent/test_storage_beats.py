"""Beats in a shared pool: whether a host that cannot be reached still runs, told without ever waiting for storage that hangs."""

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gugus.agent.v1.node_pb2 import (
    STORAGE_BEAT_GOES_ON,
    STORAGE_BEAT_STANDS_STILL,
    STORAGE_BEAT_UNSPECIFIED,
    ReachRequest,
)

from agent.services.node import NodeService
from agent.storage import beats
from agent.storage.beats import StorageBeats
from agent.storage.layout import MARKER

NOWHERE = "224.0.0.1:7445"


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(beats, "PERIOD_S", 0.05)
    monkeypatch.setattr(beats, "LOOK_S", 0.02)
    monkeypatch.setattr(beats, "WATCH_S", 0.5)
    (tmp_path / "gugus").mkdir()
    (tmp_path / "gugus" / MARKER).write_text("{}")
    return tmp_path


@contextmanager
def host(name: str, *pools: Path) -> Iterator[StorageBeats]:
    made = StorageBeats(name, f"{name}-boot", lambda: {path.name: path for path in pools})
    made.follow()
    try:
        yield made
    finally:
        made.close()


async def written(pool: Path, name: str) -> None:
    async with asyncio.timeout(5):
        while not (pool / "gugus" / "beats" / name).exists():  # noqa: ASYNC110 (a thread writes it)
            await asyncio.sleep(0.01)


async def test_a_beat_goes_on_while_its_host_runs_and_stands_still_afterwards(pool: Path) -> None:
    with host("n1", pool) as judge:
        with host("n2", pool):
            await written(pool, "n2")
            assert await judge.goes_on("n2") is True
        assert await judge.goes_on("n2") is False
        assert await judge.goes_on("n3") is None
    assert len({file.stat().st_size for file in (pool / "gugus" / "beats").iterdir()}) == 1


async def test_nothing_is_written_where_no_pool_is_mounted(tmp_path: Path) -> None:
    with host("n1", tmp_path) as judge:
        assert await judge.goes_on("n1") is None
    assert os.listdir(tmp_path) == []


async def test_one_pool_that_is_gone_is_followed_no_more(pool: Path) -> None:
    pools = {"shared": pool}
    made = StorageBeats("n1", "boot", lambda: pools)
    made.follow()
    await written(pool, "n1")
    pools.clear()
    made.follow()
    pools["shared"] = pool  # read it again without writing
    assert await made.goes_on("n1") is False
    made.close()


async def test_storage_that_hangs_is_no_opinion_and_holds_nobody_up(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = threading.Event()
    monkeypatch.setattr(beats, "_read", lambda _: hang.wait() and b"")
    with host("n1", pool) as judge:
        try:
            assert await judge.goes_on("n2") is None
        finally:
            hang.set()


@pytest.mark.parametrize(
    ("answer", "told"),
    [(True, STORAGE_BEAT_GOES_ON), (False, STORAGE_BEAT_STANDS_STILL), (None, STORAGE_BEAT_UNSPECIFIED)],
)
async def test_the_answer_about_a_host_that_is_not_reached_has_it(answer: bool | None, told: int) -> None:
    class Watched:
        async def goes_on(self, node: str) -> bool | None:
            assert node == "n2"
            return answer

    nothing: Any = None
    watched: Any = Watched()
    service = NodeService(nothing, nothing, nothing, watched)
    response = await service.Reach(ReachRequest(endpoint=NOWHERE, timeout_ms=50, node="n2"), None)
    assert (response.reached, response.storage_beat) == (False, told)
