"""All six types behave alike."""

import numpy as np
import pytest

from megatron.common.errors import ConfigError, TokenizerError
from megatron.registry import names
from megatron.tokenizer.build import TokenizerSpec
from megatron.tokenizer.char_level import CharLevelTokenizer
from megatron.tokenizer.hf_tokenizer import HFTokenizer
from megatron.tokenizer.sentencepiece_model import SentencePieceTokenizer

TYPES = [
    "CharLevelTokenizer",
    "GPT2BPETokenizer",
    "HFGPT2Tokenizer",
    "HFTokenizer",
    "SPMTokenizer",
    "TiktokenTokenizer",
]


@pytest.fixture(params=TYPES)
def tokenizer(request, files):
    return TokenizerSpec(request.param, *files[request.param]).build()


def test_the_six_types_are_registered():
    assert names("tokenizer") == TYPES


def test_texts_survive_the_round_trip(tokenizer, texts):
    for text in texts:
        assert tokenizer.detokenize(tokenizer.tokenize(text)) == text


def test_batches_give_the_ids_of_single_texts(tokenizer, texts):
    single = [tokenizer.tokenize(text) for text in texts]
    assert tokenizer.tokenize_batch(texts) == single
    flat, lengths = tokenizer.tokenize_flat(texts)
    assert flat.dtype == np.int32
    assert lengths == [len(ids) for ids in single]
    assert flat.tolist() == [number for ids in single for number in ids]


def test_no_texts_give_no_ids(tokenizer):
    assert tokenizer.tokenize_batch([]) == []
    flat, lengths = tokenizer.tokenize_flat([])
    assert len(flat) == 0 and lengths == []


def test_vocabulary_and_inverse_are_dicts_of_each_other(tokenizer, texts):
    vocab, inverse = tokenizer.vocab, tokenizer.inv_vocab
    assert isinstance(vocab, dict) and isinstance(inverse, dict)
    assert {inverse[number]: number for number in vocab.values()} == vocab
    assert set(tokenizer.tokenize(" ".join(texts))) <= set(inverse)
    assert max(inverse) < tokenizer.vocab_size


def test_the_end_of_document_has_an_id(tokenizer):
    assert tokenizer.eod == tokenizer.eod_id
    assert 0 <= tokenizer.eod < tokenizer.vocab_size


def test_tokens_a_type_does_not_have_are_not_made_up(tokenizer):
    for name in ("cls", "sep", "mask"):
        with pytest.raises(NotImplementedError, match=tokenizer.name):
            getattr(tokenizer, name)


def test_pad_is_there_where_pad_id_is(tokenizer):
    if tokenizer.pad_id is None:
        with pytest.raises(NotImplementedError, match="padding"):
            _ = tokenizer.pad
    else:
        assert tokenizer.pad == tokenizer.pad_id


@pytest.mark.parametrize("kind", ["GPT2BPETokenizer", "HFTokenizer", "HFGPT2Tokenizer", "SPMTokenizer"])
def test_special_tokens_in_a_text_become_their_ids(kind, files):
    tokenizer = TokenizerSpec(kind, *files[kind]).build()
    assert tokenizer.eod in tokenizer.tokenize("one<|endoftext|>two")


def test_tiktoken_treats_special_tokens_alike_in_single_texts_and_batches(files):
    tokenizer = TokenizerSpec("TiktokenTokenizer", *files["TiktokenTokenizer"]).build()
    ids = tokenizer.tokenize("one<|endoftext|>two")
    assert tokenizer.eod == 50256 and ids.count(tokenizer.eod) == 1
    assert tokenizer.tokenize_batch(["one<|endoftext|>two"]) == [ids]


def test_gpt2_bpe_gives_the_ids_of_transformers_and_of_tiktoken(files, texts):
    ours = TokenizerSpec("GPT2BPETokenizer", *files["GPT2BPETokenizer"]).build()
    transformers = TokenizerSpec("HFGPT2Tokenizer", *files["HFGPT2Tokenizer"]).build()
    tiktoken = TokenizerSpec("TiktokenTokenizer", *files["TiktokenTokenizer"]).build()
    ids = ours.tokenize_batch(texts)
    assert ids == transformers.tokenize_batch(texts)
    # the tiktoken file leaves out the two special tokens that stand first
    assert ids == [[number + 2 for number in part] for part in tiktoken.tokenize_batch(texts)]


def test_names_are_case_insensitive_and_unknown_ones_list_the_choices(hf_file):
    assert TokenizerSpec("hftokenizer", hf_file).build().name == "HFTokenizer"
    with pytest.raises(ConfigError, match="GPT2BPETokenizer.*did you mean"):
        TokenizerSpec("HFTokenizr", hf_file).build()


def test_characters_are_utf8_bytes():
    tokenizer = CharLevelTokenizer()
    assert tokenizer.tokenize("é\n") == [0xC3, 0xA9, 10]
    assert tokenizer.detokenize([0xC3, 0xA9, 10]) == "é\n"
    assert tokenizer.detokenize([0xC3, 300]) == "\N{REPLACEMENT CHARACTER}" * 2
    assert (tokenizer.vocab_size, tokenizer.eod, tokenizer.pad) == (512, 0, 1)


def test_a_vocabulary_without_end_of_document_says_so_when_asked(tmp_path):
    from tokenizers import Tokenizer, models

    path = tmp_path / "bare.json"
    Tokenizer(models.BPE({"a": 0, "b": 1}, [])).save(str(path))
    tokenizer = HFTokenizer(str(path))
    assert tokenizer.tokenize("ab") == [0, 1]
    with pytest.raises(TokenizerError, match="no end-of-document token") as caught:
        _ = tokenizer.eod
    assert "\n" not in str(caught.value)


def test_a_sentencepiece_model_without_endoftext_ends_documents_with_its_own_eos(texts, tmp_path):
    import sentencepiece

    path = tmp_path / "plain.model"
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts[-5:]),
            model_writer=file,
            vocab_size=300,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    tokenizer = SentencePieceTokenizer(str(path))
    assert tokenizer.inv_vocab[tokenizer.eod] == "</s>"


def test_truncation_stored_in_a_tokenizer_file_is_ignored(trained, tmp_path):
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(trained.to_str())
    copy.enable_truncation(5)
    copy.save(str(tmp_path / "short.json"))
    assert len(HFTokenizer(str(tmp_path / "short.json")).tokenize("many words " * 50)) > 5


def test_gaps_in_the_ids_count_for_the_size_of_the_vocabulary(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "b": 9}, "a")).save(str(tmp_path / "gaps.json"))
    assert HFTokenizer(str(tmp_path / "gaps.json")).vocab_size == 10
