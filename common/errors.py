"""Rich errors: one exception that names what is wrong, where, and what to do, and travels whole as google.rpc.Status.

Invariant: a stack trace never reaches a client; an exception nobody foresaw becomes INTERNAL with an incident id, and
the trace is logged under that id.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

DOMAIN = "gugus"
"""`ErrorInfo.domain` of every error made here; a reason is unique within it (google.rpc.ErrorInfo)."""

DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata that carries google.rpc.Status (the gRPC richer error model)."""

MAX_TEXT_CHARS = 1500
"""Longest message sent: the text travels three times in HTTP/2 headers, which gRPC peers limit to 8 KiB by default."""

MAX_VIOLATIONS = 20
"""Most fields named in one error, for the same reason."""

_KIND = "kind"
_NAME = "name"


@dataclass(frozen=True, slots=True)
class Violation:
    """One field of a request that is wrong: the path of the field, and a message that says what would be right."""

    field: str
    message: str


class GugusError(Exception):
    """What went wrong in words an operator can act on, with a stable reason that a program can act on.

    code: the gRPC status. reason: UPPER_SNAKE, stable across versions. message: names the thing and its value.
    field: path of the request field at fault, if one is. remedy: what to do about it. metadata: facts for programs.
    violations: every field at fault, when the request has several.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *,
        field: str = "",
        remedy: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.field = field
        self.remedy = remedy
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations) or ((Violation(field, message),) if field else ())

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}" if self.remedy else self.message

    def __repr__(self) -> str:
        return f"GugusError({self.code.name}, {self.reason}, {str(self)!r})"


def invalid(field: str, message: str, *, remedy: str = "", reason: str = "INVALID_ARGUMENT") -> GugusError:
    """Return the error for a request field whose value can never be right."""
    return GugusError(
        grpc.StatusCode.INVALID_ARGUMENT,
        reason,
        f"{field}: {message}",
        field=field,
        remedy=remedy,
        violations=[Violation(field, message)],
    )


def not_found(kind: str, name: str, *, remedy: str = "") -> GugusError:
    """Return the error for a thing that does not exist; reason is `<KIND>_NOT_FOUND`."""
    return GugusError(
        grpc.StatusCode.NOT_FOUND,
        f"{_upper(kind)}_NOT_FOUND",
        f'{kind} "{name}" does not exist.',
        remedy=remedy,
        metadata={_KIND: kind, _NAME: name},
    )


def already_exists(kind: str, name: str, *, remedy: str = "") -> GugusError:
    """Return the error for a name that is taken; reason is `<KIND>_ALREADY_EXISTS`."""
    return GugusError(
        grpc.StatusCode.ALREADY_EXISTS,
        f"{_upper(kind)}_ALREADY_EXISTS",
        f'{kind} "{name}" already exists.',
        remedy=remedy,
        metadata={_KIND: kind, _NAME: name},
    )


def precondition(
    reason: str, message: str, *, remedy: str = "", subject: str = "", metadata: Mapping[str, str] | None = None
) -> GugusError:
    """Return the error for a request that is right in itself but not in the present state of `subject`."""
    facts = {**(metadata or {}), **({"subject": subject} if subject else {})}
    return GugusError(grpc.StatusCode.FAILED_PRECONDITION, reason, message, remedy=remedy, metadata=facts)


def unavailable(
    reason: str, message: str, *, remedy: str = "", metadata: Mapping[str, str] | None = None
) -> GugusError:
    """Return the error for something that is down now; the same call may succeed later."""
    return GugusError(grpc.StatusCode.UNAVAILABLE, reason, message, remedy=remedy, metadata=metadata)


def permission_denied(message: str, *, reason: str = "PERMISSION_DENIED", remedy: str = "") -> GugusError:
    """Return the error for a caller who is known but may not do this."""
    return GugusError(grpc.StatusCode.PERMISSION_DENIED, reason, message, remedy=remedy)


def unauthenticated(message: str, *, reason: str = "UNAUTHENTICATED", remedy: str = "") -> GugusError:
    """Return the error for a caller who has not proved who it is."""
    return GugusError(grpc.StatusCode.UNAUTHENTICATED, reason, message, remedy=remedy)


def resource_exhausted(reason: str, message: str, *, remedy: str = "") -> GugusError:
    """Return the error for room that is used up: memory, disk, quota."""
    return GugusError(grpc.StatusCode.RESOURCE_EXHAUSTED, reason, message, remedy=remedy)


def aborted(reason: str, message: str, *, remedy: str = "") -> GugusError:
    """Return the error for a lost race; reading again and retrying is right."""
    return GugusError(grpc.StatusCode.ABORTED, reason, message, remedy=remedy)


def deadline_exceeded(reason: str, message: str, *, remedy: str = "") -> GugusError:
    """Return the error for work that took longer than allowed; it may still take effect."""
    return GugusError(grpc.StatusCode.DEADLINE_EXCEEDED, reason, message, remedy=remedy)


def unimplemented(reason: str, message: str, *, remedy: str = "") -> GugusError:
    """Return the error for what this node, pool or guest kind cannot do at all."""
    return GugusError(grpc.StatusCode.UNIMPLEMENTED, reason, message, remedy=remedy)


def internal(reason: str, message: str) -> GugusError:
    """Return the error for a fault of ours."""
    return GugusError(grpc.StatusCode.INTERNAL, reason, message)


def several(errors: Sequence[GugusError]) -> GugusError:
    """Join the errors of one request so that a user sees all of them at once. A single error is returned as it is.

    Raises ValueError on an empty sequence.
    """
    if not errors:
        raise ValueError("several() needs at least one error")
    if len(errors) == 1:
        return errors[0]
    violations = [v for e in errors for v in (e.violations or (Violation("", e.message),))]
    remedies = dict.fromkeys(e.remedy for e in errors if e.remedy)
    return GugusError(
        errors[0].code,
        errors[0].reason,
        "; ".join(e.message.rstrip(".") for e in errors) + ".",
        remedy=" ".join(remedies),
        violations=violations,
    )


def to_status(error: GugusError) -> status_pb2.Status:
    """Encode an error as google.rpc.Status: ErrorInfo always; BadRequest, PreconditionFailure and Help as they fit."""
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if error.violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=v.field, description=_clip(v.message))
            for v in error.violations[:MAX_VIOLATIONS]
        ]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    if error.code is grpc.StatusCode.FAILED_PRECONDITION:
        failure = error_details_pb2.PreconditionFailure.Violation(
            type=error.reason, subject=error.metadata.get("subject", ""), description=_clip(error.message)
        )
        details.append(error_details_pb2.PreconditionFailure(violations=[failure]))
    if error.remedy:
        link = error_details_pb2.Help.Link(description=_clip(error.remedy))
        details.append(error_details_pb2.Help(links=[link]))
    return status_pb2.Status(
        code=error.code.value[0], message=_clip(error.message), details=[_pack(d) for d in details]
    )


def from_status(status: status_pb2.Status) -> GugusError:
    """Decode google.rpc.Status into the error that `to_status` was given; unknown details are passed over."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    reason, metadata, remedy, violations = "", dict[str, str](), "", list[Violation]()
    for detail in status.details:
        info, request, help_ = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.Help()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(request):
            violations = [Violation(v.field, v.description) for v in request.field_violations]
        elif detail.Unpack(help_):
            remedy = " ".join(link.description for link in help_.links)
    field = violations[0].field if len(violations) == 1 else ""
    return GugusError(
        code,
        reason or f"RPC_{code.name}",
        status.message,
        field=field,
        remedy=remedy,
        metadata=metadata,
        violations=violations,
    )


