"""`python -m lab.demo`: three hosts become a cluster, one loses its power, and its guests come back on the others.

Invariant: unattended and safe from any state: what an earlier run left is used, repaired or made anew. The last line on
standard output is one JSON object, and the exit code is 0 only when everything that it promises was seen.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE

from common.errors import GugusError
from lab import cluster, demo_guests, real
from lab.api import Lab, LabError
from lab.demo_timeline import Timeline, timeline
from lab.images import KernelMissing, images, two_copies
from lab.judge import Judge
from lab.operator import Operator

#: Nodes of the demo: all of them vote.
NODES = 3
#: Seconds until both guests must run after they were asked for: a VM under emulation boots in 4 to 10.
BOOT_SECONDS = 60.0
#: Seconds after the power cut in which the story must have ended well; the promise is 25.
RECOVERY_SECONDS = 60.0
PROMISED_SECONDS = 25.0
#: Seconds for the node to come back after it was powered on.
REJOIN_SECONDS = 60.0
_EVENTS = 100


class Story:
    """The story as it is told, one line a step, each with the seconds since the beginning."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """Tell one step."""
        print(f"{time.monotonic() - self._began:6.1f} s  {text}", flush=True)


class Failure(Exception):
    """The story did not end as it should; the text says where."""


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lab.demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--simulated", action="store_true", help="tell the story on simulated hosts")
    parser.add_argument("--name", default="gugus", help="name of the lab (default: %(default)s)")
    options = parser.parse_args()
    simulated = options.simulated
    if not simulated and (reason := why_not_real()):
        print(f"This machine cannot have real nodes: {reason}.\nThe same story on simulated hosts:", flush=True)
        simulated = True
    try:
        result = tell(Lab(options.name), simulated=simulated)
    except (LabError, GugusError, TimeoutError, Failure, OSError, subprocess.SubprocessError) as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result), flush=True)
    return 0


def why_not_real() -> str | None:
    """Why this machine cannot run the real story; None when it can."""
    if reason := real.why_not():
        return reason
    try:
        images(demo_guests.image_cache())
    except KernelMissing as error:
        return str(error)
    except (OSError, subprocess.SubprocessError) as error:
        return f"its guests' images cannot be built: {error}"
    return None


def tell(lab: Lab, *, simulated: bool) -> dict[str, float | int]:
    """Tell the whole story; returns what it came to. Raises what the steps raise, Failure when a promise is broken."""
    story = Story()
    config = bring_up(lab, story, simulated=simulated)
    with Operator(config) as operator, Judge(lab) as judge:
        victim = choose_victim(operator)
        make_guests(lab, operator, story, victim)
        await_guests(lab, operator, story, judge, victim)
        before = {name: len(_beats(lab, operator.guest(name))) for name in demo_guests.GUESTS}
        line = cut_power(lab, operator, story, judge, victim)
        await_heartbeats(lab, operator, story, before)
        show_rejoin(lab, operator, story, victim)
        most = judge.max_copies()
        check(lab, operator, line, most)
        say_how_to_go_on(lab, story, config)
        return {
            "nodes": len(operator.nodes()),
            "guests": len(demo_guests.GUESTS),
            "detected_s": round(line.detected_s or 0.0, 2),
            "fenced_s": round(line.fenced_s or 0.0, 2),
            "recovered_s": round(line.recovered_s or 0.0, 2),
            "max_copies": most,
        }


def bring_up(lab: Lab, story: Story, *, simulated: bool) -> Path:
    """Bring up a lab with a whole cluster: the one that is there, repaired; if that fails, a new one."""
    kind = "simulated" if simulated else "real"
    if (status := lab.status()).state != "down" and (status.kind != kind or len(status.nodes) > NODES):
        story.say(f"A lab {lab.name} of another kind or size is there. It is taken down first.")
        lab.down()
    try:
        return _bring_up(lab, story, simulated=simulated)
    except (LabError, GugusError, TimeoutError) as error:
        story.say(f"What an earlier run left cannot be used ({error}). It is made anew.")
        lab.down()
        return _bring_up(lab, story, simulated=simulated)


def _bring_up(lab: Lab, story: Story, *, simulated: bool) -> Path:
    kind = "simulated hosts (plain processes)" if simulated else "hosts (system containers with their own systemd)"
    story.say(f"Three {kind} are switched on.")
    lab.up(NODES, simulated=simulated)
    story.say(f"They have booted: {', '.join(f'{node.name} at {node.address}' for node in lab.plan.nodes())}.")
    story.say("They become one cluster, by the commands that you would type on each host:")
    config = cluster.form(lab, lambda text: story.say(f"    {text}"))
    story.say("Every host is online, and each of the three votes.")
    return config


def choose_victim(operator: Operator) -> str:
    """The node whose power will be cut: any but the acting manager's and the one that this program asks first."""
    status = operator.status()
    return next(
        node.meta.name for node in operator.nodes() if node.meta.name not in (status.acting, status.answered_by)
    )


