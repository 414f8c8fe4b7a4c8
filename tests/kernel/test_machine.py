"""The kernel lab itself leaves nothing behind, whatever happens in it."""

import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.kernel import machine

pytestmark = pytest.mark.kernel

DYING_TIMEOUT_S = 10.0
"""What was sent SIGKILL is gone a moment later, on a busy machine some moments."""


def test_a_machine_that_does_not_end_in_time_is_killed_with_all_its_processes(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="did not end within 8 s"):
        machine.boot([sys.executable, "--version"], tmp_path, timeout_s=8)
    end = time.monotonic() + DYING_TIMEOUT_S
    while (left := _naming(str(tmp_path))) and time.monotonic() < end:
        time.sleep(0.1)
    assert left == []


def _naming(text: str) -> list[bytes]:
    """Return the command lines of processes that name something."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it ended while we looked
            found.append(path.read_bytes())
    return [line for line in found if text.encode() in line]
