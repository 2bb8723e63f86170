"""Services on this machine: starts what is not running, and ends what was started here."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

from parley.cli.failures import NOT_POSSIBLE, OK, UNAVAILABLE, CommandError, Fault
from parley.cli.output import Output, json_line
from parley.client import channel_settings
from parley.sync import sleep_s
from parley.wire import addresses, clock
from parley.wire.channel import open_blocking_channel

# Another process has no event to wait for.
POLL_EVERY_S = 0.05
PROBE_TIMEOUT_S = 2.0
START_MAX_S = 60.0
# The orchestrator lets calls in flight end for up to 90 s (PARLEY_DRAIN_S), and then closes what is open.
END_MAX_S = 150.0
END_TOLD_AFTER_S = 2.0
LOG_TAIL_LINES = 12
# A proxy of this machine has no way to this machine's own sandbox.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
LISTEN = {"orchestrator": "127.0.0.1:7460", "estimator": "127.0.0.1:7461", "sandbox": "127.0.0.1:7462"}
# Whoever calls others goes first, so that nothing is called that is gone.
END_ORDER = ("orchestrator", "estimator", "sandbox")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    name: str
    module: str
    address: str
    answers: Callable[[], bool]
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    name: str
    address: str
    # None where it ran before.
    pid: int | None


def up_command(output: Output, *, called: Mapping[str, str]) -> int:
    up(output)
    if not output.as_json:
        output.note(f"logs in {home()}; stop with: parley down")
        for variable, started in (("PARLEY_ORCHESTRATOR", target()), ("PARLEY_ESTIMATOR", _target("estimator"))):
            if called[variable] != started:
                output.note(f"next: export {variable}={started}   (this command calls {called[variable]} so far)")
    return OK


def down_command(output: Output) -> int:
    down(output)
    return OK


def up(output: Output) -> list[Running]:
    """Starts what is not running and waits until each answers."""
    with _alone():
        running = [_ensure(program, output) for program in _programs()]
    for service in running:
        _tell(output, service)
    return running


def down(output: Output, names: Sequence[str] = END_ORDER) -> None:
    """Ends what `up` started, as long as the process is still that program."""
    with _alone():
        ended = [name for name in END_ORDER if name in names and _end(name, output)]
    if output.as_json:
        output.line(json_line({"ended": ended}))
    else:
        output.text(f"ended {', '.join(ended)}" if ended else "nothing that `parley up` started is running")


def home() -> Path:
    return Path(os.environ.get("PARLEY_HOME", "var")).absolute()


def database(name: str) -> Path:
    """The file of a service of this machine."""
    return Path(os.environ.get(f"PARLEY_{name.upper()}_DATABASE") or home() / f"{name}.db")


def target() -> str:
    """Where the orchestrator of this machine is called."""
    return _target("orchestrator")


def sandbox_settings() -> dict[str, object]:
    """What the sandbox of this machine says of itself; empty where none answers."""
    try:
        with DIRECT.open(f"{_sandbox_url()}/settings", timeout=PROBE_TIMEOUT_S) as reply:
            return json.load(reply)
    except (OSError, ValueError):
        return {}


def _programs() -> list[Program]:
    orchestrator_answers = _health_check("orchestrator", "parley.v1.BatchOrchestrator")
    sandboxed = not os.environ.get("ANTHROPIC_API_KEY") and not os.environ.get("ANTHROPIC_BASE_URL")
    programs = [_estimator(), _orchestrator(orchestrator_answers, sandboxed=sandboxed)]
    # An orchestrator that somebody started otherwise has a provider of its own.
    if sandboxed and (_pid_file("sandbox").exists() or not orchestrator_answers()):
        programs.insert(0, _sandbox())
    return programs


def _sandbox() -> Program:
    host, _, port = _listen("sandbox").rpartition(":")
    return Program(
        name="sandbox",
        module="orchestrator_service.sandbox",
        address=_sandbox_url(),
        answers=lambda: bool(sandbox_settings()),
        arguments=("--host", host.strip("[]"), "--port", port),
    )


def _estimator() -> Program:
    return Program(
        name="estimator",
        module="estimator_service",
        address=_target("estimator"),
        answers=_health_check("estimator", "parley.v1.BatchEstimator"),
        environment={"PARLEY_ESTIMATOR_LISTEN": _listen("estimator"), **_database("estimator")},
    )


def _orchestrator(answers: Callable[[], bool], *, sandboxed: bool) -> Program:
    environment = {
        "PARLEY_ORCHESTRATOR_LISTEN": _listen("orchestrator"),
        "PARLEY_ESTIMATOR": os.environ.get("PARLEY_ESTIMATOR") or _target("estimator"),
        **_database("orchestrator"),
    }
    if sandboxed:
        # The sandbox takes any key that is not empty.
        environment |= {"ANTHROPIC_BASE_URL": _sandbox_url(), "ANTHROPIC_API_KEY": "sandbox"}
        environment["NO_PROXY"] = ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1,localhost,::1")))
    return Program(
        name="orchestrator",
        module="orchestrator_service",
        address=target(),
        answers=answers,
        environment=environment,
    )


def _database(name: str) -> dict[str, str]:
    return {f"PARLEY_{name.upper()}_DATABASE": str(database(name))}


def _listen(name: str) -> str:
    return os.environ.get(f"PARLEY_{name.upper()}_LISTEN") or LISTEN[name]


def _target(name: str) -> str:
    """What is called where something listens: everywhere includes here."""
    address = addresses.parse(_listen(name), setting=f"PARLEY_{name.upper()}_LISTEN")
    if isinstance(address, addresses.Tcp) and address.host in ("0.0.0.0", "::"):
        return str(addresses.Tcp(host="127.0.0.1" if address.host == "0.0.0.0" else "::1", port=address.port))
    return str(address)


def _sandbox_url() -> str:
    return f"http://{_target('sandbox')}"


def _ensure(program: Program, output: Output) -> Running:
    if program.answers():
        return Running(name=program.name, address=program.address, pid=None)
    if not output.as_json:
        output.note(f"starting the {program.name} ...")
    process = _spawn(program)
    deadline_s = clock.monotonic_s() + START_MAX_S
    while not program.answers():
        if process.poll() is not None:
            _pid_file(program.name).unlink(missing_ok=True)
            raise _not_started(program, f"The {program.name} ended at its start (exit code {process.returncode}).")
        if clock.monotonic_s() > deadline_s:
            raise _not_started(program, f"The {program.name} does not answer {START_MAX_S:.0f} s after its start.")
        sleep_s(POLL_EVERY_S)
    return Running(name=program.name, address=program.address, pid=process.pid)


def _spawn(program: Program) -> subprocess.Popen[bytes]:
    home().mkdir(parents=True, exist_ok=True)
    with _log_file(program.name).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", program.module, *program.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **program.environment},
            # Its own session: Ctrl-C here does not reach it, and it outlives this terminal.
            start_new_session=True,
        )
    _pid_file(program.name).write_text(json.dumps({"pid": process.pid, "module": program.module}) + "\n")
    return process


def _not_started(program: Program, sentence: str) -> CommandError:
    tail = _log_file(program.name).read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return CommandError(
        sentence,
        exit_code=UNAVAILABLE,
        faults=[Fault("", line) for line in tail],
        next_step=f"The whole log is {_log_file(program.name)}.",
    )


def _end(name: str, output: Output) -> bool:
    """True where a process was ended."""
    found = _recorded(name)
    if found is None:
        _pid_file(name).unlink(missing_ok=True)
        return False
    pid, module = found
    os.kill(pid, signal.SIGTERM)
    asked_at_s, told = clock.monotonic_s(), output.as_json
    while _is_program(pid, module):
        waited_s = clock.monotonic_s() - asked_at_s
        if waited_s > END_TOLD_AFTER_S and not told:
            output.note(f"the {name} lets its calls in flight end ...")
            told = True
        if waited_s > END_MAX_S:
            raise CommandError(
                f"The {name} (process {pid}) was asked to end and still runs.",
                exit_code=NOT_POSSIBLE,
                next_step=f"Wait for it, or end it at once: kill -9 {pid}",
            )
        sleep_s(POLL_EVERY_S)
    _pid_file(name).unlink(missing_ok=True)
    return True


def _recorded(name: str) -> tuple[int, str] | None:
    """The process that `up` started, where it is still that program: ids are used again."""
    try:
        record = json.loads(_pid_file(name).read_text())
        pid, module = int(record["pid"]), str(record["module"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (pid, module) if _is_program(pid, module) else None


def _is_program(pid: int, module: str) -> bool:
    # A process that has ended and was not yet waited for has no command line any more.
    return module in _command_line(pid)


def _command_line(pid: int) -> Sequence[str]:
    proc = Path(f"/proc/{pid}/cmdline")
    if Path("/proc/self/cmdline").exists():
        try:
            return proc.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return ()
    listed = subprocess.run(["ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False)
    return listed.stdout.split()


def _health_check(name: str, service: str) -> Callable[[], bool]:
    return lambda: _accepts(_target(name)) and _serving(_target(name), service)


def _accepts(address: str) -> bool:
    """Whether anything listens there: quicker told than by gRPC, which would try again and again."""
    parsed = addresses.parse(address, setting=address)
    if isinstance(parsed, addresses.Unix):
        return parsed.path.exists()
    try:
        with socket.create_connection((parsed.host, parsed.port), timeout=PROBE_TIMEOUT_S):
            return True
    except OSError:
        return False


def _serving(address: str, service: str) -> bool:
    channel = open_blocking_channel(channel_settings(address, token=None, tls_ca_file=None))
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    try:
        reply = check(health_pb2.HealthCheckRequest(service=service), timeout=PROBE_TIMEOUT_S)
    except grpc.RpcError:
        return False
    finally:
        channel.close()
    return reply.status == health_pb2.HealthCheckResponse.SERVING


def _tell(output: Output, service: Running) -> None:
    if output.as_json:
        output.line(json_line({"service": service.name, "address": service.address, "pid": service.pid}))
        return
    how = "runs already" if service.pid is None else f"started, process {service.pid}"
    if service.name == "sandbox":
        how += f", {sandbox_settings().get('speed_up_announced', '?')} x real speed"
    output.text(f"{service.name:<13} {service.address:<24} {how}")


def _log_file(name: str) -> Path:
    return home() / f"{name}.log"


def _pid_file(name: str) -> Path:
    return home() / f"{name}.pid"


@contextmanager
def _alone() -> Generator[None]:
    """One `up` or `down` at a time in a home."""
    home().mkdir(parents=True, exist_ok=True)
    with (home() / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
