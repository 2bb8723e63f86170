"""The contract's BatchSpec to the domain's Spec: parameters of every kind."""

from __future__ import annotations

import math

import pytest
from google.protobuf.struct_pb2 import NULL_VALUE, ListValue, Struct, Value
from parley.v1 import batch_pb2

from orchestrator_service.convert.spec import spec_of
from orchestrator_service.domain.spec import ParameterValue, findings


def parameters(**values: Value) -> dict[str, ParameterValue]:
    made = batch_pb2.BatchSpec(name="n", shared_parameters=Struct(fields=values))
    return dict(spec_of(made, default_model="m").shared_parameters)


def test_parameters_of_every_kind_arrive_as_they_are() -> None:
    inner = Struct(fields={"name": Value(string_value="Ann")})
    words = ListValue(values=[Value(string_value="one"), Value(number_value=2), Value(bool_value=True)])
    given = {
        "client": Value(struct_value=inner),
        "words": Value(list_value=words),
        "none": Value(null_value=NULL_VALUE),
    }
    arrived: object = {"client": {"name": "Ann"}, "words": ["one", 2.0, True], "none": None, "unset": None}
    assert parameters(**given, unset=Value()) == arrived


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_a_finding_with_its_field(number: float) -> None:
    value = Value(list_value=ListValue(values=[Value(number_value=number)]))
    made = batch_pb2.BatchSpec(name="n", tiers=[batch_pb2.Tier(id="template", count=1)])
    made.shared_parameters.fields["ratio"].CopyFrom(value)
    [finding] = findings(spec_of(made, default_model="m"))
    assert (finding.reason, finding.field) == ("INVALID_FIELD", "shared_parameters.ratio")
    assert finding.message == "The value is not a finite number."
