"""Which cluster a client speaks to: its name and id, its managers, and the files that prove who the operator is.

Invariant: a file that is wrong is refused as a whole, naming the file, the key and what would be right.
"""

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.config import ConfigError, split_endpoint
from common.identity.credentials import Credentials
from common.identity.store import Pki

ENVIRONMENT_VARIABLE = "GUGUS_CONFIG"
USER_CONFIG = Path("~/.config/gugus/config.yaml")
HOST_CONFIG = Path("/etc/gugus/client.yaml")

_MAKES_IT = "`gugus cluster init` writes it on the first host; --config or GUGUS_CONFIG names another file."


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """The cluster that a client speaks to. `endpoints` are managers as "host:port"; any of them will do."""

    cluster_name: str
    cluster_id: str
    endpoints: tuple[str, ...]
    ca_crt: Path
    operator_crt: Path
    operator_key: Path

    def credentials(self) -> Credentials:
        """Read the operator's credentials. Raises ConfigError, naming the file that is missing or not readable."""
        return Credentials(*(_read(path) for path in (self.ca_crt, self.operator_crt, self.operator_key)))

    def examine(self, credentials: Credentials) -> None:
        """Look for a fault of the credentials that explains why nobody answers. Raises ConfigError.

        It is not done before: reading certificates takes longer to load than the rest of a short command.
        """
        try:
            identity = credentials.identity
        except ValueError as error:
            raise ConfigError(f"{self.operator_crt} cannot be used: {error}.") from None
        if identity.cluster_id != self.cluster_id:
            raise ConfigError(
                f"{self.operator_crt} is of the cluster {identity.cluster_id}, the configuration of {self.cluster_id}.",
                remedy="Use the certificate and the configuration of the same cluster.",
            )


def for_pki(cluster_name: str, cluster_id: str, endpoints: tuple[str, ...], pki_dir: Path) -> ClientConfig:
    """Return the configuration that uses the operator's certificate in a folder of keys and certificates."""
    pki = Pki(pki_dir)
    return ClientConfig(
        cluster_name=cluster_name,
        cluster_id=cluster_id,
        endpoints=endpoints,
        ca_crt=pki.ca_crt,
        operator_crt=pki_dir / "operator.crt",
        operator_key=pki_dir / "operator.key",
    )


def with_endpoints(config: ClientConfig, endpoints: Sequence[str]) -> ClientConfig:
    """Return the configuration with other managers of the same cluster."""
    return dataclasses.replace(config, endpoints=tuple(endpoints))


def find(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the configuration to use: of GUGUS_CONFIG, else the user's if there is one, else the host's."""
    if named := environment.get(ENVIRONMENT_VARIABLE):
        return Path(named)
    user = USER_CONFIG.expanduser()
    return user if user.exists() else HOST_CONFIG


def dump(config: ClientConfig) -> str:
    """Return the YAML text that `load` reads back to an equal value."""
    plain = {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    return yaml.safe_dump(plain, sort_keys=False)


def load(path: Path | None = None) -> ClientConfig:
    """Read a configuration; None finds it. Relative paths in it are of its own folder. Raises ConfigError."""
    path = path or find()
    data = _parse(path)
    names = [field.name for field in dataclasses.fields(ClientConfig)]
    for key in data:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            remedy = f'Did you mean "{near[0]}"?' if near else f"Known keys: {', '.join(names)}."
            raise ConfigError(f'{path}: unknown key "{key}".', remedy=remedy)
    if missing := [name for name in names if name not in data]:
        raise ConfigError(f'{path}: the key "{missing[0]}" is missing.')
    return ClientConfig(
        cluster_name=_text(path, data, "cluster_name"),
        cluster_id=_text(path, data, "cluster_id"),
        endpoints=_endpoints(path, data["endpoints"]),
        ca_crt=path.parent / _text(path, data, "ca_crt"),
        operator_crt=path.parent / _text(path, data, "operator_crt"),
        operator_key=path.parent / _text(path, data, "operator_key"),
    )


def _parse(path: Path) -> Mapping[str, Any]:
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist.", remedy=_MAKES_IT) from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}.", remedy="Run this as root, or --config."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path}: expected keys and values.", remedy=_MAKES_IT)
    return data


def _endpoints(path: Path, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise ConfigError(f'{path}: "endpoints" must be a list of managers, like ["192.0.2.1:7443"].')
    for item in value:
        try:
            split_endpoint(item)
        except ValueError as error:
            raise ConfigError(f'{path}: "endpoints": {error}.') from None
    return tuple(value)


def _text(path: Path, data: Mapping[str, Any], key: str) -> str:
    value = data[key]
    if not isinstance(value, str) or not value:
        raise ConfigError(f'{path}: "{key}" must be a text, found {value!r}.', remedy="Put numbers in quotes.")
    return value


def _plain(value: Any) -> Any:
    match value:
        case Path():
            return str(value)
        case tuple():
            return list(value)
    return value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist.", remedy=_MAKES_IT) from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}.",
            remedy="The operator's key is its owner's alone: run as root.",
        ) from None
