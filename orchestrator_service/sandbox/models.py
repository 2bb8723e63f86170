"""The models that the sandbox claims to serve."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Model:
    id: str
    display_name: str
    line: str
    created: str
    max_input_tokens: int = 1_000_000
    max_output_tokens: int = 128_000


# The newest first, as the real list has them. Dates and windows are plausible, not looked up.
MODELS: Mapping[str, Model] = {
    model.id: model
    for model in (
        Model("claude-fable-5-2", "Claude Fable 5.2", "fable", "2026-10-20"),
        Model("claude-opus-5-5", "Claude Opus 5.5", "opus", "2026-10-07"),
        Model("claude-sonnet-5-5", "Claude Sonnet 5.5", "sonnet", "2026-10-07"),
        Model("claude-haiku-5-5", "Claude Haiku 5.5", "haiku", "2026-10-07"),
        Model("claude-opus-5", "Claude Opus 5", "opus", "2026-07-15"),
        Model("claude-sonnet-5", "Claude Sonnet 5", "sonnet", "2026-06-15"),
        Model("claude-opus-4-8", "Claude Opus 4.8", "opus", "2026-05-15"),
        Model("claude-sonnet-4-6", "Claude Sonnet 4.6", "sonnet", "2026-02-17"),
        Model("claude-haiku-4-5", "Claude Haiku 4.5", "haiku", "2025-10-15", 200_000, 64_000),
        Model("claude-sonnet-4-5", "Claude Sonnet 4.5", "sonnet", "2025-09-29", 200_000, 64_000),
    )
}


def model_json(model: Model) -> dict[str, object]:
    return {
        "type": "model",
        "id": model.id,
        "display_name": model.display_name,
        "created_at": f"{model.created}T00:00:00Z",
        "lifecycle": "active",
        "line": model.line,
        "deprecated_at": None,
        "retires_at": None,
        "max_input_tokens": model.max_input_tokens,
        "max_tokens": model.max_output_tokens,
        "capabilities": None,
    }


def models_json() -> dict[str, object]:
    """One page; nobody needs a second one for ten models."""
    data = [model_json(model) for model in MODELS.values()]
    return {"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]}
