"""The network learns where a container is, for real: bridges that are switches, a silent container, and who talks to it."""

import asyncio
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent.compute.lxc import announce
from agent.compute.lxc.driver import LxcDriver
from tests import runs
from tests.unit.lxc.containers import NEEDS, Guest

pytestmark = NEEDS

MAC = "52:54:00:00:00:aa"
HOST, UPLINK, SWITCH, PORT = (f"gt{runs.current().id}-{part}" for part in ("h", "up", "sw", "pt"))
RARP = 0x8035


def ip(words: str) -> str:
    return subprocess.run(["ip", *words.split()], check=True, timeout=10, capture_output=True, text=True).stdout


def learned_at(bridge: str) -> str:
    """Where a switch sends what is for the container; "" when it has to ask all."""
    found = subprocess.run(
        ["bridge", "fdb", "show", "br", bridge], check=True, timeout=10, capture_output=True, text=True
    ).stdout
    return next((line.split()[2] for line in found.splitlines() if line.startswith(f"{MAC} ")), "")


@pytest.fixture
def wires() -> Iterator[str]:
    """A host's bridge whose uplink is a port of a switch."""
    with ExitStack() as stack:
        for name in (HOST, SWITCH):
            ip(f"link add {name} type bridge")
            stack.callback(ip, f"link del {name}")
        ip(f"link add {UPLINK} type veth peer name {PORT}")
        stack.callback(ip, f"link del {UPLINK}")
        ip(f"link set {UPLINK} master {HOST} up")
        ip(f"link set {PORT} master {SWITCH} up")
        for name in (HOST, SWITCH):
            ip(f"link set {name} up")
        yield HOST


def test_the_frame_is_qemus() -> None:
    made = announce.frame(MAC)
    own = bytes.fromhex(MAC.replace(":", ""))
    assert made[:14] == b"\xff" * 6 + own + b"\x80\x35"
    assert made[14:22] == bytes.fromhex("0001080006040003")
    assert made[22:42] == own + bytes(4) + own + bytes(4)
    assert len(made) == 60


async def test_a_switch_learns_the_place_of_a_container_that_says_nothing(
    driver: LxcDriver, tmp_path: Path, wires: str
) -> None:
    guest = Guest(driver, tmp_path, "privileged")
    guest.bridge = wires
    guest.spec.nics.add(name="eth0", network="n", mac=MAC)
    await guest.define()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(RARP)) as ear:
        ear.bind((SWITCH, RARP))
        await driver.start("c1", 1)
        async with asyncio.timeout(20):
            heard = await asyncio.get_running_loop().sock_recv(ear, 2000)
    assert heard == announce.frame(MAC)
    assert learned_at(SWITCH) == PORT
    assert learned_at(HOST) == "gv100-0"
    await driver.kill("c1")


async def test_a_container_that_ended_meanwhile_is_nothing_to_announce() -> None:
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()
    await announce.announce(process.pid, [])
