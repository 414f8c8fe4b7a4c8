"""What a change that has no task leaves too little room for, said to whoever made it."""

from contextlib import suppress

from client.cli.output import say
from client.sdk import Gugus
from common.errors import GugusError

SHORT = "SPARE_ROOM_SHORT"
"""Reason of the cluster's finding."""


async def warn_of_shortage(gugus: Gugus) -> None:
    """Say that too little room is left to survive a loss, if it is so. The change was made: that this cannot be asked is no failure."""
    with suppress(GugusError):
        for finding in (await gugus.cluster.status()).findings:
            if finding.reason == SHORT:
                say(f"warning: {finding.sentence}")
