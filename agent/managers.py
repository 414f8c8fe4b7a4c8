"""Making this host a voter, or an ordinary node again: a manager's files, and its unit where systemd runs.

Invariant: the configuration is written last and removed first, so that a manager never starts with half of its keys.
"""

import asyncio
import os
import pwd
import shutil
from dataclasses import replace
from pathlib import Path

from gugus.agent.v1 import node_pb2

from common.config import DEFAULT_AGENT_CONFIG, AgentConfig, ManagerConfig, dump, load_manager
from common.errors import invalid
from common.files import remove_durably, write_atomic
from common.identity.ca import CertificateAuthority
from common.identity.credentials import Credentials
from common.identity.names import Role
from common.identity.store import Pki
from common.logs import get_logger
from common.process import run

UNIT = "gugus-manager.service"
USER = "gugus"
"""Owner of the manager's files, when such a user exists (systemd/gugus.sysusers makes it)."""

SYSTEMCTL_TIMEOUT_S = 60.0
SYSTEMD_RUNS = Path("/run/systemd/system")
"""It exists when systemd is the host's PID 1 (sd_booted(3))."""

_log = get_logger("managers")


class ManagerFiles:
    """The files of this host's manager: `manager.yaml` beside the agent's own configuration, and its keys.

    Where the agent has a relocated configuration, or no systemd runs, someone else starts a manager when
    `manager.yaml` appears, and stops it when that goes.
    """

    def __init__(self, config: AgentConfig, config_path: Path) -> None:
        self._config = config
        self._path = config_path.with_name("manager.yaml")
        self._systemd = config_path == DEFAULT_AGENT_CONFIG and SYSTEMD_RUNS.exists()

    async def activate(self, request: node_pb2.ActivateManagerRequest) -> None:
        """Write everything and start the manager. Idempotent. Raises GugusError INVALID_ARGUMENT."""
        credentials = Credentials(request.ca_certificate, request.certificate, request.key)
        try:
            ca = CertificateAuthority.load(request.ca_certificate, request.ca_key)
            identity = credentials.identity
        except ValueError as error:
            raise invalid("certificate", f"or one of the keys is not usable: {error}") from error
        if (identity.cluster_id, identity.role) != (self._config.cluster_id, Role.MANAGER):
            raise invalid("certificate", f"is for {identity.uri}, not for a manager of this node's cluster")
        await asyncio.to_thread(self._write, request.config, ca, credentials)
        if self._systemd:
            await run(["systemctl", "enable", "--now", UNIT], timeout_s=SYSTEMCTL_TIMEOUT_S)
        _log.info("manager activated", config=str(self._path), unit=UNIT if self._systemd else "none")

    async def restart(self) -> None:
        """Have the manager use other keys, where systemd runs it; it hands over what it leads."""
        if self._systemd and self._path.exists():
            await run(["systemctl", "try-restart", UNIT], timeout_s=SYSTEMCTL_TIMEOUT_S)
        else:
            _log.warning("restart the manager of this host to have its new certificate used")

    async def deactivate(self) -> None:
        """Stop the manager and remove its state and keys. Idempotent."""
        if self._systemd and self._path.exists():
            await run(["systemctl", "disable", "--now", UNIT], timeout_s=SYSTEMCTL_TIMEOUT_S)
        await asyncio.to_thread(self._remove)
        _log.info("manager deactivated", config=str(self._path))

    def _write(self, text: str, ca: CertificateAuthority, credentials: Credentials) -> None:
        pki = Pki(self._config.pki_dir)
        pki.save_ca(ca)
        pki.save(Role.MANAGER, credentials, replace=True)
        config = self._checked(text)
        config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (pki.ca_key, pki.key(Role.MANAGER), config.state_dir):
            _give_away(path)
        write_atomic(self._path, dump(config).encode())

    def _checked(self, text: str) -> ManagerConfig:
        draft = self._path.with_name(".manager.yaml.new")
        write_atomic(draft, text.encode())
        try:
            config = load_manager(draft)
        finally:
            remove_durably(draft)
        # Whoever asks knows no folder of this host: they follow from the agent's own.
        mine = self._config
        return replace(
            config, pki_dir=mine.pki_dir, state_dir=mine.state_dir.with_name("manager"), run_dir=mine.run_dir
        )

    def _remove(self) -> None:
        if not self._path.exists():
            return
        config = load_manager(self._path)
        remove_durably(self._path)
        pki = Pki(self._config.pki_dir)
        for path in (pki.key(Role.MANAGER), pki.crt(Role.MANAGER), pki.ca_key):
            remove_durably(path)
        if config.state_dir.is_dir():
            for entry in config.state_dir.iterdir():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _give_away(path: Path) -> None:
    """Make the manager's user the owner, where root runs this and such a user exists."""
    try:
        user = pwd.getpwnam(USER)
    except KeyError:
        return
    if os.geteuid() == 0:
        os.chown(path, user.pw_uid, user.pw_gid)