def make_guests(lab: Lab, operator: Operator, story: Story, node: str) -> None:
    """Make what the guests need, and both of them, on ``node``."""
    for name in demo_guests.remove_guests(operator):
        story.say(f"Guest {name} of an earlier run is deleted.")
    simulated = lab.plan.kind == "simulated"
    with ThreadPoolExecutor(1) as pool:
        placing = pool.submit(demo_guests.place_images, lab.plan)
        story.say("Network lan: a bridge on every host, with addresses by DHCP and a way out by NAT.")
        demo_guests.make_network(operator)
        story.say("Pool shared: a folder that all hosts see, so that a guest's disk outlives its host.")
        demo_guests.make_pool(operator, lab.plan)
        for source in placing.result():
            story.say(f"Image {source.name} is imported, checked against SHA-256 {source.sha256[:12]}...")
            demo_guests.import_image(operator, source)
    vm, container = (make(node, simulated=simulated) for make in (demo_guests.vm_spec, demo_guests.container_spec))
    story.say(f"Guests web (a virtual machine) and db (a container) are created, under HA, preferably on {node}.")
    sdk = operator.gugus
    tasks = [
        operator.run(sdk.guests.create(name, spec))
        for name, spec in zip(demo_guests.GUESTS, (vm, container), strict=True)
    ]
    for task in tasks:
        operator.do(sdk.tasks.get(task.meta.name))


def await_guests(lab: Lab, operator: Operator, story: Story, judge: Judge, node: str) -> None:
    """Wait until both guests run on ``node`` under HA, and have said so themselves."""
    for name in demo_guests.GUESTS:

        def up(name: str = name) -> Guest | None:
            guest = operator.guest(name)
            said = lab.plan.kind == "simulated" or (_beats(lab, guest) and "ready" in operator.console_log(name))
            running = guest.status.phase == GUEST_PHASE_RUNNING and guest.status.ha_armed
            return guest if running and said and judge.now.of(name) else None

        guest = operator.wait(f"guest {name} to run", up, BOOT_SECONDS)
        if guest.status.node != node:
            raise Failure(f"{name} runs on {guest.status.node}, not on {node}: {guest.status.placement.reason}")
        ready = [text for text in operator.console_log(name).splitlines() if "ready" in text]
        kind = "container" if guest.spec.kind == GUEST_KIND_CONTAINER else "virtual machine"
        story.say(
            f"{name} ({kind}, {guest.status.mode}) runs on {node}{f', its console says: {ready[-1]}' if ready else ''}"
        )


def cut_power(lab: Lab, operator: Operator, story: Story, judge: Judge, victim: str) -> Timeline:
    """Cut the power of the node and watch until both guests run elsewhere; returns the timeline."""
    story.say(f"The power of {victim} is cut. Its guests die with it; nobody tells the cluster.")
    lab.power_off(victim)
    cut_s = next(float(e["time"]) for e in reversed(lab.events()) if e["event"] == "power-off" and e["node"] == victim)
    running: dict[str, float] = {}
    told: set[str] = set()

    def recovered() -> bool:
        for guest in operator.guests():
            elsewhere = guest.status.node not in ("", victim) and guest.status.phase == GUEST_PHASE_RUNNING
            if guest.meta.name in demo_guests.GUESTS and elsewhere:
                running.setdefault(guest.meta.name, time.time())
        line = _timeline(operator, judge, victim, cut_s, running)
        for moment in line.moments:
            if (text := moment.line()) not in told:
                told.add(text)
                print(text, flush=True)
        return line.recovered_s is not None and len(running) == len(demo_guests.GUESTS)

    operator.wait("both guests to run elsewhere", recovered, RECOVERY_SECONDS)
    line = _timeline(operator, judge, victim, cut_s, running)
    story.say(
        f"Seen after {line.detected_s:.1f} s, fenced after {line.fenced_s:.1f} s, both guests run elsewhere after {line.recovered_s:.1f} s:"
    )
    for guest in operator.guests():
        if guest.meta.name in demo_guests.GUESTS:
            story.say(f"    {guest.meta.name} runs on {guest.status.node} (it was on {guest.status.previous_node}).")
    return line


