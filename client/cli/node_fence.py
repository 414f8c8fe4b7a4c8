"""`gugus node fence`, `confirm-off`, `fence-test` and `fence-device`: hosts and their power."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from gugus.cluster.v1.node_pb2 import FenceAfter, FenceDevice, Node

from client.cli.confirm import Yes, confirm
from client.cli.output import Format, Output, say, show_done, show_list, table, write
from client.cli.output import plain as as_plain
from client.cli.session import complete_node, run, run_task
from client.sdk import Gugus
from common.errors import invalid
from common.units import parse_duration

Name = Annotated[str, typer.Argument(metavar="NODE", autocompletion=complete_node)]
DeviceName = Annotated[str, typer.Argument(metavar="DEVICE")]

devices = typer.Typer(no_args_is_help=True, help="Devices that can cut a host's power.")


class After(StrEnum):
    """What becomes of a host's power after it was cut."""

    REBOOT = "reboot"
    OFF = "off"


_AFTER = {After.REBOOT: FenceAfter.FENCE_AFTER_REBOOT, After.OFF: FenceAfter.FENCE_AFTER_OFF}


def fence(
    ctx: typer.Context,
    name: Name,
    after: Annotated[
        After | None, typer.Option(help="What becomes of its power afterwards, if not what is set for it.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is proven.")] = True,
    yes: Yes = False,
    output: Format = Output.TABLE,
) -> None:
    """Fence a node: its HA guests start elsewhere, and its power is cut when it has fence devices."""
    confirm(f"Fence the node {name}? What runs there under HA dies, and starts elsewhere.", yes)
    wanted = _AFTER[after] if after else FenceAfter.FENCE_AFTER_UNSPECIFIED
    run_task(ctx, output, lambda gugus: gugus.nodes.fence(name, after=wanted), f"node {name} is fenced.", wait=wait)


def confirm_off(
    ctx: typer.Context,
    name: Name,
    typed: Annotated[
        str,
        typer.Option(
            "--i-have-seen-that-it-is-off", metavar="NODE", help="The node's name again, where nobody can type it."
        ),
    ] = "",
    output: Format = Output.TABLE,
) -> None:
    """Say that a node's host is off, when nothing else can prove it. If it is on, its guests may run twice and destroy their disks."""
    node = run(ctx, lambda gugus: gugus.nodes.get(name))
    word = typed or _type_name(node)
    changed = run(ctx, lambda gugus: gugus.nodes.confirm_off(node, word))
    show_done(changed, output, f"node {name} counts as off: its HA guests start elsewhere.")


def fence_test(
    ctx: typer.Context,
    name: Name,
    device: Annotated[str, typer.Option("--device", metavar="DEVICE", help="Only this one.")] = "",
    output: Format = Output.TABLE,
) -> None:
    """Ask a node's fence devices for the state of its power. Nothing is switched. Exits with 1 when one does not answer as it should."""
    answer = run(ctx, lambda gugus: gugus.nodes.test_fence(name, device))
    if output is Output.TABLE:
        rows = [
            (d.device, str(d.level), "ok" if d.ok else "fails", d.power, f"{d.took_ms} ms", d.problem)
            for d in answer.devices
        ]
        table(("device", "level", "test", "power", "took", "problem"), rows)
        say(
            f"asked from {answer.asked_from}, where the acting manager runs; other managers' hosts need the same programs."
        )
    else:
        write(as_plain(answer), output)
    if not all(d.ok for d in answer.devices):
        raise typer.Exit(1)


@devices.command("set")
def set_(
    ctx: typer.Context,
    name: Name,
    device: DeviceName,
    agent: Annotated[
        str, typer.Option(metavar="PROGRAM", help="Program of Debian's fence-agents, like fence_ipmilan.")
    ],
    parameter: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A parameter of it; may be repeated.")
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            "--secret", metavar="NAME=FILE", help='A secret parameter, read from a file; "-": a line of standard input.'
        ),
    ] = None,
    level: Annotated[
        int, typer.Option(min=1, max=9, help="Levels are tried in order; all devices of one must succeed.")
    ] = 1,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="What takes longer has failed.")] = "20s",
    output: Format = Output.TABLE,
) -> None:
    """Add a fence device to a node, or replace the one of that name; `gugus node fence-test` tests it."""
    parameters = dict(_pair("--set", text) for text in parameter or ())
    secrets = {key: _read(key, file) for key, file in (_pair("--secret", text) for text in secret or ())}
    made = FenceDevice(
        name=device, agent=agent, parameters=parameters, level=level, timeout_s=round(parse_duration(timeout))
    )
    node = run(ctx, lambda gugus: gugus.nodes.set_fence_device(name, made, secrets))
    show_done(node, output, f"node {name} has the fence device {device}; `gugus node fence-test {name}` tests it.")


@devices.command()
def remove(ctx: typer.Context, name: Name, device: DeviceName, output: Format = Output.TABLE) -> None:
    """Remove a fence device, and forget its secrets."""
    node = run(ctx, lambda gugus: gugus.nodes.remove_fence_device(name, device))
    show_done(node, output, f"node {name} has no fence device {device}.")


@devices.command("list")
def list_(ctx: typer.Context, name: Name, output: Format = Output.TABLE) -> None:
    """List a node's fence devices in the order in which they are tried. Secrets are not shown."""
    node = run(ctx, lambda gugus: gugus.nodes.get(name))
    show_list(
        node.spec.fence.devices,
        output,
        ("device", "level", "program", "parameters"),
        lambda item: (item.name, str(item.level or 1), item.agent, _parameters(item)),
        none=f"node {name} has no fence devices: its lease alone proves that it is dead.",
    )


@devices.command()
def after(
    ctx: typer.Context,
    name: Name,
    what: Annotated[After, typer.Argument(help="reboot: switch it on again; off: leave it off.")],
    output: Format = Output.TABLE,
) -> None:
    """Say what becomes of a node's power after its fence devices cut it."""

    async def work(gugus: Gugus) -> Node:
        return await gugus.nodes.set_fence_after(name, _AFTER[what])

    words = "is switched on again" if what is After.REBOOT else "stays off"
    show_done(run(ctx, work), output, f"node {name} {words} after it was fenced by power.")


def device_words(device: FenceDevice) -> str:
    """Return a device in a line."""
    return f"{device.name}: {device.agent}, level {device.level or 1}, {_parameters(device)}".rstrip(", ")


def _parameters(device: FenceDevice) -> str:
    shown = [f"{key}={value}" for key, value in sorted(device.parameters.items())]
    return " ".join([*shown, *(f"{key}=***" for key in device.secret_names)])


def _type_name(node: Node) -> str:
    name = node.meta.name
    if not sys.stdin.isatty():
        raise invalid(
            "--i-have-seen-that-it-is-off",
            f"nobody can type the name of {name}: there is no terminal.",
            remedy=f"Repeat the command with --i-have-seen-that-it-is-off {name}, if somebody has.",
        )
    say(f"{name}: {node.status.reason}.")
    say(
        f"If the host {name} is on, its guests may run twice and destroy their disks (`gugus pool show`: proves writers). "
        "Have you seen with your own eyes that it is off?"
    )
    return str(typer.prompt("Type the node's name", err=True)).strip()


def _pair(option: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise invalid(option, f'"{text}" is not NAME=VALUE.')
    return key, value


def _read(key: str, file: str) -> str:
    try:
        text = sys.stdin.readline() if file == "-" else Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise invalid("--secret", f"{key}: {file} cannot be read: {error}.") from None
    return text.rstrip("\r\n")
