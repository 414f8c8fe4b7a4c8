"""`gugus-manager recover`: makes a new cluster of one voter of what this host holds of a cluster whose majority is lost for ever."""

import argparse
import asyncio
import os
import sys
from pathlib import Path

from common.config import DEFAULT_MANAGER_CONFIG, ManagerConfig, load_manager
from common.errors import GugusError, invalid, precondition
from common.process import run
from common.units import format_duration
from manager.recovery import plan as plans
from manager.recovery.carry_out import carry_out, new_plan
from manager.recovery.folders import RAFT
from manager.recovery.lock import only_user
from manager.recovery.plan import Plan
from manager.recovery.survey import Survey, check, look, newest_age_s

SYSTEMD_RUNS = Path("/run/systemd/system")
"""It is there when systemd is the host's init: sd_booted(3)."""

SYSTEMCTL_TIMEOUT_S = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the sub-command."""
    parser.add_argument("--cluster", metavar="NAME", default="", help="name of the cluster, instead of typing it")
    parser.add_argument("--yes", action="store_true", help="do not ask; needs --cluster")
    parser.add_argument("--no-start", action="store_true", help="do not start the services afterwards")


def command(arguments: argparse.Namespace) -> None:
    """Run the sub-command. Raises GugusError, OSError."""
    config_path: Path = arguments.config
    config = load_manager(config_path)
    _require_owner(config)
    with only_user(config.state_dir):
        plan = plans.load(config.state_dir)
        if plan is None:
            plan = _agreed(config, arguments)
        else:
            _check_name(arguments.cluster or plan.cluster_name, plan.cluster_name)
            print(f"Finishing the recovery that was begun at {plan.begun_at}.")
        carry_out(plan, config, config_path.parent)
    _tell_done(plan, config)
    _start(config_path, wanted=not arguments.no_start)


def _require_owner(config: ManagerConfig) -> None:
    """Root runs this where the daemons are separate users; in a folder of one's own its owner may."""
    if os.geteuid() not in (0, config.state_dir.stat().st_uid if config.state_dir.exists() else 0):
        raise precondition("NOT_ROOT", "only root can recover a cluster.", remedy="Run this with sudo.")


def _agreed(config: ManagerConfig, arguments: argparse.Namespace) -> Plan:
    """Show what would be done and have it agreed to. Raises GugusError."""
    survey = look(config, config.state_dir / RAFT)
    check(config, survey)
    plan = new_plan(config)
    print(describe(plan, config, survey))
    if arguments.yes:
        if not arguments.cluster:
            raise invalid("--cluster", "is missing; with --yes it must name the cluster.")
        _check_name(arguments.cluster, config.cluster_name)
    else:
        typed = arguments.cluster or _typed(config)
        _check_name(typed, config.cluster_name)
    return plan


def _typed(config: ManagerConfig) -> str:
    if not sys.stdin.isatty():
        raise invalid(
            "--yes", "there is no terminal to ask on.", remedy=f"Repeat it with --cluster {config.cluster_name} --yes."
        )
    return input("\nType the cluster's name to go on, anything else to leave all as it is: ").strip()


def _check_name(given: str, name: str) -> None:
    if given != name:
        raise invalid("--cluster", f'"{given}" is not this cluster\'s name, "{name}". Nothing was changed.')


def describe(plan: Plan, config: ManagerConfig, survey: Survey) -> str:
    """Return what a recovery will do, for a person to agree to."""
    remains, cluster = survey.remains, survey.clusters[0]
    elsewhere = [guest for guest in survey.guests if guest.status.node not in ("", config.name)]
    nodes = sorted(node.meta.name for node in survey.nodes if node.meta.name != config.name)
    facts = [
        ("cluster", f"{cluster.meta.name} ({plan.old_cluster_id}), from now on {plan.cluster_id}"),
        ("state", f"revision {survey.state.revision}, log index {remains.last_index} of term {remains.last_term}"),
        ("newest event", _newest(survey)),
        ("only voter", f"{config.name} at {config.address}"),
        ("dropped voters", ", ".join(f"{voter.name} ({voter.host})" for voter in survey.others)),
        ("to join anew", ", ".join(nodes) or "none"),
        ("guests", f"{len(survey.guests)}, of which {len(elsewhere)} are given to other nodes"),
        ("kept", str(config.state_dir / plan.kept)),
    ]
    lines = ["This makes a new cluster of what this host holds of the old one:", ""]
    lines += [f"  {name:<15}{value}" for name, value in facts]
    lines += ["", *_warnings(survey, nodes)]
    return "\n".join(lines)


def _warnings(survey: Survey, nodes: list[str]) -> list[str]:
    lines = [
        "Do it only when the other voters are lost for ever. Changes that they acknowledged and this host never received are lost;",
        "changes that this host received and nobody confirmed to it are kept: the lost ones may have acknowledged them.",
    ]
    if survey.answering:
        lines.append(
            f"{', '.join(survey.answering)} still answer, and may hold a newer state: compare the log index there (the first part of this "
            "command says it), recover on the one with the highest, and stop gugus-manager on all others."
        )
    if nodes:
        lines.append(
            "Guests from before are started, moved or deleted only when each other node has joined anew (`gugus-agent join --rejoin`),"
        )
        lines.append("or was said to be off for good (`gugus node remove NODE --off`). What runs now runs on.")
    return lines


def _newest(survey: Survey) -> str:
    age_s = newest_age_s(survey)
    if survey.newest is None or age_s is None:
        return "none"
    return f"{format_duration(round(age_s))} ago: {survey.newest.message}"


def _tell_done(plan: Plan, config: ManagerConfig) -> None:
    print(f"\nThe cluster {plan.cluster_name} is {plan.cluster_id} now, and {config.name} is its only voter.")
    print(f"What was before is kept in {config.state_dir / plan.kept}; it holds secrets: remove it when all is well.")
    print("Next:")
    print("  1. `gugus node list` shows which nodes are from before and were not taken in yet.")
    print(
        "  2. For each that can be reached: `gugus cluster token create --node NODE` here, and on it `gugus-agent join --rejoin`."
    )
    print("  3. For each that is off for good: `gugus node remove NODE --off`.")
    print("  4. `gugus cluster promote NODE` until there are three voters, then `gugus cluster backup FILE`.")
    print(
        "Operators' certificates of before are of no use any more; this host's client.yaml and operator certificate are new."
    )


def _start(config_path: Path, *, wanted: bool) -> None:
    if not (wanted and config_path == DEFAULT_MANAGER_CONFIG and SYSTEMD_RUNS.is_dir() and os.geteuid() == 0):
        print(f"Now start gugus-manager --config {config_path}, and restart this host's gugus-agent.")
        return
    for words in (["enable", "--now", "gugus-manager.service"], ["try-restart", "gugus-agent.service"]):
        try:
            asyncio.run(run(["systemctl", *words], timeout_s=SYSTEMCTL_TIMEOUT_S))
        except GugusError as error:
            raise precondition(
                "NOT_STARTED",
                f"the recovery is done, but {error.message}",
                remedy="Start gugus-manager and restart gugus-agent by hand; `journalctl -u gugus-manager` tells more.",
            ) from error
    print("gugus-manager runs, and gugus-agent was restarted.")
