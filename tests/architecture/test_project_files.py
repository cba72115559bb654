"""The files around the program keep their word."""

import os
import re

import yaml

from tests.common.paths import ROOT


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_ci_runs_the_test_command_of_the_readme():
    assert "`make test`" in text("README.md")
    assert re.search(r"^make test$", text(".ci/run"), re.MULTILINE)


def test_make_test_runs_every_kind_of_test():
    makefile = text("Makefile")
    parts = re.search(r"^test: ([\w -]+)", makefile, re.MULTILINE).group(1).split()
    kinds = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("**/test_*.py"))}
    for kind in kinds:
        target = kind.replace("_", "-")
        assert target in parts
        assert re.search(rf"^{target}:.*\n.* tests/{kind}$", makefile, re.MULTILINE)
    assert {"lint", "types"} <= set(parts)


def test_make_targets_named_in_the_documentation_exist():
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    named = {
        name for page in pages for name in re.findall(r"`make ([a-z-]+)`", page.read_text(encoding="utf-8"))
    }
    assert named and named <= targets


def test_containers_mount_data_and_checkpoints_by_the_two_variables():
    volumes = yaml.safe_load(text("docker-compose.yml"))["services"]["neox"]["volumes"]
    assert any(volume.startswith("${NEOX_DATA_PATH:-") and volume.endswith("/data") for volume in volumes)
    assert any(
        volume.startswith("${NEOX_CHECKPOINT_PATH:-") and volume.endswith("/checkpoints")
        for volume in volumes
    )


def test_the_image_installs_requirement_files_that_exist():
    files = re.findall(r"/tmp/requirements/(requirements[\w-]*\.txt)", text("Dockerfile"))
    assert files and all((ROOT / "requirements" / name).is_file() for name in files)


def test_hooks_fetch_nothing():
    repositories = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    assert {hook["language"] for repository in repositories for hook in repository["hooks"]} == {"system"}


def test_scripts_can_be_executed():
    for name in (".ci/run", "tools/find_python.sh", "tools/quickstart.sh"):
        assert os.access(ROOT / name, os.X_OK), name