def from_rpc_error(error: grpc.aio.AioRpcError) -> GugusError:
    """Read the error that a server sent, or, when gRPC itself failed the call, one with reason `RPC_<CODE>`."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return from_status(status_pb2.Status.FromString(value))
            except DecodeError:  # a foreign server's bytes; the plain code and text still hold
                break
    return _plain(error)


def as_gugus_error(error: BaseException, logger: Any = None) -> GugusError:
    """Turn any exception into one that may be shown to a client.

    A GugusError is returned as it is, a remote one is read, and anything else is logged with its trace under a fresh
    incident id, of which alone the client learns.
    """
    if isinstance(error, GugusError):
        return error
    if isinstance(error, grpc.aio.AioRpcError):
        return from_rpc_error(error)
    from common.logs import get_logger  # here: the command line starts faster without it

    incident = secrets.token_hex(6)
    (logger or get_logger("errors")).error(
        "unexpected error", incident=incident, error=type(error).__name__, exc_info=error
    )
    return GugusError(
        grpc.StatusCode.INTERNAL,
        "INTERNAL",
        f"internal error, incident {incident}.",
        remedy="The log of the daemon holds the details under this incident id.",
        metadata={"incident": incident},
    )


def _plain(error: grpc.aio.AioRpcError) -> GugusError:
    code = error.code()
    return GugusError(code, f"RPC_{code.name}", error.details() or code.name.lower().replace("_", " "))


def _pack(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _clip(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…"


def _upper(kind: str) -> str:
    return kind.upper().replace(" ", "_").replace("-", "_")


_CODES = {code.value[0]: code for code in grpc.StatusCode if code.value[0] in code_pb2.Code.values()}
