"""Rates of a guest's network interface, set at the host's end of it, for both kinds of guests.

What a guest receives is shaped on its way into the interface (tc-tbf(8)). What it sends is limited where it enters the
host, by a rule of nftables at the interface's ingress hook, in a table of its own: what exceeds the rate is dropped, as
by a policer. A guest, which may change all on its own end, cannot lift either.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from gugus.agent.v1 import resources_pb2

from common.errors import GugusError
from common.process import CommandFailed, run

TIMEOUT_S = 10.0
"""Each command takes milliseconds; the rest is for a host under load."""

BURST_PART = 10
"""A burst that is not named is what flows in one part in so many of a second (NicSettings.burst_bytes)."""

LEAST_BURST_BYTES = 64 * 1024
"""The largest segment that the kernel hands over at once (GSO); a smaller bucket would never let it pass."""

QUEUE_LATENCY = "50ms"
"""How long a packet may wait in the shaper before it is dropped."""


async def limit(interface: str, settings: resources_pb2.NicSettings) -> None:
    """Set, or lift, the rates of an interface of the host. Idempotent. Raises CommandFailed."""
    rate = settings.rate_bytes_per_s
    burst = max(settings.burst_bytes or rate // BURST_PART, LEAST_BURST_BYTES)
    await _limit_receiving(interface, rate, burst)
    await _limit_sending(interface, rate, burst)


async def forget(interfaces: Iterable[str]) -> None:
    """Remove what is left of the limits of interfaces that are gone. Never raises."""
    for name in interfaces:
        with suppress(GugusError):
            await _limit_sending(name, 0, 0)


async def _limit_receiving(interface: str, rate: int, burst: int) -> None:
    if rate:
        bucket = ["rate", f"{rate}bps", "burst", f"{burst}b", "latency", QUEUE_LATENCY]  # tc(8): bps are bytes a second
        await run(["tc", "qdisc", "replace", "dev", interface, "root", "tbf", *bucket], timeout_s=TIMEOUT_S)
    else:
        with suppress(CommandFailed):  # there is none
            await run(["tc", "qdisc", "delete", "dev", interface, "root"], timeout_s=TIMEOUT_S)


async def _limit_sending(interface: str, rate: int, burst: int) -> None:
    """Replace, or remove, the table of an interface in one transaction."""
    table: dict[str, Any] = {"family": "netdev", "name": f"gugus_rate_{interface.replace('-', '_')}"}
    steps: list[dict[str, Any]] = [{"add": {"table": table}}, {"delete": {"table": table}}]
    if rate:
        at = {"family": "netdev", "table": table["name"]}
        hook = {"type": "filter", "hook": "ingress", "dev": interface, "prio": 0, "policy": "accept"}
        above = {
            "rate": rate,
            "rate_unit": "bytes",
            "per": "second",
            "burst": burst,
            "burst_unit": "bytes",
            "inv": True,
        }
        steps += [
            {"add": {"table": table}},
            {"add": {"chain": {**at, "name": "sends", **hook}}},
            {"add": {"rule": {**at, "chain": "sends", "expr": [{"limit": above}, {"drop": None}]}}},
        ]
    await run(["nft", "-j", "-f", "-"], timeout_s=TIMEOUT_S, input=json.dumps({"nftables": steps}).encode())
