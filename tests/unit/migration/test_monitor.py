"""A monitor of our own at a QEMU that was told of it on its command line."""

import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.compute.kvm.monitor import Monitor
from agent.compute.kvm.xml.monitor import NAMESPACE, add_monitor, remove_monitor
from common.errors import GugusError

ARG = f"{{{NAMESPACE}}}arg"


def arguments(domain: ET.Element) -> list[str]:
    return [argument.get("value", "") for argument in domain.iter(ARG)]


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Monitor]:
    domain, path = ET.Element("domain"), tmp_path / "qmp"
    add_monitor(domain, str(path))
    command = ["qemu-system-x86_64", "-machine", "none", "-display", "none", "-S", *arguments(domain)]
    with subprocess.Popen(command) as process:
        try:
            while not path.exists():
                assert process.poll() is None
                time.sleep(0.01)
            opened = Monitor(path)
            yield opened
            opened.close()
        finally:
            process.kill()


def test_a_guest_goes_on_at_our_word(monitor: Monitor) -> None:
    assert not monitor.execute("query-status")["running"]
    monitor.execute("cont")
    assert monitor.execute("query-status")["running"]
    with pytest.raises(GugusError, match="no-such-thing"):
        monitor.execute("no-such-thing")


def test_a_socket_that_nobody_listens_at_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Monitor(tmp_path / "qmp")


def test_a_domain_has_one_monitor_of_ours_however_often_it_moves() -> None:
    domain = ET.fromstring("<domain><name>web</name></domain>")
    add_monitor(domain, "/run/first")
    add_monitor(domain, "/run/second")
    assert [value for value in arguments(domain) if "path=" in value] == [
        "socket,id=gugus-monitor,path=/run/second,server=on,wait=off"
    ]
    remove_monitor(domain)
    assert ET.tostring(domain, encoding="unicode") == "<domain><name>web</name></domain>"


def test_what_others_tell_qemu_stays() -> None:
    domain = ET.fromstring(
        f"<domain xmlns:q='{NAMESPACE}'><q:commandline><q:arg value='-foo'/></q:commandline></domain>"
    )
    add_monitor(domain, "/run/ours")
    remove_monitor(domain)
    assert arguments(domain) == ["-foo"]
