"""The corpora of prepare_data.py, under the names GPT-NeoX's users import."""

from megatron.data.corpora.base import DataDownloader
from megatron.data.corpora.prepare import data_downloaders, prepare_dataset

DATA_DOWNLOADERS = data_downloaders()
__all__ = ["DATA_DOWNLOADERS", "DataDownloader", "prepare_dataset"]
