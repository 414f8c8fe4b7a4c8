"""How long a guest that goes over may stand still, pass by pass."""

from gugus.agent.v1.migration_pb2 import MigrationPolicy

from agent.compute.kvm.policy import DEFAULT_DOWNTIME_MS, FIRST_DOWNTIME_MS, Watch, downtime_ms, forgets_writes


def test_a_guest_that_goes_over_quickly_stands_still_for_a_moment_only() -> None:
    assert [downtime_ms(MigrationPolicy(), passes) for passes in range(3)] == [FIRST_DOWNTIME_MS] * 3


def test_one_that_changes_much_gets_more_with_each_pass_up_to_its_limit() -> None:
    assert [downtime_ms(MigrationPolicy(), passes) for passes in (3, 4, 5, 6, 1000)] == [100, 200, 300, 300, 300]
    generous = MigrationPolicy(downtime_limit_ms=2000)
    assert [downtime_ms(generous, passes) for passes in (2, 5, 8, 1000)] == [50, 400, 2000, 2000]


def test_a_limit_below_the_first_step_is_kept_from_the_start() -> None:
    assert {downtime_ms(MigrationPolicy(downtime_limit_ms=20), passes) for passes in range(9)} == {20}


def test_each_longer_time_is_allowed_once() -> None:
    told: list[int] = []

    class Domain:
        def migrateSetMaxDowntime(self, milliseconds: int, flags: int) -> None:
            told.append(milliseconds)

    watch = Watch(MigrationPolicy(), 0.0)
    for passes in (1, 2, 3, 3, 7, 9):
        if (act := watch.longer({"memory_iteration": passes})) is not None:
            act(Domain())
    assert told == [100, DEFAULT_DOWNTIME_MS]


def test_a_guest_whose_emulator_forgets_writes_is_sent_in_few_passes() -> None:
    assert [downtime_ms(MigrationPolicy(), passes, forgetful=True) for passes in (0, 3, 9)] == [DEFAULT_DOWNTIME_MS] * 3
    assert downtime_ms(MigrationPolicy(downtime_limit_ms=20), 0, forgetful=True) == 20
    watch = Watch(MigrationPolicy(), 0.0, forgetful=True)
    assert watch.longer({"memory_iteration": 9}) is None


def test_only_an_emulator_before_9_forgets_writes() -> None:
    assert forgets_writes("qemu", 7_002_022)
    assert forgets_writes("qemu", 8_002_004)
    assert not forgets_writes("qemu", 9_000_000)
    assert not forgets_writes("kvm", 7_002_022)
