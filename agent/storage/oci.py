"""OCI and Docker images, from a registry or on disk, into an archive of a root file system.

skopeo(1) fetches and checks, umoci(1) unpacks: both are Debian's, and know the formats better than we ever would. What an
image says of its program (command, environment, user) is put into the root file system, see agent.compute.lxc.image: so it
goes wherever the volume goes. Registries that want a password take it from containers-auth.json(5).
"""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agent.compute.lxc.image import FILE, ImageConfig
from agent.compute.lxc.rootfs import Tree
from agent.storage.pool import Progress
from common.errors import GugusError, invalid, precondition
from common.process import CommandFailed, run

FETCH_TIMEOUT_S = 3600.0
UNPACK_TIMEOUT_S = 1800.0

KINDS = ("docker", "oci", "oci-archive", "docker-archive")
"""Transports of containers-transports(5) that are taken. The others reach into this host's own container engines."""

_POLICY = Path("/etc/containers/policy.json")
_TAG = "gugus"
_PLACES = {"dev": 0o755, "etc": 0o755, "proc": 0o555, "run": 0o755, "sys": 0o555, "tmp": 0o1777}
"""Folders that a container needs, which images of a single program may lack."""

_NO_SPACE = "no space left on device"


def is_oci(source: str) -> bool:
    """Whether a source names such an image."""
    return source.partition(":")[0] in KINDS


def check(source: str) -> None:
    """Raise INVALID_ARGUMENT unless a source names an image in a way that is taken."""
    kind, _, rest = source.partition(":")
    right = rest.startswith("//") and len(rest) > 2 if kind == "docker" else rest.startswith("/")
    if kind not in KINDS or not right or not source.isprintable() or " " in source:
        raise invalid(
            "source",
            f'"{source[:200]}" names no image.',
            remedy="Write docker://IMAGE:TAG, oci:/FOLDER:TAG, oci-archive:/FILE or docker-archive:/FILE.",
        )


async def unpack(source: str, target: Path, progress: Progress) -> ImageConfig:
    """Write the root file system of an image as a tar archive to `target`, which does not exist yet; return its settings.

    Works in a folder beside it, which is removed. Can be cancelled (asyncio).
    Raises INVALID_ARGUMENT, SOURCE_UNREADABLE, NOT_AN_IMAGE, and CommandFailed or OSError when the disk is full.
    """
    check(source)
    async with _folder(target.with_name(f"{target.name}.oci")) as work:
        layout, root = work / "layout", work / "rootfs"
        progress(1, f"fetching {source}")
        fetch = ["skopeo", *_policy(), "copy", "--quiet", source, f"oci:{layout}:{_TAG}"]
        await _run(fetch, "SOURCE_UNREADABLE", source, FETCH_TIMEOUT_S)
        progress(60, "unpacking")
        image = ["umoci", "raw", "unpack", "--image", f"{layout}:{_TAG}", str(root)]
        await _run(image, "NOT_AN_IMAGE", source, UNPACK_TIMEOUT_S)
        try:
            config = await asyncio.to_thread(_finish, layout, root)
        except (ValueError, KeyError, TypeError, AttributeError, NotADirectoryError) as error:
            raise _failed("NOT_AN_IMAGE", source, str(error)) from error
        progress(80, "packing")
        await run(_pack(root, target), timeout_s=UNPACK_TIMEOUT_S)
        progress(90, "packed")
        return config


def config_of(settings: Mapping[str, Any]) -> ImageConfig:
    """Return what the config of an image says (OCI image-spec, config.md). Raises ValueError and its like when it is none."""
    said = settings.get("config") or {}
    pairs = (text.partition("=") for text in said.get("Env") or ())
    return ImageConfig(
        command=tuple(map(str, (*(said.get("Entrypoint") or ()), *(said.get("Cmd") or ())))),
        environment={name: value for name, equals, value in pairs if equals and name},
        folder=str(said.get("WorkingDir") or ""),
        user=str(said.get("User") or ""),
        stop_signal=str(said.get("StopSignal") or ""),
    )


def _finish(layout: Path, root: Path) -> ImageConfig:
    """Put into the root file system what is missing there: the image's settings, and places to mount on."""
    index = json.loads((layout / "index.json").read_bytes())
    manifest = _blob(layout, index["manifests"][0]["digest"])
    config = config_of(_blob(layout, manifest["config"]["digest"]))
    with Tree(root, 0) as tree:
        for place, mode in _PLACES.items():
            if not tree.has(place):
                tree.folder(place, mode)
        if config.command:
            tree.write(FILE, config.to_text())
    return config


def _blob(layout: Path, digest: str) -> Any:
    algorithm, _, name = digest.partition(":")
    if not (algorithm.isalnum() and name.isalnum()):
        raise ValueError(f'"{digest}" is no digest')
    return json.loads((layout / "blobs" / algorithm / name).read_bytes())


def _policy() -> list[str]:
    """Which signatures are asked for is the host's own setting (containers-policy.json(5)); none where it has none."""
    return [] if _POLICY.exists() else ["--insecure-policy"]


def _pack(root: Path, target: Path) -> list[str]:
    kept = ["--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", "--sparse"]
    return ["tar", "--create", *kept, "--file", str(target), "--directory", str(root), "."]


async def _run(argv: list[str], reason: str, source: str, timeout_s: float) -> None:
    try:
        await run(argv, timeout_s=timeout_s)
    except CommandFailed as error:
        if error.returncode is None or _NO_SPACE in error.stderr_tail:  # missing, too slow, or the pool is full
            raise
        raise _failed(reason, source, error.stderr_tail.rpartition("level=fatal msg=")[2].strip('"\n ')) from error


def _failed(reason: str, source: str, why: str) -> GugusError:
    remedy = "Check its name, and what is there." if reason == "SOURCE_UNREADABLE" else "Give an OCI or Docker image."
    return precondition(reason, f'"{source}" cannot be used: {why.rstrip(".")}.', remedy=remedy, subject=source)


@asynccontextmanager
async def _folder(path: Path) -> AsyncIterator[Path]:
    """Give a folder that nobody else may enter, for it holds files of any owner and mode; remove it afterwards."""
    await asyncio.to_thread(path.mkdir, 0o700)
    try:
        yield path
    finally:
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, path, True))
