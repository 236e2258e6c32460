"""What a replica of the simulated fleet is: the catalog's own figures."""

import pytest

from controlplane.kernel.errors import InvalidError
from controlplane.simulation.fleet.subject import subject_of


@pytest.mark.parametrize(
    ("gpu", "step_ms", "per_sequence_ms", "per_token_ms", "prefill_ms", "per_prompt_token_ms", "squared_ms"),
    [
        ("h100", 6.40, 0.0105, 4.14e-5, 4.91, 0.01657, 6.98e-7),
        ("h200", 4.93, 0.0109, 2.94e-5, 3.48, 0.01745, 6.46e-7),
        ("b200", 3.39, 0.0040, 1.81e-5, 2.98, 0.00848, 3.30e-7),
    ],
)
def test_llama_8b_has_the_coefficients_fitted_to_measured_kernels(
    gpu: str,
    step_ms: float,
    per_sequence_ms: float,
    per_token_ms: float,
    prefill_ms: float,
    per_prompt_token_ms: float,
    squared_ms: float,
) -> None:
    """Fitted to aiconfigurator 0.12.0, vLLM tables: 8B, bf16, one GPU."""
    timing = subject_of("llama-3.1-8b", gpu, tensor_parallel=1, precision="bf16").timing
    assert timing[:6] == pytest.approx(
        [value / 1e3 for value in (step_ms, per_sequence_ms, per_token_ms, prefill_ms, per_prompt_token_ms, squared_ms)]
    )


@pytest.mark.parametrize(
    ("model", "gpu", "tensor_parallel", "precision", "kv_thousands"),
    [
        ("llama-3.1-8b", "h100", 1, "bf16", 444),
        ("llama-3.1-8b", "h200", 1, "bf16", 902),
        ("llama-3.1-8b", "b200", 1, "bf16", 1189),
        ("llama-3.1-70b", "h100", 2, "fp8", 238),
        ("llama-3.1-70b", "h200", 2, "fp8", 604),
        ("llama-3.1-70b", "b200", 4, "fp8", 1883),
        ("qwen3-32b", "h100", 2, "bf16", 316),
        ("qwen3-32b", "h200", 2, "bf16", 775),
    ],
)
def test_the_kv_cache_has_room_for_as_many_tokens_as_an_independent_estimate_says(
    model: str, gpu: str, tensor_parallel: int, precision: str, kv_thousands: int
) -> None:
    """The estimate takes 0.92 of the memory less weights and 4 GiB; the catalog's fit knows the parts better."""
    subject = subject_of(model, gpu, tensor_parallel=tensor_parallel, precision=precision)
    assert subject.timing.kv_tokens == pytest.approx(1000 * kv_thousands, rel=0.06)


def test_the_timing_has_vllms_bounds_of_a_batch() -> None:
    subject = subject_of("qwen3-32b", "h100", tensor_parallel=2)
    assert (subject.timing.max_num_seqs, subject.timing.max_num_batched_tokens) == (1024, 8192)
    assert (subject.tensor_parallel, subject.name) == (2, "qwen3-32b/h100x2")


def test_what_does_not_fit_is_told_with_what_would() -> None:
    with pytest.raises(InvalidError, match=r"tensor_parallel: .* 4 fits"):
        subject_of("llama-3.1-70b", "h100", tensor_parallel=1)
    with pytest.raises(InvalidError, match=r"qwen3-32b"):
        subject_of("qwen3-32", "h100")
