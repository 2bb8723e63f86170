"""The contract's rules name every field at fault."""

from time import process_time

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


def empty_tiers(count: int) -> orchestrator_pb2.CreateBatchRequest:
    # From bytes: a million messages would take longer to make than to check.
    return request_of(b"\x22\x00" * count)


def request_of(spec: bytes) -> orchestrator_pb2.CreateBatchRequest:
    return orchestrator_pb2.CreateBatchRequest(spec=batch_pb2.BatchSpec.FromString(b"\x0a\x02ok" + spec))


def test_every_fault_of_a_thousand_is_named():
    assert len(broken(empty_tiers(1_000))) == 1_001


def test_of_a_million_faults_the_first_is_named_at_once(recwarn: pytest.WarningsRecorder):
    began_s = process_time()
    assert list(broken(empty_tiers(1_000_000))) == ["spec.tiers"]
    # Naming them all took 45 s.
    assert process_time() - began_s < 5


def test_a_large_request_within_the_rules_passes():
    values = [batch_pb2.AxisValue(id=f"v{number}") for number in range(1_000)]
    axes = [batch_pb2.Axis(id=f"a{number}", values=values) for number in range(16)]
    rules.check(request(axes=axes))


def test_parameters_have_a_limit_of_values_together():
    made = request(tiers=[batch_pb2.Tier(id="t", count=1), batch_pb2.Tier(id="u", count=1)])
    made.spec.shared_parameters.update({"numbers": [1.0] * 100_000})
    rules.check(made)
    made.spec.tiers[1].parameters.update({"names": {f"n{number}": "x" for number in range(80_000)}})
    fault = broken(made)
    assert list(fault) == ["spec.shared_parameters"] or list(fault) == ["spec.tiers[1].parameters"]
    assert "more than 250,000 values" in next(iter(fault.values()))
