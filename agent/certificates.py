"""Renews this host's certificates in time, over the connections that the present ones make.

Invariant: a certificate's key stays as it is, for the cluster knows a host by it; the new certificate replaces the old one in one step, and
is used from the next start of its daemon on. An agent restarts itself for that while no task is under way: its guests run on.
"""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import grpc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from gugus.cluster.v1 import heartbeat_pb2, heartbeat_pb2_grpc

from agent.managers import ManagerFiles
from agent.state import AgentState
from common.config import AgentConfig
from common.errors import GugusError, from_rpc_error, unavailable
from common.identity.ca import CERTIFICATE_VALIDITY, expires_at, key_of, key_sha256, make_csr
from common.identity.credentials import Credentials
from common.identity.names import Role, any_of
from common.identity.store import Pki
from common.logs import get_logger
from common.rpc.channel import open_channel

RENEW_BEFORE = CERTIFICATE_VALIDITY / 3
"""A certificate is renewed when so much of its life is left: four months, of which the last one is told as an alarm."""

LOOK_S = 3600.0
ASK_TIMEOUT_S = 20.0

_log = get_logger("certificates")


class Certificates:
    """busy: whether work is under way that a restart would disturb. restart: ends this process so that it is started again, or None where
    nobody starts it again."""

    def __init__(
        self,
        config: AgentConfig,
        state: AgentState,
        managers: ManagerFiles,
        busy: Callable[[], bool],
        restart: Callable[[], None] | None,
    ) -> None:
        self._config, self._state, self._managers, self._busy, self._restart = config, state, managers, busy, restart
        self._pki = Pki(config.pki_dir)
        self._used = self._pki.credentials(Role.NODE)

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self, now: datetime | None = None) -> None:
        """Renew what ends soon, and have it used. now: UTC; the present when it is left out."""
        now = now or datetime.now(UTC)
        for role in (Role.NODE, Role.MANAGER):
            try:
                if self._pki.has(role) and expires_at(self._pki.crt(role).read_bytes()) - now < RENEW_BEFORE:
                    await self._renew(role)
            except (GugusError, OSError, ValueError) as error:
                _log.error("the certificate cannot be renewed; it is tried again", role=str(role), error=str(error))
        if self._pki.credentials(Role.NODE).cert_pem != self._used.cert_pem:
            if self._restart is None:
                _log.warning("a new certificate is there: restart the agent to have it used")
            elif not self._busy():
                _log.info("restarting for the new certificate; guests run on")
                self._restart()

    async def _renew(self, role: Role) -> None:
        present = self._pki.credentials(role)
        key = serialization.load_pem_private_key(present.key_pem, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{self._pki.key(role)} is no key of a kind that the cluster certifies")
        request = heartbeat_pb2.RenewCertificateRequest(
            csr=make_csr(present.identity, key), manager=role is Role.MANAGER
        )
        new = Credentials(present.ca_pem, await self._asked(request), present.key_pem)
        if new.identity != present.identity or key_of(new.cert_pem) != key_sha256(key.public_key()):
            raise ValueError(f"the manager certified {new.identity}, or another key")
        await asyncio.to_thread(self._pki.save, role, new, replace=True)
        _log.info("certificate renewed", role=str(role), ends=str(new.not_after))
        if role is Role.MANAGER:
            await self._managers.restart()

    async def _asked(self, request: heartbeat_pb2.RenewCertificateRequest) -> bytes:
        """Return the certificate from the manager that acts. Raises the last manager's error when none gives one."""
        error = unavailable("MANAGER_UNREACHABLE", "no manager is known.")
        for endpoint in dict.fromkeys((*self._state.managers, *self._config.managers)):
            verify = any_of(Role.MANAGER, self._config.cluster_id)
            async with open_channel(endpoint, self._used, verify=verify) as channel:
                stub = heartbeat_pb2_grpc.HeartbeatServiceStub(channel)
                try:
                    return (await stub.RenewCertificate(request, timeout=ASK_TIMEOUT_S)).certificate
                except grpc.aio.AioRpcError as failure:
                    error = from_rpc_error(failure)
        raise error
