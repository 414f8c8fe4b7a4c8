"""Who may call what, by the role in the certificate. Users and their roles come on top of this later."""

from common.errors import permission_denied
from common.identity.names import Identity, Role

HEARTBEAT = "/gugus.cluster.v1.HeartbeatService/"


def authorise(peer: Identity, method: str) -> None:
    """Let nodes beat, and operators (also through another manager) do all else. Raises PERMISSION_DENIED."""
    allowed = (Role.NODE,) if method.startswith(HEARTBEAT) else (Role.OPERATOR, Role.MANAGER)
    if peer.role not in allowed:
        raise permission_denied(
            f"{peer} may not call {method}: a {peer.role} may not.",
            reason="ROLE_NOT_ALLOWED",
            remedy="Use an operator's certificate (see the client's configuration file).",
        )
