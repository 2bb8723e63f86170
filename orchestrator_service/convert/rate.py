"""Prices: the contract's RateCard to the domain's, and the JSON in which a batch row keeps its own."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from parley.v1 import quote_pb2

from orchestrator_service.domain.ledger import Rate, RateCard


def rate_card_of(card: quote_pb2.RateCard) -> RateCard:
    return RateCard(card.version, {rate.model: _rate(rate) for rate in card.rates})


def rate_to_json(rate: Rate | None) -> str | None:
    return None if rate is None else json.dumps(asdict(rate))


def rate_from_json(stored: str | None) -> Rate | None:
    return None if stored is None else _from_dict(json.loads(stored))


def _from_dict(fields: dict[str, Any]) -> Rate:
    inner: dict[str, Any] | None = fields.pop("long_prompt")
    return Rate(**fields, long_prompt=_from_dict(inner) if inner else None)


def _rate(rate: quote_pb2.ModelRate) -> Rate:
    return Rate(
        input_nanos_per_mtok=rate.input_nanos_per_mtok,
        output_nanos_per_mtok=rate.output_nanos_per_mtok,
        cache_write_5m_nanos_per_mtok=rate.cache_write_5m_nanos_per_mtok,
        cache_write_1h_nanos_per_mtok=rate.cache_write_1h_nanos_per_mtok,
        cache_read_nanos_per_mtok=rate.cache_read_nanos_per_mtok,
        long_prompt_threshold_tokens=rate.long_prompt_threshold_tokens,
        long_prompt=_rate(rate.long_prompt) if rate.HasField("long_prompt") else None,
    )
