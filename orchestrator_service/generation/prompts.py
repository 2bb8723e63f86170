"""The prompts of a batch: one shared system part, and a user part for each conversation, filled and checked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile

from orchestrator_service.domain.errors import InvalidRequest
from orchestrator_service.domain.plan import Item, Plan
from orchestrator_service.domain.spec import (
    FINDINGS_MAX,
    Builtins,
    Exchanges,
    Finding,
    ParameterValue,
    Spec,
    Tier,
    plain,
    tier_axes,
)
from orchestrator_service.generation.templates import (
    FILLED_MAX_BYTES,
    FilledTooLarge,
    FillError,
    Template,
    TemplateRefused,
    Unresolved,
    compile_template,
)

OUTPUT_INSTRUCTIONS = """\
# Output

Answer with one JSON object and nothing else, no code fence, no words before or after it:
{"turns": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
The roles are "user" and "assistant" and alternate. The user speaks first, the assistant last. Each content is the
whole message as plain text and is never empty. Fill in everything: leave no placeholders or names in braces."""

# A closing pair alone is no sign: nested JSON in an example ends like that.
UNFILLED = re.compile(r"\{\{\s*(\w{0,64})|\{%")


class PromptRefused(InvalidRequest):
    """A prompt that can't be made; `reason` is TEMPLATE_MISSING, TEMPLATE_REFUSED, ... as in the contract."""

    def __init__(self, field: str, message: str, *, reason: str, placeholder: str = "") -> None:
        super().__init__(field, message, reason=reason, **({"placeholder": placeholder} if placeholder else {}))
        self.placeholder = placeholder


@dataclass(frozen=True)
class Filled:
    # The same for all conversations of a batch, so that it can be cached.
    system: str
    user: str
    sha256: str


@dataclass(frozen=True)
class _Source:
    """A template's text, where it stands in the spec, and what came of compiling it."""

    text: str
    field: str
    template: Template | None = None
    refused: PromptRefused | None = None

    @property
    def names(self) -> frozenset[str]:
        return self.template.names if self.template else frozenset()

    def fill(self, values: Mapping[str, object]) -> str:
        if self.template is None:
            # An exception carries its traceback; raising the same one from many places would pile them up.
            refused = self.refused or PromptRefused(self.field, "There is no template.", reason="TEMPLATE_MISSING")
            raise PromptRefused(self.field, refused.message, reason=refused.reason)
        try:
            filled = self.template.fill(values)
        except Unresolved as error:
            raise self._unresolved(error.placeholder, str(error)) from None
        except FilledTooLarge as error:
            raise PromptRefused(self.field, str(error), reason="PROMPT_TOO_LARGE") from None
        except FillError as error:
            raise PromptRefused(self.field, str(error), reason="TEMPLATE_REFUSED") from None
        try:
            filled.encode()
        except UnicodeEncodeError:
            # An escape in the template's own words can make one; no request could carry it.
            message = "The filled prompt holds half of a character, a lone surrogate."
            raise PromptRefused(self.field, message, reason="TEMPLATE_REFUSED") from None
        if "{{" in filled or "{%" in filled:
            found = UNFILLED.search(filled)
            name = (found and found[1]) or "{%"
            raise self._unresolved(name, f"The filled prompt still has the placeholder {name} in it, from a value.")
        return filled

    def _unresolved(self, placeholder: str, message: str) -> PromptRefused:
        return PromptRefused(self.field, message, reason="PLACEHOLDER_UNRESOLVED", placeholder=placeholder)


class Prompts:
    """Compiles every template of a spec once. What is wrong with them is in `findings`, not raised."""

    def __init__(self, spec: Spec, builtins: Builtins) -> None:
        self.spec = spec
        self._shared_values = _with_values({name: plain(value) for name, value in spec.shared_parameters.items()})
        self._shared = _shared_source(spec, builtins)
        self._tiers = {tier.id: _tier_source(at, tier, builtins) for at, tier in enumerate(spec.tiers)}
        self._system, system_findings = self._fill_shared(self._shared)
        self._dataset_system, dataset_findings = self._fill_shared(_compiled(spec.system_prompt, "system_prompt"))
        if self._system is not None:
            self._system = f"{self._system}\n\n{OUTPUT_INSTRUCTIONS}".lstrip()
        refused = [_finding(source.refused, tier=tier) for tier, source in self._tiers.items() if source.refused]
        self.findings: tuple[Finding, ...] = (*system_findings, *dataset_findings, *refused, *self._unused_axes())

    def render(self, item: Item) -> Filled:
        """The prompt of one conversation. Raises PromptRefused."""
        if self._system is None:
            raise PromptRefused(self._shared.field, "The shared prompt can't be filled.", reason="TEMPLATE_REFUSED")
        user = self._user(item)
        sha256 = hashlib.sha256(f"{self._system}\0{user}".encode()).hexdigest()
        return Filled(system=self._system, user=user, sha256=sha256)

    def check(self, plan: Plan, is_left: Callable[[], bool] = lambda: False) -> list[Finding]:
        """Fills every prompt of the plan: one finding for each tier and placeholder, errors first. Takes CPU time."""
        found: dict[tuple[str, str, str], tuple[Finding, int]] = {}
        broken = {tier for tier, source in self._tiers.items() if source.refused}
        for item in takewhile(lambda _: not is_left(), plan.items()):
            if item.tier.id in broken:
                continue
            try:
                self._user(item)
            except PromptRefused as refused:
                key = (item.tier.id, refused.reason, refused.placeholder)
                first, count = found.get(key, (_finding(refused, tier=item.tier.id, conversation=item.number), 0))
                found[key] = first, count + 1
                if len(found) >= FINDINGS_MAX:
                    break
        filling = [
            replace(first, message=f"{first.message} First in conversation {first.conversation}, {count:,} in all.")
            for first, count in found.values()
        ]
        return sorted([*self.findings, *filling], key=lambda finding: finding.severity)[:FINDINGS_MAX]

    def dataset_system(self) -> str:
        """The system message of the exported rows; empty for none."""
        if self._dataset_system is None:
            raise PromptRefused("system_prompt", "The system prompt can't be filled.", reason="TEMPLATE_REFUSED")
        return self._dataset_system

    def fingerprint(self, tier_id: str) -> str:
        """Names the texts, not the values, that a tier's prompts are made of."""
        texts = (self._shared.text, OUTPUT_INSTRUCTIONS, self._tiers[tier_id].text)
        return hashlib.sha256("\0".join(texts).encode()).hexdigest()

    def _user(self, item: Item) -> str:
        source = self._tiers[item.tier.id]
        length = item.tier.exchange_range
        values = _with_values(item.parameters)
        values |= {"tier": item.tier.id, "exchanges_min": length.min, "exchanges_max": length.max}
        user = _with_facts(source.fill(values), item.tier.id, length, names=source.names)
        if len(user) * 4 > FILLED_MAX_BYTES and len(user.encode()) > FILLED_MAX_BYTES:
            raise PromptRefused(source.field, str(FilledTooLarge()), reason="PROMPT_TOO_LARGE")
        return user

    def _fill_shared(self, source: _Source) -> tuple[str | None, list[Finding]]:
        try:
            return source.fill(self._shared_values), []
        except PromptRefused as refused:
            finding = _finding(refused)
            if refused.placeholder:
                finding = replace(finding, message=f"{finding.message} Only shared parameters count here.")
            return None, [finding]

    def _unused_axes(self) -> list[Finding]:
        """An axis that a prompt does not name changes nothing: its conversations are not as different as they look."""
        unused: list[Finding] = []
        for at, tier in enumerate(self.spec.tiers):
            template = self._tiers[tier.id].template
            # A built-in template may know axes that this spec leaves out, and the other way round.
            if template is None or tier.prompt is None:
                continue
            names = [axis.id for axis in tier_axes(self.spec, tier) if axis.id not in template.names]
            if names:
                message = f"The prompt of tier {tier.id} does not use {', '.join(names)}: varying it changes nothing."
                unused.append(Finding("WARNING", "", f"tiers[{at}].prompt.text", message, tier=tier.id))
        return unused


def _compiled(text: str, field: str) -> _Source:
    try:
        return _Source(text, field, template=compile_template(text))
    except TemplateRefused as error:
        return _Source(text, field, refused=PromptRefused(field, str(error), reason="TEMPLATE_REFUSED"))


def _shared_source(spec: Spec, builtins: Builtins) -> _Source:
    # The built-in instructions belong to the built-in templates; a spec with prompts of its own says all itself.
    uses_builtin = any(tier.prompt is None for tier in spec.tiers)
    otherwise = builtins.shared_prompt if uses_builtin else ""
    return _compiled(otherwise if spec.shared_prompt is None else spec.shared_prompt, "shared_prompt.text")


def _tier_source(at: int, tier: Tier, builtins: Builtins) -> _Source:
    field = f"tiers[{at}].prompt.text"
    if tier.prompt is not None:
        return _compiled(tier.prompt, field)
    if tier.id in builtins.templates:
        return _compiled(builtins.templates[tier.id].text, field)
    known = ", ".join(builtins.templates)
    message = f"Tier {tier.id} has no prompt, and there is a built-in one for {known} only."
    return _Source("", field, refused=PromptRefused(field, message, reason="TEMPLATE_MISSING"))


def _finding(refused: PromptRefused, *, tier: str = "", conversation: int = 0) -> Finding:
    return Finding("ERROR", refused.reason, refused.field, refused.message, tier=tier, conversation=conversation)


def _with_values(parameters: Mapping[str, ParameterValue]) -> dict[str, object]:
    """A parameter that is null has no value, so naming it is an error like that of a parameter never given."""
    return {name: value for name, value in parameters.items() if value is not None}


def _with_facts(text: str, tier_id: str, length: Exchanges, *, names: frozenset[str]) -> str:
    """What every prompt must say and a template may have left out."""
    facts: list[str] = []
    if "tier" not in names:
        facts.append(f"Tier: {tier_id}")
    if not names & {"exchanges_min", "exchanges_max"}:
        span = f"{length.min} to {length.max} exchanges"
        facts.append(f"Length: {span} (an exchange is one user message and the assistant's answer)")
    return "\n".join([text.rstrip(), "", "# Conversation", "", *facts]).lstrip() if facts else text
