"""A long text cut in pieces gives the ids of the whole."""

import pytest

from megatron.tokenizer.build import TokenizerSpec
from megatron.tokenizer.char_level import CharLevelTokenizer
from megatron.tokenizer.hf_tokenizer import HFTokenizer
from megatron.tokenizer.splitting import TextCutter, strip_wrapping
from megatron.tokenizer.train_tokenizer import train_bpe
from tests.unit.tokenizer.test_types import TYPES

PIECE = 1000
CHINESE = "東京タワーは高い。\n日本語のテキスト、\nそして行。\n" * 200


def ids_of_pieces(tokenizer, cutter, text) -> tuple[list[int], int]:
    pieces = cutter.split(text)
    ids = []
    for place, piece in enumerate(pieces):
        before, after = strip_wrapping(tokenizer, place == 0, place == len(pieces) - 1)
        found = tokenizer.tokenize(piece)
        ids += found[before : len(found) - after]
    return ids, len(pieces)


@pytest.mark.parametrize("kind", TYPES)
def test_pieces_give_the_ids_of_the_whole(kind, files, texts):
    tokenizer = TokenizerSpec(kind, *files[kind]).build()
    text = "\n".join(texts)
    ids, pieces = ids_of_pieces(tokenizer, TextCutter(tokenizer, PIECE), text)
    assert pieces > 20
    assert ids == tokenizer.tokenize(text)


@pytest.mark.parametrize("kind", ["GPT2BPETokenizer", "TiktokenTokenizer", "CharLevelTokenizer"])
def test_text_without_spaces_is_cut_at_line_ends(kind, files):
    tokenizer = TokenizerSpec(kind, *files[kind]).build()
    cutter = TextCutter(tokenizer, PIECE)
    ids, pieces = ids_of_pieces(tokenizer, cutter, CHINESE)
    assert pieces > 10 and all(piece.endswith("\n") for piece in cutter.split(CHINESE))
    assert ids == tokenizer.tokenize(CHINESE)


def test_pieces_are_right_for_neox_style_tokenizers_that_put_a_space_first(texts, tmp_path):
    train_bpe(texts, 600).save(str(tmp_path / "neox.json"))
    tokenizer = HFTokenizer(str(tmp_path / "neox.json"))
    text = " ".join(texts)
    ids, pieces = ids_of_pieces(tokenizer, TextCutter(tokenizer, PIECE), text)
    assert pieces > 20
    assert ids == tokenizer.tokenize(text)


def test_tokens_a_file_adds_around_a_text_come_once(trained, texts, tmp_path):
    from tokenizers import Tokenizer, processors

    wrapped = Tokenizer.from_str(trained.to_str())
    wrapped.post_processor = processors.TemplateProcessing(
        single="<|padding|> $A <|endoftext|>", special_tokens=[("<|padding|>", 1), ("<|endoftext|>", 0)]
    )
    wrapped.save(str(tmp_path / "wrapped.json"))
    tokenizer = HFTokenizer(str(tmp_path / "wrapped.json"))
    text = "\n".join(texts)
    ids, pieces = ids_of_pieces(tokenizer, TextCutter(tokenizer, PIECE), text)
    assert pieces > 20 and (ids[0], ids[-1]) == (1, 0) and ids.count(1) == 1
    assert ids == tokenizer.tokenize(text)


def test_text_without_any_place_to_cut_is_still_cut_between_characters():
    text = "é" * 20_000
    pieces = TextCutter(CharLevelTokenizer(), PIECE).split(text)
    assert "".join(pieces) == text
    assert 1 < len(pieces) and max(map(len, pieces)) <= 8 * PIECE


def test_short_texts_stay_whole():
    cutter = TextCutter(CharLevelTokenizer())
    assert cutter.split("two words") == ["two words"]
    assert cutter(b"two words " * 1000) is None


def test_where_a_text_is_cut_does_not_depend_on_how_much_of_it_is_there(texts):
    cutter = TextCutter(CharLevelTokenizer(), PIECE)
    data = "\n".join(texts).encode()
    cuts = {cutter(data[:size]) for size in (PIECE + 1, PIECE + 50, 3 * PIECE, len(data))}
    assert len(cuts) == 1 and None not in cuts
