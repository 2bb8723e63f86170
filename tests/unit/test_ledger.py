"""Tokens times prices, in whole nano-dollars."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
from parley.v1 import conversation_pb2 as pb

from orchestrator_service.domain.ledger import (
    FREE,
    CallOutcome,
    CallPurpose,
    CallState,
    Rate,
    Usage,
    cost_nanos,
    counted_input_tokens,
    most_input_tokens,
    reserve_nanos,
)

DOLLAR = 1_000_000_000
SONNET = Rate(
    input_nanos_per_mtok=3 * DOLLAR,
    output_nanos_per_mtok=15 * DOLLAR,
    cache_write_5m_nanos_per_mtok=3_750_000_000,
    cache_write_1h_nanos_per_mtok=6 * DOLLAR,
    cache_read_nanos_per_mtok=300_000_000,
)
counts = st.integers(min_value=0, max_value=10**9)
usages = st.builds(
    Usage,
    input_tokens=counts,
    output_tokens=counts,
    cache_write_5m_tokens=counts,
    cache_write_1h_tokens=counts,
    cache_read_tokens=counts,
    thinking_tokens=counts,
)


def test_every_class_of_tokens_has_its_own_price() -> None:
    usage = Usage(
        input_tokens=1_000,
        output_tokens=100,
        cache_write_5m_tokens=10_000,
        cache_write_1h_tokens=20_000,
        cache_read_tokens=30_000,
        thinking_tokens=50,
    )
    assert cost_nanos(usage, SONNET) == 3_000_000 + 1_500_000 + 37_500_000 + 120_000_000 + 9_000_000


def test_the_mean_conversation_of_the_original_costs_four_cents() -> None:
    assert cost_nanos(Usage(input_tokens=2_312, output_tokens=2_292), SONNET) == 41_316_000


def test_the_cost_is_rounded_half_up_once_at_the_end() -> None:
    half = Rate(input_nanos_per_mtok=250_000, output_nanos_per_mtok=250_000)
    assert cost_nanos(Usage(input_tokens=1), half) == 0
    assert cost_nanos(Usage(input_tokens=1, output_tokens=1), half) == 1


def test_a_long_prompt_has_its_own_prices_above_the_threshold_with_cached_tokens_counted() -> None:
    long = Rate(input_nanos_per_mtok=6 * DOLLAR, output_nanos_per_mtok=22 * DOLLAR)
    rate = Rate(
        input_nanos_per_mtok=3 * DOLLAR,
        output_nanos_per_mtok=15 * DOLLAR,
        long_prompt_threshold_tokens=200_000,
        long_prompt=long,
    )
    assert cost_nanos(Usage(input_tokens=200_000), rate) == 600_000_000
    assert cost_nanos(Usage(input_tokens=200_001), rate) == 1_200_006_000
    assert cost_nanos(Usage(input_tokens=1, cache_read_tokens=200_000, output_tokens=1_000_000), rate) == 22_000_006_000


def test_a_threshold_of_zero_is_none() -> None:
    rate = Rate(input_nanos_per_mtok=DOLLAR, output_nanos_per_mtok=0, long_prompt=FREE)
    assert cost_nanos(Usage(input_tokens=1_000_000), rate) == DOLLAR


@given(usages, usages)
def test_the_cost_of_a_sum_is_the_sum_of_the_costs_within_the_rounding(one: Usage, other: Usage) -> None:
    apart = cost_nanos(one, SONNET) + cost_nanos(other, SONNET)
    assert abs(cost_nanos(one + other, SONNET) - apart) <= 1


@given(usages)
def test_the_cost_is_the_exact_product_within_half_a_nano_dollar(usage: Usage) -> None:
    exact = Fraction(
        usage.input_tokens * 3_000
        + usage.output_tokens * 15_000
        + usage.cache_write_5m_tokens * 3_750
        + usage.cache_write_1h_tokens * 6_000
        + usage.cache_read_tokens * 300
    )
    assert abs(cost_nanos(usage, SONNET) - exact) <= Fraction(1, 2)


@given(counts, counts, st.sampled_from(["off", "5m", "1h"]))
def test_a_reserve_covers_whatever_the_call_may_cost(input_tokens: int, max_tokens: int, prompt_cache: str) -> None:
    worst = {
        "off": Usage(input_tokens=input_tokens, output_tokens=max_tokens),
        "5m": Usage(cache_write_5m_tokens=input_tokens, output_tokens=max_tokens),
        "1h": Usage(cache_write_1h_tokens=input_tokens, output_tokens=max_tokens),
    }[prompt_cache]
    reserved = reserve_nanos(input_tokens, max_tokens, SONNET, prompt_cache=prompt_cache)
    assert reserved >= cost_nanos(worst, SONNET) and reserved - cost_nanos(worst, SONNET) <= 1


def test_a_reserve_is_rounded_up() -> None:
    assert reserve_nanos(1, 0, Rate(input_nanos_per_mtok=1, output_nanos_per_mtok=0)) == 1


def test_the_words_are_those_of_the_contract() -> None:
    for words, theirs in ((CallPurpose, pb.CallPurpose), (CallState, pb.CallState), (CallOutcome, pb.CallOutcome)):
        prefix = theirs.keys()[0].removesuffix("UNSPECIFIED")
        assert [prefix + word for word in words] == theirs.keys()[1:]


def test_a_text_has_at_most_so_many_tokens() -> None:
    assert most_input_tokens("") == 0
    assert most_input_tokens("plain text") == 4
    assert most_input_tokens("x" * 11) == 5
    # A character of another script may take two.
    assert most_input_tokens("\u4f60\u597d!") == 5


def test_a_count_has_a_margin() -> None:
    assert counted_input_tokens(0) == 20
    assert counted_input_tokens(1_000) == 1_040
