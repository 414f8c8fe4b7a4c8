"""Writing back what dead guests wrote: proven when a sync that began after their death has ended, and not before."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.storage import flush
from agent.storage.flush import Flusher

WEB, BOTH = frozenset({"web"}), frozenset({"web", "db"})
SOON_S, NEVER_S = 10.0, 0.05


class Server:
    """A file server: what is synced waits for it, but for what is in `local`."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.begun: list[Path] = []
        self.local: Path | None = None
        self.error: OSError | None = None

    def syncfs(self, folder: Path) -> None:
        self.begun.append(folder)
        if folder != self.local:
            self.answers.wait()
        if self.error is not None:
            raise self.error


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    monkeypatch.setattr(flush, "syncfs", made.syncfs)
    yield made
    made.answers.set()


async def test_writes_are_through_when_the_sync_has_ended(server: Server, tmp_path: Path) -> None:
    server.answers.set()
    assert await Flusher().flush({tmp_path: WEB}, SOON_S) == {}
    assert server.begun == [tmp_path]


async def test_a_sync_that_hangs_is_begun_once_and_names_its_guests(server: Server, tmp_path: Path) -> None:
    flusher = Flusher()
    for _ in range(3):
        left = await flusher.flush({tmp_path: BOTH}, NEVER_S)
        assert left.keys() == BOTH
        assert str(tmp_path) in left["web"]
    server.answers.set()
    assert await flusher.flush({tmp_path: BOTH}, SOON_S) == {}
    assert len(server.begun) == 1


async def test_a_sync_that_began_before_a_guest_died_proves_nothing_of_it(server: Server, tmp_path: Path) -> None:
    flusher = Flusher()
    await flusher.flush({tmp_path: WEB}, NEVER_S)
    await flusher.flush({tmp_path: BOTH}, NEVER_S)
    assert len(server.begun) == 2


async def test_a_file_system_that_hangs_does_not_speak_for_another(server: Server, tmp_path: Path) -> None:
    server.local = tmp_path / "local"
    left = await Flusher().flush({tmp_path: WEB, server.local: frozenset({"db"})}, 0.5)
    assert left.keys() == WEB


@pytest.mark.parametrize(
    ("error", "through"), [(OSError(5, "Input/output error"), False), (FileNotFoundError(2, "not mounted"), True)]
)
async def test_a_sync_that_fails_proves_nothing(server: Server, tmp_path: Path, error: OSError, through: bool) -> None:
    server.error = error
    server.answers.set()
    left = await Flusher().flush({tmp_path: WEB}, SOON_S)
    assert (not left) is through


async def test_a_real_file_system_is_synced(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"x" * 4096)
    assert await Flusher().flush({tmp_path: WEB}, SOON_S) == {}
    assert await Flusher().flush({tmp_path / "none": WEB}, SOON_S) == {}


def test_each_attempt_may_have_an_event_loop_of_its_own(server: Server, tmp_path: Path) -> None:
    flusher = Flusher()
    assert asyncio.run(flusher.flush({tmp_path: WEB}, NEVER_S))
    server.answers.set()
    assert asyncio.run(flusher.flush({tmp_path: WEB}, SOON_S)) == {}
