"""`gugus cluster init`: makes the first host of a cluster, on that host."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client import config as client_config
from client.cli.first_host import (
    DEFAULT_STATE,
    DEFAULT_WATCHDOG,
    UNITS_ETC,
    Address,
    Drivers,
    Etc,
    NodeName,
    Run,
    Start,
    State,
    Watchdog,
    first_host,
)
from client.cli.output import Format, Output, say, write
from client.sdk import Gugus
from common import process
from common.config import DEFAULT_RUN_DIR
from common.errors import precondition
from common.validate import name as check_name
from common.validate import require

if TYPE_CHECKING:
    from client.first_host import FirstHost

UNITS = ("gugus-manager.service", "gugus-agent.service", "gugus-watchdog.service")
SYSTEMD_RUNS = Path("/run/systemd/system")
"""It is there when systemd is the host's init: sd_booted(3)."""

START_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 60.0
"""From the start of the services until the manager leads itself and answers."""


def init(
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the cluster.")],
    address: Address,
    node: NodeName = "",
    hypervisor: Drivers = None,
    etc: Etc = UNITS_ETC,
    state: State = DEFAULT_STATE,
    run_dir: Run = DEFAULT_RUN_DIR,
    watchdog: Watchdog = DEFAULT_WATCHDOG,
    start: Start = None,
    output: Format = Output.TABLE,
) -> None:
    """Make this host the first of a new cluster. May be repeated: it finishes what was begun."""
    from client.first_host import make  # here: every other command starts faster without it

    require("--name", check_name(name))
    host = first_host(name, address, node, hypervisor, etc, state, run_dir, watchdog)
    made = make(host)
    say(f"The cluster {name} ({made.cluster_id}) has its first node, {host.node}, in {host.etc}.")
    started = asyncio.run(start_services(host, start))
    if started:
        say(f"gugus-manager, gugus-agent and gugus-watchdog run and start with the host; {host.node} answers.")
        say("Next: `gugus cluster token create`, and `gugus-agent join TOKEN` on each other host.")
    else:
        say(f"Next: start gugus-manager --config {made.manager}, gugus-watchdog and gugus-agent --config {made.agent}.")
    if output is not Output.TABLE:
        files = {"agent": str(made.agent), "manager": str(made.manager), "client": str(made.client)}
        facts = {"cluster_name": name, "cluster_id": made.cluster_id, "node": host.node, "files": files}
        write({**facts, "changed": made.changed, "started": started}, output)


async def start_services(host: "FirstHost", asked: bool | None) -> bool:
    """Start the services if that was asked for, or if nothing was said and they can be started."""
    if asked is False:
        return False
    obstacle = await _obstacle(host)
    if obstacle and asked:
        raise precondition("CANNOT_START", f"the services cannot be started: {obstacle}.", remedy="Use --no-start.")
    if obstacle:
        return False
    await process.run(["systemctl", "enable", "--now", *UNITS], timeout_s=START_TIMEOUT_S)
    async with Gugus.connect(client_config.load(host.etc / "client.yaml"), timeout_s=ANSWER_TIMEOUT_S) as gugus:
        await gugus.cluster.get()
    return True


async def _obstacle(host: "FirstHost") -> str:
    """Return why systemd cannot start the services, or ""."""
    if not SYSTEMD_RUNS.is_dir():  # noqa: ASYNC240 (one stat of a tmpfs)
        return "systemd does not run this host"
    if host.etc != UNITS_ETC:
        return f"the units read {UNITS_ETC}, not {host.etc}"
    found = await process.run(["systemctl", "cat", *UNITS], timeout_s=START_TIMEOUT_S, check=False)
    return "" if found.returncode == 0 else f"{', '.join(UNITS)} are not installed (systemd/install.sh)"
