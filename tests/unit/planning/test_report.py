"""The plan of a job on several hosts shows the command that would start it."""

from megatron.neox_arguments import NeoXArgs
from megatron.planning.report import describe_plan
from tests.unit.neox_arguments.basic import minimal


def plan(**settings) -> str:
    return describe_plan(
        NeoXArgs.from_dict(minimal(global_num_gpus=None, user_script="train.py", **settings))
    )


def test_a_scheduler_is_shown_the_way_it_is_called(monkeypatch):
    monkeypatch.delenv("DLTS_HOSTFILE", raising=False)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setenv("LSB_MCPU_HOSTS", "batch2 1 h36n03 42 h36n04 42")
    shown = plan(launcher="jsrun", num_gpus=6)
    assert "12 GPU processes through jsrun (h36n03 slots 0-5; h36n04 slots 0-5), meeting at h36n03:" in shown
    assert "  jsrun -n 12 -r 6 -a 1 -c 7 -g 1 -d packed -b rs -E MASTER_ADDR=h36n03 " in shown


def test_other_launchers_are_shown_as_deepspeeds(tmp_path, monkeypatch):
    monkeypatch.delenv("DLTS_HOSTFILE", raising=False)
    (tmp_path / "hosts").write_text("node1 slots=2\nnode2 slots=2\n")
    shown = plan(launcher="openmpi", hostfile=str(tmp_path / "hosts"))
    assert f"  deepspeed --hostfile {tmp_path}/hosts --launcher openmpi train.py --deepspeed_config " in shown
