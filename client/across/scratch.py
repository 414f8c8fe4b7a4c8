"""The folder of this machine that disks pass through: what is in it is the guest's, so nobody else may look into it."""

import os
import shutil
import stat
from pathlib import Path

from common.errors import GugusError, precondition


def make(parent: Path, name: str) -> Path:
    """Return a folder of that name that is ours alone, made if it is not there. Blocks. Raises SCRATCH_UNUSABLE."""
    folder = parent / name
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise unusable(error) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        what = f"{folder} is not a folder that only you can read."
        raise precondition("SCRATCH_UNUSABLE", what, remedy="Remove it, or name another with --scratch.")
    return folder


def remove(folder: Path) -> None:
    """Remove the folder with all that is in it. Blocks. Idempotent."""
    shutil.rmtree(folder, ignore_errors=True)


def unusable(error: OSError) -> GugusError:
    """Return the error for a file system that does not do what it should."""
    what = f"{error.filename or 'the scratch folder'} cannot be used: {error.strerror}."
    return precondition("SCRATCH_UNUSABLE", what, remedy="--scratch names a folder with room for the largest disk.")
