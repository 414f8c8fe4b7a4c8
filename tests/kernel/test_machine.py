"""The kernel lab itself leaves nothing behind, whatever happens in it."""

import sys
from pathlib import Path

import pytest

from tests.kernel import machine

pytestmark = pytest.mark.kernel


def test_a_machine_that_does_not_end_in_time_is_killed_with_all_its_processes(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="did not end within 8 s"):
        machine.boot([sys.executable, "--version"], tmp_path, timeout_s=8)
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not [line for line in running if str(tmp_path).encode() in line]
