"""The driver's own files: seeds, console logs, definitions, how runs ended."""

import os
import shutil
from pathlib import Path

from agent.compute.kvm import seed


class Folders:
    """The driver's folder in the agent's state_dir. Methods block."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.definitions, self.ends = root / "definitions", root / "ends"

    def make(self) -> None:
        """Make them, such that QEMU's user can reach files whose names it is given. Raises OSError."""
        for folder in (self.root, self.root / "seeds", self.root / "console", self.definitions):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(seed.FOLDER_MODE)

    def seeds(self, name: str) -> Path:
        """Return the folder of a guest's seed."""
        return self.root / "seeds" / name

    def console(self, name: str) -> Path:
        """Return the log of a guest's serial console."""
        return self.root / "console" / f"{name}.log"

    def forget(self, name: str) -> None:
        """Remove a guest's seed and log."""
        shutil.rmtree(self.seeds(name), ignore_errors=True)
        for file in [self.console(name), *self.console(name).parent.glob(f"{name}.log.*")]:
            file.unlink(missing_ok=True)

    def hidden_from_qemu(self) -> str:
        """Return what keeps QEMU, which libvirt runs as a user of its own, from the seeds; "" if nothing does."""
        for part in (self.root, *self.root.parents):
            if part.exists() and not part.stat().st_mode & 0o001:
                return f"{part} cannot be entered by QEMU's user; `chmod o+x {part}` repairs that."
        return ""


def tail(path: Path, max_bytes: int) -> bytes:
    """Return the end of a file; nothing when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - max_bytes, 0))
            return file.read(max_bytes)
    except FileNotFoundError:
        return b""
