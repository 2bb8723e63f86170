"""Sandbox texts and times without a server: their distribution, their variety and what they depend on."""

import json
import statistics
from itertools import combinations
from typing import Any

import pytest

from orchestrator_service.sandbox.answers import Answer, answer_call
from orchestrator_service.sandbox.brief import read_brief
from orchestrator_service.sandbox.cache import InputUsage, Prefix, PromptCache
from orchestrator_service.sandbox.call import Call, read_call
from orchestrator_service.sandbox.limits import Limits
from orchestrator_service.sandbox.settings import Settings


def call_about(matter: str, *, tier: str = "template", arc: str = "shame -> hope") -> Call:
    prompt = f"JSON, 4 to 5 exchanges.\nTier: {tier}\nPersona: Jo Ann Reyes (51)\nEmotional arc: {arc}\nTopic: {matter}"
    body: dict[str, Any] = {
        "model": "claude-sonnet-5",
        "max_tokens": 16_000,
        "messages": [{"role": "user", "content": prompt}],
    }
    return read_call(json.dumps(body).encode())


def answers(count: int, *, tier: str = "template", settings: Settings | None = None) -> list[Answer]:
    """One answer for each of `count` prompts, each with an arc of its own."""
    calls = [call_about(f"matter {n}", tier=tier, arc=f"mood {n} -> hope") for n in range(count)]
    return [answer_call(settings or Settings(), call, attempt=1) for call in calls]


def words_of(answer: Answer) -> list[str]:
    turns: list[dict[str, str]] = json.loads(answer.text)["turns"]
    return [word for turn in turns for word in turn["content"].split()]


@pytest.mark.parametrize(("tier", "mean"), [("template", 2_292), ("scenario", 2_865), ("edge_case", 2_063)])
def test_answers_are_as_long_as_the_original_logs_say(tier: str, mean: int) -> None:
    lengths = [answer.output_tokens for answer in answers(600, tier=tier)]
    assert statistics.mean(lengths) == pytest.approx(mean, rel=0.05)
    assert statistics.stdev(lengths) == pytest.approx(mean * 865 / 2_292, rel=0.15)


def test_a_mean_that_was_asked_for_is_kept() -> None:
    lengths = [answer.output_tokens for answer in answers(300, settings=Settings(tokens_mean=400))]
    assert statistics.mean(lengths) == pytest.approx(400, rel=0.05)


def test_the_arc_decides_more_about_the_length_than_the_call_does() -> None:
    def lengths(arc: str) -> list[int]:
        calls = [call_about(f"matter {n}", arc=arc) for n in range(60)]
        return [answer_call(Settings(), call, attempt=1).output_tokens for call in calls]

    by_arc = [lengths(f"mood {n} -> hope") for n in range(20)]
    within = statistics.mean(statistics.stdev(group) for group in by_arc)
    between = statistics.stdev(statistics.mean(group) for group in by_arc)
    assert between > within


def test_a_template_call_takes_about_a_minute_of_real_time() -> None:
    took_s = [answer.pace.reached_s(answer.output_tokens) * 40 for answer in answers(400)]
    assert statistics.mean(took_s) == pytest.approx(65, rel=0.06)


def test_speed_and_first_token_are_the_medians_that_were_asked_for() -> None:
    asked = Settings(tokens_per_s=80.0, first_token_s=2.5)
    paces = [answer.pace for answer in answers(400, settings=asked)]
    assert statistics.median(pace.tokens_per_s for pace in paces) == pytest.approx(80.0, rel=0.02)
    assert statistics.median(pace.ttft_s for pace in paces) == pytest.approx(2.5, rel=0.05)


def test_another_speed_leaves_the_texts_as_they_were() -> None:
    slow, fast = (answers(20, settings=Settings(tokens_per_s=speed)) for speed in (20.0, 80.0))
    assert [answer.text for answer in slow] == [answer.text for answer in fast]


def test_zero_latency_takes_no_time() -> None:
    answer = answer_call(Settings(zero_latency=True), call_about("debt"), attempt=1)
    assert answer.pace.reached_s(answer.output_tokens) == 0


def test_an_answer_depends_on_seed_prompt_and_attempt_only() -> None:
    def text(seed: int, matter: str, attempt: int) -> str:
        return answer_call(Settings(seed=seed), call_about(matter), attempt=attempt).text

    assert text(1, "debt", 1) == text(1, "debt", 1)
    assert len({text(1, "debt", 1), text(2, "debt", 1), text(1, "rent", 1), text(1, "debt", 2)}) == 4


