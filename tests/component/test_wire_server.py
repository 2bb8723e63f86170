"""Where a server listens, what it refuses to do, and what it tells about itself."""

import socket
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from parley.v1 import estimator_pb2
from parley.wire.channel import ChannelSettings, open_channel
from parley.wire.errors import BootError
from parley.wire.server import ServerSettings
from wire_fixtures import (
    ASK,
    ESTIMATOR,
    LOOPBACK,
    Served,
    failure_of,
    make_certificate,
    new_server,
    serving,
    write_tokens,
)

pytestmark = pytest.mark.anyio


async def refusal_to_start(settings: ServerSettings) -> str:
    with pytest.raises(BootError) as caught:
        server = new_server(settings)
        await server.start()
    return caught.value.message


async def test_port_0_becomes_a_real_one():
    async with serving() as served:
        host, _, port = served.server.address.rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0


async def test_localhost_means_one_address():
    async with serving(settings=ServerSettings(listen="localhost:0")) as served:
        assert served.server.address.startswith("127.0.0.1:")


async def test_a_server_listens_on_ipv6():
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    async with serving(settings=ServerSettings(listen="[::1]:0")) as served:
        assert served.server.address.startswith("[::1]:")
        assert (await served.estimator.GetQuote(ASK)).name == ASK.name


async def test_a_server_listens_on_a_unix_socket(tmp_path: Path):
    async with serving(settings=ServerSettings(listen=f"unix:{tmp_path}/parley.sock")) as served:
        assert (await served.estimator.GetQuote(ASK)).name == ASK.name


async def test_a_second_server_on_the_same_port_is_refused():
    async with serving() as served:
        address = served.server.address
        complaint = await refusal_to_start(ServerSettings(listen=address))
    assert complaint == f"Can't listen on {address}: another process listens there; change PARLEY_LISTEN."


async def test_the_setting_that_is_named_can_be_chosen():
    async with serving() as served:
        settings = ServerSettings(listen=served.server.address, listen_setting="PARLEY_ESTIMATOR_LISTEN")
        assert "change PARLEY_ESTIMATOR_LISTEN" in await refusal_to_start(settings)


async def test_the_socket_of_a_dead_server_is_taken_over(tmp_path: Path):
    path = tmp_path / "parley.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(settings=ServerSettings(listen=f"unix:{path}")) as served:
        assert (await served.estimator.GetQuote(ASK)).name == ASK.name


async def test_the_socket_of_a_live_server_is_left_alone(tmp_path: Path):
    settings = ServerSettings(listen=f"unix:{tmp_path}/parley.sock")
    async with serving(settings=settings) as served:
        assert "Another server listens on unix:" in await refusal_to_start(settings)
        assert (await served.estimator.GetQuote(ASK)).name == ASK.name


async def test_a_file_that_is_no_socket_is_never_removed(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    assert "is no socket" in await refusal_to_start(ServerSettings(listen=f"unix:{path}"))
    assert path.read_text() == "mine"


async def test_a_socket_in_a_missing_folder_is_refused(tmp_path: Path):
    assert "can't be opened" in await refusal_to_start(ServerSettings(listen=f"unix:{tmp_path}/absent/parley.sock"))


@pytest.mark.parametrize("listen", ["", "50051", ":50051", "localhost", "localhost:99999", "http://localhost:1"])
async def test_what_is_no_address_is_refused(listen: str):
    complaint = await refusal_to_start(ServerSettings(listen=listen))
    assert complaint.startswith(f"PARLEY_LISTEN is {listen!r}, but must be")


async def test_an_address_of_another_machine_is_refused():
    settings = ServerSettings(listen="192.0.2.1:50051", allow_insecure=True)
    assert "not an address of this machine" in await refusal_to_start(settings)


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "parley.example:0"])
async def test_an_open_address_without_tls_is_refused(listen: str):
    complaint = await refusal_to_start(ServerSettings(listen=listen))
    assert "PARLEY_TLS_CERTIFICATE" in complaint
    assert "PARLEY_ALLOW_INSECURE" in complaint


