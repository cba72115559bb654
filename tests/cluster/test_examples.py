"""The examples of tools/clusters do what they say, where their parts can run."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.command_line import worker_parser
from tests.cluster.jobs import LAYOUTS, PROBE, SMALL, losses, variables, write_job
from tests.common.components import needs_program
from tests.common.paths import ROOT
from tests.common.runs import TINY


def kubernetes() -> tuple[dict, dict]:
    """The configuration map and the job of the example."""
    found = yaml.safe_load_all((ROOT / "tools" / "clusters" / "pytorchjob.yaml").read_text(encoding="utf-8"))
    settings, job = found
    return settings, job


def containers(job: dict) -> list[dict]:
    replicas = job["spec"]["pytorchReplicaSpecs"].values()
    return [replica["template"]["spec"]["containers"][0] for replica in replicas]


def test_kubernetes_pods_are_told_what_the_script_accepts(tmp_path, monkeypatch):
    settings, job = kubernetes()
    replicas = job["spec"]["pytorchReplicaSpecs"]
    size = int(job["spec"]["nprocPerNode"]) * sum(replica["replicas"] for replica in replicas.values())
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(size))
    for container in containers(job):
        assert container["command"] == ["torchrun"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == int(job["spec"]["nprocPerNode"])
        script, *arguments = container["args"]
        given = worker_parser().parse_args(arguments)
        mounted = next(volume for volume in container["volumeMounts"] if volume["name"] == "run")["mountPath"]
        files = []
        for name in given.conf_file:
            if Path(name).parent == Path(mounted):
                (tmp_path / Path(name).name).write_text(settings["data"][Path(name).name])
                files.append(tmp_path / Path(name).name)
            else:
                files.append(ROOT / name)
        assert (ROOT / script).is_file()
        args = NeoXArgs.consume_neox_args(input_args=[str(path) for path in files])
        assert args.global_num_gpus == size and args.save == args.load


def test_kubernetes_pods_train_what_one_machine_trains(two_hosts, tmp_path, job_data, on_one_machine):
    config = write_job(tmp_path, "pods", data_path=job_data, **LAYOUTS["dp2"])
    _, job = kubernetes()
    pods = []
    for number, (host, container) in enumerate(zip(two_hosts, containers(job), strict=True)):
        # What the operator sets in a pod, for torchrun and for scripts without it.
        told = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_NODE_RANK": str(number)}
        told |= {
            "PET_MASTER_ADDR": "node1",
            "PET_MASTER_PORT": "23456",
            "RANK": str(number),
            "WORLD_SIZE": "2",
        }
        told |= {"MASTER_ADDR": "node1", "MASTER_PORT": "23456"}
        torchrun = Path(sys.executable).with_name(container["command"][0])
        command = [torchrun, ROOT / container["args"][0], config]
        with open(tmp_path / f"pod_{number}.txt", "w", encoding="utf-8") as output:
            pods.append(host.start(command, tmp_path, variables(told), stdout=output))
    codes = [pod.wait(120) for pod in pods]
    assert codes == [0, 0], "".join((tmp_path / f"pod_{number}.txt").read_text() for number in (0, 1))
    assert losses(tmp_path, "pods") == on_one_machine("dp2")


SECTIONS = {
    "pdsh": ["pdsh"],
    "Open MPI": ["mpirun.openmpi"],
    "MPICH, Intel MPI, MVAPICH2": ["mpirun.mpich"],
    "An mpirun of your own": ["mpirun.openmpi", "mpirun.mpich"],
}


def blocks(section: str) -> tuple[str, str]:
    """The commands and the configuration that a section of the page shows."""
    page = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    text = page.split(f"## {section}\n", 1)[1].split("\n## ", 1)[0]
    (commands,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    (settings,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    return commands, settings


@pytest.mark.parametrize(
    ("section", "program"), [(name, program) for name, programs in SECTIONS.items() for program in programs]
)
def test_the_commands_of_the_page_reach_both_hosts(two_hosts, tmp_path, section, program):
    """As a user types them, in a folder like the project's, but for train.py: the probe takes its place."""
    needs_program(program)
    commands, settings = blocks(section)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "configs" / "cluster.yml").write_text(settings, encoding="utf-8")
    (tmp_path / "train.py").write_text(PROBE, encoding="utf-8")
    for name in ("deepy.py", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    told = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    told |= {"MPIRUN": program, "EXPORT": "PYTHONPATH GLOO_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME": "fabric0"}
    two_hosts[0].run(["bash", "-euo", "pipefail", "-c", commands], tmp_path, variables(told))
    ranks = [json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(8)]
    places = [(rank["host"], rank["local_rank"]) for rank in ranks]
    assert places == [(host, local) for host in ("node1", "node2") for local in range(4)]
    for rank in ranks:
        known = rank["environment"]
        assert (known["MASTER_ADDR"], known["MASTER_PORT"]) == ("node1", "29500")
        assert (rank["size"], known["GLOO_SOCKET_IFNAME"]) == (8, "fabric0")


def test_the_pages_configurations_are_accepted(monkeypatch):
    monkeypatch.setenv("LSB_MCPU_HOSTS", "batch2 1 h36n03 42 h36n04 42")
    monkeypatch.setenv("DLTS_HOSTFILE", "")
    page = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    shown = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    assert len(shown) >= len(SECTIONS) + 1
    for settings in shown:
        model = {**TINY, **SMALL, "train_batch_size": 12, "checkpoint_factor": 10}
        args = NeoXArgs.from_dict({**model, **settings})
        assert args.launcher != "jsrun" or args.global_num_gpus == 12
