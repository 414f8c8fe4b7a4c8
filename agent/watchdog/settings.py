"""The few settings of `agent.yaml` that the watchdog needs, read without the whole file's reader and its libraries.

The agent checks the file; here a value that is missing or wrong is the default, for a guard must come up.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True, slots=True)
class Settings:
    """Defaults equal those of common.config.AgentConfig; a test holds them together."""

    watchdog_device: str = "/dev/watchdog"
    watchdog_socket: Path = Path("/run/gugus/watchdog.sock")
    run_dir: Path = Path("/run/gugus")


def load(path: Path) -> Settings:
    """Read the settings. Raises OSError when the file cannot be read, yaml.YAMLError when it is not YAML."""
    value = yaml.safe_load(path.read_text())
    known: dict[str, Any] = value if isinstance(value, dict) else {}
    default = Settings()
    return Settings(
        str(known.get("watchdog_device", default.watchdog_device)),
        Path(str(known.get("watchdog_socket", default.watchdog_socket))),
        Path(str(known.get("run_dir", default.run_dir))),
    )
