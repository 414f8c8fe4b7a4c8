"""gRPC channel and server options, each a named constant, in one place so that both ends agree."""

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Largest message either way; bulk data goes in streams of smaller ones."""

MAX_METADATA_BYTES = 32 * 1024
"""Largest set of headers: rich errors travel in trailers."""

KEEPALIVE_PERIOD_MS = 5_000
"""A client asks so often whether a silent server still lives, so that a power cut is noticed within seconds."""

KEEPALIVE_TIMEOUT_MS = 3_000
"""How long the answer may take."""

KEEPALIVE_LEAST_PERIOD_MS = 2_000
"""Servers allow pings this often; below, a peer is sent away (GOAWAY, "too_many_pings")."""

RECONNECT_FIRST_MS = 200
RECONNECT_MAX_MS = 2_000
"""Longest pause between attempts to reconnect: well below the node lease, so that a healed network is soon used."""

CONNECT_TIMEOUT_MS = 3_000
"""Longest single attempt to connect."""

_SIZES = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
]

SERVER_OPTIONS: list[tuple[str, int]] = [
    *_SIZES,
    ("grpc.so_reuseport", 0),  # else two daemons share a port silently
    ("grpc.keepalive_time_ms", KEEPALIVE_PERIOD_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_LEAST_PERIOD_MS),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_LEAST_PERIOD_MS),
]

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    *_SIZES,
    ("grpc.enable_http_proxy", 0),  # the cluster is never behind the proxy of an operator's shell
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", KEEPALIVE_PERIOD_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_FIRST_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
]

CONTEXT_HEADERS = {"task": "gugus-task", "guest": "gugus-guest"}
"""Ids of the work (`common.trace`) and the metadata in which a call carries them to the other side."""
