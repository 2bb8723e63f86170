"""What a channel refuses, and how it tries again."""

import pytest
from parley.v1 import estimator_pb2, quote_pb2
from parley.v1.estimator_pb2_grpc import BatchEstimatorStub
from parley.wire.channel import ChannelSettings, deadline_s, open_blocking_channel, open_channel
from parley.wire.errors import BootError
from wire_fixtures import ASK, DomainError, failure_of, serving

pytestmark = pytest.mark.anyio


class Unavailable:
    """Fails a number of times, then answers."""

    def __init__(self, *, failures: int, retry_after_s: float | None) -> None:
        self.attempts = 0
        self._failures = failures
        self._retry_after_s = retry_after_s

    async def answer(self, request: estimator_pb2.GetQuoteRequest) -> quote_pb2.Quote:
        self.attempts += 1
        if self.attempts <= self._failures:
            raise DomainError("SHUTTING_DOWN", retry_after_s=self._retry_after_s)
        return quote_pb2.Quote(name=request.name)


async def test_a_server_that_is_away_for_a_moment_is_tried_again():
    unavailable = Unavailable(failures=2, retry_after_s=0.01)
    async with serving(unavailable.answer) as served:
        assert (await served.estimator.GetQuote(ASK)).name == ASK.name
    assert unavailable.attempts == 3


async def test_no_call_is_tried_more_than_four_times():
    unavailable = Unavailable(failures=99, retry_after_s=0.01)
    async with serving(unavailable.answer) as served:
        assert (await failure_of(served.estimator.GetQuote(ASK))).reason == "SHUTTING_DOWN"
    assert unavailable.attempts == 4


@pytest.mark.parametrize("retry_after_s", [None, 60.0])
async def test_a_server_that_names_no_short_wait_is_not_pressed(retry_after_s: float | None):
    unavailable = Unavailable(failures=99, retry_after_s=retry_after_s)
    async with serving(unavailable.answer) as served:
        failure = await failure_of(served.estimator.GetQuote(ASK))
    assert unavailable.attempts == 1
    assert failure.retry_after_s == retry_after_s


async def test_a_refusal_is_not_tried_again():
    attempts: list[str] = []

    async def refuse(request: estimator_pb2.GetQuoteRequest) -> quote_pb2.Quote:
        attempts.append(request.name)
        raise DomainError("STATE_FORBIDS")

    async with serving(refuse) as served:
        await failure_of(served.estimator.GetQuote(ASK))
    assert len(attempts) == 1


async def test_a_server_that_is_not_there_is_said_to_be_unreachable():
    async with serving() as served:
        target = served.server.address
    async with open_channel(ChannelSettings(target=target)) as channel:
        failure = await failure_of(BatchEstimatorStub(channel).GetQuote(ASK))
    assert failure.reason == ""
    assert failure.sentence == "The server can't be reached."


@pytest.mark.parametrize("open_it", [open_channel, open_blocking_channel])
@pytest.mark.parametrize("target", ["parley.example:443", "10.0.0.1:50051", "[2001:db8::1]:1"])
async def test_plain_text_to_another_machine_is_refused(open_it: type, target: str):
    with pytest.raises(BootError, match="PARLEY_TLS_CA"):
        open_it(ChannelSettings(target=target))


async def test_a_token_never_leaves_this_machine_in_plain_text():
    settings = ChannelSettings(target="parley.example:443", token="alices-secret-token", allow_insecure=True)
    with pytest.raises(BootError, match="a token needs TLS"):
        open_channel(settings)


async def test_plain_text_to_another_machine_is_allowed_by_name():
    async with open_channel(ChannelSettings(target="parley.example:443", allow_insecure=True)):
        pass


def test_settings_do_not_show_their_token():
    assert "alices" not in repr(ChannelSettings(target="localhost:1", token="alices-secret-token"))


@pytest.mark.parametrize(
    ("remaining_s", "expected_s"),
    [(None, 5.0), (60.0, 5.0), (3.0, 2.5), (0.2, 0.0)],
)
def test_the_time_out_of_a_call_within_a_call(remaining_s: float | None, expected_s: float):
    assert deadline_s(remaining_s, cap_s=5.0, margin_s=0.5) == expected_s
