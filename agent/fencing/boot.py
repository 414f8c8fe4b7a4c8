"""The boot id of this host: another one than before proves that everything that ran here is gone.

The kernel's own id is not enough, for system containers share their host's: a random token in the run folder (tmpfs) is
added. Invariant: a token is only made when no HA guest can be running (`make` is called after that was made sure).
"""

import secrets
from contextlib import suppress
from pathlib import Path

from agent.fencing.record import replace_file

KERNEL_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
TOKEN_FILE_NAME = "boot-token"  # noqa: S105 (names a boot, opens nothing)


def known(run_dir: Path) -> bool:
    """Whether an earlier process of this boot made the token."""
    return (run_dir / TOKEN_FILE_NAME).exists()


def boot_id(run_dir: Path) -> str:
    """Return the id of this boot, making the token when there is none. Raises OSError."""
    path = run_dir / TOKEN_FILE_NAME
    if not path.exists():
        replace_file(path, secrets.token_hex(8).encode())
    kernel = ""
    with suppress(OSError):
        kernel = KERNEL_BOOT_ID.read_text().strip()
    return f"{kernel}-{path.read_text().strip()}"
