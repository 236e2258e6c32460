"""YAML with places: values, bounds, and what is wrong with the YAML itself."""

import time

import pytest

from controlplane.adapters.sitefile.positions import (
    DEPTH_MAX,
    VALUES_MAX,
    Place,
    PlacedFinding,
    UnreadableError,
    compose,
    locate,
    path_at,
    plain,
)


def refused(text: str) -> PlacedFinding:
    with pytest.raises(UnreadableError) as caught:
        compose(text)
    return caught.value.finding


def found_in(text: str) -> list[tuple[str, str, Place]]:
    return [(finding.field, finding.found, finding.place) for finding in compose(text)[1]]


def test_scalars_follow_yaml_1_2() -> None:
    text = """
    a: [1, -2, 1.5, 1e3, true, False, null, ~, ]
    b: [yes, on, 0x10, 0o7, 1_000, 12:30, .inf, 2026-01-01, "1", 'true', !!str 5, 12345678901234567890]
    """
    tree, findings = compose(text)
    assert tree is not None
    assert plain(tree) == {
        "a": [1, -2, 1.5, 1000.0, True, False, None, None],
        "b": [
            "yes",
            "on",
            "0x10",
            "0o7",
            "1_000",
            "12:30",
            ".inf",
            "2026-01-01",
            "1",
            "true",
            "5",
            "12345678901234567890",
        ],
    }
    assert findings == ()


def test_places_count_from_one_and_know_keys_from_values() -> None:
    tree, _ = compose("a:\n  - name: x\n    b: {c: 5}\n")
    assert tree is not None
    assert locate(tree, ("a", 0, "b", "c")) == (Place(3, 12), ("a", 0, "b", "c"))
    assert locate(tree, ("a", 0, "b", "c"), at_key=True) == (Place(3, 9), ("a", 0, "b", "c"))
    assert locate(tree, ("a", 0, "missing", "deep")) == (Place(2, 5), ("a", 0))
    assert path_at(tree, Place(3, 12)) == ("a", 0, "b", "c")
    assert path_at(tree, Place(1, 1)) is None


def test_an_alias_stands_for_the_whole_value_and_keeps_the_place_of_its_anchor() -> None:
    tree, findings = compose("a: &x {k: 1}\nb: *x\n")
    assert tree is not None
    assert plain(tree) == {"a": {"k": 1}, "b": {"k": 1}}
    assert locate(tree, ("b", "k"))[0] == Place(1, 11)
    assert findings == ()


@pytest.mark.parametrize(
    ("text", "field", "found", "place"),
    [
        ("a: 1\na: 2\n", "a", 'the key "a" twice (first on line 1)', Place(2, 1)),
        ("l:\n  - {b: 1, b: 2}\n", "l[0].b", 'the key "b" twice (first on line 2)', Place(2, 12)),
        ("a: *nowhere\n", "a", "an alias (*) without its anchor", Place(1, 4)),
        ("a: &x [*x]\n", "a[0]", "an alias inside what it names", Place(1, 8)),
        ("a: &x {k: 1}\nb:\n  <<: *x\n", "b.<<", "a merge key (<<)", Place(3, 3)),
        ("? [a]\n: 1\n", "?", "a key that is a list, a mapping or an alias", Place(1, 3)),
        ("a: !secret x\n", "a", "a YAML tag (!)", Place(1, 4)),
        ("a: !!binary aGk=\n", "a", "a YAML tag (!)", Place(1, 4)),
    ],
)
def test_wrong_but_readable(text: str, field: str, found: str, place: Place) -> None:
    assert found_in(text) == [(field, found, place)]


def test_all_of_them_are_found_at_once() -> None:
    assert len(found_in("a: 1\na: 2\nb: *x\nc: !t 1\n<<: 2\n")) == 4


@pytest.mark.parametrize(
    ("text", "found", "place"),
    [
        ("a:\n\t- b\n", "a tab", Place(2, 1)),
        ("a: [1\n", "text that is not YAML", Place(2, 1)),
        ("a: b: c\n", "text that is not YAML", Place(1, 5)),
        ('a: "x\n', "text that is not YAML", Place(2, 1)),
        ("a: @x\n", "text that is not YAML", Place(1, 4)),
        ("a: 1\n---\nb: 2\n", "a second document (---)", Place(2, 1)),
        ("a: 1\nb: \x07\n", "a character that YAML does not allow", Place(2, 4)),
        ("%YAML 9.9\n---\na: 1\n", "text that is not YAML", Place(1, 1)),
    ],
)
def test_unreadable(text: str, found: str, place: Place) -> None:
    finding = refused(text)
    assert finding.found.startswith(found)
    assert finding.place == place
    assert finding.hint


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "~"])
def test_without_content_there_is_no_tree(text: str) -> None:
    assert compose(text) == (None, ())


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{a: " * 50_000, "\n".join("[" * 1000 for _ in range(200)), "- " * 50_000]
)
def test_depth_is_bounded_before_it_costs_time(text: str) -> None:
    started = time.process_time()
    assert refused(text).found == f"more than {DEPTH_MAX} levels"
    assert time.process_time() - started < 2.0, "the scanner must not have read on"


def test_a_bomb_of_aliases_ends_at_the_bound() -> None:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 10)}]" for level in range(1, 12)]
    assert refused("\n".join(lines)).found == f"more than {VALUES_MAX:,} values with aliases expanded"


def test_aliases_cannot_stack_beyond_the_depth() -> None:
    lines = ["l0: &l0 [x]", *(f"l{level}: &l{level} [*l{level - 1}]" for level in range(1, 100))]
    assert refused("\n".join(lines)).found == f"more than {DEPTH_MAX} levels with aliases expanded"
