"""Whether locks of other hosts come through a pool's file system, told by trying it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agent.leases import lease
from agent.storage.witness import Witness

OTHER = """
import os, sys
from agent.leases import lease
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
print(lease.lock(handle), flush=True)
sys.stdin.read()
"""


def test_lock_of_another_host_is_the_proof(tmp_path: Path) -> None:
    witness = Witness(tmp_path)
    alone = witness.look()
    assert not alone.proven
    assert "no lock of another host is seen" in alone.reason
    words = [sys.executable, "-c", OTHER, str(tmp_path / "n2")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin
        assert other.stdout
        assert other.stdout.readline() == "True\n"
        proof = witness.look()
        assert (proof.proven, proof.reason) == (True, "locks of n2 were seen here")
        other.stdin.close()
    assert witness.look().proven, "it stays proven while no other host is there"
    assert not Witness(tmp_path).look().proven, "a file that is not locked is no proof"


def test_own_file_is_locked_as_long_as_the_pool_is_in_use(tmp_path: Path) -> None:
    own = tmp_path / socket.gethostname()
    witness = Witness(tmp_path)
    witness.look()
    witness.look()
    assert lease.is_held(str(own))
    del witness
    assert not lease.is_held(str(own))


def test_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert "No such file" in Witness(tmp_path / "gone").look().reason


def test_a_second_host_of_the_same_name_is_no_proof(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    handle = os.open(tmp_path / socket.gethostname(), os.O_RDWR | os.O_CREAT)
    lease.lock(handle)
    assert not Witness(tmp_path).look().proven
    os.close(handle)
