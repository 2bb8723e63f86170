"""`python -m orchestrator_service.sandbox`: options in, a server until SIGTERM or SIGINT."""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from aiohttp import web

from orchestrator_service.sandbox.app import new_app
from orchestrator_service.sandbox.clock import Clock
from orchestrator_service.sandbox.settings import (
    SPEED_UP_ZERO_LATENCY,
    SettingError,
    Settings,
    changed,
)
from orchestrator_service.sandbox.world import World

# What is still being answered at the end is cut off; nobody waits for a sandbox.
SHUTDOWN_TIMEOUT_S = 0.1
# A batch may open a thousand connections at once.
BACKLOG = 1_024
EXIT_UNUSABLE = 2


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_UNUSABLE, f"sandbox: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _options()
    options = parser.parse_args(arguments)
    try:
        settings = _settings(options)
    except SettingError as error:
        parser.error(str(error))
    try:
        asyncio.run(_serve(settings, host=options.host, port=options.port))
    except OSError as error:
        parser.error(f"cannot listen on {options.host}:{options.port}: {error.strerror or error}")
    return 0


def _options() -> argparse.ArgumentParser:
    parser = _OneLineParser(prog="python -m orchestrator_service.sandbox", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on; loopback unless told")
    add("--port", type=_port, default=8071, help="0 picks a free one; the first line printed names it")
    add("--seed", type=int, help="another seed gives other texts, times and faults")
    add("--speed-up", type=float, help="how many real seconds pass in one second here (40)")
    add(
        "--zero-latency",
        action="store_true",
        help="answers at once; limits are lifted unless --speed-up is given",
    )
    add("--tokens-mean", type=int, help="mean output tokens of a template conversation (2292)")
    add("--tokens-per-s", type=float, help="median output tokens a second at real speed (36)")
    add("--first-token-s", type=float, help="median seconds to the first token at real speed (1)")
    add("--fault", action="append", default=[], metavar="NAME=PROBABILITY", help="may be given many times")
    add("--fault-max-attempt", type=int, help="faults hit only the first so many attempts of a prompt")
    add("--requests-per-minute", type=int, help="real minutes; runs speed-up times faster (4000)")
    add("--input-tokens-per-minute", type=int, help="as above (2000000)")
    add("--output-tokens-per-minute", type=int, help="as above (400000)")
    add("--burst-s", type=float, help="real seconds' worth of a limit that may be used at once (60)")
    add("--api-key", help="accept only this key; any that is not empty otherwise")
    return parser


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65_535:
        raise argparse.ArgumentTypeError(f"{port} is not a port")
    return port


def _settings(options: argparse.Namespace) -> Settings:
    given: dict[str, object] = {
        name: value
        for name, value in vars(options).items()
        if name not in ("host", "port", "fault") and value is not None
    }
    if options.zero_latency:
        given.setdefault("speed_up", SPEED_UP_ZERO_LATENCY)
    given["faults"] = _faults(options.fault)
    return changed(Settings(), given)


def _faults(pairs: Sequence[str]) -> dict[str, object]:
    faults: dict[str, object] = {}
    for pair in pairs:
        name, _, chance = pair.partition("=")
        try:
            faults[name] = float(chance)
        except ValueError:
            raise SettingError(f"--fault {pair}: write it as NAME=PROBABILITY, such as overloaded=0.05") from None
    return faults


async def _serve(settings: Settings, *, host: str, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(
        new_app(World(settings, Clock())),
        access_log=None,
        handle_signals=False,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=BACKLOG, reuse_port=False).start()
        _announce(settings, host=host, port=runner.addresses[0][1])
        await stop.wait()
    finally:
        await runner.cleanup()


def _announce(settings: Settings, *, host: str, port: int) -> None:
    shown_host = f"[{host}]" if ":" in host else host
    line = {
        "event": "serving",
        "url": f"http://{shown_host}:{port}",
        "speed_up": settings.speed_up_announced,
        "zero_latency": settings.zero_latency,
        "seed": settings.seed,
        "faults": dict(settings.faults),
    }
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
