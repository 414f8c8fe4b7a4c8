"""CRIU on this host: whether it can write down and restore containers, by its own check, and how it is run.

liblxc runs it (criu.c of liblxc 5). What liblxc does not say to it comes from a file, by CRIU_CONFIG_FILE (criu(8)).
"""

import asyncio
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.compute.lxc import cgroups
from common.errors import GugusError
from common.files import read_json, write_atomic
from common.process import CommandFailed, run

CHECK_TIMEOUT_S = 20.0
"""`criu check` takes 0.3 s, 2 s in an emulated machine."""

GHOST_BYTES = 64 * 1024 * 1024
"""Most bytes of a file that is open and has no name any more: it travels within the images."""

UNKNOWN = "it is being found out"
_PROGRAMS = {"criu": "criu", "lxc-checkpoint": "lxc"}
_VERSION = re.compile(r"^Version: (\S+)", re.MULTILINE)
_ERROR = re.compile(r"Error \([^)]*\): (?P<text>.*)$", re.MULTILINE)
_SETTINGS = ("enable-fs ramfs", "network-lock nftables", f"ghost-limit {GHOST_BYTES}")
"""systemd leaves empty ramfs mounts of credentials behind; Debian's hosts have nftables, not always iptables."""


@dataclass(frozen=True, slots=True)
class Criu:
    """What was found. problem: why containers cannot be written down or restored here; "" when they can."""

    version: str = ""
    problem: str = ""


class CriuProbe:
    """Finds out what there is, once a boot and again when the program has changed."""

    def __init__(self, run_dir: Path) -> None:
        self._kept, self._config = run_dir / "criu.json", run_dir / "criu.conf"
        self._found: tuple[str, Criu] | None = None
        self._lock = asyncio.Lock()
        self._looking: asyncio.Task[Criu] | None = None

    def known(self) -> Criu:
        """Return what is known without waiting; what is not is being found out from then on."""
        stamp = _stamp()
        if self._found is not None and self._found[0] == stamp:
            return self._found[1]
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self.look(), name="criu-check")
        return Criu(problem=UNKNOWN)

    async def look(self) -> Criu:
        """Return what there is; the first time of a boot takes as long as `criu check` does."""
        async with self._lock:
            stamp = _stamp()
            if self._found is None or self._found[0] != stamp:
                self._found = (stamp, await self._kept_or_new(stamp))
            return self._found[1]

    async def close(self) -> None:
        """End a look that is under way."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def environment(self) -> dict[str, str]:
        """Return the environment that liblxc is run with to have CRIU work by our settings. Raises OSError."""
        await asyncio.to_thread(self._keep, self._config, "\n".join([*_SETTINGS, ""]))
        return {"PATH": os.environ.get("PATH", os.defpath), "CRIU_CONFIG_FILE": str(self._config)}

    async def _kept_or_new(self, stamp: str) -> Criu:
        try:
            kept = await asyncio.to_thread(read_json, self._kept)
            if kept["stamp"] == stamp:
                return Criu(kept["version"], kept["problem"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # there is none of this boot
        found = await _check()
        await asyncio.to_thread(self._keep, self._kept, json.dumps({"stamp": stamp, **asdict(found)}))
        return found

    @staticmethod
    def _keep(file: Path, text: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, text.encode())


async def _check() -> Criu:
    missing = [package for program, package in _PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        return Criu(problem=f"{' and '.join(missing)} not installed (Debian package of that name)")
    try:
        told = _VERSION.search((await run(["criu", "--version"], timeout_s=CHECK_TIMEOUT_S)).text)
    except GugusError as error:
        return Criu(problem=f"criu does not run: {error.message}")
    version = told[1] if told else "unknown"
    if not cgroups.unified():
        return Criu(version, "the host's cgroups are not those of version 2 alone")
    try:
        await run(["criu", "check"], timeout_s=CHECK_TIMEOUT_S)
    except CommandFailed as error:
        return Criu(version, _why(error))
    return Criu(version)


def _why(error: CommandFailed) -> str:
    if error.timed_out:
        return f"`criu check` did not end within {CHECK_TIMEOUT_S:g} s"
    return f"`criu check` fails on this kernel: {errors_of(error.stderr_tail) or error.message}"


def errors_of(log: str, most: int = 3) -> str:
    """Return the errors of CRIU's log, the first ones: what follows them is their consequence."""
    return "; ".join(list(dict.fromkeys(match["text"].strip() for match in _ERROR.finditer(log)))[:most])


def _stamp() -> str:
    """Tell the program apart from another one, such as an update."""
    program = shutil.which("criu")
    try:
        stat = os.stat(program) if program else None
    except OSError:
        stat = None
    return f"{program} {stat.st_mtime_ns} {stat.st_size}" if stat else ""
