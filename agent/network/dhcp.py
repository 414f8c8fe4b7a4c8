"""DHCP and DNS of one network: a dnsmasq that serves its bridge only, outlives the agent, and is found again by it.

Invariant: the settings are in a file named after their digest, and the running server's command line names that file;
so whether the right server runs is read from the process itself, never from what was remembered of it.
"""

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from agent.compute.processes import command_line, kill_all, record_of
from agent.network.spec import Desired
from common.errors import unavailable
from common.files import write_atomic
from common.process import run

PROGRAM = "dnsmasq"
LEASE_TIME = "12h"
"""How long an address is lent. Guests that fail over ask again at boot."""

START_TIMEOUT_S = 5.0
"""dnsmasq binds its sockets and writes its pid file in milliseconds."""

STOP_TIMEOUT_S = 3.0
COMMAND_TIMEOUT_S = 10.0
POLL_S = 0.02

_PID_FILE = "dnsmasq.pid"
_LEASES = "leases"
_SYSTEMD = Path("/run/systemd/system")


def settings(want: Desired, folder: Path) -> str:
    """Return the configuration file of a network's server; "" when the network has none. Pure."""
    if want.dhcp is None or want.address is None:
        return ""
    lines = [
        f"interface={want.bridge}",
        "except-interface=lo",
        # Binds the bridge's own addresses, also those that come later, and leaves the wildcard to the host's servers.
        "bind-dynamic",
        "no-hosts",
        f"dhcp-range={want.dhcp.first},{want.dhcp.last},{want.address.network.netmask},{LEASE_TIME}",
        "dhcp-authoritative",
        # Asking by ICMP whether an address is free costs 3 s a lease, and only this server gives addresses here.
        "no-ping",
        f"dhcp-leasefile={folder / _LEASES}",
        f"pid-file={folder / _PID_FILE}",
    ]
    if not want.nat:
        lines += ["dhcp-option=option:router", "port=0"]  # no way out through this host: neither a gateway nor names
    if want.mtu:
        lines.append(f"dhcp-option=option:mtu,{want.mtu}")
    return "\n".join([*lines, ""])


class DhcpServers:
    """The servers of this host's networks, each with a folder of its own below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def state(self, want: Desired) -> bool | None:
        """Tell whether the network's server runs: None when none does, False with other settings than wanted."""
        server = self._server(want.name)
        return None if server is None else self._option(want) == server[1]

    async def start(self, want: Desired) -> None:
        """Run the server with the wanted settings, in place of one with others. Raises GugusError when it does not."""
        await self.stop(want.name)
        folder = self._folder / want.name
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._settings_file(want), settings(want, folder).encode())
        await run([PROGRAM, "--test", self._option(want)], timeout_s=COMMAND_TIMEOUT_S)
        if systemd_runs():
            argv = _unit_argv(want.name, [PROGRAM, "--keep-in-foreground", self._option(want)])
        else:
            argv = [PROGRAM, self._option(want)]  # goes to the background by itself
        await run(argv, timeout_s=COMMAND_TIMEOUT_S)
        if not await _until(lambda: self.state(want) is True, START_TIMEOUT_S):
            raise unavailable(
                "NETWORK_FAILED",
                f'the DHCP server of network "{want.name}" did not start within {START_TIMEOUT_S:g} s.',
                remedy=f"Look at `journalctl -u {_unit(want.name)}`; does another server hold port 67?",
            )
        for old in folder.glob("dnsmasq-*.conf"):
            if old != self._settings_file(want):
                old.unlink(missing_ok=True)

    async def stop(self, network: str) -> None:
        """Stop the network's server, if one runs."""
        if systemd_runs():  # also ends a unit that is about to start the server again
            await run(["systemctl", "stop", _unit(network)], timeout_s=COMMAND_TIMEOUT_S, check=False)
        if (server := self._server(network)) is None:
            return
        record = record_of(server[0])
        with suppress(ProcessLookupError):
            os.kill(server[0], signal.SIGTERM)
        await _until(lambda: self._server(network) is None, STOP_TIMEOUT_S)
        if record is not None and await kill_all({network: record}, STOP_TIMEOUT_S):
            what = f'the DHCP server of network "{network}" (pid {record.pid})'
            raise unavailable("NETWORK_FAILED", f"{what} cannot be killed.")

    def leases(self) -> dict[str, tuple[str, ...]]:
        """Return the addresses lent, by MAC address; those that have run out are left out."""
        found: dict[str, list[str]] = {}
        for file in sorted(self._folder.glob(f"*/{_LEASES}")):
            with suppress(OSError):
                for mac, address in parse_leases(file.read_text(), time.time()):
                    found.setdefault(mac, []).append(address)
        return {mac: tuple(addresses) for mac, addresses in found.items()}

    def _option(self, want: Desired) -> str:
        return f"--conf-file={self._settings_file(want)}"

    def _settings_file(self, want: Desired) -> Path:
        folder = self._folder / want.name
        digest = hashlib.sha256(settings(want, folder).encode()).hexdigest()[:12]
        return folder / f"dnsmasq-{digest}.conf"

    def _server(self, network: str) -> tuple[int, str] | None:
        """Process and last argument of the network's server; None when the pid is gone or another program's."""
        folder = self._folder / network
        try:
            pid = int((folder / _PID_FILE).read_text())
        except (OSError, ValueError):
            return None
        words = command_line(pid)
        ours = Path(words[0] if words else "").name == PROGRAM and words[-1].startswith(f"--conf-file={folder}/")
        return (pid, words[-1]) if ours and record_of(pid) is not None else None


def parse_leases(text: str, now_s: float) -> list[tuple[str, str]]:
    """Read a lease file of dnsmasq (expiry, MAC, address, name, client id a line): MAC and address. 0 never expires."""
    found = []
    for words in (line.split() for line in text.splitlines()):
        if len(words) >= 3 and words[0].isdigit() and (words[0] == "0" or int(words[0]) > now_s):
            found.append((words[1].lower(), words[2]))
    return found


def systemd_runs() -> bool:
    """Whether systemd is the init here (sd_booted(3))."""
    return _SYSTEMD.is_dir()


async def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(POLL_S)
    return True


def _unit(network: str) -> str:
    return f"gugus-dnsmasq-{network}.service"


def _unit_argv(network: str, argv: list[str]) -> list[str]:
    """The command that has systemd run the server, so that it stays when the agent is stopped or replaced."""
    return [
        "systemd-run",
        "--quiet",
        "--collect",
        f"--unit={_unit(network)}",
        f"--description=DHCP server of gugus network {network}",
        "--property=Before=virt-guest-shutdown.target",  # stopped after the agent, which may wait for its guests to move away
        "--property=Restart=on-failure",
        "--property=RestartSec=1",
        *argv,
    ]
