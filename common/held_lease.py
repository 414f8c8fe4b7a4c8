"""Whether the agent of this host holds a node lease, as others than the agent may ask: before the host leaves its cluster.

Invariant: in doubt it is held. A lease that is held says that managers of its cluster live and renew it.
"""

import json
from pathlib import Path

from common.clock import boottime_ns

LEASE_FILE = "lease.json"
"""The agent's record in its run folder (agent/fencing/record.py)."""

_KERNEL_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NS_PER_S = 1_000_000_000


def held_s(run_dir: Path) -> float:
    """Return for how many more seconds the lease is held, 0 when it is not. Raises OSError, and ValueError for a damaged record."""
    try:
        record = json.loads((run_dir / LEASE_FILE).read_bytes())
        deadline_ns, boot = int(record["deadline_ns"]), str(record.get("boot", ""))
    except FileNotFoundError:
        return 0.0
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{run_dir / LEASE_FILE} is no lease record: {error!r}") from error
    if boot not in ("", _KERNEL_BOOT_ID.read_text().strip()):
        return 0.0
    return max(0, deadline_ns - boottime_ns()) / NS_PER_S
