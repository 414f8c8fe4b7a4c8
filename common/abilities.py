"""What a pool can do with volumes of one format, by what its node tells: for refusing a request before anything starts. Pure."""

from gugus.agent.v1 import volume_pb2


def why_not(
    pool: volume_pb2.Pool,
    volume_format: volume_pb2.VolumeFormat.ValueType,
    ability: volume_pb2.PoolAbility.ValueType,
) -> str:
    """Return "" when the pool can, else why not and what to do, in a sentence."""
    for known in pool.formats:
        if known.format != volume_format:
            continue
        if ability in known.abilities:
            return ""
        told = next((refusal.reason for refusal in known.refusals if refusal.ability == ability), "")
        return f'pool "{pool.spec.name}": {told or "it is not able to."}'
    if not pool.formats and ability in pool.abilities:  # a node of an earlier version
        return ""
    name = volume_pb2.VolumeFormat.Name(volume_format).removeprefix("VOLUME_FORMAT_")
    return f'pool "{pool.spec.name}" does not hold volumes of the format {name}, or its node does not tell.'
