"""What the acting manager thinks of the nodes' evenness, for those who ask: the status and the metrics. Kept in memory only."""

from dataclasses import dataclass, field

from gugus.cluster.v1.cluster_pb2 import BalanceStatus


@dataclass(slots=True)
class Outlook:
    """The newest look (`manager.controllers.balancing`), and what came of it since this manager took over."""

    status: BalanceStatus | None = None
    """None before the first look."""
    parts: dict[str, float] = field(default_factory=dict)
    """Parts of the score as it is, by name (planner.objective.METRICS)."""
    moves_begun: int = 0
    """Migrations that balancing began by itself."""

    def clear(self) -> None:
        """Forget everything."""
        self.status, self.moves_begun = None, 0
        self.parts.clear()
