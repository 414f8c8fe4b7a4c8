"""A host leaves its cluster for the one that comes after it: what of the old one would go on here is stopped and moved aside.

Guests outside HA run on. HA guests run only under a lease, and while one is held, managers of the old cluster live and would give the
host's guests to others once it is silent: such a host may not leave.

Invariant: nothing is removed, only moved aside, and all of it may be repeated after any interruption.
"""

import asyncio
import socket
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from agent.managers import SYSTEMD_RUNS
from common.config import DEFAULT_AGENT_CONFIG, AgentConfig, load_manager
from common.errors import GugusError, precondition
from common.files import sync_folder
from common.held_lease import held_s
from common.identity.names import Role
from common.identity.store import Pki
from common.process import run

UNITS = ("gugus-manager.service", "gugus-agent.service")
SYSTEMCTL_TIMEOUT_S = 100.0
"""A stop takes at most as long as the units allow (TimeoutStopSec in systemd/)."""

PROBE_TIMEOUT_S = 1.0


def check(config: AgentConfig) -> None:
    """Raise GugusError LEASE_HELD when this host may not leave its cluster now."""
    try:
        left_s = held_s(config.run_dir)
    except (OSError, ValueError) as error:
        raise precondition("LEASE_HELD", f"whether this host holds a lease cannot be told: {error}.") from error
    if left_s > 0:
        raise precondition(
            "LEASE_HELD",
            f"this host holds a lease of its cluster for {left_s:.0f} more seconds: managers of that cluster live and renew it. If it "
            "left now, they would start its HA guests elsewhere, and the new cluster would start them, too.",
            remedy="Stop gugus-manager on the hosts of the old cluster first. If that one is to live on, remove this host there.",
        )


async def depart(config: AgentConfig, config_path: Path) -> None:
    """Stop the agent and the manager of the old cluster, and move the manager's and the operator's files aside.

    Raises GugusError LEASE_HELD, DAEMONS_RUN; then both run on as they did.
    """
    units = config_path == DEFAULT_AGENT_CONFIG and SYSTEMD_RUNS.exists()
    if units:
        await _systemctl("stop", *UNITS)
    elif answering := await asyncio.to_thread(_answering, config, config_path.with_name("manager.yaml")):
        raise precondition(
            "DAEMONS_RUN",
            f"daemons of the old cluster answer at {config.address}, {answering}.",
            remedy="Stop gugus-manager and gugus-agent here, then repeat.",
        )
    try:
        check(config)
    except GugusError:
        if units:
            await _systemctl("start", *UNITS)
        raise
    await asyncio.to_thread(_move_aside, config, config_path.with_name("manager.yaml"))
    if units:
        await _systemctl("disable", UNITS[0])


def _move_aside(config: AgentConfig, manager_file: Path) -> None:
    """Give the old manager's files other names: the configuration first, so that no half of it ever starts."""
    stamp = f"before-rejoin-{datetime.fromtimestamp(time.time(), UTC):%Y%m%d-%H%M%S}"
    state = load_manager(manager_file).state_dir if manager_file.exists() else config.state_dir.with_name("manager")
    pki = Pki(config.pki_dir)
    managers = [manager_file, pki.ca_key, pki.key(Role.MANAGER), pki.crt(Role.MANAGER), *_in(state)]
    operators = [manager_file.with_name("client.yaml"), pki.key(Role.OPERATOR), pki.crt(Role.OPERATOR)]
    for path in (*managers, *operators):
        if path.exists() and ".before-" not in path.name:
            path.rename(path.with_name(f"{path.name}.{stamp}"))
            sync_folder(path.parent)


def _in(folder: Path) -> Sequence[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _answering(config: AgentConfig, manager_file: Path) -> str:
    """Return the ports of daemons that run here, "" when none does."""
    ports = [config.port, *([load_manager(manager_file).port] if manager_file.exists() else [])]
    return ", ".join(f"port {port}" for port in ports if _answers(config.address, port))


def _answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), PROBE_TIMEOUT_S):
            return True
    except OSError:
        return False


async def _systemctl(*words: str) -> None:
    await run(["systemctl", *words], timeout_s=SYSTEMCTL_TIMEOUT_S)
