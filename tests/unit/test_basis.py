"""What figures rest on, in words."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulated_calls import call, history, key, renamed

from estimator_service.domain.basis import Basis, Source, basis_of
from estimator_service.domain.estimate import estimate_groups
from estimator_service.domain.history import NOTHING_SEEN, History
from estimator_service.domain.rates import Rate
from estimator_service.domain.workload import Group, Workload

TEMPLATE = Group(id="template", tier="template", model="m", count=3)
SCENARIO = replace(TEMPLATE, id="scenario", tier="scenario")
OTHER = replace(TEMPLATE, id="other", model="n")


def basis(*groups: Group, seen: History = NOTHING_SEEN, batch: str = "") -> Basis:
    rates = {group.model: Rate(model=group.model) for group in groups}
    return basis_of(estimate_groups(Workload(groups=groups), rates, seen, batch=batch))


@pytest.mark.parametrize(
    ("made", "source", "text"),
    [
        (Basis(), Source.PRIOR, "built-in prior"),
        (Basis(own=1), Source.OBSERVATIONS, "1 call"),
        (Basis(others=5), Source.OBSERVATIONS, "5 calls with other prompts"),
        (Basis(own=12, others=5), Source.OBSERVATIONS, "12 calls and 5 calls with other prompts"),
        (Basis(own=3, of_batch=3), Source.PILOT, "3 calls of this batch"),
        (
            Basis(own=93, others=5, of_batch=3),
            Source.PILOT,
            "3 calls of this batch and 90 calls of earlier batches and 5 calls with other prompts",
        ),
    ],
)
def test_a_basis_says_what_it_rests_on(made: Basis, source: Source, text: str) -> None:
    assert (made.source, made.text) == (source, text)


def test_without_history_it_is_the_prior() -> None:
    assert basis(TEMPLATE, SCENARIO) == Basis()


def test_calls_of_these_prompts_are_told_from_those_of_others() -> None:
    seen = history([call()] * 4, [call(of=key("scenario"))] * 3, [call(of=key(model="n"))] * 2)
    assert basis(TEMPLATE, seen=seen) == Basis(own=4, others=3)
    assert basis(TEMPLATE, SCENARIO, seen=seen) == Basis(own=7)
    assert basis(TEMPLATE, OTHER, seen=seen) == Basis(own=6, others=3)
    assert basis(TEMPLATE, seen=seen).observations == 7


def test_groups_of_one_prompt_count_their_calls_once() -> None:
    assert basis(TEMPLATE, replace(TEMPLATE, id="again"), seen=history([call()] * 4)) == Basis(own=4)


def test_calls_of_the_batch_itself_are_a_pilot() -> None:
    seen = history([call()] * 4, renamed([call()] * 2, "own"))
    assert basis(TEMPLATE, seen=seen, batch="own") == Basis(own=6, of_batch=2)


def test_a_prompt_of_the_batch_that_has_nothing_left_still_counts_as_its_own() -> None:
    scenarios = [call(of=key("scenario"))] * 5
    seen = history(scenarios, renamed(scenarios, "own"), [call()] * 4)
    found = basis(TEMPLATE, seen=seen, batch="own")
    assert found == Basis(own=9, others=5, of_batch=5)
    assert found.text == "5 calls of this batch and 4 calls of earlier batches and 5 calls with other prompts"
