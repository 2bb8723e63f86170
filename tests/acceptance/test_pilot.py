"""A pilot: the batch holds behind its first conversations, and its quote is made anew from what they took."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest
from evidence import rows
from parley.v1 import batch_pb2, estimator_pb2
from parley.v1.estimator_pb2_grpc import BatchEstimatorStub
from parley.wire.channel import ChannelSettings, open_channel
from servers import running_pair, running_sandbox, spec

pytestmark = pytest.mark.anyio
WAIT_MAX_S = 30.0


async def test_a_pilot_of_three_makes_the_quote_of_the_rest_and_resuming_makes_it(tmp_path: Path) -> None:
    async with (
        running_sandbox(tmp_path) as sandbox,
        running_pair(tmp_path, sandbox) as pair,
        pair.client() as client,
        asyncio.timeout(WAIT_MAX_S),
    ):
        batch = await client.create(spec(10, hold_after=3))
        events: list[batch_pb2.BatchEvent] = []
        ended = batch
        async with aclosing(client.watch(batch.name)) as watched:
            async for message in watched:
                events.extend(message.events)
                ended = message.batch
                if ended.refined_quote and ended.state == batch_pb2.BATCH_STATE_PAUSED:
                    await client.resume(batch.name)
        (refined,) = [event.quote_refined for event in events if event.HasField("quote_refined")]
        async with open_channel(ChannelSettings(target=pair.estimator.announced["address"])) as channel:
            quote = await BatchEstimatorStub(channel).GetQuote(estimator_pb2.GetQuoteRequest(name=refined.quote))

    assert ended.state == batch_pb2.BATCH_STATE_SUCCEEDED
    assert ended.refined_quote == refined.quote == quote.name != ended.quote
    assert refined.made == 3
    assert (quote.batch, quote.workload.groups[0].count) == (batch.name, 7)
    # It rests on what the pilot took, which was at the estimator before.
    assert quote.basis.observations >= 3
    # Nothing was made twice for it.
    assert rows(pair.database, "SELECT count(*) AS calls FROM calls") == [{"calls": 10}]
