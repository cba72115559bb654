"""Checkpoints in object storage: uploaded by all ranks, verified, fetched; with a real server of S3's language."""

import shutil
from pathlib import Path

import pytest

from tests.common.distributed import DistributedTestError, run_distributed
from tests.distributed.test_async_save import Run

boto3 = pytest.importorskip("boto3")
moto_server = pytest.importorskip("moto.server")

CHUNK = 5 << 20
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def server():
    """The environment in which a running server with the bucket `models` is found."""
    running = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    environment = {**KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    client(environment).create_bucket(Bucket="models")
    yield environment
    running.stop()


def client(environment: dict):
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )


def keys(environment: dict, prefix: str) -> list[str]:
    found = client(environment).list_objects_v2(Bucket="models", Prefix=prefix).get("Contents", [])
    return sorted(item["Key"] for item in found)


def train_and_save(settings: dict, world_size: int) -> list[bool]:
    run = Run({**settings, "load": None}, world_size)
    saved = []
    for iteration in (1, 2, 3):
        run.step()
        saved.append(run.save(iteration))
    run.follow(wait=True)
    return saved


def load(settings: dict, world_size: int) -> int:
    return Run(settings, world_size).engine.loaded_iteration


@pytest.mark.parametrize("beside", [False, True], ids=["blocking", "beside the training"])
def test_all_files_arrive_before_local_ones_are_deleted_and_come_back(server, tmp_path, beside):
    save, prefix = tmp_path / f"run{beside:d}", f"team/models/run{beside:d}"
    settings = {
        "save": f"{save}/", "load": str(save), "s3_path": "s3://models/team/models/", "s3_chunk_size": CHUNK,
        "checkpoint_factor": 1, "keep_last_n_checkpoints": 1, "async_save": beside, "hidden_size": 256,
        "zero_optimization": {"stage": 1},
    }  # fmt: skip
    assert run_distributed(train_and_save, 2, settings, 2, env=server) == [[True] * 3] * 2
    assert sorted(path.name for path in save.glob("[gl]*")) == ["global_step3", "latest"]
    local = {str(path.relative_to(save)): path for path in save.glob("global_step3/**/*") if path.is_file()}
    remote = keys(server, f"{prefix}/global_step3/")
    assert remote == sorted(f"{prefix}/{name}" for name in local)
    assert len(keys(server, f"{prefix}/global_step1/")) == len(remote)
    sizes = []
    for name, path in local.items():
        stored = client(server).get_object(Bucket="models", Key=f"{prefix}/{name}")
        assert stored["Body"].read() == path.read_bytes()
        sizes.append(path.stat().st_size)
    assert max(sizes) > 2 * CHUNK
    # An empty folder, and an address.
    shutil.rmtree(save)
    assert run_distributed(load, 2, settings, 2, env=server) == [3, 3]
    elsewhere = {"zero_optimization": {"stage": 1}, "hidden_size": 256, "load": f"s3://models/{prefix}"}
    elsewhere["save"] = str(tmp_path / "other")
    elsewhere["checkpoint_factor"] = 1
    assert run_distributed(load, 2, elsewhere, 2, env=server) == [3, 3]


def test_what_cannot_be_uploaded_is_never_deleted(server, tmp_path):
    settings = {
        "save": str(tmp_path), "s3_path": "s3://missing/x", "checkpoint_factor": 1, "keep_last_n_checkpoints": 1,
    }  # fmt: skip
    assert run_distributed(train_and_save, 1, settings, 1, env=server) == [[True] * 3]
    assert len(list(tmp_path.glob("global_step*"))) == 3


def check(address: str) -> None:
    from megatron.checkpointing.remote import RemoteTree

    RemoteTree(address, CHUNK).check()


@pytest.mark.parametrize(
    ("address", "changes", "words"),
    [
        ("s3://missing/x", {}, "s3://missing/x: "),
        (
            "s3://models/x",
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"},
            "AWS_ENDPOINT_URL",
        ),
        ("s3:///x", {}, "write s3://BUCKET/PREFIX"),
    ],
    ids=["no bucket", "no server", "no address"],
)
def test_a_wrong_place_is_one_line(server, address, changes, words):
    with pytest.raises(DistributedTestError) as caught:
        run_distributed(check, 1, address, env={**server, **changes})
    (message,) = caught.value.exceptions.values()
    assert "CheckpointError" in message and words in message and "\n" not in message


def test_an_address_without_a_checkpoint_is_one_line(server, tmp_path):
    settings = {"load": "s3://models/nothing", "save": str(Path(tmp_path, "x")), "checkpoint_factor": 1}
    with pytest.raises(DistributedTestError) as caught:
        run_distributed(load, 1, settings, 1, env=server)
    assert "there is no complete checkpoint" in next(iter(caught.value.exceptions.values()))


def test_a_single_file_is_uploaded_in_parts_under_gpt_neoxs_name(server, tmp_path, monkeypatch):
    from megatron.checkpointing import _upload

    for name, value in server.items():
        monkeypatch.setenv(name, value)
    content = bytes(range(256)) * (12 << 12)  # 12 MiB
    (tmp_path / "file.pt").write_bytes(content)
    # The bucket's name comes again in the key.
    _upload(str(tmp_path / "file.pt"), "s3://models/models/file.pt", chunk_size=CHUNK, max_files=2)
    found = client(server).get_object(Bucket="models", Key="models/file.pt")
    assert found["Body"].read() == content and found["ETag"].endswith('-3"')
