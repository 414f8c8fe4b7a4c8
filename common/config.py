"""Configuration of the daemons: YAML files read into frozen values, and every port of the cluster, named once.

A file that is wrong is refused as a whole, naming the file, the key and what would be right: a daemon that guesses
what its operator meant is worse than one that does not start.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import yaml

from common.errors import GugusError
from common.leases import DRIFT_PPM

MANAGER_PORT = 7443
RAFT_PORT = 7444
AGENT_PORT = 7445
ENROL_PORT = 7446
MANAGER_METRICS_PORT = 7447
AGENT_METRICS_PORT = 7448
GATEWAY_PORT = 7449
MIGRATION_PORT = 7450

DEFAULT_AGENT_CONFIG = Path("/etc/gugus/agent.yaml")
DEFAULT_MANAGER_CONFIG = Path("/etc/gugus/manager.yaml")
DEFAULT_PKI_DIR = Path("/etc/gugus/pki")
DEFAULT_RUN_DIR = Path("/run/gugus")


class ConfigError(GugusError):
    """A configuration file that cannot be used; the message names the file, the key and what is right."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(grpc.StatusCode.FAILED_PRECONDITION, "CONFIG_INVALID", message, remedy=remedy)


@dataclass(frozen=True, slots=True)
class Paths:
    """The three folders of a daemon: keys and certificates, durable state, and runtime files that a reboot removes."""

    pki_dir: Path
    state_dir: Path
    run_dir: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """What an agent (and the watchdog beside it) is told by `agent.yaml`."""

    name: str
    cluster_id: str
    address: str
    port: int = AGENT_PORT
    metrics_port: int = AGENT_METRICS_PORT
    migration_port: int = MIGRATION_PORT
    """Where other agents bring guests: TLS, between agents alone."""
    managers: tuple[str, ...] = ()
    """Manager endpoints, "host:port"; the agent finds the acting one among them."""
    hypervisors: tuple[str, ...] = ("kvm", "lxc")
    """Drivers to serve: "kvm", "lxc", "simulated"."""
    witness: bool = False
    """It joins as a witness, which votes and runs no guests; the cluster remembers what it joined as."""
    watchdog_device: str = "/dev/watchdog"
    """Device that resets the host, or "" for none."""
    watchdog_socket: Path = DEFAULT_RUN_DIR / "watchdog.sock"
    libvirt_uri: str = "qemu:///system"
    lxc_path: Path = Path("/var/lib/lxc")
    bind_mount_roots: tuple[Path, ...] = ()
    """Folders of this host under which containers may have folders mounted; none by default."""
    clock_drift_ppm: int = DRIFT_PPM
    pki_dir: Path = DEFAULT_PKI_DIR
    state_dir: Path = Path("/var/lib/gugus/agent")
    run_dir: Path = DEFAULT_RUN_DIR

    @property
    def paths(self) -> Paths:
        """The agent's folders."""
        return Paths(self.pki_dir, self.state_dir, self.run_dir)


@dataclass(frozen=True, slots=True, kw_only=True)
class Voter:
    """One member of the Raft group: the node it runs on and where it listens."""

    name: str
    address: str
    raft_port: int = RAFT_PORT
    port: int = MANAGER_PORT

    @property
    def endpoint(self) -> str:
        """Where clients and agents reach it, "address:port"."""
        return join_endpoint(self.address, self.port)

    @property
    def raft_endpoint(self) -> str:
        """Where the other voters reach it, "address:port"."""
        return join_endpoint(self.address, self.raft_port)


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerConfig:
    """What a manager is told by `manager.yaml`. `voters` holds for the first start; later the state's own set does."""

    name: str
    cluster_id: str
    cluster_name: str
    address: str
    port: int = MANAGER_PORT
    raft_port: int = RAFT_PORT
    enrol_port: int = ENROL_PORT
    metrics_port: int = MANAGER_METRICS_PORT
    gateway_port: int = GATEWAY_PORT
    """Consoles for browsers and terminals, by HTTPS and WebSocket."""
    gateway_origins: tuple[str, ...] = ()
    """Origins, like "https://ui.example.net", whose pages may open consoles beside the gateway's own; none by default."""
    voters: tuple[Voter, ...] = ()
    bootstrap: bool = False
    """True only on the first host: it may start a cluster out of nothing."""
    clock_drift_ppm: int = DRIFT_PPM
    fence_agents_dir: Path = Path("/usr/sbin")
    """Where the programs of Debian's fence-agents are."""
    pki_dir: Path = DEFAULT_PKI_DIR
    state_dir: Path = Path("/var/lib/gugus/manager")
    run_dir: Path = DEFAULT_RUN_DIR

    @property
    def paths(self) -> Paths:
        """The manager's folders."""
        return Paths(self.pki_dir, self.state_dir, self.run_dir)


