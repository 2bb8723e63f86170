"""The worker process: reads functions from its parent, runs one after the other, and writes back what they return."""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, BinaryIO

from estimator_service.domain.errors import EstimatorError

# Before each message: how many bytes it has.
HEADER = struct.Struct(">Q")
OUT_OF_MEMORY = 137


@dataclass(frozen=True)
class Returned:
    value: object


@dataclass(frozen=True)
class Refused:
    """A domain error, in parts: its constructor takes other arguments than pickle would give it."""

    kind: type[EstimatorError]
    arguments: tuple[object, ...]
    state: dict[str, object]

    @classmethod
    def of(cls, error: EstimatorError) -> Refused:
        return cls(type(error), error.args, vars(error))

    def error(self) -> EstimatorError:
        made = self.kind.__new__(self.kind, *self.arguments)
        vars(made).update(self.state)
        return made


@dataclass(frozen=True)
class Failed:
    """Our own mistake, as text: the exception itself may be of any kind."""

    told: str


Reply = Returned | Refused | Failed


def packed(message: object) -> bytes:
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(body)) + body


def load(module: str) -> None:
    """Imports what is to run later, so that the first caller does not wait for it."""
    importlib.import_module(module)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        # Meant for the parent as well, which may go on until its calls are answered.
        signal.signal(number, signal.SIG_IGN)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # Whatever is printed must not get between the replies.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    requests: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, requests), daemon=True).start()
    while True:
        replies.write(_reply(requests.get()))
        replies.flush()


def _read(stream: BinaryIO, requests: SimpleQueue[bytes]) -> None:
    """Beside the work, so that the parent's end is seen at once, and nothing is computed for nobody."""
    while len(header := stream.read(HEADER.size)) == HEADER.size:
        requests.put(stream.read(HEADER.unpack(header)[0]))
    os._exit(0)


def _reply(request: bytes) -> bytes:
    try:
        # Unpacked here, not where it was read: that imports modules and may fail.
        function: Callable[..., object]
        arguments: tuple[Any, ...]
        function, arguments = pickle.loads(request)
        return packed(Returned(function(*arguments)))
    except EstimatorError as error:
        return packed(Refused.of(error))
    except MemoryError:
        # What is left of this process is not to be trusted; the parent starts another one.
        os._exit(OUT_OF_MEMORY)
    except Exception:  # noqa: BLE001 - the parent logs it and answers its caller
        return packed(Failed(traceback.format_exc()))
