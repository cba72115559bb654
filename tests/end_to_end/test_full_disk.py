"""A disk that fills up costs the checkpoints that find no room, and nothing else (P32)."""

import shutil
import subprocess
import sys

import pytest

from megatron.checkpointing import manifest
from tests.common.paths import ROOT
from tests.common.runs import environment, meeting, prepare_corpus, write_config

# A small disk of its own, seen by these processes only and gone with them.
MOUNT = "mount -t tmpfs -o size=2m tmpfs small"
PRIVATE = ["unshare", "-rm", "sh", "-ec"]
TRAIN = f"{sys.executable} {ROOT}/deepy.py {ROOT}/train.py"


def can_mount(directory) -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*PRIVATE, MOUNT], cwd=directory, capture_output=True, check=False).returncode == 0


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "small").mkdir()
    if not can_mount(tmp_path):
        pytest.skip("no disk can be mounted here, not even a private one")
    return tmp_path


@pytest.mark.parametrize(
    "layout",
    [{}, {"num_gpus": 2, "pipe_parallel_size": 2}, {"async_save": True}],
    ids=["one process", "pipeline", "beside the training"],
)
def test_training_goes_on_the_last_good_checkpoint_stays_and_room_is_used(directory, layout):
    settings = {
        "data_path": prepare_corpus(directory, documents=20), "save": "small", "load": "small", "checkpoint_factor": 1,
        "train_iters": 4, "lr_decay_iters": 4, "eval_iters": 0, "log_interval": 1, "num_gpus": 1, **layout,
    }  # fmt: skip
    write_config(directory, "full.yml", **settings)
    write_config(directory, "sparing.yml", **settings, keep_last_n_checkpoints=1)
    script = f"""{MOUNT}
    {TRAIN} full.yml > first.out 2> first.err || echo $? > first.code
    cp -a small kept
    rm -r small/global_step1
    {TRAIN} sparing.yml > second.out 2> second.err
    cp -a small end
    """
    done = subprocess.run(
        [*PRIVATE, script],
        cwd=directory,
        env=environment() | meeting(),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    output, errors = ((directory / f"first.{name}").read_text() for name in ("out", "err"))
    assert done.returncode == 0, (done.stderr, errors, (directory / "second.err").read_text())

    assert (directory / "first.code").read_text() == "1\n"
    assert "iteration        4/" in output
    assert "warning: iteration 3 could not be saved in 3 attempts: " in errors
    assert ".pt: No space left on device" in errors
    assert errors.splitlines()[-1].startswith(
        "error: save: the last checkpoint could not be written to small"
    )
    assert "the newest is of iteration 2; make room" in errors
    assert "Traceback" not in errors and errors.count("error:") == 1
    kept = sorted(path.name for path in (directory / "kept").iterdir())
    assert kept == ["global_step1", "global_step2", "latest", "metrics.jsonl", "neox_args.json"]
    assert (directory / "kept" / "latest").read_text().strip() == "global_step2"
    assert all(manifest.problem(directory / "kept" / name) is None for name in kept[:2])

    resumed = (directory / "second.out").read_text()
    assert "loaded checkpoint small/global_step2" in resumed and "iteration        4/" in resumed
    assert sorted(path.name for path in (directory / "end").iterdir()) == ["global_step4", *kept[2:]]
