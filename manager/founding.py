"""A cluster is founded once. A founding manager that finds its data folder empty must not found another one of the same id.

Invariant: the mark lies beside the data folder, not in it; it is there from the moment that the state knows its cluster.
"""

from common.config import ManagerConfig
from common.errors import precondition
from common.files import write_atomic

MARK = "founded"

RAFT_FOLDER = "raft"


def refuse_to_found_again(config: ManagerConfig) -> None:
    """Raise FAILED_PRECONDITION DATA_FOLDER_LOST when the cluster was founded here and its state is gone."""
    folder = config.state_dir / RAFT_FOLDER
    if config.bootstrap and (config.state_dir / MARK).exists() and not (folder / "snapshot").exists():
        raise precondition(
            "DATA_FOLDER_LOST",
            f"{folder} is empty, and this manager founded cluster {config.cluster_name} before: it must not found it again.",
            remedy=f"If other managers are there: `gugus cluster demote {config.name}`, then promote it. If none is: `gugus cluster "
            f"restore` with a backup. To begin anew, with nothing of before, remove {config.state_dir / MARK}.",
        )


def note_founded(config: ManagerConfig) -> None:
    """Note that the cluster exists; once in its life."""
    if config.bootstrap and not (config.state_dir / MARK).exists():
        write_atomic(config.state_dir / MARK, f"{config.cluster_id}\n".encode(), mode=0o600)
