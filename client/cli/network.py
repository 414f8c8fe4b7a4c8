"""`gugus network`: networks of guests."""

import ipaddress
from typing import Annotated

import typer
from gugus.agent.v1.network_pb2 import BridgeNetwork, NetworkSpec
from gugus.cluster.v1.network_pb2 import Network

from client.cli.confirm import Yes, confirm
from client.cli.output import Format, Output, show, show_done, show_list
from client.cli.session import complete_network, complete_node, run
from client.cli.words import dhcp_range, short, yes
from common.errors import invalid
from common.validate import bridge_name, require
from common.validate import name as check_name

app = typer.Typer(no_args_is_help=True, help="Networks of guests.")

Name = Annotated[str, typer.Argument(metavar="NETWORK", autocompletion=complete_network)]
COLUMNS = ("name", "bridge", "address", "nat", "dhcp", "nodes", "ready", "reason")


@app.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NETWORK")],
    bridge: Annotated[str, typer.Option(metavar="BRIDGE", help="Interface name, like gugus0.")],
    uplink: Annotated[str, typer.Option(metavar="INTERFACE", help="Interface of the host to put into it.")] = "",
    address: Annotated[str, typer.Option(metavar="CIDR", help="The host's own address, like 10.20.0.1/24.")] = "",
    nat: Annotated[bool, typer.Option("--nat", help="Guests reach the world through the host's address.")] = False,
    dhcp: Annotated[str, typer.Option(metavar="FIRST-LAST", help="Addresses to hand out to guests.")] = "",
    mtu: Annotated[int, typer.Option(min=0, max=65535, help="In bytes; 0 means 1500.")] = 0,
    node: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE", help="Only there; may be repeated.", autocompletion=complete_node),
    ] = None,
    output: Format = Output.TABLE,
) -> None:
    """Make a network: a bridge on every node, or on some."""
    require("NETWORK", check_name(name))
    require("--bridge", bridge_name(bridge))
    settings = BridgeNetwork(bridge=bridge, uplink=uplink, address=_address(address), nat=nat, mtu=mtu)
    if (nat or dhcp) and not address:
        raise invalid("--address", f"is needed with {'--nat' if nat else '--dhcp'}, like 10.20.0.1/24.")
    if dhcp:
        settings.dhcp.CopyFrom(dhcp_range(dhcp))
    spec = NetworkSpec(name=name, bridge=settings)
    network = run(ctx, lambda gugus: gugus.networks.create(spec, nodes=node or ()))
    show_done(network, output, f"network {name} is made.")


@app.command("list")
def list_(ctx: typer.Context, output: Format = Output.TABLE) -> None:
    """List all networks."""
    show_list(run(ctx, lambda gugus: gugus.networks.list()), output, COLUMNS, _row, none="no networks.")


@app.command("show")
def show_(ctx: typer.Context, name: Name, output: Format = Output.TABLE) -> None:
    """Show a network and how it is on each node."""
    show(run(ctx, lambda gugus: gugus.networks.get(name)), output, _fields)


@app.command()
def delete(ctx: typer.Context, name: Name, yes_: Yes = False, output: Format = Output.TABLE) -> None:
    """Delete a network that no guest uses."""
    confirm(f"Delete the network {name} on all its nodes?", yes_)
    run(ctx, lambda gugus: gugus.networks.delete(name))
    show_done(None, output, f"network {name} is deleted.")


def _address(text: str) -> str:
    try:
        if text and "/" not in text:
            raise ValueError(f'"{text}" has no prefix length')
        return str(ipaddress.ip_interface(text)) if text else ""
    except ValueError as error:
        raise invalid("--address", f"{error}; write it like 10.20.0.1/24.") from None


def _row(network: Network) -> tuple[str, ...]:
    bridge, states = network.spec.bridge, network.status.nodes
    unready = [f"{name}: {state.reason}" for name, state in sorted(states.items()) if not state.ready]
    return (
        network.meta.name,
        bridge.bridge,
        bridge.address,
        yes(bridge.nat),
        f"{bridge.dhcp.first}-{bridge.dhcp.last}" if bridge.HasField("dhcp") else "",
        ", ".join(network.nodes) or "all",
        f"{len(states) - len(unready)}/{len(states)}",
        short("; ".join(unready)),
    )


def _fields(network: Network) -> list[tuple[str, str]]:
    states = sorted(network.status.nodes.items())
    lines = [f"{name}: {'ready' if state.ready else 'not ready: ' + state.reason}" for name, state in states]
    named = list(zip(COLUMNS, _row(network), strict=True))[:6]
    return [*named, ("uplink", network.spec.bridge.uplink), ("on nodes", "\n".join(lines) or "not told yet")]
