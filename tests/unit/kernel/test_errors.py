from controlplane.kernel.errors import InvalidError, Problem


def test_a_problem_names_place_field_found_expected_and_next_step() -> None:
    problem = Problem(
        file="site.yaml", line=3, column=5, field="deployments.0.model", found="'lama-3-8b'",
        expected="a model of the catalog", hint="did you mean 'llama-3-8b'?",
    )  # fmt: skip
    assert str(problem) == (
        "site.yaml:3:5: deployments.0.model: found 'lama-3-8b', expected a model of the catalog. "
        "did you mean 'llama-3-8b'?"
    )


def test_an_invalid_error_says_all_problems() -> None:
    problems = [Problem(field=name, found="1", expected="2") for name in ("a", "b")]
    assert str(InvalidError(problems)) == "a: found 1, expected 2\nb: found 1, expected 2"
