"""Whose batches a caller may ask for."""

from __future__ import annotations

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from parley.v1 import orchestrator_pb2
from parley.wire.auth import Identity

from orchestrator_service.convert.filters import filter_of, spend_query_of
from orchestrator_service.domain.errors import InvalidRequest, ParleyError

ANN = Identity(name="ann", may_act_for_others=False)
SERVICE = Identity(name="web", may_act_for_others=True)


def test_a_plain_caller_sees_their_own() -> None:
    assert filter_of(orchestrator_pb2.BatchFilter(), ANN).owner == "ann"
    assert filter_of(orchestrator_pb2.BatchFilter(owner="ann"), ANN).owner == "ann"
    assert spend_query_of(orchestrator_pb2.GetSpendRequest(), ANN).owner == "ann"


def test_asking_for_another_owner_is_refused_and_not_answered_with_ones_own() -> None:
    with pytest.raises(ParleyError, match="ann may not act for bob") as caught:
        filter_of(orchestrator_pb2.BatchFilter(owner="bob"), ANN)
    assert caught.value.reason == "OWNER_FORBIDDEN"
    with pytest.raises(ParleyError, match="ann may not act for bob"):
        spend_query_of(orchestrator_pb2.GetSpendRequest(owner="bob"), ANN)


def test_a_caller_who_may_act_for_others_sees_all_or_whom_they_name() -> None:
    assert filter_of(orchestrator_pb2.BatchFilter(), SERVICE).owner == ""
    assert filter_of(orchestrator_pb2.BatchFilter(owner="bob"), SERVICE).owner == "bob"


@pytest.mark.parametrize("field", ["start_time", "end_time"])
@pytest.mark.parametrize(
    "time", [Timestamp(seconds=2**63 - 1), Timestamp(seconds=-(2**63)), Timestamp(nanos=-1), Timestamp(nanos=10**9)]
)
def test_a_time_that_no_column_holds_is_refused_by_its_field(field: str, time: Timestamp) -> None:
    request = orchestrator_pb2.GetSpendRequest()
    getattr(request, field).CopyFrom(time)
    with pytest.raises(InvalidRequest) as caught:
        spend_query_of(request, SERVICE)
    assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", field)


def test_the_last_moment_of_the_year_9999_is_a_time() -> None:
    last = Timestamp(seconds=253_402_300_799, nanos=999_999_999)
    query = spend_query_of(orchestrator_pb2.GetSpendRequest(end_time=last), SERVICE)
    assert query.end_us == 253_402_300_799_999_999
