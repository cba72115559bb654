"""Real text that every machine has: the running Python's own standard library."""

import json
import sysconfig
from pathlib import Path


def stdlib_documents(count: int, max_chars: int = 4000) -> list[str]:
    """`count` non-empty texts of at most `max_chars` characters, the same list at every call on one machine."""
    root = Path(sysconfig.get_path("stdlib"))
    documents = []
    for path in sorted(root.glob("*.py")) + sorted(root.glob("[a-z]*/*.py")):
        if "site-packages" in path.parts:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")[:max_chars].strip()
        if text:
            documents.append(text)
        if len(documents) == count:
            return documents
    raise ValueError(
        f"the standard library at {root} has only {len(documents)} documents, {count} were asked for"
    )


def write_jsonl(path, documents, key: str = "text") -> Path:
    """Write one `{key: document}` object per line and return the path."""
    path = Path(path)
    lines = [json.dumps({key: document}) for document in documents]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
