"""What the model answers to one attempt at one prompt: a pure function of seed, prompt and attempt."""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from orchestrator_service.sandbox.brief import Brief, read_brief
from orchestrator_service.sandbox.call import CHARS_PER_TOKEN, Call
from orchestrator_service.sandbox.faults import Fault, draw_fault
from orchestrator_service.sandbox.latency import Pace, draw_length_tokens, draw_pace
from orchestrator_service.sandbox.settings import Settings
from orchestrator_service.sandbox.text import Turn, write_conversation, write_prose

# `{"turns": []}` and, for each turn, its keys and quotes.
CHARS_AROUND_TURNS = 13
CHARS_AROUND_TURN = 37
# A call with so few tokens only checks that key and model work.
CHECK_TOKENS_MAX = 16
PROSE_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Answer:
    message_id: str
    text: str
    output_tokens: int
    stop_reason: str
    pace: Pace
    fault: Fault | None


def answer_call(settings: Settings, call: Call, *, attempt: int) -> Answer:
    known_by = f"{settings.seed}\n{call.prompt_sha256}\n{attempt}"
    digest = hashlib.blake2b(known_by.encode(), digest_size=24).digest()
    rng = Random(int.from_bytes(digest))
    # Drawn in this order whatever the settings are: switching a fault on leaves all other texts as they were.
    chance = rng.random()
    pace = draw_pace(
        rng,
        first_token_s=settings.first_token_s,
        tokens_per_s=settings.tokens_per_s,
        speed_up=0.0 if settings.zero_latency else settings.speed_up,
    )
    fault = _fault(settings, call, attempt=attempt, chance=chance)
    text = _text(settings, call, fault=fault, rng=rng)
    stop_reason = "end_turn"
    if fault and fault.name == "truncated":
        text, stop_reason = text[: len(text) // 2], "max_tokens"
    if fault and fault.name == "unknown_stop_reason":
        stop_reason = "sandbox_reason_nobody_knows"
    output_tokens = -(-len(text) // CHARS_PER_TOKEN)
    if output_tokens > call.max_tokens:
        text, output_tokens, stop_reason = (
            text[: call.max_tokens * CHARS_PER_TOKEN],
            call.max_tokens,
            "max_tokens",
        )
    return Answer("msg_" + digest[:12].hex(), text, output_tokens, stop_reason, pace, fault)


def _fault(settings: Settings, call: Call, *, attempt: int, chance: float) -> Fault | None:
    if settings.fault_max_attempt is not None and attempt > settings.fault_max_attempt:
        return None
    return draw_fault(settings.faults, chance=chance, is_conversation=call.wants_conversation)


def _text(settings: Settings, call: Call, *, fault: Fault | None, rng: Random) -> str:
    if not call.wants_conversation:
        if call.max_tokens <= CHECK_TOKENS_MAX:
            return "OK"
        return write_prose(chars=int(settings.tokens_mean * PROSE_SHARE * CHARS_PER_TOKEN), rng=rng)
    brief = _brief(call.prompt)
    turns = _turns(settings, brief, short=fault is not None and fault.name == "short", rng=rng)
    if fault and fault.name == "wrong_roles":
        turns = _wrong_roles(turns, rng)
    if fault and fault.name == "placeholder":
        turns[-1] = Turn(turns[-1].role, "{{client_first_name}}, " + turns[-1].content)
    text = json.dumps({"turns": [{"role": turn.role, "content": turn.content} for turn in turns]}, ensure_ascii=False)
    if fault and fault.name == "malformed":
        # A quote that nobody escaped, and no end: what a lenient parser might otherwise complete.
        text = text.replace('"content": "', '"content": ""', 1)[:-2]
    return text


def _turns(settings: Settings, brief: Brief, *, short: bool, rng: Random) -> list[Turn]:
    tokens = draw_length_tokens(rng, mean_tokens=settings.tokens_mean, tier=brief.tier, arc=brief.arc)
    exchanges = brief.exchanges_min + int(rng.random() * (brief.exchanges_max - brief.exchanges_min + 1))
    if short:
        exchanges = max(1, brief.exchanges_min - 1)
    around_chars = CHARS_AROUND_TURNS + CHARS_AROUND_TURN * exchanges * 2
    content_chars = max(0, tokens * CHARS_PER_TOKEN - around_chars)
    turns = write_conversation(brief, exchanges=exchanges, content_chars=content_chars, rng=rng)
    # Where one exchange was asked for, the only way to be shorter is to leave out the reply.
    return turns[:1] if short and brief.exchanges_min == 1 else turns


def _wrong_roles(turns: list[Turn], rng: Random) -> list[Turn]:
    if rng.random() < 0.5:
        return turns[:-1]
    return [turns[0], Turn("user", turns[1].content), *turns[2:]]


@lru_cache(maxsize=256)
def _brief(prompt: str) -> Brief:
    # Kept for a prompt that is tried again; reading one takes longer than drawing a short answer.
    return read_brief(prompt)
