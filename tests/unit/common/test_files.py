import os
import stat
from pathlib import Path

import pytest

from common.files import read_json, remove_durably, write_atomic, write_json


def test_content_is_replaced_as_a_whole_with_the_exact_mode(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    write_atomic(path, b"old", 0o600)
    write_atomic(path, b"new", 0o600)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["node.key"]


def test_failed_write_keeps_the_old_content_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    write_atomic(path, b"old")

    def full_disk(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state"]


def test_json_round_trip_and_removal(tmp_path: Path) -> None:
    path = tmp_path / "epoch.json"
    write_json(path, {"epoch": 7})
    assert read_json(path) == {"epoch": 7}
    remove_durably(path)
    remove_durably(path)
    assert not path.exists()
