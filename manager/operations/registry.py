"""Which operations there are: one line each."""

from collections.abc import Mapping
from typing import Final

from manager.operations.handler import Handler

_ALL: Final[tuple[Handler, ...]] = ()

HANDLERS: Final[Mapping[str, Handler]] = {handler.kind: handler for handler in _ALL}
"""Handlers by the kind of their tasks."""

KINDS: Final = frozenset(HANDLERS)

CANCELLABLE: Final = frozenset(handler.kind for handler in _ALL if handler.cancellable)
