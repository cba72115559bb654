"""A torn or damaged checkpoint is recognised; retention deletes only what this program completed."""

from types import SimpleNamespace

import pytest

from megatron.checkpointing import delete_old_checkpoints, is_save_iter, manifest, retention
from megatron.checkpointing.choose import _first_undamaged, _offered
from megatron.checkpointing.names import get_checkpoint_tag, saved_iterations
from megatron.checkpointing.retention import delete_abandoned_saves
from megatron.checkpointing.save import warn_of_later_checkpoints
from megatron.common.errors import CheckpointError


def make_checkpoint(root, iteration, complete=True, created=None):
    directory = root / get_checkpoint_tag(iteration)
    directory.mkdir(parents=True)
    (directory / "weights.pt").write_bytes(bytes(range(256)) * 10 + bytes([iteration]))
    if complete:
        files = {name: manifest.file_record(directory / name) for name in manifest.content_files(directory)}
        manifest.write_manifest(directory, files, {"iteration": iteration, "created": created})
    (root / "latest").write_text(directory.name)
    return directory


def choose(root, iteration=None, **settings):
    tags = _offered(SimpleNamespace(load=str(root), save=settings.get("save")), iteration)
    return _first_undamaged(root, tags, iteration is not None, manifest.problem)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[100] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "flipped bit": flip_a_bit,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_passed_over_for_the_newest_valid_one(tmp_path, damage, capfd):
    make_checkpoint(tmp_path, 10)
    newest = make_checkpoint(tmp_path, 20)
    DAMAGES[damage](newest / "weights.pt")
    assert choose(tmp_path) == "global_step10"
    assert "weights.pt" in capfd.readouterr().err


def test_damaged_manifest_is_not_believed(tmp_path):
    make_checkpoint(tmp_path, 10)
    (make_checkpoint(tmp_path, 20) / "manifest.json").write_text('{"files": {')
    assert choose(tmp_path) == "global_step10"


def test_all_damaged_is_an_error(tmp_path):
    (make_checkpoint(tmp_path, 10) / "weights.pt").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint in .* can be used"):
        choose(tmp_path)


def test_named_iteration_must_exist_and_be_undamaged(tmp_path):
    directory = make_checkpoint(tmp_path, 10)
    with pytest.raises(CheckpointError, match="available: 10"):
        choose(tmp_path, 11)
    flip_a_bit(directory / "weights.pt")
    with pytest.raises(CheckpointError, match="checksum"):
        choose(tmp_path, 10)


def test_missing_checkpoint_is_an_error_unless_the_run_saves_to_the_same_place(tmp_path):
    with pytest.raises(CheckpointError, match="leave `load` out"):
        choose(tmp_path, save=str(tmp_path / "elsewhere"))
    assert choose(tmp_path, save=str(tmp_path)) is None


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("mp_rank_00_model_states.pt", "is a checkpoint itself: name the folder that holds it"),
        ("config.json", "is a Hugging Face model: .*convert_hf_to_neox.py"),
    ],
)
def test_what_is_mistaken_for_a_folder_of_checkpoints_is_told(tmp_path, file, message):
    (tmp_path / file).touch()
    for save in (None, str(tmp_path)):
        with pytest.raises(CheckpointError, match=message):
            choose(tmp_path, save=save)


def test_foreign_checkpoint_without_manifest_counts_only_if_latest_names_it(tmp_path):
    make_checkpoint(tmp_path, 30, complete=False)
    make_checkpoint(tmp_path, 20)
    assert choose(tmp_path) == "global_step20"
    (tmp_path / "latest").write_text("global_step30")
    assert choose(tmp_path) == "global_step30"


def test_checkpoints_that_nothing_calls_complete_are_neither_loaded_nor_passed_over(tmp_path):
    for iteration in (10, 20):
        make_checkpoint(tmp_path, iteration, complete=False)
    for latest in ("global_step30", None):
        if latest:
            (tmp_path / "latest").write_text(latest)
        else:
            (tmp_path / "latest").unlink()
        # Not even where the run will save: starting afresh there would mix two runs.
        with pytest.raises(CheckpointError, match=r"`latest`.*\(10, 20\).*--iteration"):
            choose(tmp_path, save=str(tmp_path))
    assert choose(tmp_path, 10) == "global_step10"


