"""Reading text corpora: JSON lines, plain text and archives of them, streamed in blocks of constant size.

    for block in read_blocks(find_inputs("a.jsonl.zst,b.zip")):
        texts = block.texts(["text"]).rows

What a file holds is told by its suffix (`formats.py`). Archive members with a suffix of record files are read as such,
any other member is one document.
"""

from megatron.common.documents.blocks import Block, LineBlock, RecordBlock, TextBlock, Texts
from megatron.common.documents.reader import find_inputs, read_blocks, read_documents

__all__ = [
    "Block",
    "LineBlock",
    "RecordBlock",
    "TextBlock",
    "Texts",
    "find_inputs",
    "read_blocks",
    "read_documents",
]
