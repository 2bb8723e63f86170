"""One call as a test fires it, however odd; how it ended; and what must hold of every end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from parley.wire.errors import read_error, reason_infos
from reflected import Metadata

# A call that has not ended by then hangs.
WAIT_MAX_S = 20.0
# A stream that has said its first word may be quiet; nobody waits longer for the next.
QUIET_MAX_S = 0.2
SHOWN_MAX_CHARS = 1_500
# Nothing of ours is down while odd calls come, so nothing may say that it is.
AWAY = ("ESTIMATOR_UNAVAILABLE", "STORAGE_UNAVAILABLE", "SHUTTING_DOWN")
# No retries, which would hide an end; and more than our own options allow, so that it is the server which refuses.
CHANNEL_OPTIONS = (
    ("grpc.enable_retries", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_metadata_size", 256 * 1024),
    ("grpc.absolute_max_metadata_size", 256 * 1024),
    # A channel that is closed takes its connection with it.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, kw_only=True)
class Shot:
    """`manner` says in words what is odd about it."""

    path: str
    streams: bool
    body: bytes
    manner: str = "plain"
    metadata: Metadata = ()
    timeout_s: float | None = WAIT_MAX_S
    # The caller leaves then, whatever came; None waits for the end.
    leave_after_s: float | None = None
    messages_max: int = 3
    # Statuses that transport or client may give for this manner by themselves, so without a reason.
    bare: frozenset[grpc.StatusCode] = frozenset()

    def __str__(self) -> str:
        shown = self.body.hex()[:SHOWN_MAX_CHARS]
        return f"{self.path} ({self.manner}; time-out {self.timeout_s}) body of {len(self.body)} bytes: {shown}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    # None where it did not end.
    code: grpc.StatusCode | None
    reason: str = ""
    message: str = ""
    replies: Sequence[bytes] = ()


async def fire(channel: grpc.aio.Channel, shot: Shot, *, wait_max_s: float = WAIT_MAX_S) -> Outcome:
    """Makes the call and reads some of what comes."""
    call = start(channel, shot)
    reading = asyncio.ensure_future(_read(call, shot, wait_max_s))
    try:
        if shot.leave_after_s is not None:
            await asyncio.wait((reading,), timeout=shot.leave_after_s)
            call.cancel()
        # The call's own deadline is first, where it keeps it.
        await asyncio.wait((reading,), timeout=wait_max_s + 1)
        return _outcome(reading)
    finally:
        call.cancel()
        reading.cancel()
        await asyncio.wait((reading,))


def start(channel: grpc.aio.Channel, shot: Shot) -> Any:
    kind: Any = channel.unary_stream if shot.streams else channel.unary_unary
    return kind(shot.path)(shot.body, timeout=shot.timeout_s, metadata=shot.metadata)


async def _read(call: Any, shot: Shot, wait_max_s: float) -> list[bytes]:
    if not shot.streams:
        return [await call]
    # Every stream of ours says something at once, or ends.
    async with asyncio.timeout(wait_max_s):
        replies = [await call.read()]
    with contextlib.suppress(TimeoutError):
        while replies[-1] is not grpc.aio.EOF and len(replies) < shot.messages_max:
            async with asyncio.timeout(QUIET_MAX_S):
                replies.append(await call.read())
    return [reply for reply in replies if reply is not grpc.aio.EOF]


def _outcome(reading: asyncio.Future[list[bytes]]) -> Outcome:
    if not reading.done():
        return Outcome(code=None, message="it did not end")
    if reading.cancelled():
        return Outcome(code=grpc.StatusCode.CANCELLED)
    match reading.exception():
        case None:
            return Outcome(code=grpc.StatusCode.OK, replies=reading.result())
        case grpc.aio.AioRpcError() as error:
            told = read_error(error)
            return Outcome(code=told.code, reason=told.reason, message=told.message)
        case TimeoutError():
            return Outcome(code=None, message="it said nothing")
        case other:
            return Outcome(code=None, message=f"the client failed: {other!r}")


def fault_of(shot: Shot, outcome: Outcome) -> str:
    """What is wrong with the end of a call; empty where nothing is."""
    code, reason = outcome.code, outcome.reason
    if code is grpc.StatusCode.OK or (code in shot.bare and not reason):
        return ""
    info = reason_infos().get(reason)
    known = info is not None and code is not None and info.code == code.value[0]
    # To a caller who leaves no time, what is there may seem to be away.
    away = reason in AWAY and not shot.bare
    fine = known and reason != "INTERNAL" and not away
    return "" if fine else f"{code} {reason or 'without a reason'}: {outcome.message}"
