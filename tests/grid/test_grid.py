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


@pytest.fixture(scope="module")
def outcome(request):
    """outcome(row, column) -> the results of the ranks. Only rows that this session tests are run."""
    tests = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    wanted = tuple(dict.fromkeys(params["row"] for params in tests if "row" in params))

    def find(row: Row, column: str) -> list[dict]:
        found = column_results(column, wanted)[str(row)]
        assert "error" not in found[0], found[0]["error"]
        return found

    return find


@pytest.mark.parametrize(("row", "column"), CELLS)
def test_a_choice_works_in_a_layout_or_is_refused_with_its_reason(row, column, outcome):
    found = outcome(row, column)
    if "refused" in found[0]:
        # Only what the layout asks for may be in the way: a single process can have every choice.
        assert column != "single", found[0]["refused"]
        for line in found[0]["refused"]:
            assert any(f"does not support {name} ({FEATURES[name].keys}): " in line for name in FEATURES), (
                line
            )
        return
    single = outcome(row, "single") if row.reference(column) else None
    assert_trains(found, single)
    assert_evaluates(found, single)
    assert_generates(found, single)
    assert found[0]["resumed_at"] > 0
    assert all(result["resumed"] == result["uninterrupted"] for result in found)


def assert_trains(found: list[dict], single: list[dict] | None) -> None:
    assert all(result["losses"] == found[0]["losses"] for result in found), "ranks report different losses"
    gradients = merge_gradients(found)
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    if single is None:
        return
    assert found[0]["losses"] == pytest.approx(single[0]["losses"], rel=TOLERANCE)
    expected = merge_gradients(single)
    assert set(gradients) == set(expected)
    for name, gradient in expected.items():
        error = (gradients[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert error < TOLERANCE, f"the gradient of {name} differs by {error:.2e}"


def assert_evaluates(found: list[dict], single: list[dict] | None) -> None:
    assert found[0]["eval"] < found[0]["losses"][0]
    if single is not None:
        assert found[0]["eval"] == pytest.approx(single[0]["eval"], rel=TOLERANCE)


def assert_generates(found: list[dict], single: list[dict] | None) -> None:
    """The logits of every rank that has any, in one pass and token by token, are those of the single process."""
    with_logits = [result for result in found if result["logits"] is not None]
    assert with_logits
    for result in with_logits:
        if single is not None:
            torch.testing.assert_close(result["logits"], single[0]["logits"], rtol=1e-3, atol=1e-4)
        if not result["uncached"]:
            torch.testing.assert_close(result["cached"], result["logits"], rtol=1e-4, atol=1e-5)


def test_the_table_in_the_documentation_is_fresh():
    assert PAGE.read_text() == page(), "run `make docs`"