def test_a_checkpoint_that_its_run_died_before_naming_is_found(tmp_path):
    make_checkpoint(tmp_path, 20, created="2100-01-01T00:00:00+0000")
    make_checkpoint(tmp_path, 10)
    assert choose(tmp_path) == "global_step20"


def test_going_back_to_an_earlier_checkpoint_is_not_undone_by_later_ones(tmp_path, capfd):
    """After a loss spike a run went on from iteration 10, saved 20 and died; 30 is of the line that was given up."""
    before = {"created": "2020-01-01T00:00:00+0000"}
    make_checkpoint(tmp_path, 30, **before)
    make_checkpoint(tmp_path, 10, **before)
    make_checkpoint(tmp_path, 20, created="2020-01-02T00:00:00+0000")
    assert choose(tmp_path) == "global_step20"
    (tmp_path / "global_step20" / "weights.pt").unlink()
    assert choose(tmp_path) == "global_step10"
    (tmp_path / "global_step10" / "weights.pt").unlink()
    assert choose(tmp_path) == "global_step30"


def test_a_latest_that_names_nothing_is_passed_over(tmp_path):
    make_checkpoint(tmp_path, 10)
    for content in (b"global_step77", b"", b"\xff\xfe"):
        (tmp_path / "latest").write_bytes(content)
        assert choose(tmp_path) == "global_step10"


def test_a_latest_that_names_a_place_elsewhere_is_passed_over(tmp_path):
    make_checkpoint(tmp_path / "other", 20)
    make_checkpoint(tmp_path / "own", 10)
    for place in ("../other/global_step20", str(tmp_path / "other/global_step20"), ".", ".."):
        (tmp_path / "own/latest").write_text(place)
        assert choose(tmp_path / "own") == "global_step10"


def test_a_linked_checkpoint_is_loaded_and_never_deleted(tmp_path):
    other = make_checkpoint(tmp_path / "other", 10)
    (tmp_path / "own").mkdir()
    (tmp_path / "own/global_step10").symlink_to(other)
    assert choose(tmp_path / "own", 10) == "global_step10"
    (tmp_path / "own/latest").write_text("global_step10")
    assert choose(tmp_path / "own") == "global_step10"
    for iteration in (20, 30):
        make_checkpoint(tmp_path / "own", iteration)
    delete_old_checkpoints(str(tmp_path / "own"), 1)
    assert saved_iterations(tmp_path / "own") == [10, 30]


def test_a_checkpoint_of_a_newer_version_is_passed_over_with_the_reason(tmp_path, capfd, monkeypatch):
    make_checkpoint(tmp_path, 10)
    monkeypatch.setattr(manifest, "VERSION", manifest.VERSION + 1)
    make_checkpoint(tmp_path, 20)
    monkeypatch.undo()
    assert choose(tmp_path) == "global_step10"
    assert "newer version of this program" in capfd.readouterr().err
    with pytest.raises(CheckpointError, match="update the program"):
        choose(tmp_path, 20)


def test_a_run_says_which_later_checkpoints_it_does_not_go_on_from(tmp_path, capfd):
    settings = SimpleNamespace(save=str(tmp_path))
    for iteration in (10, 20, 30):
        make_checkpoint(tmp_path, iteration)
    warn_of_later_checkpoints(settings, 30)
    assert capfd.readouterr().err == ""
    warn_of_later_checkpoints(settings, 10)
    (warning,) = capfd.readouterr().err.splitlines()
    assert warning.startswith("warning: save: ") and "later iterations (20, 30) than 10" in warning


def test_retention_deletes_only_complete_checkpoints_of_this_program(tmp_path):
    for iteration in (10, 20, 30, 40):
        make_checkpoint(tmp_path, iteration)
    make_checkpoint(tmp_path, 5, complete=False)
    (tmp_path / "global_step10_backup").mkdir()
    (tmp_path / "latest").write_text("global_step40")
    delete_old_checkpoints(str(tmp_path) + "/", 2)
    assert saved_iterations(tmp_path) == [5, 30, 40]
    assert (tmp_path / "global_step10_backup").is_dir()


