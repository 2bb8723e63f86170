"""Whose things a caller makes and sees."""

from __future__ import annotations

from parley.wire.auth import Identity

from estimator_service.domain.errors import EstimatorError


def owner_of(asked: str, caller: Identity) -> str:
    """Who owns what the caller makes. Raises OWNER_FORBIDDEN where it may not act for the one whom it names."""
    if asked and asked != caller.name and not caller.may_act_for_others:
        raise EstimatorError("OWNER_FORBIDDEN", f"{caller.name} may not act for {asked}.", metadata={"owner": asked})
    return asked or caller.name


def owner_seen(caller: Identity) -> str:
    """Whose quotes and outcomes the caller sees; empty: everyone's."""
    return "" if caller.may_act_for_others else caller.name