def test_a_fault_that_is_switched_on_leaves_the_other_texts_as_they_were() -> None:
    faulty = Settings(faults={"overloaded": 0.5})
    for plain, other in zip(answers(40), answers(40, settings=faulty), strict=True):
        assert other.text == plain.text


def passages_of(answer: Answer, *, length: int) -> list[str]:
    words = words_of(answer)
    return [" ".join(words[at : at + length]) for at in range(len(words) - length + 1)]


def test_no_two_conversations_share_more_than_a_tenth_of_their_passages() -> None:
    told = [set(passages_of(answer, length=12)) for answer in answers(80)]
    shared = [len(one & other) / min(len(one), len(other)) for one, other in combinations(told, 2)]
    assert max(shared) < 0.1
    assert statistics.mean(shared) < 0.01


def test_a_conversation_does_not_repeat_a_long_passage_of_its_own() -> None:
    for answer in answers(80):
        passages = passages_of(answer, length=20)
        assert len(passages) == len(set(passages))


@pytest.mark.parametrize(
    ("prompt", "name", "stages", "exchanges"),
    [
        ("Persona: Maya, 34, nurse\nEmotional arc: fear to calm\n3 to 4 exchanges", "Maya", ("fear", "calm"), (3, 4)),
        (
            "- **Client:** Jo Ann Reyes (51)\n**Arc**: shame → hope → joy",
            "Jo Ann Reyes",
            ("shame", "hope", "joy"),
            (4, 5),
        ),
        ("## Persona: **Li Wei** - 40\nexactly 2 exchanges, no more", "Li Wei", ("unease", "relief"), (2, 2)),
        ("between 6 and 9 exchanges", None, ("unease", "relief"), (6, 9)),
    ],
)
def test_a_brief_is_read_from_plain_and_marked_up_lines(
    prompt: str, name: str | None, stages: tuple[str, ...], exchanges: tuple[int, int]
) -> None:
    brief = read_brief(prompt)
    assert brief.name == name
    assert brief.stages == stages
    assert (brief.exchanges_min, brief.exchanges_max) == exchanges


def test_the_last_line_of_a_kind_wins_over_the_shared_ones_before_it() -> None:
    assert read_brief("Topic: what the client wants\nTopic: Student loans").topic == "Student loans"


def test_a_bucket_refills_continuously_at_the_speed_up() -> None:
    limits = Limits(Settings(speed_up=60.0, requests_per_minute=2), now_s=0.0)
    assert limits.admit(input_tokens=1, now_s=0.0) is None
    assert limits.admit(input_tokens=1, now_s=0.0) is None
    refused = limits.admit(input_tokens=1, now_s=0.25)
    assert refused is not None
    assert refused.wait_s == pytest.approx(0.25)
    assert limits.admit(input_tokens=1, now_s=0.5) is None


def test_what_is_refused_takes_nothing_from_any_bucket() -> None:
    limits = Limits(Settings(speed_up=1.0, input_tokens_per_minute=100), now_s=0.0)
    assert limits.admit(input_tokens=80, now_s=0.0) is None
    for _ in range(5_000):
        assert limits.admit(input_tokens=80, now_s=0.0) is not None
    assert limits.admit(input_tokens=20, now_s=0.0) is None


def test_a_warm_prefix_cools_down_after_its_lifetime_in_sandbox_time() -> None:
    prefixes = (Prefix(b"shared", 2_000, "5m"), Prefix(b"all", 2_100))
    cache = PromptCache()
    cache.keep(prefixes, speed_up=40.0, now_s=0.0)
    assert cache.split(prefixes, input_tokens=2_108, now_s=7.4) == InputUsage(108, 0, 2_000)
    assert cache.split(prefixes, input_tokens=2_108, now_s=7.6) == InputUsage(108, 2_000, 0)


def test_a_prefix_under_the_least_size_is_not_cached() -> None:
    prefixes = (Prefix(b"small", 1_023, "5m"),)
    cache = PromptCache()
    cache.keep(prefixes, speed_up=1.0, now_s=0.0)
    assert cache.split(prefixes, input_tokens=1_031, now_s=0.0) == InputUsage(1_031)
