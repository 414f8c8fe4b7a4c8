"""The Python SDK of a cluster, and the `gugus` command on it.

async with Gugus.connect(client.config.load()) as gugus:
    for guest in await gugus.guests.list():
        print(guest.meta.name, guest.status.node)
"""

import common  # noqa: F401 - sets what gRPC reads when it is first imported
from client.config import ClientConfig
from client.sdk import Gugus

__all__ = ["ClientConfig", "Gugus"]
