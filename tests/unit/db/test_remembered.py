"""Decoded values are reused for the same columns only."""

from typing import Any

from sqlalchemy import Row, create_engine, text

from controlplane.adapters.db.remembered import Remembered


def test_a_value_is_decoded_again_when_its_row_changed() -> None:
    decoded: list[tuple[Any, ...]] = []

    def decode(row: Row[Any]) -> str:
        decoded.append(tuple(row))
        return f"{row.name}:{row.value}"

    remembered = Remembered(decode)
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        for name, value in (("a", 1), ("a", 1), ("b", 1), ("a", 2), ("a", 1)):
            row = connection.execute(
                text("SELECT :name AS name, :value AS value"), {"name": name, "value": value}
            ).one()
            assert remembered.value(row) == f"{name}:{value}"
    engine.dispose()
    assert decoded == [("a", 1), ("b", 1), ("a", 2), ("a", 1)]
