"""The backup service: the whole state at one revision, with what a cluster needs to be founded again of it.

What is sent holds the CA's key, and goes to operators only (`authorise`), over mutual TLS. The client seals it before it reaches a disk:
the passphrase never comes here.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import metadata

from gugus.cluster.v1 import backup_pb2, backup_pb2_grpc
from gugus.cluster.v1.backup_pb2 import BackupMessage
from gugus.cluster.v1.cluster_pb2 import Cluster
from gugus.store.v1 import store_pb2

from common.config import ManagerConfig
from common.identity.ca import CertificateAuthority
from common.logs import get_logger
from manager.controllers.context import Context
from manager.services.forward import actor

_log = get_logger("backup")


class BackupService(backup_pb2_grpc.BackupServiceServicer):
    """Serves `gugus cluster backup`. Writes go on meanwhile; memory is bounded by one piece of the state."""

    def __init__(
        self,
        context: Context,
        config: ManagerConfig,
        authority: CertificateAuthority,
        snapshot: Callable[[], Iterator[bytes]],
    ) -> None:
        self._context, self._config, self._authority = context, config, authority
        self._snapshot = snapshot

    async def Backup(
        self, request: backup_pb2.BackupRequest, context: object
    ) -> AsyncIterator[backup_pb2.BackupMessage]:
        """Send the backup."""
        await self._context.store.list(Cluster)  # a read barrier: all that was acknowledged is in the state now
        pieces = self._snapshot()
        piece = await asyncio.to_thread(next, pieces, b"")
        header = self._header(store_pb2.Snapshot.FromString(piece).revision)
        _log.info("backup begun", actor=str(actor()), revision=header.revision)
        yield BackupMessage(header=header)
        yield BackupMessage(identity=self._identity())
        end, digest = backup_pb2.BackupEnd(), hashlib.sha256()
        while piece:
            yield BackupMessage(state=piece)
            digest.update(piece)
            end.pieces, end.bytes = end.pieces + 1, end.bytes + len(piece)
            piece = await asyncio.to_thread(next, pieces, b"")
        end.sha256 = digest.digest()
        yield BackupMessage(end=end)
        _log.info("backup sent", actor=str(actor()), revision=header.revision, bytes=end.bytes)

    def _header(self, revision: int) -> backup_pb2.BackupHeader:
        header = backup_pb2.BackupHeader(
            cluster_name=self._config.cluster_name,
            cluster_id=self._config.cluster_id,
            revision=revision,
            manager=self._config.name,
            version=metadata.version("gugus"),
        )
        header.taken_at.GetCurrentTime()
        return header

    def _identity(self) -> backup_pb2.BackupIdentity:
        config = self._config
        return backup_pb2.BackupIdentity(
            ca_certificate=self._authority.cert_pem,
            ca_key=self._authority.key_pem,
            port=config.port,
            raft_port=config.raft_port,
            enrol_port=config.enrol_port,
            metrics_port=config.metrics_port,
            gateway_port=config.gateway_port,
        )
