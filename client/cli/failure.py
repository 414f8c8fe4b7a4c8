"""What a failure looks like at the command line: a message, what to do, and an exit code that means something.

0 done. 1 failed: a task failed, or the cluster did; of `gugus cluster status`: something is wrong. 2 usage: something
typed can never be right. 3 not found. 4 conflict: the name is taken, or the present state forbids it. 5 not allowed,
or not known who asks. 6 nobody answered in time. 130 interrupted (128 + SIGINT, as shells have it).
"""

import json
import sys
from collections.abc import Sequence
from typing import NoReturn

import grpc
from typer.exceptions import TyperException

from client.tasks import TaskFailed
from common.errors import MAX_VIOLATIONS, GugusError

OK, FAILED, USAGE, NOT_FOUND, CONFLICT, DENIED, UNAVAILABLE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 130

_EXIT_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT: USAGE,
    grpc.StatusCode.OUT_OF_RANGE: USAGE,
    grpc.StatusCode.NOT_FOUND: NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: CONFLICT,
    grpc.StatusCode.FAILED_PRECONDITION: CONFLICT,
    grpc.StatusCode.ABORTED: CONFLICT,
    grpc.StatusCode.PERMISSION_DENIED: DENIED,
    grpc.StatusCode.UNAUTHENTICATED: DENIED,
    grpc.StatusCode.UNAVAILABLE: UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: UNAVAILABLE,
}

HELP = (
    "Exit codes: 0 done; 1 failed (a task failed, or the cluster did, or `cluster status` found a problem); 2 usage; "
    "3 not found; 4 conflict (the name is taken, or the present state forbids it); 5 not allowed; 6 nobody answered in "
    "time; 130 interrupted."
)


def exit_code(error: GugusError) -> int:
    """Return the exit code of an error. A failed task is 1 whatever its cause."""
    return FAILED if isinstance(error, TaskFailed) else _EXIT_CODES.get(error.code, FAILED)


def wants_json(args: Sequence[str]) -> bool:
    """Whether a command line asks for JSON; also known when it could not be parsed."""
    pairs = zip(args, [*args[1:], ""], strict=True)
    asked = ("-ojson", "-o=json", "--output=json")
    return any(arg in asked or (arg in ("-o", "--output") and value == "json") for arg, value in pairs)


def report(error: GugusError, *, as_json: bool) -> NoReturn:
    """Print an error to stderr and exit with its code."""
    code = exit_code(error)
    print(f"error: {_headline(error)}", file=sys.stderr)
    if len(error.violations) > 1:
        for violation in error.violations:
            print(f"  {violation.field or 'request'}: {violation.message}", file=sys.stderr)
    if error.remedy:
        print(f"  what to do: {error.remedy}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": _plain(error, code)}, ensure_ascii=False), file=sys.stderr)
    raise SystemExit(code)


def _headline(error: GugusError) -> str:
    """Return the first line for people: the message, unless it says no more than the faults that are listed below it."""
    count = len(error.violations)
    if count < 2:
        return error.message
    if error.violations[0].message.rstrip(".…") not in error.message:
        return error.message
    more = "or more " if count == MAX_VIOLATIONS else ""  # a server names no more of them
    return f"{count} {more}things are wrong with the request:"


def usage_error(error: TyperException) -> GugusError:
    """Turn what typer says of a command line into an error that names the help to ask for."""
    context = getattr(error, "ctx", None)  # typer's usage errors know the command that was being read
    command = "gugus" if context is None else context.command_path
    remedy = f"`{command} --help` shows what is right."
    return GugusError(grpc.StatusCode.INVALID_ARGUMENT, "USAGE", error.format_message(), remedy=remedy)


def _plain(error: GugusError, code: int) -> dict[str, object]:
    return {
        "code": error.code.name,
        "reason": error.reason,
        "message": error.message,
        "remedy": error.remedy,
        "violations": [{"field": v.field, "message": v.message} for v in error.violations],
        "metadata": error.metadata,
        "exit_code": code,
    }
