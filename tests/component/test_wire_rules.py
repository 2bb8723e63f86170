"""The contract's rules name every field at fault."""

import pytest
from parley.v1 import batch_pb2, estimator_pb2, orchestrator_pb2
from parley.wire import rules


def broken(message: orchestrator_pb2.CreateBatchRequest) -> dict[str, str]:
    with pytest.raises(rules.RuleBroken) as caught:
        rules.check(message)
    assert caught.value.reason == "INVALID_FIELD"
    return {violation.field: violation.message for violation in caught.value.violations}


def request(**spec: object) -> orchestrator_pb2.CreateBatchRequest:
    return orchestrator_pb2.CreateBatchRequest(spec=batch_pb2.BatchSpec(name="ok", **spec))  # pyright: ignore[reportArgumentType]


def test_a_message_within_the_rules_passes():
    rules.check(estimator_pb2.GetQuoteRequest(name="quotes/abcd"))


def test_a_field_of_a_list_is_named_with_its_index():
    tiers = [batch_pb2.Tier(id="fine", count=1), batch_pb2.Tier(id="fine2", count=-1)]
    assert list(broken(request(tiers=tiers))) == ["spec.tiers[1].count"]


def test_a_value_of_a_map_is_named_with_its_key():
    assert list(broken(request(labels={"a": "x" * 1000}))) == ['spec.labels["a"]']


def test_a_key_of_a_map_is_named_as_a_key():
    fault = broken(request(labels={"NOT OK": "x"}))['spec.labels["NOT OK"]']
    assert fault.startswith("the key ")


def test_a_missing_field_is_named():
    assert broken(orchestrator_pb2.CreateBatchRequest()) == {"spec": "value is required"}


def test_the_message_names_the_first_field_and_counts_the_rest():
    with pytest.raises(rules.RuleBroken) as caught:
        rules.check(estimator_pb2.CreateQuoteRequest(spec_sha256="x", request_id="?"))
    assert caught.value.message == "workload: value is required (and 2 more)"
    assert caught.value.metadata == {"field": "workload"}


def test_the_rules_of_both_services_compile():
    rules.warm(["parley.v1.BatchOrchestrator", "parley.v1.BatchEstimator"])
