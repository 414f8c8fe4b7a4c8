from hypothesis import given
from hypothesis import strategies as st

from manager.ha.manager_lease import (
    Acquire,
    Hold,
    LeaseMachine,
    LeaseView,
    Release,
    Renew,
    StandDown,
    waited_out_ns,
)

S = 1_000_000_000
TTL = 3_000


def lease(holder: str, epoch: int, renewals: int = 1, revision: int = 1) -> LeaseView:
    return LeaseView(holder, epoch, TTL, renewals, revision)


def holding(asked_ns: int = 0) -> LeaseMachine:
    return LeaseMachine("m1").proposed(1, asked_ns).granted(asked_ns, lease("m1", 1))


def test_a_free_lease_is_taken_by_who_leads_only() -> None:
    assert LeaseMachine("m1").step(0, True) == Acquire(1, 0)
    assert isinstance(LeaseMachine("m1").step(0, False), Hold)
    handed_back = LeaseMachine("m1").observe(lease("", 7, revision=9), 0)
    assert handed_back.step(0, True) == Acquire(8, 9)


def test_the_holder_counts_from_before_it_asked() -> None:
    machine = holding(asked_ns=10 * S)
    assert machine.acting(13 * S - 1)
    assert not machine.acting(13 * S)


def test_the_holder_renews_after_a_third() -> None:
    machine = holding()
    assert isinstance(machine.step(S - 1, True), Hold)
    assert machine.step(S, True) == Renew(1, 2, 1)
    renewed = machine.proposed(1, S).granted(S, lease("m1", 1, 2, 2))
    assert renewed.acting(4 * S - 1)


def test_a_holder_that_cannot_renew_stands_down_and_may_come_back() -> None:
    machine = holding()
    assert isinstance(machine.step(2 * S, False), Hold)
    assert isinstance(machine.step(3 * S, False), StandDown)
    assert machine.step(5 * S, True) == Renew(1, 2, 1)


def test_another_holder_ends_the_own_validity_at_once() -> None:
    machine = holding().observe(lease("m2", 2, revision=5), S)
    assert not machine.acting(S)
    assert machine.epoch == 0


def test_another_takes_over_only_a_full_ttl_after_the_last_renewal_it_saw() -> None:
    machine = LeaseMachine("m2").observe(lease("m1", 1), 0)
    machine = machine.observe(lease("m1", 1, renewals=2, revision=2), 2 * S)
    free = 2 * S + waited_out_ns(TTL, 1_000)
    assert free > 5 * S
    assert isinstance(machine.step(free - 1, True), Hold)
    assert machine.step(free, True) == Acquire(2, 2)


def test_a_restarted_holder_waits_like_everyone() -> None:
    machine = LeaseMachine("m1").observe(lease("m1", 1), 0)
    assert isinstance(machine.step(S, True), Hold)
    assert machine.step(waited_out_ns(TTL, 1_000), True) == Acquire(2, 1)


def test_an_acquisition_whose_answer_was_lost_is_kept_by_renewing() -> None:
    machine = LeaseMachine("m1").proposed(1, 0).observe(lease("m1", 1), S)
    assert not machine.acting(S), "nobody knows yet since when"
    assert machine.step(S, True) == Renew(1, 2, 1)


def test_a_raised_epoch_is_acted_in_without_a_break() -> None:
    machine = holding().observe(lease("m1", 2, revision=4), S // 2)
    assert machine.acting(S)
    assert machine.epoch == 2


def test_a_lease_is_handed_back_only_by_its_holder() -> None:
    assert holding().released() == Release(1)
    assert LeaseMachine("m2").observe(lease("m1", 1), 0).released() is None


@given(
    proposed_ns=st.integers(0, 10 * S),
    commit_delay_ns=st.integers(0, 5 * S),
    slower_ppm=st.integers(-1_000, 1_000),
)
def test_two_managers_never_act_at_once_for_any_clocks_within_the_bound(
    proposed_ns: int, commit_delay_ns: int, slower_ppm: int
) -> None:
    """Real time is the waiter's; the holder's clock runs `slower_ppm` slower than it."""
    holder_ends = proposed_ns + TTL * 1_000_000 * (1_000_000 + slower_ppm) // 1_000_000
    waiter = LeaseMachine("m2").observe(lease("m1", 1), proposed_ns + commit_delay_ns)
    assert isinstance(waiter.step(holder_ends, True), Hold)
