"""First-boot settings stay inside the root file system and are written once a guest."""

import os
from pathlib import Path

import pytest

from agent.compute.lxc.rootfs import FirstBootSettings, apply_first_boot, halt_signal

ME = os.geteuid()


def test_settings_are_written_once_a_guest(tmp_path: Path) -> None:
    settings = FirstBootSettings("uid-1", "db", ["ssh-ed25519 AAAA me\n"])
    assert apply_first_boot(tmp_path, settings, ME)
    assert (tmp_path / "etc/hostname").read_text() == "db\n"
    keys = tmp_path / "root/.ssh/authorized_keys"
    assert keys.read_text() == "ssh-ed25519 AAAA me\n"
    assert keys.stat().st_mode & 0o777 == 0o600
    (tmp_path / "etc/hostname").write_text("changed inside\n")
    assert not apply_first_boot(tmp_path, settings, ME)
    assert (tmp_path / "etc/hostname").read_text() == "changed inside\n"
    assert apply_first_boot(tmp_path, FirstBootSettings("uid-2", "clone"), ME)
    assert (tmp_path / "etc/hostname").read_text() == "clone\n"


@pytest.mark.parametrize("link", ["etc", "root", "root/.ssh"])
def test_a_link_in_place_of_a_folder_leads_nowhere(tmp_path: Path, link: str) -> None:
    outside, root = tmp_path / "outside", tmp_path / "rootfs"
    outside.mkdir()
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(outside)
    with pytest.raises(NotADirectoryError):
        apply_first_boot(root, FirstBootSettings("uid-1", "db", ["ssh-ed25519 AAAA me"]), ME)
    assert not list(outside.iterdir())


def test_a_link_in_place_of_a_file_is_replaced_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_text("untouched")
    (tmp_path / "rootfs/etc").mkdir(parents=True)
    (tmp_path / "rootfs/etc/hostname").symlink_to(outside)
    apply_first_boot(tmp_path / "rootfs", FirstBootSettings("uid-1", "db"), ME)
    assert outside.read_text() == "untouched"


@pytest.mark.parametrize(
    ("target", "signal"),
    [
        ("/lib/systemd/systemd", "SIGRTMIN+4"),
        ("../bin/busybox", "SIGUSR2"),
        ("/sbin/init", "SIGPWR"),
        ("sysv", "SIGPWR"),
    ],
)
def test_the_halt_signal_fits_the_init(tmp_path: Path, target: str, signal: str) -> None:
    (tmp_path / "usr/sbin").mkdir(parents=True)
    (tmp_path / "sbin").symlink_to("usr/sbin")
    (tmp_path / "usr/sbin/init").symlink_to(target)
    assert halt_signal(tmp_path) == signal
