"""The cluster: its replicated state, who acts for it, and the controllers that make hosts follow it."""

import common  # noqa: F401 - sets what gRPC reads when it is first imported
