"""Waiting with a bound.

`asyncio.wait_for` is not used in this project: before Python 3.12 it loses a cancellation that arrives together with what
is waited for, and a loop around it never ends. `asyncio.timeout` does not.
"""

import asyncio


async def happened(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait until an event is set, at most `timeout_s`; return whether it is."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True
