"""Join tokens: one text that lets one host enrol once, soon, with exactly one cluster.

The text is `gugus1.` and base64url of a checksum (first 4 bytes of SHA-256) and JSON. It pins the CA by SHA-256, so
that the joining host cannot be led to a false cluster. The manager keeps only the hash of the secret.
"""

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc

from common.config import split_endpoint
from common.errors import GugusError, unauthenticated
from common.identity.names import LABEL

PREFIX = "gugus1."
SECRET_BYTES = 32
MAX_TEXT_CHARS = 4096
"""Longest token read; ours stay under 600 characters."""

_CHECKSUM_BYTES = 4
_NEW_TOKEN = "Make a new one with `gugus cluster token create`."  # noqa: S105 (a remedy, not a secret)
_HEX_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What a joining host needs to know. `expires_at` is Unix time in seconds; `ca_sha256` hexadecimal of the DER."""

    endpoints: tuple[str, ...]
    cluster_name: str
    cluster_id: str
    token_id: str
    secret: bytes = field(repr=False)
    ca_sha256: str
    expires_at: int

    @classmethod
    def new(
        cls,
        endpoints: Sequence[str],
        cluster_name: str,
        cluster_id: str,
        ca_sha256: str,
        *,
        valid_for_s: float,
        now_s: float | None = None,
    ) -> "JoinToken":
        """Make a token with a fresh id and secret. `endpoints` are "host:port" of the managers' enrolment ports."""
        expires_at = int((time.time() if now_s is None else now_s) + valid_for_s)
        return cls(
            tuple(endpoints),
            cluster_name,
            cluster_id,
            secrets.token_hex(6),
            secrets.token_bytes(SECRET_BYTES),
            ca_sha256,
            expires_at,
        )

    def text(self) -> str:
        """Return the text that an operator carries to the joining host. It is a secret until used or expired."""
        content = {
            "endpoints": self.endpoints,
            "cluster": self.cluster_name,
            "cluster_id": self.cluster_id,
            "id": self.token_id,
            "secret": base64.b64encode(self.secret).decode(),
            "ca": self.ca_sha256,
            "expires": self.expires_at,
        }
        payload = json.dumps(content, separators=(",", ":")).encode()
        return PREFIX + base64.urlsafe_b64encode(_checksum(payload) + payload).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> "JoinToken":
        """Read a token. Raises GugusError TOKEN_INVALID that says what is wrong with it, never repeating it."""
        text = "".join(text.split())  # terminals and mails break long lines
        if not text.startswith(PREFIX):
            raise _bad(f'does not begin with "{PREFIX}"')
        if len(text) > MAX_TEXT_CHARS:
            raise _bad("is far too long")
        body = text.removeprefix(PREFIX)
        try:
            data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise _bad("has characters or a length that no token has; it is mangled") from None
        checksum, payload = data[:_CHECKSUM_BYTES], data[_CHECKSUM_BYTES:]
        if checksum != _checksum(payload):
            raise _bad("is mangled or cut off: its checksum is wrong")
        try:
            return _from_content(json.loads(payload))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise _bad("was not made by a Gugus of this version") from None

    def expired(self, now_s: float | None = None) -> bool:
        """Whether its time is over by this host's clock. The manager decides by its own."""
        return (time.time() if now_s is None else now_s) >= self.expires_at

    def check_expiry(self, now_s: float | None = None) -> None:
        """Raise GugusError TOKEN_EXPIRED when its time is over."""
        if self.expired(now_s):
            when = datetime.fromtimestamp(self.expires_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            raise unauthenticated(
                f"the join token {self.token_id} expired at {when}.",
                reason="TOKEN_EXPIRED",
                remedy=f"{_NEW_TOKEN} If it is new, check this host's clock.",
            )


def hash_secret(secret: bytes) -> str:
    """Return what a manager stores of a secret: SHA-256, hexadecimal. 256 random bits need no slow hash."""
    return hashlib.sha256(secret).hexdigest()


def secret_matches(secret: bytes, stored_hash: str) -> bool:
    """Compare a presented secret with a stored hash in constant time."""
    return hmac.compare_digest(hash_secret(secret), stored_hash)


def _from_content(content: Any) -> JoinToken:
    """Build a token from decoded JSON, which may hold anything. Raises ValueError, TypeError or KeyError."""
    endpoints = tuple(content["endpoints"])
    for endpoint in endpoints:
        split_endpoint(endpoint if isinstance(endpoint, str) else "")
    token = JoinToken(
        endpoints,
        content["cluster"],
        content["cluster_id"],
        content["id"],
        base64.b64decode(content["secret"], validate=True),
        content["ca"],
        content["expires"],
    )
    texts = (token.cluster_name, token.cluster_id, token.token_id, token.ca_sha256)
    sound = (
        bool(endpoints)
        and all(isinstance(t, str) for t in texts)
        and LABEL.fullmatch(token.cluster_id)
        and LABEL.fullmatch(token.token_id)
        and _HEX_SHA256.fullmatch(token.ca_sha256)
        and len(token.secret) == SECRET_BYTES
        and type(token.expires_at) is int
        and 0 < token.expires_at < 2**33
    )
    if not sound:
        raise ValueError("not the content of a token")
    return token


def _checksum(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()[:_CHECKSUM_BYTES]


def _bad(what: str) -> GugusError:
    return GugusError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "TOKEN_INVALID",
        f"the join token {what}.",
        field="token",
        remedy="Copy the whole line that `gugus cluster token create` printed, or make a new one with it.",
    )
