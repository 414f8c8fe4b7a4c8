"""A recovery, step by step. Killed at any line, it is finished by running it again.

Order: the plan is written down; the new state is made beside the old one; the old one is moved aside and the new one put in its place;
certificates and configuration get the new id; the plan is removed.
"""

import time
from datetime import UTC, datetime
from pathlib import Path

from common.config import AGENT_PORT, ManagerConfig, load_agent
from common.errors import GugusError
from common.identity.names import new_cluster_id
from common.identity.store import Pki
from manager.consensus import Member
from manager.events import WARNING, event
from manager.recovery import plan as plans
from manager.recovery.folders import RAFT, make_state, put_in_force
from manager.recovery.identity import node_key_sha256, renew_configuration, renew_pki
from manager.recovery.plan import Plan
from manager.recovery.rebirth import NewLife, reborn
from manager.recovery.survey import Survey, look


def new_plan(config: ManagerConfig) -> Plan:
    """Return the plan of a recovery that begins now."""
    now = datetime.fromtimestamp(time.time(), UTC)
    return Plan(
        cluster_name=config.cluster_name,
        old_cluster_id=config.cluster_id,
        cluster_id=new_cluster_id(),
        kept=f"raft.before-recover-{now:%Y%m%d-%H%M%S}",
        begun_at=f"{now:%Y-%m-%d %H:%M:%S} UTC",
    )


def carry_out(plan: Plan, config: ManagerConfig, etc: Path) -> None:
    """Do, or finish, what a plan says. etc: folder of the configuration. Raises GugusError, OSError."""
    plan.save(config.state_dir)
    if not (config.state_dir / plan.kept).exists():
        try:
            _make(plan, config, etc)
        except (GugusError, OSError):  # no room, for example: nothing was changed yet, so it is given up
            plans.finished(config.state_dir)
            raise
    put_in_force(config.state_dir, plan.kept)
    renew_pki(Pki(config.pki_dir), plan.cluster_name, plan.cluster_id, config.name, config.address)
    renew_configuration(etc, config, plan.cluster_id)
    plans.finished(config.state_dir)


def _make(plan: Plan, config: ManagerConfig, etc: Path) -> None:
    survey = look(config, config.state_dir / RAFT)
    life = _life(plan, config, etc, survey)
    me = Member(config.name, config.address, config.raft_port)
    make_state(config.state_dir, me, reborn(survey.state.snapshot(), life))


def _life(plan: Plan, config: ManagerConfig, etc: Path, survey: Survey) -> NewLife:
    lost = ", ".join(voter.name for voter in survey.others)
    text = (
        f"cluster {plan.cluster_name} was recovered on {config.name} from log index {survey.remains.last_index}, without {lost}; it was "
        f"{plan.old_cluster_id} and is {plan.cluster_id} now"
    )
    agent = etc / "agent.yaml"
    return NewLife(
        cluster_name=plan.cluster_name,
        cluster_id=plan.cluster_id,
        node=config.name,
        address=config.address,
        agent_port=load_agent(agent).port if agent.exists() else AGENT_PORT,
        key_sha256=node_key_sha256(Pki(config.pki_dir)),
        event=event(f"cluster/{plan.cluster_name}", "CLUSTER_RECOVERED", text, WARNING),
    )
