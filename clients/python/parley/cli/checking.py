"""`parley check`: proves key, model and limits with one call of a few tokens."""

from __future__ import annotations

from google.protobuf import json_format

from parley import money
from parley.cli import words
from parley.cli.failures import OK
from parley.cli.session import Session
from parley.v1 import orchestrator_pb2, quote_pb2

MODELS_SHOWN = 12


async def check(session: Session, *, model: str) -> int:
    async with session.client() as client:
        checked = await client.check_provider(model)
    if session.output.as_json:
        session.output.message(checked)
        return OK
    for label, value in _facts(checked):
        session.output.text(f"{label:<10} {value}")
    return OK


def _facts(checked: orchestrator_pb2.CheckProviderResponse) -> list[tuple[str, str]]:
    provider = checked.provider
    about = f" (sandbox, {words.times(provider.speed_up)} as fast as real)" if provider.sandbox else ""
    facts = [
        ("provider", f"{provider.base_url}{about}"),
        ("model", f"{checked.model} answers"),
        ("cost", f"{money.show(checked.cost)} for this check{' (not billed)' if provider.sandbox else ''}"),
        ("limits", _limits(checked.limits) if checked.HasField("limits") else "none announced"),
    ]
    if checked.models:
        more = f" and {len(checked.models) - MODELS_SHOWN} more" if len(checked.models) > MODELS_SHOWN else ""
        facts.append(("offers", ", ".join(checked.models[:MODELS_SHOWN]) + more))
    details = json_format.MessageToDict(checked.details)
    return [*facts, *((key.replace("_", " "), _shown(value)) for key, value in sorted(details.items()))]


def _limits(limits: quote_pb2.RateLimits) -> str:
    named = {
        "requests": limits.requests_per_minute,
        "input tokens": limits.input_tokens_per_minute,
        "output tokens": limits.output_tokens_per_minute,
    }
    return ", ".join(f"{value:,.0f} {name}" for name, value in named.items() if value) + " a minute"


def _shown(value: object) -> str:
    # Every number of a Struct is a float; 50 reads better than 50.0.
    return f"{value:,g}" if isinstance(value, float) else str(value)
