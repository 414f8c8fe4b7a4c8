"""The cluster's settings as the planner reads them. Pure."""

from dataclasses import replace

from gugus.cluster.v1.cluster_pb2 import (
    PLACEMENT_POLICY_PACK,
    PREEMPTION_POLICY_LOWER_PRIORITY,
    SPARE_POLICY_REFUSE,
    ClusterSettings,
)

from planner.settings import Balance, Policy, Preemption, Settings, Spare, SparePolicy
from planner.weights import defaults_of

DEFAULT_GAIN_PERCENT = 10
"""Least part of the score that a plan of balancing must win."""


def planner_settings(settings: ClusterSettings) -> Settings:
    """Return what steers planning; what is not set has the planner's default."""
    wanted = Settings()
    return replace(
        wanted,
        cpu_overcommit_percent=settings.cpu_overcommit_percent or wanted.cpu_overcommit_percent,
        memory_overcommit_percent=settings.memory_overcommit_percent or wanted.memory_overcommit_percent,
        policy=_policy(settings),
        weights=dict(settings.placement_weights),
        spare=_spare(settings),
        preemption=_preemption(settings),
        balance=_balance(settings),
    )


def default_weights(settings: ClusterSettings) -> dict[str, float]:
    """Return the weight of each score of placement that is not set, by the policy in force."""
    return defaults_of(_policy(settings))


def _policy(settings: ClusterSettings) -> Policy:
    return Policy.PACK if settings.placement == PLACEMENT_POLICY_PACK else Policy.SPREAD


def _spare(settings: ClusterSettings) -> Spare:
    policy = SparePolicy.REFUSE if settings.spare.policy == SPARE_POLICY_REFUSE else SparePolicy.WARN
    return Spare(hosts=settings.spare.nodes, domain=settings.spare.domain, policy=policy)


def _preemption(settings: ClusterSettings) -> Preemption:
    lower = settings.preemption == PREEMPTION_POLICY_LOWER_PRIORITY
    return Preemption.LOWER_PRIORITY if lower else Preemption.NEVER


def _balance(settings: ClusterSettings) -> Balance:
    wanted, default = settings.balance, Balance()
    return replace(
        default,
        max_moves=wanted.max_moves or default.max_moves,
        gain_margin=(wanted.gain_percent or DEFAULT_GAIN_PERCENT) / 100,
    )
