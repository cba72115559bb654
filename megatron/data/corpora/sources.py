"""Where corpora are downloaded from: the user says, because public places come and go."""

import os
from pathlib import Path
from typing import Any

import yaml

from megatron.common.errors import DataError
from megatron.data.corpora.fetch import SCHEMES

VARIABLE = "NEOX_DATA_SOURCES"
HOW_TO_SET = (
    f"give --source-url or set {VARIABLE} to the address of a folder with that file, or to a YAML file of sources "
    "(docs/preprocessing.md)"
)


class Sources:
    """Addresses of the files of corpora.

    A YAML file of sources maps names of corpora ("default" for all others) to the address of a folder or to the list
    of the files' own addresses, and "sha256" to {file name: checksum}.

    Args: text: an address of a folder, or the path of a YAML file; None: what NEOX_DATA_SOURCES says.
    Raises: DataError for a file that is missing or not of that form.
    """

    def __init__(self, text: str | None = None):
        text = text or os.environ.get(VARIABLE)
        self._places: dict[str, Any] = {}
        self._checksums: dict[str, str] = {}
        if text and text.startswith(SCHEMES):
            self._places = {"default": text}
        elif text:
            self._read(Path(text))

    def _read(self, path: Path) -> None:
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{path}, the file of data sources, cannot be read: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise DataError(f"{path}, the file of data sources, is not valid YAML") from error
        if not isinstance(found, dict):
            raise DataError(f"{path}, the file of data sources, must map names of corpora to addresses")
        self._checksums = found.pop("sha256", None) or {}
        self._places = {str(name).lower(): place for name, place in found.items()}

    def url(self, corpus: str, file: str) -> str:
        """Address of one file of a corpus. Raises: DataError saying how to set it."""
        place = self._places.get(corpus.lower(), self._places.get("default"))
        if isinstance(place, str):
            return f"{place.rstrip('/')}/{file}"
        if isinstance(place, list):
            fitting = [url for url in map(str, place) if url.rsplit("/", 1)[-1] == file]
            if fitting:
                return fitting[0]
        raise DataError(f"no source is known for {file} of {corpus}: {HOW_TO_SET}")

    def sha256(self, file: str) -> str | None:
        """Checksum of a file, None if unknown."""
        return self._checksums.get(file)
