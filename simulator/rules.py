"""What holds in a simulated cluster. A mutation switches one of these off, to see that the simulation would notice."""

from collections.abc import Callable
from dataclasses import dataclass

from common.leases import LeaseTimes
from manager.ha import node_machine
from manager.ha.node_machine import NodeView

Renews = Callable[[NodeView, int, LeaseTimes], bool]


@dataclass(frozen=True, slots=True)
class Rules:
    """The protocol of the product: everything is on."""

    generations: bool = True
    epochs: bool = True
    raise_epoch: bool = True
    start_needs_lease: bool = True
    epoch_of_decision: bool = True
    recovery_minds_migrations: bool = True
    hand_over: bool = True
    given_is_stale: bool = True
    word_after_arrival: bool = True
    boots_know_the_epoch: bool = True
    proofs_end: bool = True
    """A device's word is forgotten when the node is back."""
    watchdog_minds_leases: bool = True
    """Else it is fed as long as the agent's process is there, whatever becomes of the lease."""
    storage_locks: bool = True
    """A start minds who has the guest's disks locked in the storage."""
    renews: Renews = node_machine.renews
    managers_times: LeaseTimes | None = None
    """What managers reckon with; None for what agents do."""
