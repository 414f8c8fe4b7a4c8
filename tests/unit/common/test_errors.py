import grpc
import pytest

from common import errors
from common.errors import GugusError, Violation, as_gugus_error, from_rpc_error, from_status, several, to_status


def same(a: GugusError, b: GugusError) -> bool:
    def parts(e: GugusError) -> tuple[object, ...]:
        return (e.code, e.reason, e.message, e.remedy, e.metadata, e.violations, e.field)

    return parts(a) == parts(b)


@pytest.mark.parametrize(
    "error",
    [
        errors.invalid("spec.memory_bytes", "is 1, the least is 16 MiB", remedy="Give it more."),
        errors.not_found("guest", "web"),
        errors.already_exists("pool", "fast"),
        errors.precondition("POOL_IN_USE", "pool has disks", subject="pool/fast", metadata={"disks": "3"}),
        errors.unavailable("LIBVIRTD_DOWN", "libvirtd does not answer", remedy="systemctl status libvirtd"),
        errors.permission_denied("no"),
    ],
    ids=lambda e: e.reason,
)
def test_error_survives_the_wire_whole(error: GugusError) -> None:
    assert same(from_status(to_status(error)), error)


def test_all_field_violations_of_a_request_arrive_in_one_error() -> None:
    joined = several([errors.invalid("name", "is empty"), errors.invalid("cpu", "is 0", remedy="Use 1 or more.")])
    read = from_status(to_status(joined))
    assert read.violations == (Violation("name", "is empty"), Violation("cpu", "is 0"))
    assert read.field == ""
    assert str(read) == "name: is empty; cpu: is 0. Use 1 or more."
    single = errors.invalid("a", "b")
    assert several([single]) is single


def test_error_of_grpc_itself_gets_a_reason_from_its_code() -> None:
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details="connection refused"
    )
    read = from_rpc_error(error)
    assert (read.reason, read.message) == ("RPC_UNAVAILABLE", "connection refused")


def test_damaged_details_of_a_foreign_server_do_no_harm() -> None:
    trailing = grpc.aio.Metadata((errors.DETAILS_KEY, b"\xff\xff\xff"))
    error = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), trailing, details="gone")
    assert from_rpc_error(error).message == "gone"


def test_unforeseen_exception_shows_an_incident_and_no_trace() -> None:
    read = as_gugus_error(RuntimeError("password=hunter2"))
    assert read.code is grpc.StatusCode.INTERNAL
    assert "hunter2" not in str(read)
    assert read.metadata["incident"] in read.message


def test_endless_message_still_fits_the_headers_of_http2() -> None:
    endless = errors.precondition("X", "x" * 100_000, remedy="y" * 100_000)
    assert len(to_status(endless).SerializeToString()) < 8192
