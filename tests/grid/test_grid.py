"""Every choice in every layout trains, evaluates, generates and resumes like a single process, or is refused with its
reason."""

import pytest
import torch

from megatron.neox_arguments.features import FEATURES
from tests.distributed.layouts import merge_gradients
from tests.grid.columns import column_results
from tests.grid.rows import COLUMNS, Row, rows
from tests.grid.table import PAGE, page

TOLERANCE = 1e-5
CELLS = [pytest.param(row, column, id=f"{row}-{column}") for column in COLUMNS for row in rows()]


def outcome(row: Row, column: str) -> list[dict]:
    """The results of the ranks, or None for a cell that was refused as its row declares."""
    found = column_results(column)[str(row)]
    assert "error" not in found[0], found[0]["error"]
    return found


def trained(row: Row, column: str) -> list[dict]:
    found = outcome(row, column)
    assert "refused" not in found[0], found[0]["refused"]
    return found


@pytest.mark.parametrize(("row", "column"), CELLS)
def test_a_choice_works_in_a_layout_or_is_refused_with_its_reason(row, column):
    found = outcome(row, column)
    if "refused" in found[0]:
        # Only what the layout asks for may be in the way: a single process can have every choice.
        assert column != "single", found[0]["refused"]
        for line in found[0]["refused"]:
            assert any(f"does not support {name} ({FEATURES[name].keys}): " in line for name in FEATURES), (
                line
            )
        return
    assert_trains(row, column, found)
    assert_evaluates(row, column, found)
    assert_generates(row, column, found)
    assert found[0]["resumed_at"] > 0
    assert all(result["resumed"] == result["uninterrupted"] for result in found)


def assert_trains(row: Row, column: str, found: list[dict]) -> None:
    assert all(result["losses"] == found[0]["losses"] for result in found), "ranks report different losses"
    gradients = merge_gradients(found)
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    if not row.reference(column):
        return
    single = trained(row, "single")
    assert found[0]["losses"] == pytest.approx(single[0]["losses"], rel=TOLERANCE)
    expected = merge_gradients(single)
    assert set(gradients) == set(expected)
    for name, gradient in expected.items():
        error = (gradients[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert error < TOLERANCE, f"the gradient of {name} differs by {error:.2e}"


def assert_evaluates(row: Row, column: str, found: list[dict]) -> None:
    if row.reference(column):
        assert found[0]["eval"] == pytest.approx(trained(row, "single")[0]["eval"], rel=TOLERANCE)
    assert found[0]["eval"] < found[0]["losses"][0]


def assert_generates(row: Row, column: str, found: list[dict]) -> None:
    """The logits of every rank that has any, in one pass and token by token, are those of the single process."""
    with_logits = [result for result in found if result["logits"] is not None]
    assert with_logits
    for result in with_logits:
        if row.reference(column):
            torch.testing.assert_close(
                result["logits"], trained(row, "single")[0]["logits"], rtol=1e-3, atol=1e-4
            )
        if not result["uncached"]:
            torch.testing.assert_close(result["cached"], result["logits"], rtol=1e-4, atol=1e-5)


def test_the_table_in_the_documentation_is_fresh():
    assert PAGE.read_text() == page(), "run `make docs`"
