"""Preparing a corpus by its name."""

from megatron.common.console import info
from megatron.registry import lookup, names

# A name that does nothing, for tests of the commands around it.
NOTHING = "pass"


def data_downloaders() -> dict[str, type | str]:
    """Registered name to class, and the name that does nothing."""
    return {name: lookup("corpus", name) for name in names("corpus")} | {NOTHING: NOTHING}


def prepare_dataset(
    dataset_name: str,
    tokenizer_type: str | None = None,
    data_dir: str | None = None,
    vocab_file: str | None = None,
    merge_file: str | None = None,
    force_redownload: bool | None = None,
    num_workers: int | None = None,
    train_tokenizer: bool = False,
    vocab_size: int | None = None,
    source: str | None = None,
) -> None:
    """Download and tokenise a corpus into DATA_DIR/NAME; arguments as of `DataDownloader`.

    Raises: ConfigError for an unknown name, DataError if the data cannot be had or read, TokenizerError.
    """
    if dataset_name.lower() == NOTHING:
        return
    corpus = lookup("corpus", dataset_name)(
        tokenizer_type=tokenizer_type,
        merge_file=merge_file,
        vocab_file=vocab_file,
        data_dir=data_dir,
        force_redownload=force_redownload,
        num_workers=num_workers,
        train_tokenizer=train_tokenizer,
        vocab_size=vocab_size,
        source=source,
    )
    corpus.prepare()
    info(f'data_path: "{corpus.output_prefix}_text_document"')
    info(f'tokenizer_type: "{corpus.tokenizer_type}"')
    for key, path in (("vocab_file", corpus.vocab_file), ("merge_file", corpus.merge_file)):
        if path:
            info(f'{key}: "{path}"')
