"""Canonical JSON: exact, sorted, and strict when read."""

from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.autoscaler.codec import decode, encode
from controlplane.autoscaler.learning import first_state
from controlplane.autoscaler.model import Bucket, Observation, PolicyParams, PolicyState, Slowness, Trust
from controlplane.autoscaler.params import params_for
from controlplane.kernel.errors import InvalidError
from controlplane.testing.autoscaling import make_observation
from controlplane.testing.builders import make_deployment

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@dataclass(frozen=True, slots=True)
class Sample:
    b: float
    a: int
    pair: tuple[str, float]
    many: tuple[int, ...]
    maybe: timedelta | None
    trust: Trust = Trust.FRESH


def test_keys_are_sorted_and_the_text_is_compact() -> None:
    text = encode(Sample(0.1, 2, ("x", 1.5), (1, 2), timedelta(milliseconds=1500)))
    assert text == '{"a":2,"b":0.1,"many":[1,2],"maybe":1.5,"pair":["x",1.5],"trust":"fresh"}'


@given(FINITE, st.integers(-(2**53), 2**53), st.text(), FINITE, st.lists(st.integers(0, 100)))
def test_a_value_comes_back_exactly_and_its_text_stays(b: float, a: int, name: str, x: float, many: list[int]) -> None:
    value = Sample(b, a, (name, x), tuple(many), None)
    text = encode(value)
    assert decode(Sample, text) == value
    assert encode(decode(Sample, text)) == text


def test_equal_numbers_have_one_text() -> None:
    observation = make_observation(arrivals=7.0, cold_starts_s=(3.0,))
    assert encode(replace(observation, arrivals=7, cold_starts_s=(3,))) == encode(observation)


@given(st.timedeltas(timedelta(0), timedelta(days=365)))
def test_durations_are_exact(duration: timedelta) -> None:
    value = Sample(0.0, 0, ("", 0.0), (), duration)
    assert decode(Sample, encode(value)).maybe == duration


def test_what_the_policy_uses_comes_back_exactly() -> None:
    params = params_for(make_deployment())
    observation = make_observation(cold_starts_s=(3.5, 4.25), arrivals=None, gateway=Trust.STALE)
    state = replace(
        first_state(params, observation),
        buckets=(Bucket(end_s=1.1, seconds=0.1, arrivals=3.0, need=2),),
        slowness=Slowness(mean=-0.3, variance=1e-9),
    )
    assert decode(PolicyParams, encode(params)) == params
    assert decode(Observation, encode(observation)) == observation
    assert decode(PolicyState, encode(state)) == state


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[1]", "Sample"),
        ("{", "Sample"),
        ('{"a":1}', "Sample"),
        ('{"a":1.5,"b":0.1,"many":[],"maybe":null,"pair":["x",1],"trust":"fresh"}', "Sample.a"),
        ('{"a":true,"b":0.1,"many":[],"maybe":null,"pair":["x",1],"trust":"fresh"}', "Sample.a"),
        ('{"a":1,"b":"0.1","many":[],"maybe":null,"pair":["x",1],"trust":"fresh"}', "Sample.b"),
        ('{"a":1,"b":0.1,"many":{},"maybe":null,"pair":["x",1],"trust":"fresh"}', "Sample.many"),
        ('{"a":1,"b":0.1,"many":[],"maybe":null,"pair":["x"],"trust":"fresh"}', "Sample.pair"),
        ('{"a":1,"b":0.1,"many":[],"maybe":null,"pair":["x",1],"trust":"fine"}', "Sample.trust"),
    ],
)
def test_what_does_not_fit_names_the_field(text: str, field: str) -> None:
    with pytest.raises(InvalidError) as caught:
        decode(Sample, text)
    assert caught.value.problems[0].field == field
