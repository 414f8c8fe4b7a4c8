"""What every process of Gugus shares. Imports none of the other packages.

gRPC's core reads its settings from the environment when it is first imported; so this package sets them, and must be
imported before grpc: each daemon's own package does `import common` in its `__init__`.
"""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # nobody forks here, and the handlers deadlock with threads
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # the core's own lines are no structured log
