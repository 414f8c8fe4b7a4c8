"""NAT of one network: its own nftables table, replaced as a whole in one transaction.

Invariant: no other table is ever named. An accept here does not overrule a drop in another table of the host.
"""

import json
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any

from agent.network.spec import Desired
from common.errors import internal
from common.process import run

NFT_TIMEOUT_S = 10.0
"""A transaction takes milliseconds; nft waits for other writers of the ruleset, hence the rest."""

_SRCNAT = 100
"""Priority of source NAT in the postrouting hook (nft(8), srcnat)."""

Json = dict[str, Any]


def table_name(network: str) -> str:
    """Name of a network's table; labels hold no "_", so two networks never share one."""
    return f"gugus_{network.replace('-', '_')}"


def ruleset(want: Desired, address: IPv4Interface | IPv6Interface) -> list[Json]:
    """Return the table's chains and rules as nft lists them (libnftables-json(5)), without handles."""
    at = {"family": "inet", "table": table_name(want.name)}
    prefix = {"addr": str(address.network.network_address), "len": address.network.prefixlen}
    source = {"payload": {"protocol": "ip" if address.version == 4 else "ip6", "field": "saddr"}}
    chains = [
        {"name": "postrouting", "type": "nat", "hook": "postrouting", "prio": _SRCNAT, "policy": "accept"},
        {"name": "forward", "type": "filter", "hook": "forward", "prio": 0, "policy": "accept"},
    ]
    leaving = _match("!=", {"meta": {"key": "oifname"}}, want.bridge)
    rules = [
        ("postrouting", [_match("==", source, {"prefix": prefix}), leaving, {"masquerade": None}]),
        ("forward", [_match("==", {"meta": {"key": "iifname"}}, want.bridge), {"accept": None}]),
        ("forward", [_match("==", {"meta": {"key": "oifname"}}, want.bridge), {"accept": None}]),
    ]
    return [
        *({"chain": {**at, **chain}} for chain in chains),
        *({"rule": {**at, "chain": chain, "expr": expr}} for chain, expr in rules),
    ]


def _match(op: str, left: Json, right: object) -> Json:
    return {"match": {"op": op, "left": left, "right": right}}


async def listed(network: str) -> list[Json] | None:
    """Return the chains and rules of a network's table as `ruleset` writes them; None when there is no table."""
    tables = json.loads((await _nft("list", "tables")).stdout)["nftables"]
    table = {"family": "inet", "name": table_name(network)}
    if not any({**entry.get("table", {}), "handle": 0} == {**table, "handle": 0} for entry in tables):
        return None
    entries = json.loads((await _nft("list", "table", "inet", table["name"])).stdout)["nftables"]
    found = [(kind, value) for entry in entries for kind, value in entry.items() if kind not in ("metainfo", "table")]
    return [{kind: {key: part for key, part in value.items() if key != "handle"}} for kind, value in found]


async def load(want: Desired) -> None:
    """Replace a network's table by what is wanted. Raises CommandFailed, and then the old one is whole."""
    if want.address is None:
        raise internal("NETWORK_FAILED", f'network "{want.name}" has NAT without an address.')
    table: Json = {"table": {"family": "inet", "name": table_name(want.name)}}
    # Deleting needs the table to be there: made first, it is, and the transaction holds whatever was there before.
    steps = [
        {"add": table},
        {"delete": table},
        {"add": table},
        *({"add": item} for item in ruleset(want, want.address)),
    ]
    await _apply(steps)


async def drop(network: str) -> None:
    """Remove a network's table. Raises CommandFailed."""
    table: Json = {"table": {"family": "inet", "name": table_name(network)}}
    await _apply([{"add": table}, {"delete": table}])


async def _apply(steps: list[Json]) -> None:
    await run(["nft", "-j", "-f", "-"], timeout_s=NFT_TIMEOUT_S, input=json.dumps({"nftables": steps}).encode())


async def _nft(*words: str) -> Any:
    return await run(["nft", "-j", *words], timeout_s=NFT_TIMEOUT_S)
