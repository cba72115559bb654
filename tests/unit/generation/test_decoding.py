"""Decoding batches, with a model whose answers are known."""

import pytest
import torch

from megatron.common.errors import ConfigError, DataError
from megatron.generation.decoding import matched_stop, pad_batch, stop_sequences, stream_tokens
from tests.unit.generation.toy import EOD, SuccessorModel, toy_args


def last_step(prompts, model=None, args=None, **options):
    """(new tokens by row, start, end, done, logits) after the last step."""
    steps = list(stream_tokens(args or toy_args(), model or SuccessorModel(), prompts, **options))
    tokens, start, end, logits, done = steps[-1]
    new = [row[s : e + 1].tolist() if e >= s else [] for row, s, e in zip(tokens, start, end, strict=True)]
    return new, start.tolist(), end.tolist(), done.tolist(), logits


def test_a_prompt_is_continued_token_by_token():
    new, start, end, done, _ = last_step([[3, 4]], maximum_tokens=4)
    assert (new, start, end, done) == ([[5, 6, 7, 8]], [2], [5], [False])


def test_with_a_cache_every_position_is_computed_once():
    model = SuccessorModel()
    last_step([[3, 4, 5]], model, maximum_tokens=4)
    assert model.calls == [[0, 1, 2], [3], [4], [5]]


