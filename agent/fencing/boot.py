"""The boot id of this host: another one than before proves that everything that ran here is gone.

The kernel's own id is not enough, for system containers share their host's: a random token in the run folder (tmpfs) is
added. Invariant: a token is only made when no HA guest can be running (`boot_id` is called after that was made sure),
and an id that cannot be read is an error, never another id.
"""

import secrets
from pathlib import Path

from agent.fencing.record import kernel_boot_id, replace_file

TOKEN_FILE_NAME = "boot-token"  # noqa: S105 (names a boot, opens nothing)


def known(run_dir: Path) -> bool:
    """Whether an earlier process of this boot made the token. Raises OSError."""
    return (run_dir / TOKEN_FILE_NAME).exists()


def boot_id(run_dir: Path) -> str:
    """Return the id of this boot, making the token when there is none. Raises OSError."""
    path = run_dir / TOKEN_FILE_NAME
    if not path.exists():
        replace_file(path, secrets.token_hex(8).encode())
    return f"{kernel_boot_id()}-{path.read_text().strip()}"