async def test_an_open_address_without_tls_is_served_where_that_is_allowed():
    server = new_server(ServerSettings(listen="0.0.0.0:0", allow_insecure=True))
    await server.start()
    here = server.address.replace("0.0.0.0", "127.0.0.1")
    async with open_channel(ChannelSettings(target=here)) as channel:
        assert (await Served(server, channel).estimator.GetQuote(ASK)).name == ASK.name
    await server.stop()


async def test_an_open_address_without_tokens_is_refused(tmp_path: Path):
    made = make_certificate(tmp_path)
    settings = ServerSettings(
        listen="0.0.0.0:0", tls_certificate_file=made.certificate_file, tls_key_file=made.key_file
    )
    assert "PARLEY_TOKENS_FILE" in await refusal_to_start(settings)


async def test_calls_over_tls_carry_a_token(tmp_path: Path):
    made = make_certificate(tmp_path)
    settings = ServerSettings(
        listen=LOOPBACK,
        tls_certificate_file=made.certificate_file,
        tls_key_file=made.key_file,
        tokens_file=write_tokens(tmp_path, "alices-secret-token alice"),
    )
    async with serving(settings=settings, tls_ca_file=made.certificate_file, token="alices-secret-token") as served:
        assert (await served.estimator.GetQuote(ASK)).name == ASK.name


async def test_a_missing_certificate_is_named(tmp_path: Path):
    settings = ServerSettings(listen=LOOPBACK, tls_certificate_file=tmp_path / "absent", tls_key_file=tmp_path / "key")
    (tmp_path / "key").write_text("-----BEGIN PRIVATE KEY-----")
    complaint = await refusal_to_start(settings)
    assert complaint == f"The TLS certificate file {tmp_path}/absent can't be read: No such file or directory."


async def test_a_key_that_is_not_pem_is_refused(tmp_path: Path):
    made = make_certificate(tmp_path)
    made.key_file.write_bytes(b"\x30\x82")
    settings = ServerSettings(listen=LOOPBACK, tls_certificate_file=made.certificate_file, tls_key_file=made.key_file)
    assert "not in PEM format" in await refusal_to_start(settings)


async def test_a_key_of_another_certificate_is_refused(tmp_path: Path):
    (tmp_path / "other").mkdir()
    made, other = make_certificate(tmp_path), make_certificate(tmp_path / "other")
    settings = ServerSettings(listen=LOOPBACK, tls_certificate_file=made.certificate_file, tls_key_file=other.key_file)
    assert "don't belong together" in await refusal_to_start(settings)


async def test_a_certificate_without_key_is_refused(tmp_path: Path):
    settings = ServerSettings(listen=LOOPBACK, tls_certificate_file=tmp_path / "certificate.pem")
    assert "PARLEY_TLS_KEY go together" in await refusal_to_start(settings)


async def test_health_is_not_serving_until_the_service_says_so():
    server = new_server(ServerSettings(listen=LOOPBACK))
    await server.start()
    async with open_channel(ChannelSettings(target=server.address)) as channel:
        served = Served(server, channel)
        before = [await served.health(service) for service in ("", ESTIMATOR)]
        await server.serving()
        after = [await served.health(service) for service in ("", ESTIMATOR)]
    await server.stop()
    assert before == [health_pb2.HealthCheckResponse.NOT_SERVING] * 2
    assert after == [health_pb2.HealthCheckResponse.SERVING] * 2


async def test_reflection_lists_the_services():
    async with serving() as served:
        services = await served.list_services()
    assert services == {
        "parley.v1.BatchEstimator",
        "parley.v1.BatchOrchestrator",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


async def test_a_message_of_30_mib_passes_both_ways():
    name = "x" * (30 * 1024 * 1024)
    async with serving() as served:
        assert len((await served.estimator.GetQuote(estimator_pb2.GetQuoteRequest(name=name))).name) == len(name)


async def test_a_message_of_33_mib_is_refused():
    request = estimator_pb2.GetQuoteRequest(name="x" * (33 * 1024 * 1024))
    async with serving() as served:
        failure = await failure_of(served.estimator.GetQuote(request))
    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure.sentence == "A message is larger than 32 MiB."
