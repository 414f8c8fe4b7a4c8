"""What an agent must not forget: epoch, generations, guests, pools, networks, lapses, managers. One small file each.

Invariant: memory is changed only after the disk was: what a getter tells survives a power cut.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from gugus.agent.v1 import guest_pb2, network_pb2, volume_pb2
from gugus.cluster.v1 import heartbeat_pb2

from common.errors import GugusError, precondition
from common.files import read_json, remove_durably, write_atomic, write_json

M = TypeVar("M", bound=Message)
T = TypeVar("T")

FILE_MODE = 0o600
FOLDER_MODE = 0o700
THREADS = 2


class AgentState:
    """The state folder of an agent. Methods block for a sync of the disk: call them through `run`.

    Names become file names: callers pass names that `common.validate.name` accepts. Raises GugusError STATE_DAMAGED
    when a file cannot be read back, and OSError when one cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for part in ("guests", "pools", "networks", "generations"):
            (folder / part).mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        self._guests = _read_all(folder / "guests", guest_pb2.GuestSpec)
        self._pools = _read_all(folder / "pools", volume_pb2.PoolSpec)
        self._networks = _read_all(folder / "networks", network_pb2.NetworkSpec)
        self._epoch = int(self._json("epoch.json", 0))
        self._generations = {p.stem: int(_read(p, read_json)) for p in (folder / "generations").glob("*.json")}
        self._managers = tuple(str(m) for m in self._json("managers.json", ()))
        self._threads = ThreadPoolExecutor(THREADS, "state")
        lapse = folder / "lapse.pb"
        self._lapse = _message(lapse, heartbeat_pb2.LapseReport) if lapse.exists() else heartbeat_pb2.LapseReport()

    async def run(self, change: Callable[..., T], *args: Any) -> T:
        """Make a change off the event loop, in threads of its own: the lease must not hang on what hangs elsewhere."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, change, *args)

    @property
    def epoch(self) -> int:
        """Highest epoch of a manager seen; 0 before the first."""
        return self._epoch

    def raise_epoch(self, epoch: int) -> None:
        """Keep a higher epoch; a lower one changes nothing."""
        if epoch > self._epoch:
            write_json(self._folder / "epoch.json", epoch, FILE_MODE)
            self._epoch = epoch

    def generation(self, uid: str) -> int:
        """Highest generation granted to this host for the guest with this UUID; 0 when none was."""
        return self._generations.get(uid, 0)

    def raise_generation(self, uid: str, generation: int) -> None:
        """Keep a higher generation. It stays when the guest is deleted, so that an old grant is refused for ever."""
        if generation > self.generation(uid):
            write_json(self._folder / "generations" / f"{uid}.json", generation, FILE_MODE)
            self._generations[uid] = generation

    @property
    def guests(self) -> MappingProxyType[str, guest_pb2.GuestSpec]:
        """Guests defined on this host, by name. Not to be changed."""
        return MappingProxyType(self._guests)

    def save_guest(self, spec: guest_pb2.GuestSpec) -> None:
        """Keep a guest."""
        self._save("guests", spec.name, spec, self._guests)

    def remove_guest(self, name: str) -> None:
        """Forget a guest."""
        self._remove("guests", name, self._guests)

    @property
    def pools(self) -> Mapping[str, volume_pb2.PoolSpec]:
        """Pools of this host, by name. Not to be changed."""
        return MappingProxyType(self._pools)

    def save_pool(self, spec: volume_pb2.PoolSpec) -> None:
        """Keep a pool."""
        self._save("pools", spec.name, spec, self._pools)

    def remove_pool(self, name: str) -> None:
        """Forget a pool."""
        self._remove("pools", name, self._pools)

    @property
    def networks(self) -> Mapping[str, network_pb2.NetworkSpec]:
        """Networks of this host, by name. Not to be changed."""
        return MappingProxyType(self._networks)

    def save_network(self, spec: network_pb2.NetworkSpec) -> None:
        """Keep a network."""
        self._save("networks", spec.name, spec, self._networks)

    def remove_network(self, name: str) -> None:
        """Forget a network."""
        self._remove("networks", name, self._networks)

    @property
    def lapse(self) -> heartbeat_pb2.LapseReport:
        """The last lapse of this host; number 0 when there was none."""
        return self._lapse

    def save_lapse(self, report: heartbeat_pb2.LapseReport) -> None:
        """Keep the report of a lapse."""
        write_atomic(self._folder / "lapse.pb", report.SerializeToString(), FILE_MODE)
        self._lapse = report

    @property
    def managers(self) -> tuple[str, ...]:
        """Managers' endpoints as last learned from one of them; may be empty."""
        return self._managers

    def save_managers(self, managers: tuple[str, ...]) -> None:
        """Keep the managers' endpoints."""
        if managers != self._managers:
            write_json(self._folder / "managers.json", list(managers), FILE_MODE)
            self._managers = managers

    def _save(self, part: str, name: str, value: M, values: dict[str, M]) -> None:
        if values.get(name) == value:
            return
        kept = type(value)()
        kept.CopyFrom(value)
        write_atomic(self._folder / part / f"{name}.pb", kept.SerializeToString(), FILE_MODE)
        values[name] = kept

    def _remove(self, part: str, name: str, values: dict[str, M]) -> None:
        if name in values:
            remove_durably(self._folder / part / f"{name}.pb")
            del values[name]

    def _json(self, name: str, default: Any) -> Any:
        path = self._folder / name
        return _read(path, read_json) if path.exists() else default


def _read_all(folder: Path, kind: type[M]) -> dict[str, M]:
    return {path.stem: _message(path, kind) for path in sorted(folder.glob("*.pb"))}


def _message(path: Path, kind: type[M]) -> M:
    message: M = _read(path, lambda p: kind.FromString(p.read_bytes()))
    return message


def _read(path: Path, how: Any) -> Any:
    try:
        return how(path)
    except (OSError, ValueError, DecodeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> GugusError:
    return precondition(
        "STATE_DAMAGED",
        f"{path} cannot be read: {error}.",
        remedy="It is the agent's memory of what it may run. Restore it, or remove this node from the cluster, empty "
        "the folder and join again.",
        subject=str(path),
    )
