"""Metrics for Prometheus: the latency of calls, and `/metrics` over mutual TLS for any holder of a certificate."""

import socket
import ssl
import threading
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, Histogram, make_wsgi_app

from common.identity.credentials import Credentials
from common.identity.tls import server_context

REQUEST_TIMEOUT_S = 10.0
"""Longest wait for a scraper's handshake or next byte; Prometheus' own scrape time-out is 10 s by default."""

RPC_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)


class RpcMetrics:
    """The histogram `gugus_rpc_seconds{side,method,code}`: how long calls took. side is "server" or "client"."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "gugus_rpc_seconds",
            "Duration of gRPC calls in seconds, whole streams included.",
            ("side", "method", "code"),
            buckets=RPC_BUCKETS_S,
            registry=registry,
        )

    def observe(self, side: str, method: str, code: str, seconds: float) -> None:
        """Count one finished call."""
        self._seconds.labels(side, method, code).observe(seconds)


class MetricsServer:
    """A running `/metrics` server in its own threads."""

    def __init__(self, server: "_Server") -> None:
        self._server = server
        self.port: int = server.server_address[1]
        self._thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread, which else looks up twice a second only
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def start_metrics_server(
    registry: CollectorRegistry, address: str, port: int, credentials: Credentials
) -> MetricsServer:
    """Serve a registry over TLS to whoever shows a certificate of the cluster's CA. Port 0 picks a free one.

    Collectors run in the server's threads: they must read a snapshot and never block. Raises OSError when the port
    is taken.
    """
    kind = _Server6 if ":" in address else _Server
    server = kind((address, port), _Handler)
    server.tls = server_context(credentials)
    server.set_app(make_wsgi_app(registry))
    return MetricsServer(server)


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not worth a line in the log."""


class _Server(ThreadingMixIn, WSGIServer):
    """Shakes hands in the request's own thread, so that a silent client blocks nobody else."""

    daemon_threads = True
    block_on_close = False
    tls: ssl.SSLContext

    def server_bind(self) -> None:
        """Bind without the reverse look-up of the address that the base class makes."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection."""
        request.settimeout(REQUEST_TIMEOUT_S)
        try:
            with self.tls.wrap_socket(request, server_side=True) as secured:
                super().finish_request(secured, client_address)
        except OSError:  # refused handshakes (ssl.SSLError), time-outs and broken connections: the client's affair
            return


class _Server6(_Server):
    address_family = socket.AF_INET6
