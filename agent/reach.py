"""Whether another host is reached from this one: its kernel answers a TCP connection, be it by a refusal.

It says nothing of that host's agent: a host whose agent hangs has power, and its lease and watchdog see to it.
"""

import asyncio
import contextlib

from common.config import split_endpoint
from common.errors import invalid

MOST_REACH_MS = 5_000

TRIES = 2
"""A lost packet must not pass for a host without power: the second connection begins after a third of the time."""


async def reach(endpoint: str, timeout_s: float) -> tuple[bool, str]:
    """Return whether the host of "host:port" is reached within the time, and how, or why not. Raises INVALID_ARGUMENT."""
    try:
        host, port = split_endpoint(endpoint)
    except ValueError as error:
        raise invalid("endpoint", f"{error}.") from None
    tries = [asyncio.create_task(_connect(host, port, number * timeout_s / 3)) for number in range(TRIES)]
    reason = f"no answer within {timeout_s:g} s"
    try:
        async with asyncio.timeout(timeout_s):
            for answer in asyncio.as_completed(tries):
                reached, reason = await answer
                if reached:
                    return True, reason
    except TimeoutError:
        pass
    finally:
        for task in tries:
            task.cancel()
        await asyncio.gather(*tries, return_exceptions=True)
    return False, reason


async def _connect(host: str, port: int, after_s: float) -> tuple[bool, str]:
    await asyncio.sleep(after_s)
    try:
        _, writer = await asyncio.open_connection(host, port)
    except (ConnectionRefusedError, ConnectionResetError) as error:
        return True, f"it answers, though not its agent: {error.strerror}"
    except OSError as error:
        return False, error.strerror or str(error)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True, "it answers"
