"""One host: its guests, storage and networks, and the lease that lets HA guests run on it."""

import common  # noqa: F401 - sets what gRPC reads when it is first imported
