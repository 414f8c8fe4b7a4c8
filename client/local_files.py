"""Files of whoever types: what is said when one cannot be read or written."""

from pathlib import Path

from common.errors import GugusError, invalid


def unreadable(option: str, file: str | Path, error: OSError | UnicodeDecodeError) -> GugusError:
    """Return the error for a file that an option names and that cannot be read, without Python's words for it."""
    why = "it is not text in UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror or str(error)
    return invalid(option, f"{file} cannot be read: {why}.")


def require_folder(option: str, file: Path) -> None:
    """Make sure that a file can be made before it is asked for. Raises INVALID_ARGUMENT when its folder is not there."""
    if not file.parent.is_dir():
        raise invalid(option, f"{file} cannot be written: there is no folder {file.parent}.", remedy="Make it first.")
