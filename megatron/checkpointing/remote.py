"""Checkpoints in object storage (S3 and what speaks its language): uploaded by the ranks that wrote them, and fetched.

The tree is <s3_path>/<base name of save>/<tag>/<file>, and `latest` beside the tags, written last. AWS_ENDPOINT_URL
names another server than Amazon's; credentials come from where boto3 looks for them.
"""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from megatron.checkpointing import manifest
from megatron.checkpointing.names import LATEST, get_checkpoint_tag
from megatron.common import activity
from megatron.common.errors import CheckpointError
from megatron.common.files import atomic_path
from megatron.common.optional import require

SCHEME = "s3://"
_ATTEMPTS, _PARTS = 5, 10
_WHY = "s3_path or load: s3://"


class RemoteTree:
    """A folder of checkpoints in a bucket.

    Args: address: s3://BUCKET/PREFIX; chunk: bytes of a part of an upload; parts: how many travel at a time; attempts:
    how often a request is made before it counts as failed.
    Raises: CheckpointError, as all methods do, with the reason in one line.
    """

    def __init__(self, address: str, chunk: int, parts: int = _PARTS, attempts: int = _ATTEMPTS):
        place = urlsplit(address)
        if place.scheme != "s3" or not place.netloc:
            raise CheckpointError(f"{address} is no address in object storage; write s3://BUCKET/PREFIX")
        self.address = address.rstrip("/")
        self._bucket, self._prefix = place.netloc, place.path.strip("/")
        boto3 = require("boto3", "s3", _WHY)
        config = require("botocore.config", "s3", _WHY).Config(
            retries={"max_attempts": attempts, "mode": "standard"}
        )
        with self._explained():
            self._client = boto3.client("s3", config=config)
        transfer = require("boto3.s3.transfer", "s3", _WHY)
        self._transfer = transfer.TransferConfig(
            multipart_threshold=chunk, multipart_chunksize=chunk, max_concurrency=parts
        )

    @classmethod
    def of_run(cls, neox_args) -> "RemoteTree":
        """Where a run uploads what it has saved."""
        base = Path(neox_args.save).resolve().name
        return cls(f"{neox_args.s3_path.rstrip('/')}/{base}", neox_args.s3_chunk_size)

    def check(self) -> None:
        """Find out before training whether the bucket is there for us."""
        with self._explained():
            self._client.head_bucket(Bucket=self._bucket)

    def upload(self, path: Path, name: str) -> None:
        """Upload a file. The server compares the checksum of every part; then the size of the whole is compared."""
        key = self._key(name)
        with self._explained():
            self._client.upload_file(
                str(path),
                self._bucket,
                key,
                Config=self._transfer,
                ExtraArgs={"ChecksumAlgorithm": "CRC32"},
                Callback=_moved,
            )
            size = self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"]
        if size != path.stat().st_size:
            raise CheckpointError(f"{self.address}/{name} has {size} bytes instead of {path.stat().st_size}")

    def download(self, name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._explained(), atomic_path(path) as unfinished:
            self._client.download_file(
                self._bucket, self._key(name), str(unfinished), Config=self._transfer, Callback=_moved
            )

    def read(self, name: str) -> str | None:
        """The text of a small file, None if there is no such file."""
        errors = require("botocore.exceptions", "s3", _WHY)
        with self._explained():
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._key(name))
            except errors.ClientError as error:
                if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                    return None
                raise
            return answer["Body"].read().decode("utf-8", errors="replace").strip()

    def files(self, tag: str) -> list[str]:
        """Names of all files of a checkpoint, sorted."""
        prefix = self._key(f"{tag}/")
        with self._explained():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            keys: list[str] = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return sorted(key.removeprefix(prefix) for key in keys)

    def holds(self, directory: Path) -> bool:
        """Whether a checkpoint has been uploaded completely: its manifest, the last of its files, is the same."""
        try:
            return self.read(f"{directory.name}/{manifest.MANIFEST}") == (
                directory / manifest.MANIFEST
            ).read_text(encoding="utf-8")
        except CheckpointError:
            return False

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    @contextlib.contextmanager
    def _explained(self) -> Iterator[Any]:
        errors = require("botocore.exceptions", "s3", _WHY)
        failed = require("boto3.exceptions", "s3", _WHY).Boto3Error
        try:
            yield
        except (errors.BotoCoreError, errors.ClientError, failed) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{self.address}: {reason}; check the bucket, the credentials (AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY) and AWS_ENDPOINT_URL"
            ) from error


def _moved(size: int) -> None:
    activity.pulse()


def upload_files(neox_args, directory: Path, names: list[str]) -> str | None:
    """Upload files of a checkpoint. Returns: what went wrong, None if all is there."""
    try:
        tree = RemoteTree.of_run(neox_args)
        for name in names:
            tree.upload(directory / name, f"{directory.name}/{name}")
    except (CheckpointError, OSError) as error:
        return str(error)
    return None


def upload_rest(neox_args, directory: Path, uploaded: set[str]) -> str | None:
    """Upload what no rank has uploaded, the manifest after that, and at the very end `latest`."""
    rest = [name for name in manifest.content_files(directory) if name not in uploaded]
    failure = upload_files(neox_args, directory, [*rest, manifest.MANIFEST])
    if failure is None:
        try:
            RemoteTree.of_run(neox_args).upload(directory.parent / LATEST, LATEST)
        except (CheckpointError, OSError) as error:
            failure = str(error)
    return failure


def upload_checkpoint(iteration: int, neox_args) -> None:
    """Upload a checkpoint that lies in `save` as a whole, from this process alone.

    Raises: CheckpointError.
    """
    failure = upload_rest(neox_args, Path(neox_args.save, get_checkpoint_tag(iteration)), set())
    if failure is not None:
        raise CheckpointError(failure)


def _upload(
    file_path: str | Path,
    s3_key: str,
    chunk_size: int = 100 << 20,
    max_files: int = 64,
    parallel_failures: int = 63,
    max_retries: int = 5,
) -> None:
    """Upload one file under GPT-NeoX's name for that.

    Args: s3_key: s3://BUCKET/KEY; chunk_size: bytes of a part; max_files: parts that travel at a time, no more than
    may fail at a time (parallel_failures); max_retries: of a part.
    Raises: CheckpointError.
    """
    folder, _, name = s3_key.rpartition("/")
    parts = min(max_files, max(1, parallel_failures))
    RemoteTree(folder, chunk_size, parts, 1 + max_retries).upload(Path(file_path), name)


def multiprocessing_starmap(func: Callable, args: Sequence[tuple], num_processes: int | None = None) -> list:
    """Call `func` with each tuple of arguments, in fresh processes, by default one for each core but one.

    Returns: the results in order.
    """
    processes = num_processes or max(1, (os.cpu_count() or 1) - 1)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return pool.starmap(func, args)
