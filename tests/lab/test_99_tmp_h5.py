"""A whole Debian with cloud-init takes its first-boot settings, and answers through the guest agent."""

from collections.abc import Callable
import tests.lab.conftest as _c
_c.NAME='h5'; _c.NODES=1

from gugus.agent.v1.boot_pb2 import FirstBoot, NicAddress

from client.access import run
from common.errors import GugusError
from lab import demo_guests
from tests.lab.conftest import Room

MEMORY_BYTES = 512 * 2**20
BOOT_SECONDS = 200.0
"""A whole Debian under emulation boots in 30 to 60 s when nothing else runs."""

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9tUK0q3wI6mYB0sGmJm2M1i6dQk3b5vJc1m2n3o4p5 ada@example.org"
ADDRESS, GATEWAY = "10.20.0.77/24", "10.20.0.1"
HASH = "$6$salt1234$Zt9k1yqvZB8Yl0ZbQ3S4Wb1YkY0c3s8Xc5vJt2x3yq7n9m1oPqRsTuVwXyZ0123456789abcdefghijklmnop/"


def test_tmp_frozen_with_its_user_keys_address_and_name(
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


    import time as _t
    try:
        eventually("cloud-init to be done", is_set_up, BOOT_SECONDS)
    except TimeoutError:
        print("CONSOLE", room.operator.console_log("shop")[-1500:]); raise
    do, sn = room.operator.do, room.gugus.snapshots
    t = do(sn.create("shop", "cold"))
    print("LOG", [l.text for l in t.log])
    c = room.operator.run(sn.get("shop", "cold")); print(c.consistency, c.paused_ms)
    said("sh", "-c", "echo one > /run/word; echo one > /root/word; sync")
    t0=_t.time(); t = do(sn.create("shop", "hot", memory=True)); print("took", _t.time()-t0)
    print("LOG", [l.text for l in t.log])
    said("sh", "-c", "echo two > /run/word; echo two > /root/word; sync")
    _t.sleep(20)
    t0=_t.time(); t = do(sn.rollback("shop", "hot")); print("rolled back", _t.time()-t0, [l.text for l in t.log])
    eventually("agent", lambda: is_set_up(), 60)
    print("WORDS", said("cat", "/run/word", "/root/word"), said("date", "+%s"), _t.time())
    assert said("cat", "/run/word", "/root/word").split() == ["one", "one"]
    assert abs(int(said("date", "+%s")) - _t.time()) < 10
    assert c.consistency == 3
