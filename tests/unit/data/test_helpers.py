"""The compiled helpers equal their Python twins, are built once, and are not needed."""

import multiprocessing
import shutil
import sys

import numpy as np
import pytest

from megatron.common.errors import DataError
from megatron.data import helpers, helpers_build, helpers_twin
from megatron.data.shares import get_normalized_weights_and_num_samples

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, helpers_build.COMPILERS)), reason="no C++ compiler on this machine"
)


@pytest.fixture
def forget(monkeypatch):
    """Make this process forget the compiled module, and any module it loads meanwhile."""
    monkeypatch.setattr(helpers_build, "_Loaded", type("Fresh", (), {"module": None, "failed": False}))


@pytest.fixture
def compiled(forget):
    module = helpers_build.load(compile_if_absent=True)
    assert module is not None
    return module


def random_documents(generator, count, epochs, largest=50):
    sizes = generator.randint(0, largest, count).astype(np.int32)
    sizes[0] += 1
    doc_idx = np.tile(np.arange(count, dtype=np.int32), epochs)
    generator.shuffle(doc_idx)
    return sizes, doc_idx


@needs_compiler
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_compiled_sample_idx_equals_its_twin(compiled, seed, dtype):
    generator = np.random.RandomState(seed)
    epochs, seq_length = generator.randint(1, 4), generator.randint(1, 60)
    sizes, doc_idx = random_documents(generator, generator.randint(1, 200), epochs)
    arguments = (sizes, doc_idx, seq_length, epochs, int(sizes.sum()))
    found = getattr(compiled, f"build_sample_idx_{np.dtype(dtype).name}")(*arguments)
    expected = helpers_twin.build_sample_idx(*arguments, dtype)
    assert found.dtype == expected.dtype == dtype
    assert np.array_equal(found, expected)


@needs_compiler
def test_compiled_sample_idx_reads_sizes_as_they_lie_in_an_index_file(compiled):
    raw = np.zeros(34 + 4 * 4, dtype=np.uint8)
    sizes = raw[34:].view("<i4")
    sizes[:] = [3, 2, 4, 5]
    doc_idx = np.array([2, 1, 2, 0, 0, 1, 3, 3], dtype=np.int32)
    found = compiled.build_sample_idx_int32(sizes, doc_idx, 4, 2, 14)
    assert found.tolist() == [[0, 0], [1, 0], [2, 2], [3, 2], [5, 0], [6, 2], [7, 1]]


@needs_compiler
def test_documents_that_do_not_hold_the_tokens_are_an_index_error(compiled):
    sizes, doc_idx = np.array([3], dtype=np.int32), np.array([0, 0], dtype=np.int32)
    for build in (
        compiled.build_sample_idx_int32,
        lambda *arguments: helpers_twin.build_sample_idx(*arguments, np.int32),
    ):
        with pytest.raises(IndexError):
            build(sizes, doc_idx, 2, 3, 3)
    with pytest.raises(IndexError):
        compiled.build_sample_idx_int32(sizes, np.array([0, 7], dtype=np.int32), 2, 2, 3)


@needs_compiler
@pytest.mark.parametrize(
    ("members", "dtype"), [(1, np.uint8), (3, np.uint8), (17, np.int16), (300, np.int32)]
)
def test_compiled_blending_equals_its_twin(compiled, members, dtype):
    size = 5000
    weights = np.random.RandomState(members).rand(members) ** 3 + 1e-3
    weights /= weights.sum()
    results = []
    for build in (compiled.build_blending_indices, helpers_twin.build_blending_indices):
        member, sample = np.zeros(size, dtype=dtype), np.zeros(size, dtype=np.int64)
        build(
            member,
            sample,
            weights,
            members,
            size,
            *([False] if build is compiled.build_blending_indices else []),
        )
        results.append((member, sample))
    assert np.array_equal(results[0][0], results[1][0]) and np.array_equal(results[0][1], results[1][1])


@needs_compiler
def test_compiled_blending_refuses_what_it_cannot_fill(compiled):
    member, sample = np.zeros(4, dtype=np.uint8), np.zeros(4, dtype=np.int64)
    with pytest.raises(ValueError, match="shorter"):
        compiled.build_blending_indices(member, sample, np.ones(1), 1, 5, False)
    with pytest.raises(ValueError, match="weight per dataset"):
        compiled.build_blending_indices(member, sample, np.ones(1), 2, 4, False)
    with pytest.raises(ValueError, match="count that many"):
        compiled.build_blending_indices(member, sample, np.ones(257), 257, 4, False)
    with pytest.raises(TypeError):
        compiled.build_blending_indices(member.astype(np.float32), sample, np.ones(1), 1, 4, False)


