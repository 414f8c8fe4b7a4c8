"""What happens when the host boots, when the guest ends by itself, and how long it may take to shut down."""

from collections.abc import Iterator

from gugus.agent.v1.resources_pb2 import EndPolicy
from gugus.cluster.v1.guest_pb2 import BootPolicy, GuestSpec

from common.errors import GugusError
from manager.guests.known import Known
from manager.guests.rules import check

MAX_ORDER = 10_000
MAX_DELAY_S = 3600
MAX_SHUTDOWN_MS = 24 * 3600 * 1000


def faults(spec: GuestSpec, known: Known) -> Iterator[GugusError]:
    """Everything in `boot`, `policies` and `shutdown_timeout_ms`."""
    yield from check.enum("spec.boot.policy", spec.boot.policy, BootPolicy)
    yield from check.ranged("spec.boot.order", spec.boot.order, 1, MAX_ORDER, also="or 0 for after all others")
    yield from check.ranged("spec.boot.delay_s", spec.boot.delay_s, 1, MAX_DELAY_S)
    for name in ("on_shutdown", "on_reboot", "on_crash"):
        yield from check.enum(f"spec.policies.{name}", getattr(spec.policies, name), EndPolicy)
    yield from check.ranged("spec.shutdown_timeout_ms", spec.shutdown_timeout_ms, 1, MAX_SHUTDOWN_MS)
