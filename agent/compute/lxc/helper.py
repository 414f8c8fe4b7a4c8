"""Running `agent.compute.lxc.inside`, the program that works within a container's file system."""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from agent.compute.lxc import mounts
from agent.compute.lxc.config import Mount
from common.errors import GugusError, internal

TIMEOUT_S = 20.0
"""An action on mounts takes 0.1 s, most of it for the interpreter; the rest is for slow file systems and loaded hosts."""

_WORDS = 400


def argv(init_pid: int, *words: str) -> list[str]:
    """Return the command."""
    return [sys.executable, "-m", "agent.compute.lxc.inside", str(init_pid), *words]


def environment() -> dict[str, str]:
    """Return its environment: where its modules are, and nothing else."""
    return {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONDONTWRITEBYTECODE": "1"}


async def attach(init_pid: int, mount: Mount, userns: Path | None) -> None:
    """Mount a folder or file of the host in a running container. Raises CONTAINER_CHANGE_FAILED."""
    namespace = str(userns) if userns is not None and mount.idmapped else ""
    try:
        made = mounts.detached(str(mount.source), namespace, read_only=mount.read_only, nodev=not mount.device)
        with made as handle:
            kind = "folder" if mount.is_folder else "file"
            await _run(argv(init_pid, "attach", mount.target, kind, str(handle)), [handle])
    except OSError as error:
        raise failed(str(error.strerror or error)) from error


async def detach(init_pid: int, target: str) -> None:
    """Unmount something in a running container. Raises CONTAINER_CHANGE_FAILED, also while it is in use there."""
    await _run(argv(init_pid, "detach", target))


async def reset(init_pid: int) -> None:
    """Have a container's kernel namespace reboot: all its processes end at once. Raises CONTAINER_CHANGE_FAILED."""
    await _run(argv(init_pid, "reset"))


def failed(why: str) -> GugusError:
    """Return the error of something that could not be done in a container."""
    return internal("CONTAINER_CHANGE_FAILED", why)


async def _run(command: list[str], handles: Sequence[int] = ()) -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=handles,
        env=environment(),
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            _, said = await process.communicate()
    except TimeoutError:
        raise failed(f"it took longer than {TIMEOUT_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise failed(said.decode(errors="replace").strip()[-_WORDS:] or f"exit code {process.returncode}")
