"""A whole Debian with cloud-init takes its first-boot settings, and answers through the guest agent."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from gugus.agent.v1.boot_pb2 import FirstBoot, NicAddress
from gugus.agent.v1.snapshot_pb2 import SNAPSHOT_CONSISTENCY_CRASH, SNAPSHOT_CONSISTENCY_FROZEN

from client.access import run
from client.cli.guest_first_boot import VEIL, seed_of
from common.errors import GugusError
from lab import demo_guests
from tests.lab import debian_hardware as hardware
from tests.lab.conftest import Room

MEMORY_BYTES = 512 * 2**20
BOOT_SECONDS = 240.0
"""A whole Debian under emulation boots in 30 to 60 s when nothing else runs."""

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9tUK0q3wI6mYB0sGmJm2M1i6dQk3b5vJc1m2n3o4p5 ada@example.org"
ADDRESS, GATEWAY = "10.20.0.77/24", "10.20.0.1"
HASH = "$6$salt1234$Zt9k1yqvZB8Yl0ZbQ3S4Wb1YkY0c3s8Xc5vJt2x3yq7n9m1oPqRsTuVwXyZ0123456789abcdefghijklmnop/"


def test_a_cloud_image_boots_with_its_user_keys_address_and_name(
    room: Room, debian: str, eventually: Callable[..., object]
) -> None:
    spec = demo_guests.vm_spec("n1", ha=False, image=debian)
    spec.memory_bytes = MEMORY_BYTES
    spec.virtual_machine.guest_agent = True
    hardware.can_grow_and_crash(spec)
    spec.first_boot.CopyFrom(
        FirstBoot(
            hostname="shop",
            user="ada",
            ssh_authorized_keys=[KEY],
            password_hash=HASH,
            timezone="Europe/Vienna",
            addresses=[NicAddress(nic="eth0", ipv4=ADDRESS, ipv4_gateway=GATEWAY, ipv6="none")],
            dns_servers=[GATEWAY],
            dns_search=["example.org"],
        )
    )
    room.create("shop", spec)

    def said(*command: str) -> str:
        code, out, error = room.operator.run(run(room.gugus.access, "shop", command))
        return out.decode() if code == 0 else f"{code}: {error.decode()}"

    def is_set_up() -> bool:
        try:
            return "status: done" in said("cloud-init", "status")
        except GugusError as error:
            if error.reason not in ("GUEST_AGENT_MISSING", "GUEST_AGENT_BUSY", "GUEST_NOT_RUNNING"):
                raise
            return False

    eventually("cloud-init to be done", is_set_up, BOOT_SECONDS)
    assert said("hostname").strip() == "shop"
    shown = seed_of(room.operator.guest("shop"))["user-data"]
    assert said("cat", "/var/lib/cloud/instance/user-data.txt").replace(HASH, VEIL).strip() == shown.strip()
    assert KEY in said("cat", "/home/ada/.ssh/authorized_keys")
    assert f"ada:{HASH}:" in said("cat", "/etc/shadow")
    assert "NOPASSWD" in said("sudo", "-l", "-U", "ada")
    assert ADDRESS in said("ip", "-4", "-o", "address", "show", "eth0")
    assert f"default via {GATEWAY}" in said("ip", "route")
    assert "Europe/Vienna" in said("readlink", "/etc/localtime")
    network = said("resolvectl", "status", "eth0")
    assert GATEWAY in network
    assert "example.org" in network
    eventually("its address to be known", lambda: ADDRESS.split("/")[0] in room.operator.guest("shop").status.addresses)
    look_through_the_agent(room, said)
    hardware.grows_and_uses_it(room, said, eventually)
    hardware.tells_what_is_wrong_with_files(room)
    hardware.panics_and_stays_down(room, said, eventually)


def look_through_the_agent(room: Room, said: Callable[..., str]) -> None:
    """What only the guest's own agent can do: hold its file systems still, run programs, carry files, set passwords."""
    inside, snapshots = room.gugus.access, room.gugus.snapshots
    room.operator.do(snapshots.create("shop", "still"))
    assert room.operator.run(snapshots.get("shop", "still")).consistency == SNAPSHOT_CONSISTENCY_FROZEN
    room.operator.do(snapshots.create("shop", "moving", no_freeze=True))
    assert room.operator.run(snapshots.get("shop", "moving")).consistency == SNAPSHOT_CONSISTENCY_CRASH
    assert said("touch", "/root/alive") == "", "it is thawed"
    assert "trimmed" in said("fstrim", "-v", "/")

    script = "read word; echo $word $PLACE $(pwd); echo err >&2; exit 7"
    command = run(
        inside, "shop", ["sh", "-c", script], input=b"hello\n", environment={"PLACE": "here"}, working_directory="/srv"
    )
    assert room.operator.run(command) == (7, b"hello here /srv\n", b"err\n")
    much = os.urandom(900_000)
    assert room.operator.run(run(inside, "shop", ["cksum"], input=much))[1].split()[1] == b"900000"
    room.operator.run(inside.set_password("shop", "ada", "n3w-secret"))
    assert f"ada:{HASH}:" not in said("cat", "/etc/shadow")
    assert "ada P" in said("passwd", "--status", "ada"), "it can be used"
    room.operator.run(carry(room))


async def carry(room: Room) -> None:
    inside, data = room.gugus.access, os.urandom(300_001)

    async def content() -> AsyncIterator[bytes]:
        yield data

    placed = await inside.push("shop", "/root/file", content(), mode=0o640)
    assert (placed.size_bytes, placed.mode) == (len(data), 0o640)
    async with aclosing(inside.pull("shop", "/root/file")) as pieces:
        assert b"".join([piece async for piece in pieces]) == data