def _timeline(operator: Operator, judge: Judge, victim: str, cut_s: float, running: dict[str, float]) -> Timeline:
    appeared: dict[str, float] = {}
    for name in demo_guests.GUESTS:
        times = [judge.appeared(name, node.meta.name, cut_s) for node in operator.nodes() if node.meta.name != victim]
        if known := [when for when in times if when is not None]:
            appeared[name] = min(known)
    return timeline(victim, cut_s, operator.events(_EVENTS), appeared, running)


def await_heartbeats(lab: Lab, operator: Operator, story: Story, before: dict[str, int]) -> None:
    """Wait until both guests write to their disks again: the same disks, one writer at a time."""
    if lab.plan.kind == "simulated":
        return
    for name in demo_guests.GUESTS:
        guest = operator.guest(name)
        operator.wait(
            f"{name} to write to its disk again",
            partial(_has_more_beats, lab, guest, before[name]),
            BOOT_SECONDS,
        )
    story.say("Both write to their disks again, where the copies that died had left off.")


def _has_more_beats(lab: Lab, guest: Guest, before: int) -> bool:
    return len(_beats(lab, guest)) > before


def show_rejoin(lab: Lab, operator: Operator, story: Story, victim: str) -> None:
    """Switch the node on again and wait until it is a host and a voter like the others."""
    story.say(f"{victim} is switched on again.")
    lab.power_on(victim)
    operator.wait(
        f"{victim} to be online", lambda: operator.node(victim).status.state == NODE_STATE_ONLINE, REJOIN_SECONDS
    )
    operator.wait(
        "all voters to be connected", lambda: all(voter.connected for voter in operator.status().voters), REJOIN_SECONDS
    )
    story.say(f"{victim} is back: {operator.node(victim).status.reason}. The guests stay where they are.")


def check(lab: Lab, operator: Operator, line: Timeline, most: int) -> None:
    """Raise Failure unless every promise was kept."""
    if most != 1:
        raise Failure(f"{most} copies of one guest were seen at once")
    if line.detected_s is None or line.fenced_s is None or line.recovered_s is None:
        raise Failure("the cluster's events do not tell of the loss")
    if line.recovered_s > PROMISED_SECONDS:
        raise Failure(f"recovery took {line.recovered_s:.1f} s, more than the promised {PROMISED_SECONDS:g} s")
    if len(operator.nodes()) != NODES:
        raise Failure(f"the cluster has {len(operator.nodes())} nodes, not {NODES}")
    for name in demo_guests.GUESTS:
        if two_copies(_beats(lab, operator.guest(name))):
            raise Failure(f"the disk of {name} tells of two copies that wrote at the same time")


def say_how_to_go_on(lab: Lab, story: Story, config: Path) -> None:
    """Tell how to look around and how to take it all down."""
    tools = Path(sys.executable).parent
    shown = tools.relative_to(Path.cwd()) if tools.is_relative_to(Path.cwd()) else tools
    name = "" if lab.name == "gugus" else f" --name {lab.name}"
    story.say("The cluster stays up. Look around:")
    print(f"    {shown}/gugus --config {config} guest list")
    if lab.plan.kind == "real":
        print(f"    {shown}/gugus-lab exec{name} n1 -- gugus node list")
    print(f"    {shown}/gugus-lab power-off{name} n1")
    print(f"Take it down:\n    {shown}/gugus-lab down{name}", flush=True)


def _beats(lab: Lab, guest: Guest) -> tuple:  # type: ignore[type-arg]
    return () if lab.plan.kind == "simulated" else demo_guests.beats(lab.plan, guest)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
