"""The Python SDK of a cluster, and the `gugus` command on it.

async with Gugus.connect(client.config.load()) as gugus:
    for guest in await gugus.guests.list():
        print(guest.meta.name, guest.status.node)

The names are loaded when they are first used: the command has something to do before (`client.entry`).
"""

from typing import TYPE_CHECKING, Any

import common  # noqa: F401 - sets what gRPC reads when it is first imported

if TYPE_CHECKING:
    from client.config import ClientConfig
    from client.sdk import Gugus

__all__ = ["ClientConfig", "Gugus"]


def __getattr__(name: str) -> Any:
    """Load a name of the SDK (PEP 562)."""
    if name == "ClientConfig":
        from client.config import ClientConfig

        return ClientConfig
    if name == "Gugus":
        from client.sdk import Gugus

        return Gugus
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
