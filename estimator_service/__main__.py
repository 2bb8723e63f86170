"""`python -m estimator_service`: the environment in, a server until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from parley.v1 import estimator_pb2, estimator_pb2_grpc
from parley.wire import telemetry
from parley.wire.errors import BootError
from parley.wire.server import Server, ServerSettings

from estimator_service import clock
from estimator_service.api import EstimatorApi
from estimator_service.config import ConfigError, Settings, read_settings
from estimator_service.domain import quote
from estimator_service.domain.rate_file import RateFileError, parse_rates
from estimator_service.domain.rates import RateTable
from estimator_service.service import Estimator
from estimator_service.storage.database import DatabaseUnusable, open_database
from estimator_service.workers import Workers

EXIT_UNUSABLE = 2
RATES_FILE_BYTES_MAX = 4 * 1024 * 1024
SERVICE_NAME = estimator_pb2.DESCRIPTOR.services_by_name["BatchEstimator"].full_name


def main() -> int:
    telemetry.configure("estimator")
    try:
        settings = read_settings()
        asyncio.run(_serve(settings, _read_rates(settings.rates_file)))
    except (ConfigError, BootError, DatabaseUnusable) as error:
        sys.stderr.write(f"estimator: {error}\n")
        return EXIT_UNUSABLE
    return 0


def _read_rates(path: Path) -> RateTable:
    try:
        if path.stat().st_size > RATES_FILE_BYTES_MAX:
            raise BootError(f"The rates file {path} has over {RATES_FILE_BYTES_MAX} bytes; see PARLEY_RATES_FILE.")
        return parse_rates(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BootError(f"The rates file {path} can't be read: {error}; see PARLEY_RATES_FILE.") from error
    except RateFileError as error:
        raise BootError(f"The rates file {path} can't be used: {error}; see PARLEY_RATES_FILE.") from error


async def _serve(settings: Settings, table: RateTable) -> None:
    server = Server(_server_settings(settings), service_names=[SERVICE_NAME])
    async with open_database(settings.database) as database, Workers() as workers:
        estimator = Estimator(database, table, workers=workers, now=clock.utc_now)
        estimator_pb2_grpc.add_BatchEstimatorServicer_to_server(EstimatorApi(estimator), server.aio)
        await server.start()
        await server.serving()
        server.announce("estimator")
        workers.warm(quote.__name__)
        # Open calls are drained by the server itself; nothing runs beside them.
        await server.run_until_signal(on_drain=_nothing)


async def _nothing() -> None:
    pass


def _server_settings(settings: Settings) -> ServerSettings:
    return ServerSettings(
        listen=settings.listen,
        tls_certificate_file=settings.tls_certificate,
        tls_key_file=settings.tls_key,
        tls_client_ca_file=settings.tls_client_ca,
        tokens_file=settings.tokens_file,
        allow_insecure=settings.allow_insecure,
        drain_s=settings.drain_s,
        listen_setting="PARLEY_ESTIMATOR_LISTEN",
    )


if __name__ == "__main__":
    sys.exit(main())
