"""OCI images on disk, made with umoci itself, become archives that keep what the image says of its program."""

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from agent.compute.lxc.image import FILE, ImageConfig
from agent.storage import oci
from common.errors import GugusError
from common.process import run

MISSING = [tool for tool in ("skopeo", "umoci", "tar") if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


def told(_percent: int, _words: str) -> None:
    """Take the progress."""


def there(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def umoci(*words: str) -> None:
    subprocess.run(["umoci", *words], check=True, capture_output=True, timeout=60)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """An image layout with one image: a file, and a program with its settings."""
    layout, files = tmp_path / "layout", tmp_path / "files"
    (files / "bin").mkdir(parents=True)
    (files / "bin/app").write_text("#!/bin/sh\n")
    umoci("init", "--layout", str(layout))
    umoci("new", "--image", f"{layout}:one")
    umoci("insert", "--image", f"{layout}:one", "--rootless", str(files / "bin"), "/bin")
    settings = [
        "--config.entrypoint",
        "/bin/app",
        "--config.cmd",
        "-x",
        "--config.env",
        "A=b=c",
        "--config.env",
        "PATH=/bin",
    ]
    settings += ["--config.workingdir", "/srv", "--config.user", "7:8"]
    umoci("config", "--image", f"{layout}:one", *settings)
    return layout


WANTED = ImageConfig(("/bin/app", "-x"), {"A": "b=c", "PATH": "/bin"}, "/srv", "7:8")


async def test_an_image_becomes_an_archive_with_its_settings_in_it(layout: Path, tmp_path: Path) -> None:
    target = tmp_path / "work"
    assert await oci.unpack(f"oci:{layout}:one", target, told) == WANTED
    with tarfile.open(target) as archive:
        names = {name.removeprefix("./") for name in archive.getnames()}
        assert {"bin/app", "proc", "sys", "dev", "tmp", FILE} <= names
        assert archive.getmember(f"./{FILE}").uid == 0
        file = archive.extractfile(f"./{FILE}")
        assert file is not None
        assert file.read().decode() == WANTED.to_text()
    assert there(tmp_path) == ["files", "layout", "work"]


async def test_archives_of_images_are_taken_too(layout: Path, tmp_path: Path) -> None:
    for kind in ("oci-archive", "docker-archive"):
        packed = tmp_path / f"{kind}.tar"
        command = ["skopeo", "--insecure-policy", "copy", f"oci:{layout}:one", f"{kind}:{packed}:gugus/one:1"]
        await run(command, timeout_s=60)
        assert (await oci.unpack(f"{kind}:{packed}", tmp_path / f"{kind}.out", told)).command == WANTED.command


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("oci:/no/such/layout:one", "SOURCE_UNREADABLE"),
        ("oci-archive:/etc/hostname", "SOURCE_UNREADABLE"),
        ("docker-daemon:busybox:latest", "INVALID_ARGUMENT"),
        ("oci:relative:one", "INVALID_ARGUMENT"),
        ("docker://", "INVALID_ARGUMENT"),
        ("oci:/x --dest-creds=a:b", "INVALID_ARGUMENT"),
    ],
)
async def test_what_is_no_image_is_refused_in_words_and_leaves_nothing(
    source: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(GugusError) as caught:
        await oci.unpack(source, tmp_path / "work", told)
    assert caught.value.reason == reason
    assert source[:20] in caught.value.message
    assert there(tmp_path) == []


def test_sources_are_told_apart_from_paths_and_addresses() -> None:
    assert all(map(oci.is_oci, ("docker://alpine:3.19", "oci:/a", "oci-archive:/a.tar", "docker-archive:/a.tar")))
    assert not any(map(oci.is_oci, ("/a.tar", "https://a/b.tar", "http://a", "ocix:/a")))


def test_a_config_without_a_program_is_empty() -> None:
    assert oci.config_of({"architecture": "amd64"}) == ImageConfig()
    assert oci.config_of({"config": {"Cmd": ["sh"], "Env": ["nonsense"]}}) == ImageConfig(("sh",))