def test_blending_golden_vector():
    member, sample = np.zeros(20, dtype=np.uint8), np.zeros(20, dtype=np.int64)
    weights = np.array([0.7, 0.2, 0.1])
    helpers.build_blending_indices(member, sample, weights / weights.sum(), 3, 20, False)
    assert member.tolist() == [0, 1, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 2, 0, 0, 0, 1, 0, 0]
    assert sample.tolist() == [0, 0, 1, 0, 2, 3, 4, 1, 5, 6, 7, 2, 8, 1, 9, 10, 11, 3, 12, 13]
    assert get_normalized_weights_and_num_samples([0.7, 0.2, 0.1], 1000)[1] == [704, 201, 101]


@needs_compiler
@pytest.mark.parametrize("seed", range(20))
def test_compiled_packing_equals_its_twin(compiled, seed):
    generator = np.random.RandomState(seed)
    sizes = generator.randint(0, 30, 100).astype(np.int32)
    order = generator.permutation(100)[: generator.randint(1, 100)].astype(np.int64)
    arguments = (
        sizes,
        order,
        int(generator.randint(1, 60)),
        int(generator.randint(-1, 10)),
        int(generator.randint(1, 30)),
    )
    found, expected = compiled.pack_one_pass(*arguments), helpers_twin.pack_one_pass(*arguments)
    assert found[0].tolist() == expected[0].tolist() and found[1] == expected[1]


@needs_compiler
@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 63, 64, 65, 255, 256, 257, 4095, 4096, 4097, 100_001])
def test_compiled_shuffle_equals_numpy_and_leaves_the_same_state(compiled, dtype, size):
    ours, theirs = np.random.RandomState(1234), np.random.RandomState(1234)
    found, expected = np.arange(size).astype(dtype), np.arange(size).astype(dtype)
    helpers.shuffle(found, ours)
    theirs.shuffle(expected)
    assert np.array_equal(found, expected)
    assert ours.randint(1 << 30) == theirs.randint(1 << 30)


def test_shuffle_golden_vector():
    values = np.arange(10, dtype=np.uint32)
    helpers.shuffle(values, np.random.RandomState(1234))
    assert values.tolist() == [7, 2, 9, 1, 0, 8, 4, 5, 6, 3]


def test_small_maps_compile_nothing(forget, monkeypatch, tmp_path):
    monkeypatch.setenv("NEOX_CACHE_PATH", str(tmp_path))
    monkeypatch.setattr(helpers_build, "_compile", lambda output: pytest.fail("compiled for a small map"))
    sizes, doc_idx = random_documents(np.random.RandomState(0), 1000, 1)
    helpers.build_sample_idx_int32(sizes, doc_idx, 16, 1, int(sizes.sum()))
    helpers.shuffle(doc_idx, np.random.RandomState(0))
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler_large_maps_are_built_in_python_with_one_warning(
    forget, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("NEOX_CACHE_PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "/no/such/compiler")
    monkeypatch.setattr(helpers, "COMPILING_PAYS_SECONDS", 0.0)
    monkeypatch.setenv("RANK", "0")
    values = np.arange(10)
    for _ in range(2):
        helpers.shuffle(values, np.random.RandomState(1234))
    assert capsys.readouterr().err.count("cannot be compiled") == 1
    with pytest.raises(DataError, match="/no/such/compiler"):
        helpers_build.compile_helper()


@needs_compiler
def test_a_compiler_error_is_one_line(monkeypatch, tmp_path):
    broken = tmp_path / "helpers.cpp"
    broken.write_text("this is not C++\n")
    monkeypatch.setenv("NEOX_CACHE_PATH", str(tmp_path))
    monkeypatch.setattr(helpers_build, "SOURCE", broken)
    with pytest.raises(DataError) as error:
        helpers_build.compile_helper()
    assert "helpers.cpp" in str(error.value) and "\n" not in str(error.value)
    assert not helpers_build.library_path().exists()


FAKE_COMPILER = """#!{python}
import sys, time
time.sleep(0.3)
open({log!r}, "a").write("x")
open(sys.argv[sys.argv.index("-o") + 1], "w").write("whole")
"""


def compile_and_read(start):
    start.wait()
    return helpers_build.compile_helper().read_text()


def test_processes_that_start_together_compile_once(monkeypatch, tmp_path):
    compiler, log = tmp_path / "compiler", tmp_path / "log"
    compiler.write_text(FAKE_COMPILER.format(python=sys.executable, log=str(log)))
    compiler.chmod(0o755)
    monkeypatch.setenv("NEOX_CACHE_PATH", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(compiler))
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager, context.Pool(4) as pool:
        start = manager.Event()
        pending = pool.map_async(compile_and_read, [start] * 4)
        start.set()
        assert pending.get(timeout=60) == ["whole"] * 4
    assert log.read_text() == "x"
