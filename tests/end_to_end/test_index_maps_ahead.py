"""Index maps built ahead of a job are the ones that the job opens."""

from pathlib import Path

from tests.common.runs import prepare_corpus, run_command, write_config


def files_of(directory: Path) -> dict[str, int]:
    """All files but those of a run itself, with their times of change."""
    return {
        str(path): path.stat().st_mtime_ns
        for path in directory.rglob("*")
        if path.is_file() and path.suffix in (".npy", ".json", ".bin", ".idx")
    }


def test_maps_built_ahead_are_opened_and_not_built_again(tmp_path):
    config = write_config(tmp_path, data_path=prepare_corpus(tmp_path), train_iters=2, eval_iters=1)
    before = files_of(tmp_path)
    result = run_command(["tools/datasets/build_index_maps.py", config], tmp_path)
    assert "train data in this run" in result.stdout
    built = files_of(tmp_path)
    assert len(built) > len(before)
    run_command(["deepy.py", "train.py", config], tmp_path)
    assert files_of(tmp_path) == built


def test_without_configs_the_usage_is_one_line(tmp_path):
    result = run_command(["tools/datasets/build_index_maps.py"], tmp_path, check=False)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: usage: build_index_maps.py CONFIG...")
