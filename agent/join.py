"""`gugus-agent join`: makes this host a node, with a one-time token that pins the cluster's CA.

Invariant: it can be run again after any interruption: the key is kept and used again, the configuration is written
last, and a host that belongs to another cluster is left as it is, unless `--rejoin` says that it is to leave that one.
"""

import argparse
import asyncio
import os
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from gugus.cluster.v1 import enrol_pb2, enrol_pb2_grpc

from agent import departure
from agent.managers import SYSTEMD_RUNS
from common import validate
from common.config import DEFAULT_AGENT_CONFIG, AgentConfig, dump, load_agent, split_endpoint
from common.errors import GugusError, from_rpc_error, precondition
from common.files import write_atomic
from common.identity.ca import key_to_pem, make_csr, new_key
from common.identity.credentials import Credentials
from common.identity.enrol import fetch_ca
from common.identity.names import Identity, Role
from common.identity.store import Pki
from common.identity.tokens import JoinToken
from common.process import run
from common.rpc.channel import open_enrolment_channel

UNITS = ("gugus-watchdog.service", "gugus-agent.service")
WITNESS_UNITS = ("gugus-agent.service",)
ENROL_TIMEOUT_S = 20.0
"""For the one call: the manager writes to its replicated state before it answers."""

SYSTEMCTL_TIMEOUT_S = 60.0
NEW_KEY_FILE = "node.key.new"
"""The key while its certificate is still asked for; kept, so that a repeated join is the same host to the manager."""


@dataclass(frozen=True, slots=True)
class JoinOptions:
    """How to join. Empty name: the host's; empty address: the one from which it reaches the manager."""

    config_path: Path
    name: str = ""
    address: str = ""
    force: bool = False
    rejoin: bool = False
    witness: bool = False
    base: AgentConfig | None = None
    """Settings to keep, such as paths and ports of a lab; name, cluster, address and managers are replaced."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the sub-command."""
    parser.add_argument("token", nargs="?", help="the token (others on this host can see it: prefer --token-file)")
    parser.add_argument("--token-file", metavar="FILE", help='file that holds the token; "-" reads standard input')
    parser.add_argument("--name", default="", help="name of the node (default: this host's name)")
    parser.add_argument("--address", default="", help="IP address at which managers reach this host")
    parser.add_argument("--force", action="store_true", help="join again, when this host is of the same cluster")
    parser.add_argument(
        "--rejoin",
        action="store_true",
        help="leave the cluster that this host is of: it was recovered, restored or given up",
    )
    parser.add_argument(
        "--witness", action="store_true", help="vote and run no guests: nothing but a manager runs here"
    )
    parser.add_argument("--start", action="store_true", help="enable and start the agent afterwards")


def command(arguments: argparse.Namespace) -> None:
    """Run the sub-command. Raises GugusError."""
    token = JoinToken.parse(_token_text(arguments.token, arguments.token_file))
    options = JoinOptions(
        config_path=arguments.config,
        name=arguments.name,
        address=arguments.address,
        force=arguments.force,
        rejoin=arguments.rejoin,
        witness=arguments.witness,
        base=load_agent(arguments.config) if arguments.config.exists() else None,
    )
    config = asyncio.run(join(token, options))
    what = "witness" if config.witness else "node"
    print(f'This host is now {what} "{config.name}" of cluster {token.cluster_name} ({config.cluster_id}).')
    if (arguments.start or (arguments.rejoin and arguments.config == DEFAULT_AGENT_CONFIG)) and SYSTEMD_RUNS.exists():
        asyncio.run(_start(_units(config)))
        print("gugus-agent runs.")
    elif arguments.config == DEFAULT_AGENT_CONFIG:
        print(f"Next: systemctl enable --now {' '.join(_units(config))}")
    else:
        print(f"Next: gugus-agent --config {arguments.config}")
    if config.witness:
        print(
            f"When it runs: gugus cluster promote {config.name}, from any host of the cluster. Until then it does not vote."
        )


async def join(token: JoinToken, options: JoinOptions) -> AgentConfig:
    """Enrol this host and write keys and configuration; return the latter.

    Tries the token's endpoints in turn. Raises GugusError: TOKEN_EXPIRED, ALREADY_JOINED, CA_PIN_MISMATCH,
    ENROL_UNREACHABLE, LEASE_HELD, and what the manager refuses with (TOKEN_USED, NODE_EXISTS and the like).
    """
    token.check_expiry()
    draft = options.base or AgentConfig(name="", cluster_id=token.cluster_id, address="")
    if options.witness:  # it has nothing to run, and nothing to guard
        draft = replace(draft, witness=True, hypervisors=(), watchdog_device="")
    pki = Pki(draft.pki_dir)
    leaving = _leaves(pki, token, options)
    name = options.name or (draft.name if leaving else socket.gethostname().partition(".")[0].lower())
    validate.require("--name", validate.name(name))
    if options.address:
        validate.require("--address", validate.ip(options.address))
    if leaving:
        departure.check(draft)
    key = _key(pki)
    errors: list[GugusError] = []
    for endpoint in token.endpoints:
        address = options.address or _own_address(endpoint)
        wanted = replace(draft, name=name, cluster_id=token.cluster_id, address=address)
        try:
            answer = await _enrol(endpoint, token, wanted, key)
        except GugusError as error:
            errors.append(error)
            if error.code is not grpc.StatusCode.UNAVAILABLE:
                break
        else:
            if leaving:
                await departure.depart(draft, options.config_path)
            return _keep(pki, options.config_path, wanted, answer, key)
    raise errors[-1]


