"""What a recovery is going to do, written down before it does anything: whoever finds the plan finishes it.

Invariant: as long as the file is there, no manager starts on the folder, for it may be neither the old cluster's nor the new one's.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from common.errors import precondition
from common.files import read_json, remove_durably, write_json

FILE = "recovery.json"
FILE_MODE = 0o644
"""It holds no secret, and the manager's user must be able to see that it is there."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One recovery. kept: name of the folder, beside the new state's, that the old state is kept in."""

    cluster_name: str
    old_cluster_id: str
    cluster_id: str
    kept: str
    begun_at: str

    def save(self, state_dir: Path) -> None:
        """Write it down, durably."""
        write_json(state_dir / FILE, dataclasses.asdict(self), FILE_MODE)


def load(state_dir: Path) -> Plan | None:
    """Return the plan that was begun and not finished. Raises GugusError PLAN_DAMAGED."""
    path = state_dir / FILE
    if not path.exists():
        return None
    try:
        return Plan(**{str(name): str(value) for name, value in read_json(path).items()})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise precondition("PLAN_DAMAGED", f"{path} cannot be read: {error}.", subject=str(path)) from error


def finished(state_dir: Path) -> None:
    """Remove the plan: everything that it says is done."""
    remove_durably(state_dir / FILE)


def refuse_unfinished(state_dir: Path) -> None:
    """Raise GugusError RECOVERY_UNFINISHED when a plan is there."""
    if (state_dir / FILE).exists():
        raise precondition(
            "RECOVERY_UNFINISHED",
            f"a recovery of this manager was begun and not finished ({state_dir / FILE}).",
            remedy="`gugus-manager recover` finishes it.",
            subject=str(state_dir),
        )
