"""gRPC as Gugus uses it: mutual TLS on every port, identities, rich errors, deadlines, metrics.

Empty on purpose, like `common.identity`.
"""
