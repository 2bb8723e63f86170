"""`python -m estimator_service` as its user starts and ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from estimator_fixtures import as_caller, ask, named
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from estimator_service.config import PRICES_FILE

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "estimator_service")
END_MAX_S = 10


@dataclass(frozen=True)
class Running:
    process: subprocess.Popen[str]
    serving: dict[str, Any]

    @property
    def address(self) -> str:
        return self.serving["address"]

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=END_MAX_S)


def environment(database: Path, **variables: str) -> dict[str, str]:
    bare = {name: value for name, value in os.environ.items() if not name.startswith("PARLEY_")}
    return bare | {
        "PARLEY_ESTIMATOR_LISTEN": "127.0.0.1:0",
        "PARLEY_ESTIMATOR_DATABASE": str(database),
        **variables,
    }


@contextmanager
def running(database: Path, **variables: str) -> Generator[Running]:
    with subprocess.Popen(
        COMMAND,
        cwd=ROOT,
        env=environment(database, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield Running(process, json.loads(process.stdout.readline()))
        finally:
            process.kill()


def refused(database: Path, **variables: str) -> str:
    """The one line of a start that must fail."""
    done = subprocess.run(
        COMMAND,
        cwd=ROOT,
        env=environment(database, **variables),
        capture_output=True,
        text=True,
        timeout=END_MAX_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    return line


async def call(address: str, path: str, payload: bytes) -> bytes:
    async with grpc.aio.insecure_channel(address) as channel:
        return await channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)(payload)


async def test_it_says_where_it_serves_answers_and_ends_on_sigterm(tmp_path: Path) -> None:
    with running(tmp_path / "var" / "e.db") as served:
        assert (served.serving["event"], served.serving["service"]) == ("serving", "estimator")
        async with as_caller(served.address) as client:
            assert (await client.stub.CreateQuote(ask())).name.startswith("quotes/")
        assert served.end(signal.SIGTERM) == 0


async def test_quotes_survive_a_kill(tmp_path: Path) -> None:
    with running(tmp_path / "e.db") as served:
        async with as_caller(served.address) as client:
            made = await client.stub.CreateQuote(ask())
        served.end(signal.SIGKILL)
    with running(tmp_path / "e.db") as served:
        async with as_caller(served.address) as client:
            assert await client.stub.GetQuote(named(made.name)) == made


async def test_health_and_reflection_know_the_service(tmp_path: Path) -> None:
    with running(tmp_path / "e.db") as served:
        for service in ("", "parley.v1.BatchEstimator"):
            asked = health_pb2.HealthCheckRequest(service=service).SerializeToString()
            reply = await call(served.address, "/grpc.health.v1.Health/Check", asked)
            assert health_pb2.HealthCheckResponse.FromString(reply).status == health_pb2.HealthCheckResponse.SERVING
        async with grpc.aio.insecure_channel(served.address) as channel:
            info = channel.stream_stream(
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                request_serializer=bytes,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )(iter([reflection_pb2.ServerReflectionRequest(list_services="*").SerializeToString()]))
            listed = await anext(aiter(info))
            names = [service.name for service in listed.list_services_response.service]
            info.cancel()
        assert "parley.v1.BatchEstimator" in names


async def test_another_rates_file_replaces_the_built_in_one(tmp_path: Path) -> None:
    rates = tmp_path / "rates.json"
    rates.write_text(PRICES_FILE.read_text("utf-8").replace('"claude-sonnet-5":{"in":2,', '"claude-sonnet-5":{"in":3,'))
    with running(tmp_path / "e.db") as served:
        async with as_caller(served.address) as client:
            made = await client.stub.CreateQuote(ask())
        served.end(signal.SIGTERM)
    with running(tmp_path / "e.db", PARLEY_RATES_FILE=str(rates)) as served:
        async with as_caller(served.address) as client:
            found = await client.stub.GetQuote(named(made.name))
            fresh = await client.stub.CreateQuote(ask())
    assert found.stale
    assert fresh.rate_card.rates[0].input_nanos_per_mtok == 3_000_000_000
    assert fresh.rate_card.version != made.rate_card.version


def test_a_broken_rates_file_is_named_with_the_place_of_the_fault(tmp_path: Path) -> None:
    rates = tmp_path / "rates.json"
    rates.write_text(PRICES_FILE.read_text("utf-8").replace('"out":25', '"out":"25"', 1), "utf-8")
    line = refused(tmp_path / "e.db", PARLEY_RATES_FILE=str(rates))
    assert str(rates) in line
    assert "models.claude-opus-5.out: must be USD per million tokens" in line


def test_a_rates_file_with_a_hole_in_its_dates_is_named_with_model_and_dates(tmp_path: Path) -> None:
    rates = tmp_path / "rates.json"
    with_hole = PRICES_FILE.read_text("utf-8").replace(
        '[{"from":"2026-10-07",', '[{"from":"2026-10-07","until":"2026-11-01"},{"from":"2026-11-05",'
    )
    rates.write_text(with_hole, "utf-8")
    line = refused(tmp_path / "e.db", PARLEY_RATES_FILE=str(rates))
    assert str(rates) in line
    assert "models.claude-sonnet-5-5.effective[1]: begins 2026-11-05 but the prices before it end 2026-11-01" in line


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"PARLEY_RATES_FILE": "/nowhere/rates.json"}, "/nowhere/rates.json can't be read"),
        ({"PARLEY_DRAIN_S": "soon"}, "PARLEY_DRAIN_S is 'soon'"),
        ({"PARLEY_DRAIN_S": "-1"}, "PARLEY_DRAIN_S is '-1'"),
        ({"PARLEY_ALLOW_INSECURE": "perhaps"}, "PARLEY_ALLOW_INSECURE is 'perhaps'"),
        ({"PARLEY_ESTIMATOR_LISTEN": "here"}, "PARLEY_ESTIMATOR_LISTEN is 'here'"),
        ({"PARLEY_ESTIMATOR_LISTEN": "0.0.0.0:0"}, "PARLEY_TLS_CERTIFICATE"),
        ({"PARLEY_TLS_KEY": "/nowhere/key.pem"}, "PARLEY_TLS_CERTIFICATE and PARLEY_TLS_KEY go together"),
        ({"PARLEY_TOKENS_FILE": "/nowhere/tokens"}, "/nowhere/tokens can't be read"),
        ({"PARLEY_ESTIMATOR_DATABASE": "/dev/null/e.db"}, "PARLEY_ESTIMATOR_DATABASE"),
    ],
)
def test_a_start_that_can_not_work_fails_in_one_line_that_names_the_variable(
    tmp_path: Path, variables: dict[str, str], told: str
) -> None:
    assert told in refused(tmp_path / "e.db", **variables)


def test_a_second_process_on_the_same_database_is_refused(tmp_path: Path) -> None:
    with running(tmp_path / "e.db"):
        assert "in use by another estimator" in refused(tmp_path / "e.db")
