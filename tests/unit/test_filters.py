"""Whose batches a caller may ask for."""

from __future__ import annotations

import pytest
from parley.v1 import orchestrator_pb2
from parley.wire.auth import Identity

from orchestrator_service.convert.filters import filter_of, spend_query_of
from orchestrator_service.domain.errors import ParleyError

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
