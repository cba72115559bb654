"""The padding of the vocabulary ends at just the rows that a model has."""

import pytest

from megatron.common.errors import TokenizerError
from megatron.conversion.tokenizers import vocabulary_divisor
from megatron.tokenizer.build import vocab_size_with_padding


@pytest.mark.parametrize(
    ("rows", "ids", "divisor"),
    [
        (50304, 50277, 32),
        (50432, 50277, 197),
        (32000, 32000, 1),
        (67, 60, 67),
        (69, 67, 3),
        (250880, 250680, 224),
    ],
)
def test_the_smallest_divisor_is_found(rows, ids, divisor):
    assert vocabulary_divisor(rows, ids) == divisor
    assert vocab_size_with_padding(ids, divisor, 1) == rows


def test_without_a_tokenizer_any_that_fits_can_be_used():
    divisor = vocabulary_divisor(69, None)
    assert {vocab_size_with_padding(ids, divisor, 1) for ids in range(1, 70)} == {69}


def test_a_tokenizer_with_more_ids_than_rows_is_refused():
    with pytest.raises(TokenizerError, match="70 ids and the model 69 rows"):
        vocabulary_divisor(69, 70)