async def _enrol(
    endpoint: str, token: JoinToken, config: AgentConfig, key: ec.EllipticCurvePrivateKey
) -> enrol_pb2.EnrolResponse:
    ca_pem = await fetch_ca(endpoint, token.ca_sha256)
    identity = Identity(token.cluster_id, Role.NODE, config.name)
    request = enrol_pb2.EnrolRequest(
        token_id=token.token_id,
        token_secret=token.secret,
        node=config.name,
        address=config.address,
        agent_port=config.port,
        csr=make_csr(identity, key),
        witness=config.witness,
    )
    async with open_enrolment_channel(endpoint, ca_pem, token.cluster_id) as channel:
        try:
            answer = await enrol_pb2_grpc.EnrolServiceStub(channel).Enrol(request, timeout=ENROL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
    if answer.cluster_id != token.cluster_id or answer.ca_certificate.strip() != ca_pem.strip():
        raise precondition("CLUSTER_MISMATCH", f"the manager at {endpoint} is of another cluster than the token.")
    return answer


def _keep(
    pki: Pki, path: Path, config: AgentConfig, answer: enrol_pb2.EnrolResponse, key: ec.EllipticCurvePrivateKey
) -> AgentConfig:
    """Write the keys, then the configuration, whose presence says that the host has joined."""
    credentials = Credentials(answer.ca_certificate, answer.certificate, key_to_pem(key))
    config = replace(config, managers=tuple(answer.managers))
    pki.save(Role.NODE, credentials, replace=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, dump(config).encode())
    (pki.folder / NEW_KEY_FILE).unlink(missing_ok=True)
    return config


def _leaves(pki: Pki, token: JoinToken, options: JoinOptions) -> bool:
    """Return whether this host leaves another cluster by joining this one. Raises GugusError ALREADY_JOINED."""
    if not pki.has(Role.NODE):
        return False
    mine = pki.credentials(Role.NODE).identity
    configured = options.base.cluster_id if options.base is not None and options.base.managers else token.cluster_id
    if options.rejoin and {mine.cluster_id, configured} != {token.cluster_id}:
        return True
    if mine.cluster_id != token.cluster_id:
        raise precondition(
            "ALREADY_JOINED",
            f'this host is node "{mine.name}" of another cluster ({mine.cluster_id}).',
            remedy="If that cluster was recovered or restored, or is given up: --rejoin (docs/recovery.md). Else remove this host there, "
            f"stop gugus-agent, and move {pki.folder} and the agent's state folder away first.",
        )
    complete = options.base is not None and options.base.managers  # else the join was interrupted: finish it
    if complete and not options.force:
        raise precondition(
            "ALREADY_JOINED",
            f'this host is node "{mine.name}" of this cluster already.',
            remedy="Nothing is to be done; --force enrols it again, for example to renew its certificate.",
        )
    return False


def _key(pki: Pki) -> ec.EllipticCurvePrivateKey:
    """Return the key to enrol with: the node's own, or that of an interrupted join, or a new one, kept first."""
    for path in (pki.key(Role.NODE), pki.folder / NEW_KEY_FILE):
        if path.exists():
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
            if isinstance(key, ec.EllipticCurvePrivateKey):
                return key
    key = new_key()
    pki.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_atomic(pki.folder / NEW_KEY_FILE, key_to_pem(key), 0o600)
    return key


def _own_address(endpoint: str) -> str:
    """Return the address from which this host reaches an endpoint; nothing is sent."""
    host, port = split_endpoint(endpoint)
    family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


def _token_text(token: str | None, token_file: str | None) -> str:
    if (token is None) == (token_file is None):
        raise precondition("TOKEN_MISSING", "give the token either as an argument or by --token-file.")
    if token is not None:
        return token
    return sys.stdin.read() if token_file == "-" else Path(str(token_file)).read_text()  # noqa: S105


def _units(config: AgentConfig) -> tuple[str, ...]:
    return WITNESS_UNITS if config.witness else UNITS


async def _start(units: tuple[str, ...]) -> None:
    if os.geteuid() != 0:
        raise precondition("NOT_ROOT", "only root can start units.", remedy="Run: systemctl enable --now gugus-agent")
    await run(["systemctl", "enable", "--now", *units], timeout_s=SYSTEMCTL_TIMEOUT_S)