def load_agent(path: str | Path) -> AgentConfig:
    """Read an agent's configuration. Raises ConfigError."""
    return _load(AgentConfig, Path(path))


def load_manager(path: str | Path) -> ManagerConfig:
    """Read a manager's configuration. Raises ConfigError."""
    return _load(ManagerConfig, Path(path))


def dump(config: AgentConfig | ManagerConfig) -> str:
    """Return the YAML text that `load_agent` or `load_manager` reads back to an equal value."""
    return yaml.safe_dump(_plain(config), sort_keys=False)


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Split "host:port" (IPv6 hosts in brackets). Raises ValueError that says what is wrong."""
    host, colon, port = endpoint.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if not colon or not host or (":" in host and not bracketed):
        raise ValueError(f'"{endpoint}" is not "host:port" (write an IPv6 address in brackets)')
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f'"{endpoint}" has the port "{port}", which is not a number from 1 to 65535')
    return host, int(port)


def join_endpoint(host: str, port: int) -> str:
    """Join host and port to "host:port", putting an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


T = TypeVar("T")


def _load(kind: type[T], path: Path) -> T:
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist.", remedy="`gugus cluster init` or `gugus-agent join TOKEN` writes it."
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    config = _build(kind, data, str(path))
    for part in (config, *getattr(config, "voters", ())):
        _check_ports(part, str(path))
    return config


def _build(kind: type[T], data: Any, where: str) -> T:
    """Build a dataclass from a mapping; `where` is the file and, inside it, the key."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected keys and values, found {_describe(data)}.")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, kind))}
    for key in data:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            remedy = f'Did you mean "{near[0]}"?' if near else f"Known keys: {', '.join(fields)}."
            raise ConfigError(f'{where}: unknown key "{key}".', remedy=remedy)
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in data:
            raise ConfigError(f'{where}: the key "{name}" is missing.')
    return kind(**{key: _value(hints[key], value, where, str(key)) for key, value in data.items()})


def _value(hint: Any, value: Any, where: str, key: str) -> Any:
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if not isinstance(value, list):
            raise ConfigError(f'{where}: "{key}" must be a list, found {_describe(value)}.')
        return tuple(_value(item, v, where, f"{key}[{i}]") for i, v in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type[Any], hint), value, f'{where}: "{key}"')
    if hint is Path:
        if not (isinstance(value, str) and value.startswith("/")):
            raise ConfigError(f'{where}: "{key}" must be an absolute path, found {_describe(value)}.')
        return Path(value)
    if type(value) is not hint:  # exact, for a bool is an int to isinstance
        raise ConfigError(f'{where}: "{key}" must be {_TYPE_WORDS[hint]}, found {_describe(value)}.')
    return value


def _check_ports(config: Any, where: str) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name.endswith("port") and not 1 <= value <= 65535:
            raise ConfigError(f'{where}: "{field.name}" must be a port from 1 to 65535, found {value}.')
    for endpoint in getattr(config, "managers", ()):
        try:
            split_endpoint(endpoint)
        except ValueError as error:
            raise ConfigError(f'{where}: "managers": {error}.') from None


def _plain(value: Any) -> Any:
    match value:
        case Path():
            return str(value)
        case tuple():
            return [_plain(v) for v in value]
        case _ if dataclasses.is_dataclass(value):
            return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def _describe(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case Mapping():
            return "keys and values"
        case list():
            return "a list"
    return f"{value!r}"


_TYPE_WORDS: Mapping[Any, str] = types.MappingProxyType(
    {str: "a text", int: "a whole number", bool: "true or false", float: "a number"}
)
