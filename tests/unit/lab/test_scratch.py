"""Folders that a process has while it lives: nobody takes them away before, and somebody does after it was killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.scratch import has_owner, owned, scratch, sweep

OWNER = """
import sys, pathlib
from lab.scratch import owned
with owned(pathlib.Path(sys.argv[1]), "work-") as folder:
    (folder / "file").touch()
    print(folder, flush=True)
    sys.stdin.read()
"""


@contextmanager
def owner(parent: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process with a folder of its own, killed at the end."""
    words = [sys.executable, "-c", OWNER, str(parent)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_a_folder_goes_at_the_end_also_when_something_failed(tmp_path: Path) -> None:
    def fail() -> None:
        with scratch(tmp_path, "work-") as folder:
            (folder / "file").touch()
            raise ValueError("oh")

    with pytest.raises(ValueError, match="oh"):
        fail()
    assert not list(tmp_path.iterdir())


def test_the_next_one_takes_away_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "work-file").touch()
    (tmp_path / "other").mkdir()
    with owner(tmp_path) as (_, lives), owner(tmp_path) as (killed, left):
        assert has_owner(left)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert not has_owner(left)
        with scratch(tmp_path, "work-") as mine:
            assert {*tmp_path.iterdir()} == {lives, mine, tmp_path / "other", tmp_path / "work-file"}
            assert (lives / "file").exists()


def test_two_that_sweep_at_once_do_it_once(tmp_path: Path) -> None:
    (tmp_path / "work-left").mkdir()
    swept: list[Path] = []

    def clear(folder: Path) -> None:
        sweep(tmp_path, "work-", swept.append)  # while the other one is at it
        swept.append(folder)
        folder.rmdir()

    sweep(tmp_path, "work-", clear)
    assert swept == [tmp_path / "work-left"]


def test_a_folder_that_is_swept_away_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, make = list[str](), __import__("tempfile").mkdtemp

    def lost_at_first(**options: object) -> str:
        path: str = make(**options)
        made.append(path)
        if len(made) == 1:
            os.rmdir(path)
        return path

    monkeypatch.setattr("tempfile.mkdtemp", lost_at_first)
    with owned(tmp_path, "work-") as folder:
        assert str(folder) == made[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_what_is_mounted_in_it_is_unmounted_and_keeps_its_files(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    place = tmp_path / "work-left" / "root" / "dev"
    place.mkdir(parents=True)
    subprocess.run(["mount", "--bind", kept, place], check=True, timeout=10)
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True, timeout=10)
    sweep(tmp_path, "work-")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept / "file").exists()
