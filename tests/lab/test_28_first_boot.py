"""A whole Debian with cloud-init takes its first-boot settings, and answers through the guest agent."""

from collections.abc import Callable

from gugus.agent.v1.boot_pb2 import FirstBoot, NicAddress

from client.access import run
from common.errors import GugusError
from lab import demo_guests
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
