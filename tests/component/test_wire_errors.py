"""What a client reads off a failed call."""

import grpc
import pytest
import structlog
from google.rpc import code_pb2
from parley.v1 import estimator_pb2, quote_pb2
from parley.wire.errors import FieldViolation, reason_infos, status_of
from wire_fixtures import ASK, DomainError, failure_of, serving

pytestmark = pytest.mark.anyio


def raising(error: Exception):
    async def answer(request: estimator_pb2.GetQuoteRequest) -> quote_pb2.Quote:
        raise error

    return answer


async def test_a_domain_error_arrives_with_code_reason_message_and_facts():
    error = DomainError("QUOTE_NOT_FOUND", "There is no quote quotes/abcd.", metadata={"name": "quotes/abcd"})
    async with serving(raising(error)) as served:
        failure = await failure_of(served.estimator.GetQuote(ASK))
    assert failure.code is grpc.StatusCode.NOT_FOUND
    assert failure.reason == "QUOTE_NOT_FOUND"
    assert failure.message == "There is no quote quotes/abcd."
    assert failure.metadata == {"name": "quotes/abcd"}
    assert failure.sentence == "There is no such quote."
    assert "parley quote" in failure.next_step


async def test_violations_arrive_with_their_paths():
    violations = (FieldViolation("spec.tiers[1].count", "too many"), FieldViolation('labels["a"]', "too long"))
    async with serving(raising(DomainError("INVALID_FIELD", violations=violations))) as served:
        failure = await failure_of(served.estimator.GetQuote(ASK))
    assert failure.violations == violations


async def test_a_waiting_time_arrives():
    async with serving(raising(DomainError("TOO_MANY_WATCHERS", retry_after_s=1.5))) as served:
        failure = await failure_of(served.estimator.GetQuote(ASK))
    assert failure.retry_after_s == 1.5


async def test_an_error_without_waiting_time_has_none():
    async with serving(raising(DomainError("STATE_FORBIDS"))) as served:
        assert (await failure_of(served.estimator.GetQuote(ASK))).retry_after_s is None


async def test_an_attached_quote_arrives():
    fresh = quote_pb2.Quote(name="quotes/fresh", groups=[quote_pb2.GroupQuote()] * 20)
    async with serving(raising(DomainError("QUOTE_STALE", attachment=fresh))) as served:
        failure = await failure_of(served.estimator.GetQuote(ASK))
    assert failure.attachment(quote_pb2.Quote) == fresh
    assert failure.attachment(quote_pb2.GroupQuote) is None


async def test_an_attachment_of_30_kb_still_arrives():
    fresh = quote_pb2.Quote(stale_reason="x" * 30_000)
    async with serving(raising(DomainError("QUOTE_STALE", attachment=fresh))) as served:
        failure = await failure_of(served.estimator.GetQuote(ASK))
    assert failure.attachment(quote_pb2.Quote) == fresh


async def test_an_attachment_too_large_for_metadata_is_dropped_and_named():
    fresh = quote_pb2.Quote(stale_reason="x" * 100_000)
    async with serving(raising(DomainError("QUOTE_STALE", attachment=fresh))) as served:
        failure = await failure_of(served.estimator.GetQuote(ASK))
    assert failure.reason == "QUOTE_STALE"
    assert failure.attachments == ()
    assert failure.metadata["attachment_dropped"] == "parley.v1.Quote"


async def test_too_many_violations_are_cut_and_counted():
    violations = tuple(FieldViolation(f"spec.tiers[{n}].count", "too many " * 50) for n in range(1_000))
    async with serving(raising(DomainError("INVALID_FIELD", violations=violations))) as served:
        failure = await failure_of(served.estimator.GetQuote(ASK))
    assert failure.reason == "INVALID_FIELD"
    assert len(failure.violations) == 20
    assert failure.metadata["violations_total"] == "1000"


async def test_the_longest_error_still_arrives_as_what_it_is():
    error = DomainError(
        "STATE_FORBIDS", "\N{PILE OF POO}" * 9_000, metadata={str(n): "\u20ac" * 2_000 for n in range(99)}
    )
    async with serving(raising(error)) as served:
        failure = await failure_of(served.estimator.GetQuote(ASK))
    assert failure.reason == "STATE_FORBIDS"
    assert failure.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_an_unforeseen_error_keeps_its_text_in_the_log():
    with structlog.testing.capture_logs() as lines:
        async with serving(raising(RuntimeError("the key is 1234"))) as served:
            failure = await failure_of(served.estimator.GetQuote(ASK))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "1234" not in repr(failure)
    logged = next(line for line in lines if line["event"] == "unforeseen error")
    assert "1234" in str(logged["exc_info"])
    assert logged["request_id"] == failure.request_id


async def test_an_exception_with_a_foreign_reason_is_unforeseen():
    async with serving(raising(UnicodeDecodeError("utf-8", b"secret", 0, 1, "invalid start byte"))) as served:
        failure = await failure_of(served.estimator.GetQuote(ASK))
    assert failure.reason == "INTERNAL"
    assert "start byte" not in failure.message


async def test_a_lone_surrogate_in_a_message_does_not_hide_the_error():
    async with serving(raising(DomainError("STATE_FORBIDS", "bad \ud800 text"))) as served:
        assert (await failure_of(served.estimator.GetQuote(ASK))).message == "bad ? text"


async def test_bytes_that_are_no_message_are_an_invalid_field():
    async with serving() as served:
        failure = await failure_of(served.send("/parley.v1.BatchEstimator/GetQuote", b"\xff\xff\xff"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


async def test_a_method_that_is_not_served_is_told_so():
    async with serving() as served:
        failure = await failure_of(served.send("/parley.v1.BatchEstimator/Nothing", b""))
    assert failure.code is grpc.StatusCode.UNIMPLEMENTED
    assert failure.reason == ""
    assert failure.sentence == "The server does not know this call."


@pytest.mark.parametrize("reason", reason_infos())
def test_every_reason_has_its_code_sentence_and_next_step(reason: str):
    info = reason_infos()[reason]
    assert status_of(DomainError(reason), "id").code == info.code != code_pb2.OK
    assert info.sentence.endswith(".")
    assert info.next_step.endswith(".")
