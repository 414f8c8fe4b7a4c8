"""gRPC as Gugus uses it: mutual TLS on every port, identities, rich errors, deadlines, metrics."""

from common.rpc.channel import open_channel, open_enrolment_channel
from common.rpc.interceptors import Authoriser, current_peer, only
from common.rpc.server import Health, RunningServer, Service, start_server

__all__ = [
    "Authoriser",
    "Health",
    "RunningServer",
    "Service",
    "current_peer",
    "only",
    "open_channel",
    "open_enrolment_channel",
    "start_server",
]
