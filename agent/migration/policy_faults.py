"""What is wrong with the policy of a migration, whatever hypervisor is to carry it out: on a host without libvirt, too."""

from gugus.agent.v1.migration_pb2 import (
    MIGRATION_COMPRESSION_ZSTD,
    MIGRATION_TIMEOUT_ACTION_POST_COPY,
    MigrationPolicy,
)

MIB = 1024 * 1024


def policy_faults(policy: MigrationPolicy) -> list[str]:
    """Return what is wrong with a policy, each in a sentence without a full stop."""
    found = []
    if policy.channels > 16:
        found.append(f"channels: {policy.channels} is not from 1 to 16")
    if policy.compression == MIGRATION_COMPRESSION_ZSTD and policy.channels == 1:
        found.append("compression: zstd needs at least 2 channels")
    if policy.downtime_limit_ms > 60_000:
        found.append(f"downtime_limit_ms: {policy.downtime_limit_ms} is not from 1 to 60,000")
    if 0 < policy.bandwidth_bytes_per_s < MIB:
        found.append(f"bandwidth_bytes_per_s: {policy.bandwidth_bytes_per_s} is below 1 MiB a second")
    if policy.timeout_action == MIGRATION_TIMEOUT_ACTION_POST_COPY and not policy.post_copy:
        found.append("timeout_action: post-copy needs post_copy")
    return found
