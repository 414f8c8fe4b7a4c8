"""First-boot settings stay inside the root file system and are written once a guest, in the files its image reads."""

import os
from pathlib import Path

import pytest
from gugus.agent.v1 import boot_pb2

from agent.compute.lxc import addresses, image
from agent.compute.lxc.firstboot import FirstBootSettings, apply_first_boot
from agent.compute.lxc.rootfs import Tree, halt_signal

ME = os.geteuid()
needs_root = pytest.mark.skipif(ME != 0, reason="gives files to other users")
KEY = "ssh-ed25519 AAAA me"
STATIC = boot_pb2.NicAddress(nic="eth0", ipv4="10.0.0.5/24", ipv4_gateway="10.0.0.1", ipv6="fd00::5/64")


def settings(uid: str = "uid-1", hostname: str = "db", nics: tuple[str, ...] = (), **boot: object) -> FirstBootSettings:
    return FirstBootSettings(uid, hostname, boot_pb2.FirstBoot(**boot), nics)  # type: ignore[arg-type]


def place(root: Path, path: str, text: str = "") -> Path:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)
    return root / path


def test_settings_are_written_once_a_guest(tmp_path: Path) -> None:
    first = settings(ssh_authorized_keys=[f"{KEY}\n"])
    assert apply_first_boot(tmp_path, first, ME)
    assert (tmp_path / "etc/hostname").read_text() == "db\n"
    assert "127.0.1.1\tdb" in (tmp_path / "etc/hosts").read_text()
    keys = tmp_path / "root/.ssh/authorized_keys"
    assert keys.read_text() == f"{KEY}\n"
    assert keys.stat().st_mode & 0o777 == 0o600
    assert keys.parent.stat().st_mode & 0o777 == 0o700
    (tmp_path / "etc/hostname").write_text("changed inside\n")
    assert not apply_first_boot(tmp_path, first, ME)
    assert (tmp_path / "etc/hostname").read_text() == "changed inside\n"
    assert apply_first_boot(tmp_path, settings(again=1), ME)
    assert not apply_first_boot(tmp_path, settings(again=1), ME)
    place(tmp_path, "etc/machine-id", "0123\n")
    assert apply_first_boot(tmp_path, settings("uid-2", "clone"), ME)
    assert (tmp_path / "etc/hostname").read_text() == "clone\n"
    assert (tmp_path / "etc/hosts").read_text().count("127.0.1.1") == 1
    assert (tmp_path / "etc/machine-id").read_text() == ""


@pytest.mark.parametrize("link", ["etc", "root", "root/.ssh"])
def test_a_link_in_place_of_a_folder_leads_nowhere(tmp_path: Path, link: str) -> None:
    outside, root = tmp_path / "outside", tmp_path / "rootfs"
    outside.mkdir()
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(outside)
    with pytest.raises(NotADirectoryError):
        apply_first_boot(root, settings(ssh_authorized_keys=[KEY]), ME)
    assert not list(outside.iterdir())


def test_a_link_in_place_of_a_file_is_replaced_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_text("untouched")
    (tmp_path / "rootfs/etc").mkdir(parents=True)
    for name in ("hostname", "hosts", "resolv.conf", "passwd"):
        (tmp_path / "rootfs/etc" / name).symlink_to(outside)
    apply_first_boot(tmp_path / "rootfs", settings(dns_servers=["10.0.0.1"]), ME)
    assert outside.read_text() == "untouched"
    assert "secret" not in (tmp_path / "rootfs/etc/hosts").read_text()


