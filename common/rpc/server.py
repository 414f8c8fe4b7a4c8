"""Servers: mutual TLS (1.2 or newer) on the port, health and reflection beside the services, every call guarded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from common.config import join_endpoint
from common.errors import GugusError, unavailable
from common.identity.credentials import Credentials
from common.metrics import RpcMetrics
from common.rpc.interceptors import Authoriser, Guard
from common.rpc.options import SERVER_OPTIONS


@dataclass(frozen=True, slots=True)
class Service:
    """A service to offer: the generated `add_..._to_server` function, its servicer, and its full proto name."""

    add: Callable[[Any, Any], None]
    servicer: Any
    full_name: str


class Health:
    """What the health service answers for the whole server and each of its services."""

    def __init__(self, names: Sequence[str]) -> None:
        self.servicer = health.aio.HealthServicer()
        self._names = ("", *names)

    async def set_serving(self, serving: bool) -> None:
        """Answer SERVING or NOT_SERVING from now on; watchers learn of it."""
        kinds = health_pb2.HealthCheckResponse
        for name in self._names:
            await self.servicer.set(name, kinds.SERVING if serving else kinds.NOT_SERVING)


class RunningServer:
    """A server that has its port, and answers once it was started; `port` is the one it got."""

    def __init__(self, server: grpc.aio.Server, port: int, health: Health) -> None:
        self.server = server
        self.port = port
        self.health = health

    async def start(self) -> None:
        """Begin to answer."""
        await self.health.set_serving(True)
        await self.server.start()

    async def stop(self, grace_s: float = 2.0) -> None:
        """Take no new calls, let those under way end within `grace_s`, then cancel them."""
        await self.health.servicer.enter_graceful_shutdown()
        await self.server.stop(grace_s)

    async def wait(self) -> None:
        """Return when the server has stopped."""
        await self.server.wait_for_termination()


async def start_server(
    services: Sequence[Service],
    address: str,
    port: int,
    credentials: Credentials,
    *,
    authorise: Authoriser | None = None,
    require_client_certificate: bool = True,
    metrics: RpcMetrics | None = None,
    inner: Sequence[grpc.aio.ServerInterceptor] = (),
) -> RunningServer:
    """Start serving on one address and port (0 picks a free one). See `bind_server`."""
    running = bind_server(
        services,
        address,
        port,
        credentials,
        authorise=authorise,
        require_client_certificate=require_client_certificate,
        metrics=metrics,
        inner=inner,
    )
    await running.start()
    return running


def bind_server(
    services: Sequence[Service],
    address: str,
    port: int,
    credentials: Credentials,
    *,
    authorise: Authoriser | None = None,
    require_client_certificate: bool = True,
    metrics: RpcMetrics | None = None,
    inner: Sequence[grpc.aio.ServerInterceptor] = (),
) -> RunningServer:
    """Take one address and port (0 picks a free one) for a server that is started later. To be called in the event loop.

    Callers must show a certificate of the same CA and the same cluster as `credentials`, unless
    `require_client_certificate` is False, which is for the enrolment port alone. `authorise` then decides by identity
    and method; `inner` interceptors run after that, closest to the services. The certificate is sent with the CA's, so
    that a joining host can find the CA that its token pins.
    Raises GugusError ADDRESS_IN_USE.
    """
    cluster_id = credentials.identity.cluster_id if require_client_certificate else None
    server = grpc.aio.server(interceptors=[Guard(cluster_id, authorise, metrics), *inner], options=SERVER_OPTIONS)
    for service in services:
        service.add(service.servicer, server)
    names = [service.full_name for service in services]
    state = Health(names)
    health_pb2_grpc.add_HealthServicer_to_server(state.servicer, server)
    reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    tls = grpc.ssl_server_credentials(
        [(credentials.key_pem, credentials.chain_pem)],
        root_certificates=credentials.ca_pem if require_client_certificate else None,
        require_client_auth=require_client_certificate,
    )
    try:
        bound = server.add_secure_port(join_endpoint(address, port), tls)
    except RuntimeError as error:
        raise _cannot_listen(address, port) from error
    return RunningServer(server, bound, state)


def _cannot_listen(address: str, port: int) -> GugusError:
    return unavailable(
        "ADDRESS_IN_USE",
        f"cannot listen on {join_endpoint(address, port)}: the port is taken, or the address is not this host's.",
        remedy=f"`ss -ltnp sport = :{port}` shows who has the port, `ip -br address` the addresses.",
    )
