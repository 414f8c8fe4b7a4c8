"""A guest that comes in, told of by its QEMU and by the connection of the two libvirts."""

import json
import socket
import subprocess
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.compute.kvm import incoming as module
from agent.compute.kvm.incoming import Incoming
from agent.compute.kvm.xml.monitor import add_monitor
from tests.unit.migration.test_control import message
from tests.unit.migration.test_monitor import arguments

Start = Callable[..., None]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a QEMU without a machine, with a monitor at a path."""
    running = []

    def qemu(path: Path, *more: str) -> None:
        domain = ET.Element("domain")
        add_monitor(domain, str(path))
        words = ["qemu-system-x86_64", "-machine", "none", "-display", "none", "-S", *arguments(domain), *more]
        running.append(subprocess.Popen(words))

    yield qemu
    for process in running:
        process.kill()
        process.wait()


def send(path: Path, to: Path) -> None:
    """Have the QEMU with a monitor at `path` migrate."""
    while not path.exists():
        time.sleep(0.01)
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.connect(str(path))
        for command in ({"execute": "qmp_capabilities"}, {"execute": "migrate", "arguments": {"uri": f"unix:{to}"}}):
            monitor.sendall(json.dumps(command).encode() + b"\n")
            monitor.recv(65536)
        time.sleep(0.2)


@pytest.fixture
def libvirtd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What listens where libvirtd does."""
    path = tmp_path / "libvirt"
    monkeypatch.setattr(module, "LIBVIRT_SOCKETS", (path,))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        yield server


def test_it_is_complete_when_its_memory_is_here_and_the_source_is_through(
    tmp_path: Path, start: Start, libvirtd: socket.socket
) -> None:
    memory, path, source = tmp_path / "memory", tmp_path / "run", tmp_path / "source"
    guest = Incoming(path)
    start(path, "-incoming", f"unix:{memory}", "-global", "migration.x-events=on")  # libvirt turns them on by a command
    start(source)
    assert not guest.wait(1.0), "nothing has come"
    assert not path.exists(), "nobody else is to have a monitor"
    send(source, memory)
    assert not guest.wait(1.0), "the source may still call it off"
    with guest.connect_libvirt() as control:
        control.send(memoryview(message(cancelled=1)))
        assert not guest.wait(0.1)
        control.send(memoryview(message()))
        assert guest.wait(5.0)
        assert guest.wait(0.1), "and stays so"
        guest.go_on()
    guest.close()


def test_a_qemu_that_does_not_answer_leaves_it_to_libvirt(tmp_path: Path) -> None:
    guest = Incoming(tmp_path / "run")
    assert not guest.wait(0.1), "it has not been started yet"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "run"))
        server.listen()

        def hang_up() -> None:
            server.accept()[0].close()
            server.close()

        hangs_up = threading.Thread(target=hang_up)
        hangs_up.start()
        assert not guest.wait(0.3)
        hangs_up.join()
    guest.go_on()
    guest.close()


def test_it_can_be_given_up_while_it_is_waited_for(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "run"
    guest = Incoming(path)
    start(path, "-incoming", f"unix:{tmp_path / 'memory'}")
    while not guest._monitor:
        guest.wait(0.1)
    threading.Timer(0.2, guest.close).start()
    began_s = time.monotonic()
    assert not guest.wait(30.0)
    assert time.monotonic() - began_s < 10
