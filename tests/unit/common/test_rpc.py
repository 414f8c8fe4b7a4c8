import asyncio
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from common import trace
from common.errors import GugusError, Violation, from_rpc_error, invalid, not_found, several
from common.identity.ca import CertificateAuthority
from common.identity.credentials import Credentials
from common.identity.enrol import CaPinMismatch, fetch_ca
from common.identity.names import Identity, Role, any_of
from common.identity.tls import client_context, peer_identity, server_context
from common.metrics import RpcMetrics
from common.rpc.channel import open_channel, open_enrolment_channel
from common.rpc.interceptors import current_peer, only
from common.rpc.server import RunningServer, Service, start_server

CLUSTER_ID = "0123456789abcdef"
SOME_MANAGER = any_of(Role.MANAGER, CLUSTER_ID)


def act(wish: str) -> str:
    """What the test service does on request."""
    match wish:
        case "who":
            return str(current_peer())
        case "ids":
            ids = trace.current()
            return f"{ids.get('task')} {ids.get('guest')}"
        case "missing":
            raise not_found("guest", "web")
        case "fields":
            raise several([invalid("name", "is empty"), invalid("cpu", "is 0")])
        case "bug":
            raise RuntimeError("password=hunter2")
    return wish


class Echo:
    """All four kinds of call over StringValue."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def one_one(self, request: StringValue, context: Any) -> StringValue:
        if request.value == "hang":
            await asyncio.sleep(60)
        if request.value == "abort":
            await context.abort(grpc.StatusCode.DATA_LOSS, "said so myself")
        return StringValue(value=act(request.value))

    async def one_many(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        yield StringValue(value="first")
        yield StringValue(value=act(request.value))

    async def endless(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        try:
            yield request
            await asyncio.sleep(60)
        finally:
            self.ended.set()

    async def one_written(self, request: StringValue, context: Any) -> None:
        await context.write(StringValue(value=act(request.value)))

    async def many_one(self, requests: AsyncIterator[StringValue], context: Any) -> StringValue:
        return StringValue(value=",".join([act(r.value) async for r in requests]))

    async def many_many(self, requests: AsyncIterator[StringValue], context: Any) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield StringValue(value=act(request.value))


def add_echo(servicer: Echo, server: grpc.aio.Server) -> None:
    codec: Any = {
        "request_deserializer": StringValue.FromString,
        "response_serializer": StringValue.SerializeToString,
    }
    handlers = {
        "OneOne": grpc.unary_unary_rpc_method_handler(servicer.one_one, **codec),
        "OneMany": grpc.unary_stream_rpc_method_handler(servicer.one_many, **codec),
        "Endless": grpc.unary_stream_rpc_method_handler(servicer.endless, **codec),
        "OneWritten": grpc.unary_stream_rpc_method_handler(servicer.one_written, **codec),
        "ManyOne": grpc.stream_unary_rpc_method_handler(servicer.many_one, **codec),
        "ManyMany": grpc.stream_stream_rpc_method_handler(servicer.many_many, **codec),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))


CODEC: Any = {"request_serializer": StringValue.SerializeToString, "response_deserializer": StringValue.FromString}


async def ask(channel: grpc.aio.Channel, wish: str, timeout: float | None = 5) -> str:
    answer: StringValue = await channel.unary_unary("/test.Echo/OneOne", **CODEC)(
        StringValue(value=wish), timeout=timeout
    )
    return answer.value


async def refusal(channel: grpc.aio.Channel, wish: str = "who") -> GugusError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(channel, wish)
    return from_rpc_error(caught.value)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
async def echo() -> Echo:
    return Echo()


@pytest.fixture
async def server(manager: Credentials, registry: CollectorRegistry, echo: Echo) -> AsyncIterator[RunningServer]:
    running = await start_server(
        [Service(add_echo, echo, "test.Echo")],
        "127.0.0.1",
        0,
        manager,
        authorise=only(Role.MANAGER, Role.OPERATOR),
        metrics=RpcMetrics(registry),
    )
    yield running
    await running.stop(0)


@pytest.fixture
async def channel(server: RunningServer, operator: Credentials) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(f"127.0.0.1:{server.port}", operator, verify=SOME_MANAGER) as opened:
        yield opened


async def test_caller_is_known_by_its_certificate(channel: grpc.aio.Channel) -> None:
    assert await ask(channel, "who") == "operator root"


async def test_all_four_kinds_of_call_pass_the_guard(channel: grpc.aio.Channel) -> None:
    wishes = [StringValue(value="who"), StringValue(value="x")]
    one_many = channel.unary_stream("/test.Echo/OneMany", **CODEC)(wishes[0])
    assert [a.value async for a in one_many] == ["first", "operator root"]
    written = channel.unary_stream("/test.Echo/OneWritten", **CODEC)(wishes[0])
    assert [a.value async for a in written] == ["operator root"]
    assert (await channel.stream_unary("/test.Echo/ManyOne", **CODEC)(iter(wishes))).value == "operator root,x"
    bidi: Any = channel.stream_stream("/test.Echo/ManyMany", **CODEC)()
    await bidi.write(wishes[0])
    assert (await bidi.read()).value == "operator root"
    await bidi.write(wishes[1])
    await bidi.done_writing()
    assert (await bidi.read()).value == "x"
    assert await bidi.read() == grpc.aio.EOF


async def test_rich_error_reaches_the_client_from_calls_of_every_kind(channel: grpc.aio.Channel) -> None:
    wish = StringValue(value="missing")
    calls: list[Any] = [
        channel.unary_unary("/test.Echo/OneOne", **CODEC)(wish),
        channel.stream_unary("/test.Echo/ManyOne", **CODEC)(iter([wish])),
    ]
    streams: list[Any] = [
        channel.unary_stream("/test.Echo/OneMany", **CODEC)(wish),
        channel.unary_stream("/test.Echo/OneWritten", **CODEC)(wish),
        channel.stream_stream("/test.Echo/ManyMany", **CODEC)(iter([wish])),
    ]

    async def drain(stream: Any) -> None:
        async for _ in stream:
            continue

    for call in (*calls, *map(drain, streams)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        error = from_rpc_error(caught.value)
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "GUEST_NOT_FOUND")
        assert error.metadata == {"kind": "guest", "name": "web"}


async def test_cancelled_stream_ends_its_handler_and_is_no_error(
    channel: grpc.aio.Channel, echo: Echo, registry: CollectorRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    stream: Any = channel.unary_stream("/test.Echo/Endless", **CODEC)(StringValue(value="x"))
    assert (await stream.read()).value == "x"
    stream.cancel()
    await asyncio.wait_for(echo.ended.wait(), 2)
    labels = {"side": "server", "method": "/test.Echo/Endless", "code": "CANCELLED"}
    assert registry.get_sample_value("gugus_rpc_seconds_count", labels) == 1
    assert capsys.readouterr().err == ""


async def test_every_wrong_field_is_named_in_one_answer(channel: grpc.aio.Channel) -> None:
    error = await refusal(channel, "fields")
    assert error.violations == (Violation("name", "is empty"), Violation("cpu", "is 0"))


async def test_trace_of_a_bug_stays_at_the_server(channel: grpc.aio.Channel) -> None:
    error = await refusal(channel, "bug")
    assert error.code is grpc.StatusCode.INTERNAL
    assert error.metadata["incident"] in str(error)
    assert "hunter2" not in str(error)


async def test_plaintext_client_is_refused(server: RunningServer) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as plain:
        assert (await refusal(plain)).code is grpc.StatusCode.UNAVAILABLE


async def test_client_without_certificate_is_refused(server: RunningServer, ca: CertificateAuthority) -> None:
    async with open_enrolment_channel(f"127.0.0.1:{server.port}", ca.cert_pem, CLUSTER_ID) as bare:
        assert (await refusal(bare)).code is grpc.StatusCode.UNAVAILABLE


async def test_client_of_a_foreign_ca_is_refused(
    server: RunningServer, ca: CertificateAuthority, foreign_ca: CertificateAuthority
) -> None:
    stranger = foreign_ca.issue(Identity(CLUSTER_ID, Role.OPERATOR, "root"))
    trusting = Credentials(ca.cert_pem, stranger.cert_pem, stranger.key_pem)
    async with open_channel(f"127.0.0.1:{server.port}", trusting, verify=SOME_MANAGER) as opened:
        assert (await refusal(opened)).code is grpc.StatusCode.UNAVAILABLE


async def test_server_of_a_foreign_ca_is_refused(server: RunningServer, foreign_ca: CertificateAuthority) -> None:
    stranger = foreign_ca.issue(Identity(CLUSTER_ID, Role.OPERATOR, "root"))
    async with open_channel(f"127.0.0.1:{server.port}", stranger, verify=SOME_MANAGER) as opened:
        assert (await refusal(opened)).code is grpc.StatusCode.UNAVAILABLE


async def test_expired_certificate_is_refused(server: RunningServer, ca: CertificateAuthority) -> None:
    expired = ca.issue(Identity(CLUSTER_ID, Role.OPERATOR, "root"), valid_for=timedelta(minutes=-5))
    async with open_channel(f"127.0.0.1:{server.port}", expired, verify=SOME_MANAGER) as opened:
        assert (await refusal(opened)).code is grpc.StatusCode.UNAVAILABLE


async def test_host_certificate_of_another_role_is_refused_by_the_authoriser(
    server: RunningServer, node: Credentials
) -> None:
    async with open_channel(f"127.0.0.1:{server.port}", node, verify=SOME_MANAGER) as opened:
        error = await refusal(opened)
    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")
    assert "node n2 may not call" in str(error)


async def test_server_with_another_hosts_identity_is_not_believed(server: RunningServer, operator: Credentials) -> None:
    endpoint = f"127.0.0.1:{server.port}"
    for name in ("n1.node", "n2.manager", "node"):
        async with open_channel(endpoint, operator, verify=f"{name}.{CLUSTER_ID}.gugus") as opened:
            assert (await refusal(opened)).code is grpc.StatusCode.UNAVAILABLE
    exact = Identity(CLUSTER_ID, Role.MANAGER, "n1").dns_name
    async with open_channel(endpoint, operator, verify=exact) as opened:
        assert await ask(opened, "x") == "x"


async def test_operator_certificate_cannot_pose_as_a_server(operator: Credentials) -> None:
    running = await start_server([Service(add_echo, Echo(), "test.Echo")], "127.0.0.1", 0, operator)
    async with open_channel(f"127.0.0.1:{running.port}", operator, verify=SOME_MANAGER) as opened:
        assert (await refusal(opened)).code is grpc.StatusCode.UNAVAILABLE
    await running.stop(0)


async def test_health_and_reflection_are_open_to_every_member(server: RunningServer, node: Credentials) -> None:
    async with open_channel(f"127.0.0.1:{server.port}", node, verify=SOME_MANAGER) as opened:
        check = health_pb2_grpc.HealthStub(opened).Check
        assert (await check(health_pb2.HealthCheckRequest(service="test.Echo"))).status == 1
        await server.health.set_serving(False)
        assert (await check(health_pb2.HealthCheckRequest())).status == 2
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(opened)
        answers = [a async for a in stub.ServerReflectionInfo(iter([request]))]
        names = {s.name for s in answers[0].list_services_response.service}
        assert {"test.Echo", "grpc.health.v1.Health"} <= names


async def test_ids_of_the_log_context_travel_with_a_call(channel: grpc.aio.Channel) -> None:
    with trace.bound(task="t1", guest="web"):
        assert await ask(channel, "ids") == "t1 web"
    assert await ask(channel, "ids") == "None None"


async def test_call_without_deadline_gets_one(server: RunningServer, operator: Credentials) -> None:
    async with open_channel(f"127.0.0.1:{server.port}", operator, verify=SOME_MANAGER, default_timeout_s=0.2) as opened:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(opened, "hang", timeout=None)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_latency_is_counted_by_method_and_code_on_both_sides(
    server: RunningServer, operator: Credentials, registry: CollectorRegistry
) -> None:
    mine = CollectorRegistry()
    async with open_channel(
        f"127.0.0.1:{server.port}", operator, verify=SOME_MANAGER, metrics=RpcMetrics(mine)
    ) as opened:
        await ask(opened, "x")
        await refusal(opened, "missing")
        await refusal(opened, "abort")
    await asyncio.sleep(0.05)
    for side, counted in (("server", registry), ("client", mine)):
        for code in ("OK", "NOT_FOUND", "DATA_LOSS"):
            labels = {"side": side, "method": "/test.Echo/OneOne", "code": code}
            assert counted.get_sample_value("gugus_rpc_seconds_count", labels) == 1, labels


async def test_taken_port_is_a_clear_error(server: RunningServer, manager: Credentials) -> None:
    with pytest.raises(GugusError, match=f"cannot listen on 127.0.0.1:{server.port}") as caught:
        await start_server([], "127.0.0.1", server.port, manager)
    assert caught.value.reason == "ADDRESS_IN_USE"


# Enrolment


async def test_joining_host_finds_the_pinned_ca_and_can_call_without_a_certificate(
    manager: Credentials, ca: CertificateAuthority
) -> None:
    running = await start_server(
        [Service(add_echo, Echo(), "test.Echo")], "127.0.0.1", 0, manager, require_client_certificate=False
    )
    endpoint = f"127.0.0.1:{running.port}"
    assert await fetch_ca(endpoint, ca.fingerprint) == ca.cert_pem
    async with open_enrolment_channel(endpoint, ca.cert_pem, CLUSTER_ID) as opened:
        assert await ask(opened, "x") == "x"
        assert (await refusal(opened, "who")).reason == "UNAUTHENTICATED"
    await running.stop(0)


async def test_false_cluster_is_recognised_by_the_pin(server: RunningServer, foreign_ca: CertificateAuthority) -> None:
    with pytest.raises(CaPinMismatch, match="does not belong to the cluster") as caught:
        await fetch_ca(f"127.0.0.1:{server.port}", foreign_ca.fingerprint)
    assert "Make a new token" in caught.value.remedy


async def test_dead_silent_and_plaintext_endpoints_are_told_apart_from_false_ones() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def chatty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n")
        await reader.read(10)
        writer.close()

    for serve, why in ((silent, "took too long"), (chatty, "does not speak TLS")):
        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(GugusError, match=why) as caught:
            await fetch_ca(f"127.0.0.1:{port}", "00" * 32, timeout_s=0.3)
        assert caught.value.reason == "ENROL_UNREACHABLE"
        listener.close()
    with pytest.raises(GugusError, match="refused"):
        await fetch_ca(f"127.0.0.1:{port}", "00" * 32)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_old_tls_is_refused(server: RunningServer, ca: CertificateAuthority) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.load_verify_locations(cadata=ca.cert_pem.decode())
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", server.port, ssl=context, server_hostname=SOME_MANAGER)


# Ports that do not speak gRPC


async def test_asyncio_connection_knows_the_identity_at_both_ends(manager: Credentials, node: Credentials) -> None:
    seen: asyncio.Queue[Identity] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.put_nowait(peer_identity(writer.get_extra_info("ssl_object")))
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context(manager))
    port = listener.sockets[0].getsockname()[1]
    n1, n2 = manager.identity, node.identity
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_context(node), server_hostname=n1.dns_name)
    assert peer_identity(writer.get_extra_info("ssl_object")) == n1
    assert await seen.get() == n2
    writer.close()
    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.open_connection("127.0.0.1", port, ssl=client_context(node), server_hostname=n2.dns_name)
    listener.close()
