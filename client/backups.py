"""Backups in the SDK. What makes a file of one is `client.backup`."""

from collections.abc import AsyncGenerator

from gugus.cluster.v1 import backup_pb2, backup_pb2_grpc

from client.caller import Caller


class Backups:
    """Backups of the cluster."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def stream(self) -> AsyncGenerator[backup_pb2.BackupMessage, None]:
        """Yield a backup up to its end, and go on until closed. What was yielded is void when another header comes.

        It holds the CA's key: keep none of it unsealed.
        """
        return self._caller.stream(
            backup_pb2_grpc.BackupServiceStub, "Backup", backup_pb2.BackupRequest, backup_pb2.BackupMessage
        )
