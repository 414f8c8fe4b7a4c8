"""Presses the key that opens a firmware's setup, while the firmware waits for it."""

import asyncio

import libvirt

from agent.compute.kvm.domains import Domains
from agent.compute.kvm.xml.system import SETUP_TIMEOUT_MS
from common.errors import GugusError

ESCAPE, F2 = 1, 60
"""Keys by linux/input-event-codes.h: SeaBIOS' boot menu, and OVMF's setup, where another F2 does nothing."""

BIOS_AFTER_S = SETUP_TIMEOUT_MS / 1000 / 2
"""SeaBIOS takes the key once (a second one would leave its menu): in the middle of the time that it waits."""

UEFI_FOR_S = 30.0
"""OVMF takes up to so long to come to its prompt, where the host emulates."""

PERIOD_S = 1.0
HOLD_MS = 100


async def press(domains: Domains, name: str, *, uefi: bool) -> None:
    """Press the key when the firmware waits for it, or, with UEFI, again and again while it may."""
    key, times, pause_s = (F2, int(UEFI_FOR_S / PERIOD_S), PERIOD_S) if uefi else (ESCAPE, 1, BIOS_AFTER_S)
    for _ in range(times):
        await asyncio.sleep(pause_s)
        try:
            if not await domains.act(name, lambda domain: _send(domain, key)):
                return
        except GugusError:  # libvirtd is down: somebody presses it by hand
            return


def _send(domain: libvirt.virDomain, key: int) -> None:
    domain.sendKey(libvirt.VIR_KEYCODE_SET_LINUX, HOLD_MS, [key], 1, 0)
