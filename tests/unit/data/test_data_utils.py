"""From the config to the data of a run."""

import pytest

from megatron import mpu
from megatron.common import files
from megatron.common.errors import ConfigError, DataError
from megatron.data import data_utils
from megatron.data.data_utils import (
    build_train_valid_test_data_loaders,
    build_weighted_datasets,
    get_normalized_weights_and_num_samples,
    get_train_valid_test_split_,
    validate_train_epochs,
    weights_by_num_docs,
)
from megatron.mpu.state import Axis, ParallelState
from tests.unit.data.samples import config, numbered, random_sizes, texts, write_dataset


@pytest.fixture
def prefix(tmp_path):
    return write_dataset(tmp_path / "data", numbered(random_sizes(100), step=100))


@pytest.fixture
def several(tmp_path):
    """Three data sets whose tokens tell them apart."""
    return [
        write_dataset(tmp_path / name, [[1000 * i + k % 10 for k in range(20)]] * (30 * (i + 1)))
        for i, name in enumerate("abc")
    ]


def sources(dataset, count):
    """How many of the first samples come from each of `several`."""
    origins = [dataset[i]["text"][0] // 1000 for i in range(count)]
    return [origins.count(i) for i in range(3)]


@pytest.mark.parametrize(
    ("split", "size", "bounds"),
    [
        ("969, 30, 1", 1000, [0, 969, 999, 1000]),
        ("969, 30, 1", 103, [0, 100, 103, 103]),
        ("949,50,1", 10, [0, 10, 10, 10]),
        ("8/1/1", 7, [0, 5, 6, 7]),
        ("5,5", 5, [0, 3, 5, 5]),
        ("1", 5, [0, 5, 5, 5]),
        (1, 5, [0, 5, 5, 5]),
        ("1,1,1,7", 6, [0, 2, 4, 6]),
    ],
)
def test_split_golden_vectors(split, size, bounds):
    assert get_train_valid_test_split_(split, size) == bounds


@pytest.mark.parametrize("split", ["", "a,b", "0,0,0", "-1,2", "1;2", "nan,1"])
def test_a_split_that_makes_no_sense_is_refused(split):
    with pytest.raises(ConfigError, match="split"):
        get_train_valid_test_split_(split, 10)


def test_weights_golden_vectors():
    assert get_normalized_weights_and_num_samples([0.7, 0.2, 0.1], 1000)[1] == [704, 201, 101]
    assert get_normalized_weights_and_num_samples([1, 3], 100) == ([0.25, 0.75], [26, 76])
    assert weights_by_num_docs([100, 10, 1]) == pytest.approx([0.123248386, 0.567165664, 0.309585950])
    assert weights_by_num_docs([100, 10, 1], alpha=1) == pytest.approx(
        [0.495495495, 0.454954955, 0.049549550]
    )
    assert weights_by_num_docs([5]) == [1.0]
    for weights in ([], [0, 0], [1, -1]):
        with pytest.raises(ConfigError, match="weights"):
            get_normalized_weights_and_num_samples(weights, 10)


def test_one_data_set_is_divided_among_the_splits(prefix):
    loaders = build_train_valid_test_data_loaders(config(data_path=prefix))
    assert (loaders.do_train, loaders.do_valid, loaders.do_test) == (True, True, True)
    for name, first, last in (("train", 0, 79), ("valid", 80, 89), ("test", 90, 99)):
        dataset = loaders[name].dataset
        documents = {token // 100 for text in texts(dataset) for token in text}
        assert documents <= set(range(first, last + 1)) and documents
    assert len(loaders["train"].dataset) >= 10 * 4
    assert len(loaders["valid"].dataset) >= (10 // 5 + 1) * 2 * 4


def test_splits_without_documents_or_without_evaluation_are_absent(prefix, capsys):
    loaders = build_train_valid_test_data_loaders(config(data_path=prefix, split="9,1,0"))
    assert loaders["test"] is None and not loaders.do_test and loaders.do_valid
    assert "leaves none for test" in capsys.readouterr().err
    for length in ({}, {"train_iters": None, "train_epochs": 1}):
        loaders = build_train_valid_test_data_loaders(config(data_path=prefix, eval_iters=0, **length))
        assert loaders["valid"] is loaders["test"] is None and loaders.do_train
    with pytest.raises(DataError, match="trains on none"):
        build_train_valid_test_data_loaders(config(data_path=prefix, split="0,1,1"))


def test_separate_paths_need_not_cover_all_splits(several):
    loaders = build_train_valid_test_data_loaders(config(train_data_paths=several[:1]))
    assert loaders["valid"] is loaders["test"] is None and not loaders.do_valid
    loaders = build_train_valid_test_data_loaders(
        config(train_data_paths=several, test_data_paths=several[1:])
    )
    assert loaders["valid"] is None and loaders.do_test
    assert sources(loaders["test"].dataset, 8) == [0, 4, 4]


def test_weights_decide_the_shares(several):
    settings = config(train_data_paths=several, train_data_weights=[5, 3, 2], train_iters=25)
    dataset = build_train_valid_test_data_loaders(settings)["train"].dataset
    assert len(dataset) == 100 and sources(dataset, 100) == [50, 30, 20]


def test_a_weight_of_zero_leaves_a_data_set_out(several):
    settings = config(train_data_paths=several, train_data_weights=[0, 3, 2], train_iters=25)
    assert sources(build_train_valid_test_data_loaders(settings)["train"].dataset, 100) == [0, 60, 40]


def test_shares_by_number_of_documents(several):
    settings = config(
        train_data_paths=several, weight_by_num_documents=True, weighted_sampler_alpha=0.3, train_iters=250
    )
    dataset = build_train_valid_test_data_loaders(settings)["train"].dataset
    expected = [1000 * weight for weight in weights_by_num_docs([30, 60, 90], 0.3)]
    assert sources(dataset, 1000) == pytest.approx(expected, abs=1.0)


def test_an_epoch_reads_every_sample_of_every_data_set_once(several):
    settings = config(train_data_paths=several, train_iters=None, train_epochs=3)
    dataset = build_train_valid_test_data_loaders(settings)["train"].dataset
    sizes = [(600 * (i + 1) - 1) // 8 for i in range(3)]
    assert len(dataset) == sum(sizes) and sources(dataset, len(dataset)) == sizes
    pairs = set(zip(dataset.dataset_index.tolist(), dataset.dataset_sample_index.tolist(), strict=True))
    assert len(pairs) == len(dataset)


def test_epochs_of_one_data_set(prefix):
    loaders = build_train_valid_test_data_loaders(config(data_path=prefix, train_iters=None, train_epochs=2))
    dataset = loaders["train"].dataset
    assert len(dataset) == (dataset.tokens_per_epoch - 1) // 8
    assert loaders.do_valid and loaders.do_test


def test_what_epochs_cannot_do_is_reported_together():
    settings = config(
        train_epochs=2,
        pack_impl="unpacked",
        weight_by_num_documents=True,
        train_data_weights=[1, 2],
        train_iters=5,
    )
    with pytest.raises(ConfigError) as error:
        validate_train_epochs(settings)
    assert len(error.value.problems) == 4
    validate_train_epochs(config())
    validate_train_epochs(config(train_epochs=1, train_iters=None, train_data_weights=[1.0, 1.0]))


def test_labels_of_each_split_are_used(tmp_path, several):
    labels = [
        write_dataset(tmp_path / f"{name}_label", [[-100] * 4 + [7] * 16] * (30 * (i + 1)))
        for i, name in enumerate("abc")
    ]
    settings = config(
        train_data_paths=several, valid_data_paths=several[:1], valid_label_data_paths=labels[:1]
    )
    loaders = build_train_valid_test_data_loaders(settings)
    assert set(next(iter(loaders["valid"]))) == {"text", "label"}
    assert set(next(iter(loaders["train"]))) == {"text"}
    settings = config(train_data_paths=several, train_label_data_paths=labels, pack_impl="unpacked")
    batch = next(iter(build_train_valid_test_data_loaders(settings)["train"]))
    assert batch["label"].unique().tolist() == [-100, 7]


def test_the_members_of_each_split_can_be_built_alone(several):
    settings = config(train_data_paths=several, valid_data_paths=several[:2])
    train, valid, test = build_weighted_datasets(settings, [5, 6, 7], [3, 3], None, None, None, None)
    assert [len(member) >= count for member, count in zip(train, (5, 6, 7), strict=True)] == [True] * 3
    assert [member.name for member in valid] == ["valid_0", "valid_1"] and test == []
    unmapped, _, _ = build_weighted_datasets(settings, None, None, None, 1, 1, 1, build_index_mappings=False)
    assert [len(member.documents) for member in unmapped] == [30, 60, 90]


def test_the_realised_tokens_and_passes_of_each_source_are_printed(several, capsys):
    settings = config(train_data_paths=several, train_data_weights=[5, 3, 2], train_iters=25)
    build_train_valid_test_data_loaders(settings)
    lines = capsys.readouterr().out.splitlines()
    assert "train data in this run: 100 samples of 8 tokens" in lines
    first = next(line for line in lines if several[0] in line)
    assert "50.0 % of the samples, 400 tokens, 0.667 passes over 30 documents with 600 tokens" in first


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data_path": "/no/such/data"}, DataError, "/no/such/data.idx does not exist"),
        ({"train_data_paths": ["/no/such/data"]}, DataError, "/no/such/data.idx does not exist"),
        ({}, ConfigError, "no training data"),
        ({"train_data_paths": []}, ConfigError, "no training data"),
        ({"train_iters": None, "data_path": "x"}, ConfigError, "train_iters or train_epochs"),
    ],
)
def test_missing_data_is_one_line(changes, error, message):
    with pytest.raises(error, match=message) as raised:
        build_train_valid_test_data_loaders(config(**changes))
    assert "\n" not in str(raised.value)


def test_too_little_data_for_an_epoch_is_one_line(tmp_path):
    prefix = write_dataset(tmp_path / "tiny", numbered([20, 20, 5]))
    with pytest.raises(
        DataError, match="valid split of .*tiny: 1 epoch.* of 5 tokens are less than one sample"
    ):
        build_train_valid_test_data_loaders(
            config(data_path=prefix, split="2,1", train_iters=None, train_epochs=1, seq_length=8)
        )


def test_stages_between_the_first_and_the_last_read_nothing(prefix):
    state = ParallelState(pipe=Axis(ranks=(0, 1, 2), rank=1))
    with mpu.use(state):
        assert build_train_valid_test_data_loaders(config(data_path=prefix)) == dict.fromkeys(
            data_utils.SPLITS
        )
    for rank in (0, 2):
        with mpu.use(ParallelState(pipe=Axis(ranks=(0, 1, 2), rank=rank))):
            assert build_train_valid_test_data_loaders(config(data_path=prefix))["train"] is not None


def test_many_sources_raise_the_limit_of_open_files(monkeypatch):
    asked = []
    monkeypatch.setattr(files.resource, "getrlimit", lambda kind: (1024, 4096))
    monkeypatch.setattr(files.resource, "setrlimit", lambda kind, limits: asked.append(limits))
    for count in (100, 2000, 100_000):
        files.allow_open_files(count)
    assert asked == [(2000, 4096), (4096, 4096)]