def test_a_deletion_that_was_interrupted_leaves_nothing_that_looks_like_a_checkpoint(tmp_path, monkeypatch):
    for iteration in (10, 20):
        make_checkpoint(tmp_path, iteration)
    monkeypatch.setattr(retention, "remove", lambda path: None)
    delete_old_checkpoints(str(tmp_path), 1)
    monkeypatch.undo()
    assert saved_iterations(tmp_path) == [20]
    delete_abandoned_saves(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["global_step20", "latest"]


def test_a_checkpoint_that_cannot_be_deleted_ends_no_training(tmp_path, monkeypatch, capfd):
    def refuse(source, target):
        raise PermissionError(13, "Permission denied")

    for iteration in (10, 20):
        make_checkpoint(tmp_path, iteration)
    monkeypatch.setattr(retention.os, "rename", refuse)
    delete_old_checkpoints(str(tmp_path), 1)
    assert saved_iterations(tmp_path) == [10, 20]
    assert "global_step10 could not be deleted (Permission denied)" in capfd.readouterr().err


def test_retention_never_deletes_what_latest_names_nor_later_ones_of_another_run(tmp_path):
    for iteration in (5, 10, 20, 30):
        make_checkpoint(tmp_path, iteration)
    (tmp_path / "latest").write_text("global_step10")
    delete_old_checkpoints(str(tmp_path), 1)
    assert saved_iterations(tmp_path) == [10, 20, 30]


@pytest.mark.parametrize(
    ("scale", "factor", "last", "expected"),
    [
        ("log", 2, 100, [1, 2, 4, 8, 16, 32, 64]),
        ("log", 1.5, 40, [1, 2, 3, 5, 7, 11, 17, 25, 38]),
        ("linear", 30, 100, [30, 60, 90]),
    ],
)
def test_save_iterations_follow_scale_and_factor(scale, factor, last, expected):
    args = SimpleNamespace(checkpoint_scale=scale, checkpoint_factor=factor, extra_save_iters=None)
    assert [iteration for iteration in range(last + 1) if is_save_iter(args, iteration)] == expected


def test_extra_iterations_are_saved_too():
    args = SimpleNamespace(checkpoint_scale="linear", checkpoint_factor=None, extra_save_iters=[0, 7])
    assert [iteration for iteration in range(10) if is_save_iter(args, iteration)] == [0, 7]


def test_what_a_dying_save_left_behind_is_cleaned_up(tmp_path):
    make_checkpoint(tmp_path, 10)
    (tmp_path / ".global_step20.partial").mkdir()
    (tmp_path / ".global_step20.partial" / "weights.pt").write_bytes(b"torn")
    assert choose(tmp_path) == "global_step10"
    delete_abandoned_saves(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["global_step10", "latest"]


def test_a_checkpoint_of_ours_that_lost_its_manifest_is_not_taken_for_another_programs(tmp_path, capfd):
    make_checkpoint(tmp_path, 10)
    directory = make_checkpoint(tmp_path, 20)
    (directory / "rng_rank_00000.pt").write_bytes(b"")
    (directory / manifest.MANIFEST).unlink()
    assert not manifest.is_foreign(directory)
    assert choose(tmp_path) == "global_step10"
    assert "manifest.json is missing" in capfd.readouterr().err
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        choose(tmp_path, 20)


def test_shares_of_several_readers_cover_every_file(tmp_path):
    directory = tmp_path / "global_step1"
    directory.mkdir()
    for number in range(7):
        (directory / f"{number}.pt").write_bytes(bytes(number))
    files = {name: manifest.file_record(directory / name) for name in manifest.content_files(directory)}
    manifest.write_manifest(directory, files, {"iteration": 1})
    for name in files:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content + b"x")
        found = [manifest.problem(directory, share, 3) for share in range(3)]
        assert sum(problem is not None and name in problem for problem in found) == 1
        (directory / name).write_bytes(content)