@needs_root
def test_a_user_is_made_with_keys_password_and_sudo(tmp_path: Path) -> None:
    place(tmp_path, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\nold:x:1000:1000::/home/old:/bin/sh\n")
    place(tmp_path, "etc/group", "root:x:0:\nsudo:x:27:old\nold:x:1000:\n")
    place(tmp_path, "etc/shadow", "root:*:1::::::\n")
    (tmp_path / "etc/sudoers.d").mkdir()
    place(tmp_path, "bin/bash")
    wanted = settings(user="anna", password_hash="$y$j9T$x", ssh_authorized_keys=[KEY], timezone="Europe/Vienna")
    assert apply_first_boot(tmp_path, wanted, 500_000)
    assert "anna:x:1001:1001::/home/anna:/bin/bash\n" in (tmp_path / "etc/passwd").read_text()
    assert "sudo:x:27:old,anna\n" in (tmp_path / "etc/group").read_text()
    assert "anna:$y$j9T$x::0:99999:7:::\n" in (tmp_path / "etc/shadow").read_text()
    assert (tmp_path / "etc/shadow").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "etc/sudoers.d/90-gugus").read_text().startswith("anna ALL=(ALL)")
    keys = tmp_path / "home/anna/.ssh/authorized_keys"
    assert {part.stat().st_uid for part in (keys, keys.parent, keys.parent.parent)} == {501_001}
    assert (tmp_path / "home").stat().st_uid == 500_000
    assert os.readlink(tmp_path / "etc/localtime") == "/usr/share/zoneinfo/Europe/Vienna"
    before = (tmp_path / "etc/passwd").read_text()
    assert apply_first_boot(tmp_path, settings(user="anna", again=1), 500_000)
    assert (tmp_path / "etc/passwd").read_text() == before


def test_addresses_are_written_for_the_network_system_of_the_image(tmp_path: Path) -> None:
    wanted = settings(nics=("eth0", "eth1"), addresses=[STATIC], dns_servers=["10.0.0.1"], dns_search=["lab"])
    networkd, debian, manager, bare = (tmp_path / name for name in ("networkd", "debian", "manager", "bare"))
    place(networkd, "etc/systemd/system/multi-user.target.wants/systemd-networkd.service")
    (networkd / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    place(debian, "sbin/ifup")
    place(debian, "etc/init.d/networking")
    (manager / "etc/NetworkManager/system-connections").mkdir(parents=True)
    bare.mkdir()
    for root in (networkd, debian, manager, bare):
        apply_first_boot(root, wanted, ME)

    text = (networkd / "etc/systemd/network/05-gugus-eth0.network").read_text()
    assert {
        "Name=eth0",
        "DHCP=no",
        "Address=10.0.0.5/24",
        "Address=fd00::5/64",
        "Gateway=10.0.0.1",
        "DNS=10.0.0.1",
    } <= set(text.splitlines())
    assert "DHCP=ipv4" in (networkd / "etc/systemd/network/05-gugus-eth1.network").read_text()
    assert (networkd / "etc/resolv.conf").is_symlink()

    text = (debian / "etc/network/interfaces").read_text()
    assert "iface eth0 inet static\n\taddress 10.0.0.5/24\n\tgateway 10.0.0.1\niface eth0 inet6 static\n" in text
    assert "iface eth1 inet dhcp" in text
    assert "nameserver 10.0.0.1\nsearch lab" in (debian / "etc/resolv.conf").read_text()

    text = (manager / "etc/NetworkManager/system-connections/gugus-eth0.nmconnection").read_text()
    assert "address1=10.0.0.5/24,10.0.0.1" in text

    with Tree(bare, ME) as tree:
        assert addresses.static(addresses.outside(tree, wanted.boot)["eth0"]) == (
            ("10.0.0.5/24", "fd00::5/64"),
            ("10.0.0.1",),
        )
    with Tree(debian, ME) as tree:
        assert addresses.outside(tree, wanted.boot) == {}


def test_what_an_image_said_of_its_program_is_read_back_and_never_trusted(tmp_path: Path) -> None:
    said = image.ImageConfig(("/bin/app", "-x"), {"A": "1"}, "/srv", "app:staff", "SIGINT")
    place(tmp_path, image.FILE, said.to_text())
    place(tmp_path, "etc/passwd", "app:x:33:44::/srv/app:/bin/sh\n")
    place(tmp_path, "etc/group", "staff:x:50:\n")
    with Tree(tmp_path, ME) as tree:
        assert image.read(tree) == said
        assert image.ids_of(tree, said.user) == (33, 50)
        assert image.ids_of(tree, "app") == (33, 44)
        assert image.ids_of(tree, "7") == (7, 0)
        assert image.home_of(tree, 33) == "/srv/app"
        with pytest.raises(ValueError, match="nobody-here"):
            image.ids_of(tree, "nobody-here")
        for nonsense in ("[]", "{", '{"command": 5}', "null"):
            place(tmp_path, image.FILE, nonsense)
            assert image.read(tree) == image.ImageConfig()


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
