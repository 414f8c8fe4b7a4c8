"""The account of HA guests: whatever happens in whatever order, what runs or may come to run is in it."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.compute.kvm import driver
from agent.compute.lxc import launch
from agent.compute.processes import ProcessRecord
from agent.fencing.ledger import LONGEST_START_NS, Ledger

GONE = 1 << 22
"""Higher than any pid: for the kernel, no process of this model lives."""


class OneGuest(RuleBasedStateMachine):
    """One guest, one hypervisor that tells the truth of the moment, and agents that die at any line."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 0
        self.ledger = Ledger()
        self.runs: ProcessRecord | None = None
        self.asked = False  # the agent waits for a start
        self.pending_until_ns = 0  # a start that may yet come to something
        self.pids = 0

    @rule(seconds=st.integers(1, 90))
    def time_passes(self, seconds: int) -> None:
        self.now_ns += seconds * 1_000_000_000

    @precondition(lambda self: not self.asked)
    @rule()
    def start_begins(self) -> None:
        self.ledger.admit("web")
        self.asked = True
        if self.runs is None:  # one that runs is left alone
            self.pending_until_ns = self.now_ns + LONGEST_START_NS

    @precondition(lambda self: self.may_appear and self.runs is None)
    @rule()
    def guest_appears(self) -> None:
        self.pids += 1
        self.runs = ProcessRecord(GONE, self.pids)
        self.pending_until_ns = 0

    @precondition(lambda self: self.asked)
    @rule(known=st.booleans(), identified=st.booleans())
    def start_ends(self, known: bool, identified: bool) -> None:
        """known: the hypervisor can say how. A start that has ended comes to nothing afterwards."""
        self.asked = False
        self.pending_until_ns = 0
        if known:
            self.ledger.settled("web", self.seen(identified), running=self.runs is not None, now_ns=self.now_ns)
        else:
            self.ledger.unsettled("web")

    @rule(identified=st.booleans())
    def hypervisor_is_looked_at(self, identified: bool) -> None:
        running = self.runs is not None
        self.ledger.observed("web", self.seen(identified), running=running, now_ns=self.now_ns)

    @precondition(lambda self: self.runs is not None)
    @rule()
    def guest_ends(self) -> None:
        self.runs = None

    @rule()
    def agent_dies_and_another_one_starts(self) -> None:
        record = self.ledger.record(0)
        self.ledger, self.asked = Ledger(), False
        self.ledger.restore(type(record).from_bytes(record.to_bytes()), self.now_ns)

    @invariant()
    def what_may_run_is_in_the_account(self) -> None:
        if self.runs is not None or self.may_appear:
            assert "web" in self.ledger.may_run
            assert self.ledger.record(0).guarded
        if self.may_appear and self.runs is None:
            assert "web" in self.ledger.under_way

    @property
    def may_appear(self) -> bool:
        return self.asked or self.now_ns < self.pending_until_ns

    def seen(self, identified: bool) -> ProcessRecord | None:
        return self.runs if identified else None


def test_no_driver_waits_longer_for_a_start_than_the_account_does() -> None:
    assert max(driver.START_TIMEOUT_S, launch.START_TIMEOUT_S) * 1e9 <= LONGEST_START_NS


OneGuest.TestCase.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)
TestOneGuest = OneGuest.TestCase
