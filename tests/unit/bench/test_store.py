"""The store benchmark's own parts: what it counts, that our member speaks the protocol, that nothing is left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from bench.store import __main__ as command
from bench.store import stubs
from bench.store.client import Cluster
from bench.store.config import MemberConfig
from bench.store.figures import Figure, judged, medians, percentile
from bench.store.sides import CannotMeasure, etcd_program, free_ports
from bench.store.tls import HOST, Pki
from lab.machine import bound_to_us


@pytest.fixture
async def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setenv(stubs.ENVIRONMENT, "")
    stubs.generate(tmp_path / "stubs")
    from bench.store.member import serve

    pki = Pki(tmp_path / "pki")
    files = pki.manager("m1")
    raft, port = free_ports(2)
    paths = str(files.ca), str(files.certificate), str(files.key)
    serving = asyncio.create_task(serve(MemberConfig("m1", {"m1": raft}, port, str(tmp_path / "data"), *paths)))
    cluster = Cluster([f"{HOST}:{port}"], pki.operator())
    yield cluster
    await cluster.close()
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_our_member_speaks_the_used_part_of_etcds_protocol(cluster: Cluster) -> None:
    leader = await cluster.ready()
    await leader.put(b"bench/a", b"1")
    first = await leader.get(b"bench/a")
    assert first.value == b"1"
    assert await leader.get(b"bench/none") is None
    assert await leader.swap(b"bench/a", b"2", first.mod_revision)
    assert not await leader.swap(b"bench/a", b"3", first.mod_revision), "the revision has moved on"
    assert not await leader.swap(b"bench/a", b"3", 0), "0 means absent"
    assert (await leader.get(b"bench/a", local=True)).value == b"2"
    await leader.put_all({b"bench/b": b"1", b"bench/c": b"1"})
    assert await leader.count(b"bench/") == 4, "a, b, c, and the key that `ready` wrote"


async def test_a_watch_says_that_it_is_on_and_then_yields_changes(cluster: Cluster) -> None:
    leader = await cluster.ready()
    async with aclosing(leader.watch(b"bench/w")) as answers:
        assert (await anext(answers)).created
        await leader.put(b"bench/other", b"")
        await leader.put(b"bench/watched", b"1")
        (event,) = (await anext(answers)).events
        assert (event.kv.key, event.kv.value) == (b"bench/watched", b"1")


async def test_the_first_accepted_write_is_found(cluster: Cluster) -> None:
    began = time.monotonic()
    assert began < await cluster.first_write(b"bench/first", 0.02) <= time.monotonic()


def test_percentiles_are_measured_values() -> None:
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile(list(map(float, range(1, 101))), 99) == 99.0
    assert percentile([5.0], 99) == 5.0


def test_figures_are_medians_and_targets_are_judged_for_what_was_measured() -> None:
    figures = medians([{"failover_p50_s": t} for t in (9.0, 1.0, 1.2)], [{"failover_p50_s": t} for t in (1.0, 1.1)])
    assert figures["failover_p50_s"] == Figure(1.2, 1.05)
    assert [target["met"] for target in judged(figures)] == [True, False]


def test_a_missing_etcd_is_named_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CannotMeasure, match="apt-get install etcd-server"):
        etcd_program()


def test_a_folder_in_memory_is_refused() -> None:
    with pytest.raises(CannotMeasure, match="not a disk"), command.work_folder(Path("/dev/shm")):
        pass


def test_the_folder_goes_and_so_do_those_of_runs_that_were_killed(tmp_path: Path) -> None:
    killed = tmp_path / "gugus-bench-store-killed"
    killed.mkdir()
    with command.work_folder(tmp_path) as ours:
        assert not killed.exists()
        with command.work_folder(tmp_path):
            assert ours.exists(), "another run's, which still goes on"
    assert not list(tmp_path.iterdir())


def test_the_kernel_kills_a_member_whose_benchmark_was_killed() -> None:
    code = (
        f"import subprocess; p = subprocess.Popen({bound_to_us(['sleep', '60'])}); print(p.pid, flush=True); p.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        while Path(f"/proc/{child}/comm").read_text() != "sleep\n":  # until setpriv has made way for it
            time.sleep(0.01)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and _state(child) != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_ports_stay_ours_between_two_starts() -> None:
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = free_ports(6)
    assert len(set(ports)) == 6
    assert max(ports) < max(low, os.cpu_count() or 0)
