"""Which operations there are: one line each."""

from collections.abc import Mapping
from typing import Final

from manager.operations.clone import CloneGuest
from manager.operations.disks import FlattenDisk, MoveDisk
from manager.operations.handler import Handler
from manager.operations.migrate import Migrate
from manager.operations.power import Hibernate, Reboot, Reset
from manager.operations.receive import ReceiveGuest
from manager.operations.rename import Rename
from manager.operations.rollback import RollbackGuest
from manager.operations.send import SendGuest
from manager.operations.snapshot import CreateSnapshot, DeleteSnapshot
from manager.operations.template import ConvertToTemplate

_ALL: Final[tuple[Handler, ...]] = (
    Reboot(),
    Reset(),
    Hibernate(),
    Rename(),
    CreateSnapshot(),
    DeleteSnapshot(),
    RollbackGuest(),
    CloneGuest(),
    ConvertToTemplate(),
    MoveDisk(),
    FlattenDisk(),
    Migrate(),
    SendGuest(),
    ReceiveGuest(),
)

HANDLERS: Final[Mapping[str, Handler]] = {handler.kind: handler for handler in _ALL}
"""Handlers by the kind of their tasks."""

KINDS: Final = frozenset(HANDLERS)

MIGRATE: Final = Migrate.kind
"""What HA, a drain, and whoever else has a guest moved, begin."""

CANCELLABLE: Final = frozenset(handler.kind for handler in _ALL if handler.cancellable)
