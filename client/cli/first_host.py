"""What is asked of whoever makes the first host of a cluster, a new one or one of a backup."""

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import invalid
from common.validate import ip, require
from common.validate import name as check_name

if TYPE_CHECKING:
    from client.first_host import FirstHost

HYPERVISORS = ("kvm", "lxc", "simulated")
UNITS_ETC = Path("/etc/gugus")
"""The units read their configuration here (systemd/)."""

DEFAULT_STATE = Path("/var/lib/gugus")
DEFAULT_WATCHDOG = "/dev/watchdog"

Address = Annotated[str, typer.Option(metavar="IP", help="Address at which other hosts reach this one.")]
NodeName = Annotated[str, typer.Option(metavar="NAME", help="Name of this node (the host's name).")]
Drivers = Annotated[
    list[str] | None, typer.Option(metavar="DRIVER", help="kvm, lxc or simulated; may be repeated (kvm, lxc).")
]
Etc = Annotated[Path, typer.Option(metavar="FOLDER", help="Configuration and keys.")]
State = Annotated[Path, typer.Option(metavar="FOLDER", help="Durable state.")]
Run = Annotated[Path, typer.Option("--run", metavar="FOLDER", help="Runtime files.")]
Watchdog = Annotated[str, typer.Option(metavar="DEVICE", help='Device that resets this host; "" for none.')]
Start = Annotated[bool | None, typer.Option("--start/--no-start", help="Start the services (if systemd has them).")]


def first_host(
    cluster: str, address: str, node: str, drivers: list[str] | None, etc: Path, state: Path, run: Path, watchdog: str
) -> "FirstHost":
    """Return the host that is asked for; without a node's name, that of this host. Raises GugusError."""
    from client.first_host import FirstHost  # here: every other command starts faster without it

    host = FirstHost(
        cluster_name=cluster,
        address=address,
        node=node or socket.gethostname().partition(".")[0].lower(),
        etc=etc.absolute(),
        state=state.absolute(),
        run=run.absolute(),
        hypervisors=_hypervisors(drivers),
        watchdog_device=watchdog,
    )
    require("--node", check_name(host.node))
    require("--address", ip(host.address))
    return host


def _hypervisors(asked: list[str] | None) -> tuple[str, ...]:
    names = asked or ["kvm", "lxc"]
    for name in names:
        if name not in HYPERVISORS:
            raise invalid("--hypervisor", f'"{name}" is none; there are {", ".join(HYPERVISORS)}.')
    return tuple(dict.fromkeys(names))
