"""What guests use, smoothed: any rhythm of looks, spikes, restarts, moves, and what is not known yet."""

import pytest
from gugus.agent.v1.guest_pb2 import GUEST_STATE_RUNNING, GUEST_STATE_STOPPED, GuestState
from gugus.cluster.v1.guest_pb2 import POWER_OFF, Guest
from gugus.cluster.v1.heartbeat_pb2 import GuestReport
from hypothesis import given
from hypothesis import strategies as st

from manager.scheduler.load import RESERVED, Load, Loads
from manager.scheduler.views import guest_request, node_views
from tests.unit.scheduler.evening import GIB, NS, guest, node

TAU_NS = 600 * NS


class Meter:
    """A guest with two CPUs, and what is learnt of it."""

    def __init__(self) -> None:
        self.loads, self.guest = Loads(), guest("web", "n1", cpus=2, memory_gib=4)
        self.now_s, self.used_s, self.generation, self.node = 0.0, 0.0, 1, "n1"

    def run(self, seconds: float, busy: float, state: GuestState.ValueType = GUEST_STATE_RUNNING) -> None:
        """Let time pass with so many CPUs busy, then hear of it."""
        self.now_s += seconds
        self.used_s += seconds * busy
        self.hear(self.node, self.generation, self.used_s, state)

    def hear(self, on: str, generation: int, used_s: float, state: GuestState.ValueType = GUEST_STATE_RUNNING) -> None:
        report = GuestReport(
            name="web",
            uid=self.guest.meta.uid,
            state=state,
            generation=generation,
            cpu_time_ns=round(used_s * NS),
            memory_used_bytes=GIB,
        )
        self.loads.heard(on, [report], round(self.now_s * NS), TAU_NS)

    def load(self) -> Load:
        return self.loads.of(self.guest, 2, 4 * GIB)


def seen(busy: float = 0.5) -> Meter:
    made = Meter()
    for _ in range(200):
        made.run(15, busy)
    return made


@given(st.lists(st.floats(0.5, 300), min_size=1, max_size=60))
def test_a_steady_use_is_told_exactly_however_often_it_is_looked_at(pauses: list[float]) -> None:
    meter = Meter()
    meter.run(1, 0.5)
    for pause in [*pauses, 700.0]:
        meter.run(pause, 0.5)
    load = meter.load()
    assert load.cpu == pytest.approx(0.25, rel=1e-6)
    assert load.memory == pytest.approx(0.25)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40))
def test_the_rhythm_of_looks_does_not_matter(pauses: list[int]) -> None:
    """Busy for 20 minutes, then idle for 10: looked at each second, or whenever."""
    ends = []
    for rhythm in ([1], pauses):
        meter = Meter()
        meter.run(0.001, 0)
        for phase_s, busy in ((1200, 1.0), (600, 0.0)):
            left, turn = phase_s, 0
            while left > 0:
                step = min(left, rhythm[turn % len(rhythm)])
                meter.run(step, busy)
                left, turn = left - step, turn + 1
        ends.append(meter.load().cpu)
    assert ends[0] == pytest.approx(ends[1], abs=0.002)


def test_a_spike_does_not_count_and_a_lasting_change_does() -> None:
    meter = seen(0.2)
    assert meter.load().cpu == pytest.approx(0.1)
    meter.run(15, 2.0)
    assert meter.load().cpu < 0.13, "all CPUs busy for one look"
    for _ in range(80):  # two time constants
        meter.run(15, 2.0)
    assert meter.load().cpu > 0.85


def test_what_is_not_known_yet_counts_as_it_is_promised() -> None:
    meter = Meter()
    assert meter.load() == RESERVED
    for _ in range(16):
        meter.run(15, 0.5)
    assert meter.load() == RESERVED, "a look is missing still: the first one began to count"
    meter.run(15, 0.5)
    assert meter.load().cpu == pytest.approx(0.25)
    meter.loads.clear()
    assert meter.load() == RESERVED, "another manager knows nothing"


def test_a_guest_that_moves_keeps_its_load() -> None:
    meter = seen()
    meter.node, meter.generation, meter.used_s = "n2", 2, 0.0
    meter.run(15, 0.5)
    meter.run(15, 0.5)
    assert meter.load().cpu == pytest.approx(0.25)
    meter.hear("n1", 1, 9_000.0)  # what is left of it on n1
    meter.run(15, 0.5)
    assert meter.load().cpu == pytest.approx(0.25)


def test_a_restart_is_no_use_and_what_stands_still_is_not_counted() -> None:
    meter = seen()
    meter.run(600, 0.0, GUEST_STATE_STOPPED)
    meter.used_s = 0.0
    meter.run(15, 0.0)
    meter.run(15, 0.5)
    assert meter.load().cpu == pytest.approx(0.25, abs=0.001)
    meter.guest.spec.power = POWER_OFF
    assert meter.load() == Load()


def test_who_is_not_told_of_any_more_is_forgotten() -> None:
    meter = seen()
    meter.loads.forget(round((meter.now_s + 1700) * NS), TAU_NS)
    assert meter.loads.known(meter.guest.meta.uid)
    meter.loads.forget(round((meter.now_s + 1900) * NS), TAU_NS)
    assert meter.load() == RESERVED


def test_a_copy_without_a_definition_is_nobodys() -> None:
    loads = Loads()
    loads.heard("n1", [GuestReport(name="web", cpu_time_ns=5)], NS, TAU_NS)
    assert not loads.known("")


def test_placement_counts_what_is_used_on_each_node() -> None:
    busy = guest("busy", "n1", cpus=4, memory_gib=8)

    def load_of(_: Guest) -> Load:
        return Load(0.5, 0.25)

    (view,) = node_views([node("n1")], [busy], load_of=load_of)
    assert (view.busy_cpus, view.used_memory_bytes) == (2.0, 2 * GIB)
    asked = guest_request(busy, load_of=load_of)
    assert (asked.cpu_load, asked.memory_load) == (0.5, 0.25)
