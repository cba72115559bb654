"""Uploading to the Hugging Face hub: private unless asked otherwise, and one line when it cannot be."""

from types import SimpleNamespace

import pytest

from megatron.checkpointing.hub import upload_to_hub
from megatron.common.errors import CheckpointError
from tests.common.runs import run_command

huggingface_hub = pytest.importorskip("huggingface_hub")


class Hub:
    """In place of the hub: takes note of what it is asked for."""

    def __init__(self):
        self.calls = []

    def __call__(self):
        return self

    def create_repo(self, name, private, exist_ok):
        self.calls.append(("repository", name, private, exist_ok))

    def create_branch(self, name, branch, exist_ok):
        self.calls.append(("branch", name, branch, exist_ok))

    def upload_folder(self, repo_id, folder_path, revision):
        self.calls.append(("upload", repo_id, str(folder_path), revision))
        return SimpleNamespace(commit_url="https://hub/commit/1")


def test_repository_and_branch_are_made_and_the_folder_is_sent(tmp_path, monkeypatch):
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    assert upload_to_hub(tmp_path, "me/model", "step3") == "https://hub/commit/1"
    assert hub.calls == [
        ("repository", "me/model", True, True),
        ("branch", "me/model", "step3", True),
        ("upload", "me/model", str(tmp_path), "step3"),
    ]


def test_a_missing_folder_is_said_before_anything_is_made(tmp_path, monkeypatch):
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    with pytest.raises(CheckpointError, match="is no folder"):
        upload_to_hub(tmp_path / "nothing", "me/model", "main")
    assert hub.calls == []


@pytest.mark.parametrize(
    "environment",
    [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}],
    ids=["said to be", "in fact"],
)
def test_offline_is_one_line(environment, tmp_path):
    environment = {"HF_TOKEN": "hf_none", **environment}
    done = run_command(
        ["tools/ckpts/upload.py", tmp_path, "me/model", "main"], tmp_path, check=False, env=environment
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: the Hugging Face hub cannot be reached")
    assert "Traceback" not in done.stderr