def test_recompute_runs_the_whole_sequence_and_gives_the_same():
    model = SuccessorModel()
    again = last_step([[3, 4, 5]], model, maximum_tokens=3, recompute=True)
    assert model.calls == [[0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]
    cached = last_step([[3, 4, 5]], maximum_tokens=3)
    assert again[:4] == cached[:4] and torch.equal(again[4], cached[4])


def test_longer_prompts_keep_their_tokens_until_they_are_passed():
    new, start, end, done, _ = last_step([[1], [10, 20, 5]], maximum_tokens=3)
    assert (new, start, end) == ([[2, 3, 4], [6, 7, 8]], [1, 3], [3, 5])
    assert done == [False, False]


def test_the_rest_of_a_longer_prompt_is_taken_at_once_when_the_shorter_ones_are_done():
    model = SuccessorModel()
    new, start, end, _, _ = last_step([[1], [10, 20, 5, 7, 3, 9], [30]], model, maximum_tokens=2)
    assert (new, start, end) == ([[2, 3], [10, 11], []], [1, 6, 1], [2, 7, -1])
    assert model.calls == [[0], [1], [2, 3, 4, 5], [6]]


def test_every_row_gets_its_own_budget_of_new_tokens():
    new, *_ = last_step([[1], [2, 3, 4, 5, 6]], maximum_tokens=2)
    assert [len(row) for row in new] == [2, 2]


def test_the_end_mark_ends_a_row_and_is_not_part_of_it():
    new, _, end, done, _ = last_step([[28], [1]], maximum_tokens=6)
    assert (new[0], end[0], done[0]) == ([29, 30], 2, True)
    assert (len(new[1]), done[1]) == (6, False)


def test_an_end_mark_at_once_leaves_nothing():
    new, start, end, done, _ = last_step([[30]], maximum_tokens=6)
    assert (new, end, done) == ([[]], [-1], [True])


def test_end_mark_zero_is_honoured():
    new, *_, done, _ = last_step([[30]], eos_token_id=0, maximum_tokens=6)
    assert (new, done) == ([[31]], [True])


def test_maximum_tokens_zero_generates_nothing():
    assert list(stream_tokens(toy_args(), SuccessorModel(), [[1]], maximum_tokens=0)) == []


def test_without_a_maximum_the_sequence_is_filled_up_to_its_last_but_one_place():
    new, *_ = last_step([[1, 2], [4, 5, 6]])
    assert [len(row) for row in new] == [12, 12]


def test_no_row_grows_beyond_the_sequence_length():
    new, _, end, _, _ = last_step([[1, 2, 3]], args=toy_args(seq_length=8), maximum_tokens=100)
    assert (len(new[0]), end) == (5, [7])


def test_a_full_prompt_beside_a_short_one_yields_nothing_for_itself():
    new, _, end, _, _ = last_step([[1], list(range(8))], args=toy_args(seq_length=8), maximum_tokens=2)
    assert (new, end[1]) == ([[2, 3], []], -1)


def test_a_stop_sequence_ends_a_row_and_is_cut_off():
    new, _, _, done, _ = last_step([[1]], stop_tokens=[[5, 6]], maximum_tokens=10)
    assert (new, done) == ([[2, 3, 4]], [True])


def test_a_stop_sequence_in_the_prompt_stops_nothing():
    new, *_ = last_step([[4, 5]], stop_tokens=[[5, 6]], maximum_tokens=3)
    assert new == [[6, 7, 8]]


def test_stop_tokens_of_the_caller_are_left_alone():
    stops = [5, [7, 8]]
    last_step([[1]], stop_tokens=stops, maximum_tokens=3)
    assert stops == [5, [7, 8]]


def test_logits_are_kept_by_new_position_for_all_rows():
    *_, logits = last_step([[1], [4, 5]], maximum_tokens=3)
    assert logits.shape == (2, 3, 32)
    assert logits[:, :, :30].argmax(-1).tolist() == [[2, 3, 4], [6, 7, 8]]


def test_nothing_of_an_earlier_call_is_remembered():
    model = SuccessorModel()
    last_step([[9, 9, 9]], model, maximum_tokens=2)
    *_, again = last_step([[1]], model, maximum_tokens=2)
    *_, fresh = last_step([[1]], maximum_tokens=2)
    assert torch.equal(again, fresh)


def test_calls_without_seeds_draw_anew_and_with_seeds_the_same():
    def drawn(**options):
        return last_step([[1]], temperature=100.0, maximum_tokens=12, eos_token_id=99, **options)[0]

    assert drawn() != drawn()
    assert drawn(seeds=[5]) == drawn(seeds=[5])


def test_the_caller_can_stop_the_decoding():
    steps = list(
        stream_tokens(toy_args(), SuccessorModel(), [[1]], maximum_tokens=9, should_stop=lambda: True)
    )
    assert len(steps) == 1


def test_too_long_and_empty_prompts_are_refused():
    with pytest.raises(DataError, match="17 tokens does not fit into 16"):
        list(stream_tokens(toy_args(), SuccessorModel(), [[1] * 17]))
    with pytest.raises(DataError, match="no tokens"):
        list(stream_tokens(toy_args(), SuccessorModel(), [[]]))
    with pytest.raises(ConfigError, match="maximum_tokens"):
        list(stream_tokens(toy_args(), SuccessorModel(), [[1]], maximum_tokens=-1))


def test_pad_batch_pads_in_place_and_refuses_or_cuts_what_is_too_long():
    lists = [[1, 2], [3]]
    assert pad_batch(lists, EOD, 3) == ([[1, 2, EOD], [3, EOD, EOD]], [2, 1])
    assert lists[1] == [3, EOD, EOD]
    with pytest.raises(ValueError, match="4 tokens"):
        pad_batch([[1, 2, 3, 4]], EOD, 3)
    assert pad_batch([[1, 2, 3, 4]], EOD, 3, truncate=True) == ([[1, 2, 3]], [3])


def test_stop_tokens_are_one_sequence_or_several():
    assert stop_sequences(None) == stop_sequences([]) == []
    assert stop_sequences([1, 2]) == [[1, 2]]
    assert stop_sequences([[1, 2], 3, []]) == [[1, 2], [3]]
    assert matched_stop([[1, 2], [3]], [1, 2]) == 2
    assert matched_stop([[1, 2], [3]], [2]) == 0


def test_what_a_row_draws_does_not_depend_on_the_rows_beside_it():
    options = {"temperature": 100.0, "maximum_tokens": 5, "eos_token_id": 99}
    alone, *_ = last_step([[1, 2, 3, 4]], seeds=[7], **options)
    beside, *_ = last_step([[9], [1, 2, 3, 4]], seeds=[3, 7], **options)
    assert beside[1] == alone[0]
