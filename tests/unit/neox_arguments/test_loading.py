import pytest

from megatron.common.errors import ConfigError
from megatron.neox_arguments.loading import read_files


def read(tmp_path, *texts):
    """Write each text to a.yml, b.yml, ... and read them."""
    paths = [tmp_path / f"{letter}.yml" for letter, _ in zip("abc", texts, strict=False)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return read_files(paths)


def problem(tmp_path, *texts):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, *texts)
    assert len(caught.value.problems) == 1 and "\n" not in caught.value.problems[0]
    return caught.value.problems[0].replace(str(tmp_path), "")


def test_yaml_json_and_commented_flow_mappings_parse_alike(tmp_path):
    values, texts = read(tmp_path, "num-layers: 2", '{"hidden-size": 64}', "{\n # why\n seed: 7,\n}")
    assert values == {"num_layers": 2, "hidden_size": 64, "seed": 7}
    assert texts == {
        "a.yml": "num-layers: 2",
        "b.yml": '{"hidden-size": 64}',
        "c.yml": "{\n # why\n seed: 7,\n}",
    }


def test_numbers_may_be_written_as_in_json(tmp_path):
    values, _ = read(tmp_path, "a: 6e-4\nb: 1E8\nc: 1.5e3\nd: -2e-1\ne: 1e\nf: 500_000_000")
    assert values == {"a": 6e-4, "b": 1e8, "c": 1500.0, "d": -0.2, "e": "1e", "f": 500_000_000}


def test_an_empty_file_says_nothing(tmp_path):
    assert read(tmp_path, "# nothing\n") == ({}, {"a.yml": "# nothing\n"})


def test_a_key_in_two_files_is_refused_whatever_its_spelling(tmp_path):
    message = problem(tmp_path, "seed: 1\nnum_layers: 2", "num-layers: 3")
    assert message == (
        "/b.yml, line 1: key 'num-layers' was already given in /a.yml, line 2; keep one of them"
    )


def test_a_key_twice_in_one_file_is_refused(tmp_path):
    assert "line 2: key 'num_layers' was already given in" in problem(
        tmp_path, "num-layers: 2\nnum_layers: 2"
    )


def test_a_nested_key_given_twice_is_refused(tmp_path):
    assert problem(tmp_path, "fp16:\n  enabled: true\n  enabled: false") == (
        "/a.yml, line 3: key 'enabled' is given twice"
    )


def test_two_files_of_one_name_are_refused(tmp_path):
    (tmp_path / "other").mkdir()
    for folder in (tmp_path, tmp_path / "other"):
        (folder / "a.yml").write_text("")
    with pytest.raises(ConfigError, match="two configuration files are named 'a.yml'"):
        read_files([tmp_path / "a.yml", tmp_path / "other" / "a.yml"])


def test_broken_yaml_is_named_with_its_line(tmp_path):
    assert problem(tmp_path, "seed: 1\nnum_layers: [2").startswith("/a.yml, line 2: not valid YAML")
    assert problem(tmp_path, "a: b: c").startswith("/a.yml, line 1: not valid YAML")


def test_a_list_is_not_a_configuration(tmp_path):
    assert problem(tmp_path, "- a") == "/a.yml: must be a mapping of keys to values, not a list"


def test_a_missing_file_is_named_with_its_neighbour(tmp_path):
    (tmp_path / "125M.yml").write_text("")
    with pytest.raises(ConfigError, match=r"125m.yml: no such configuration file; did you mean '125M.yml'\?"):
        read_files([tmp_path / "125m.yml"])
    with pytest.raises(ConfigError, match="there is no folder"):
        read_files([tmp_path / "nowhere" / "a.yml"])


def test_yaml_cannot_run_code(tmp_path):
    assert "could not determine a constructor" in problem(
        tmp_path, "seed: !!python/object/apply:os.getcwd []"
    )
