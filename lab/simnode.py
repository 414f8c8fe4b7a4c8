"""The init of one simulated node: a process that runs the node's daemons as systemd would, and starts again what dies.

Invariant: a daemon runs exactly while its configuration file is there. This process's environment names the node's
folder, and all that it starts inherits that: by this mark a power cut or a hang finds every process of the node.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from lab.plan import NodePlan
from lab.service import run

#: Seconds between two looks at configurations and daemons.
TICK_SECONDS = 0.1
#: Seconds before a daemon that died is started again; RestartSec of the units.
RESTART_SECONDS = 0.5
#: The daemons, by the module that runs them, and the configuration without which they do not run.
DAEMONS = {
    "agent.watchdog.main": "agent.yaml",
    "agent.main": "agent.yaml",
    "manager.main": "manager.yaml",
}


@dataclass
class Daemon:
    """One daemon of the node. ``not_before``: when it may be started again (monotonic seconds)."""

    module: str
    config: Path
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None)
    not_before: float = 0.0

    def tend(self, now: float) -> None:
        """Start, start again or stop the daemon, as its configuration says."""
        if self.process and self.process.poll() is not None:
            self.process, self.not_before = None, now + RESTART_SECONDS
        wanted = self.config.exists()
        if self.process and not wanted:
            self.process.terminate()
        elif wanted and self.process is None and now >= self.not_before:
            command = [sys.executable, "-m", self.module, "--config", str(self.config)]
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def serve(node: NodePlan) -> None:
    """Tend the node's daemons for ever."""
    etc, logs = node.folder / "etc", node.folder / "log"
    daemons = [Daemon(module, etc / config, logs / f"{module}.log") for module, config in DAEMONS.items()]
    while True:
        for daemon in daemons:
            daemon.tend(time.monotonic())
        time.sleep(TICK_SECONDS)


def main() -> None:
    """Run as ``python -m lab.simnode --lab NAME --state FOLDER --part NODE``."""
    run("lab.simnode", lambda plan, node: serve(plan.node(node)))


if __name__ == "__main__":
    main()
