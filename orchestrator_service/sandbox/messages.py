"""POST /v1/messages: a call from its arrival to the last byte of its answer."""

from contextlib import suppress
from dataclasses import dataclass, replace

from aiohttp import web

from orchestrator_service.sandbox import wire
from orchestrator_service.sandbox.answers import Answer, answer_call
from orchestrator_service.sandbox.cache import InputUsage
from orchestrator_service.sandbox.call import CHARS_PER_TOKEN, Call, read_call
from orchestrator_service.sandbox.errors import ApiError, error_body, fault_error, retry_after
from orchestrator_service.sandbox.faults import When
from orchestrator_service.sandbox.wire import Reply
from orchestrator_service.sandbox.world import World

# How often a stalled call looks whether its client is still there: aiohttp does not tell a handler.
CLIENT_GONE_POLL_S = 0.02
# Waits shorter than this cost more than they show.
WAIT_MIN_S = 0.001


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a call under way, with all that was decided when it arrived."""

    world: World
    request: web.Request
    call: Call
    answer: Answer
    input_usage: InputUsage
    headers: dict[str, str]
    began_s: float

    @property
    def fault_name(self) -> str | None:
        return self.answer.fault.name if self.answer.fault else None

    @property
    def reply(self) -> Reply:
        answer = self.answer
        return Reply(
            answer.message_id,
            self.call.model,
            answer.text,
            answer.stop_reason,
            answer.output_tokens,
            self.input_usage,
        )

    async def until_tokens(self, tokens: float) -> None:
        """Waits until so many tokens are out; the schedule is fixed at the start, so delays do not add up."""
        clock = self.world.clock
        wait_s = self.began_s + self.answer.pace.reached_s(tokens) - clock.now_s()
        if wait_s > WAIT_MIN_S:
            await clock.sleep(wait_s)

    def pay(self) -> None:
        """The answer exists: from here on it costs, whatever happens on its way to the client."""
        world, now_s = self.world, self.world.clock.now_s()
        world.stats.pay(
            self.call.prompt_sha256,
            tokens_in=self.call.input_tokens,
            tokens_out=self.answer.output_tokens,
            fault=self.fault_name,
        )
        world.limits.charge_output(output_tokens=self.answer.output_tokens, now_s=now_s)
        world.cache.keep(self.call.prefixes, speed_up=world.settings.speed_up_of_cache, now_s=now_s)


async def create_message(world: World, request: web.Request, *, request_id: str) -> web.StreamResponse:
    call = read_call(await request.read())
    input_usage = _admit(world, call)
    stats = world.stats
    attempt = stats.enter(call.prompt_sha256)
    try:
        answer = answer_call(world.settings, call, attempt=attempt)
        if answer.fault:
            stats.faults[answer.fault.name] += 1
            if answer.fault.when is When.AT_ONCE:
                raise fault_error(answer.fault.name, speed_up=world.settings.speed_up_announced)
        await world.until_unpaused()
        headers = {"request-id": request_id}
        began_s = world.clock.now_s()
        return await _generate(Attempt(world, request, call, answer, input_usage, headers, began_s))
    finally:
        # The counts may have been reset meanwhile; those in use now are the ones that still know this call.
        world.stats.leave()


def _admit(world: World, call: Call) -> InputUsage:
    now_s = world.clock.now_s()
    usage = world.cache.split(call.prefixes, input_tokens=call.input_tokens, now_s=now_s)
    # What is read from the cache does not count towards the limit.
    exceeded = world.limits.admit(input_tokens=usage.total_tokens - usage.read_tokens, now_s=now_s)
    if exceeded is None:
        return usage
    world.stats.calls_limited += 1
    wait = retry_after(exceeded.wait_s, speed_up=world.settings.speed_up)
    raise ApiError(
        429,
        f"This request would exceed the rate limit of {exceeded.per_minute:,} {exceeded.bucket} per minute.",
        headers={"retry-after": wait},
    )


async def _generate(attempt: Attempt) -> web.StreamResponse:
    fault = attempt.answer.fault
    if fault and fault.when is When.AFTER_FIRST_TOKEN:
        await attempt.until_tokens(0)
        if fault.name != "refusal":
            raise fault_error(fault.name, speed_up=1)
        # Refused before any output: reported, and not billed.
        refused = replace(attempt.answer, text="", output_tokens=0, stop_reason="refusal")
        attempt = replace(attempt, answer=refused)
        return await (_stream(attempt, paid=False) if attempt.call.stream else _json(attempt))
    if attempt.call.stream:
        return await _stream(attempt, paid=True)
    await attempt.until_tokens(attempt.answer.output_tokens)
    if fault and fault.when is When.MIDWAY:
        raise ApiError(500, "Internal server error")
    attempt.pay()
    return await _json(attempt)


async def _json(attempt: Attempt) -> web.StreamResponse:
    body = wire.message_body(attempt.reply)
    match attempt.fault_name:
        case "bad_body":
            body = wire.GARBAGE_BODY
        case "reset" | "stall":
            return await _half_a_body(attempt, body)
        case _:
            pass
    headers = {**attempt.headers, **attempt.world.announced()}
    return web.Response(body=body, headers=headers, content_type="application/json")


async def _half_a_body(attempt: Attempt, body: bytes) -> web.StreamResponse:
    response = await _opened(attempt, {"content-type": "application/json", "content-length": str(len(body))})
    await _write(response, body[: len(body) // 2])
    return await _break_off(attempt, response)


async def _stream(attempt: Attempt, *, paid: bool) -> web.StreamResponse:
    """A client that goes away stops nothing: the model writes to its end and the answer is paid."""
    reply, fault_name = attempt.reply, attempt.fault_name
    await attempt.until_tokens(0)
    response = await _opened(attempt, {"content-type": "text/event-stream", "cache-control": "no-cache"})
    await _write(response, wire.opening_events(reply))
    pieces = wire.deltas(reply.text)
    breaks_off = fault_name in ("reset", "stall", "stream_error", "bad_body")
    chars = 0
    for piece in pieces[: len(pieces) // 2] if breaks_off else pieces:
        chars += len(piece)
        await attempt.until_tokens(chars / CHARS_PER_TOKEN)
        await _write(response, wire.delta_event(piece))
    if fault_name == "stream_error":
        error = fault_error(fault_name, speed_up=1)
        await _write(response, wire.error_event(error_body(error, request_id=attempt.headers["request-id"])))
        return response
    if paid:
        attempt.pay()
    match fault_name:
        case "reset" | "stall":
            return await _break_off(attempt, response)
        case "bad_body":
            await _write(response, wire.GARBAGE_EVENT)
        case _:
            await _write(response, wire.closing_events(reply))
    return response


async def _opened(attempt: Attempt, headers: dict[str, str]) -> web.StreamResponse:
    response = web.StreamResponse(headers={**headers, **attempt.headers, **attempt.world.announced()})
    # A client may be gone before the first byte; the writes that follow find out the same way.
    with suppress(ConnectionError):
        await response.prepare(attempt.request)
    return response


async def _write(response: web.StreamResponse, data: bytes) -> None:
    if not response.prepared:
        return
    with suppress(ConnectionError):
        await response.write(data)


async def _break_off(attempt: Attempt, response: web.StreamResponse) -> web.StreamResponse:
    """Half of the answer is out: cut the line, or say nothing more until the client has gone."""
    transport = attempt.request.transport
    if attempt.fault_name == "reset":
        if transport is not None:
            transport.abort()
        return response
    while attempt.request.transport is not None and not attempt.request.transport.is_closing():
        await attempt.world.clock.sleep(CLIENT_GONE_POLL_S)
    return response
