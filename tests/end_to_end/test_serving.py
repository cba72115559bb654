"""A run through the real command line trains on live samples and serves its weights to its end."""

import torch
from safetensors import safe_open

from megatron.serving.samples import SampleServer
from tests.common.ports import quiet_ports
from tests.common.runs import run_command, write_config


def test_the_weights_fetched_after_the_last_step_are_those_of_the_last_checkpoint(tmp_path):
    (port,) = quiet_ports(1)
    fetched = []

    def answer(split: str, rank: int) -> list[dict]:
        if split == "valid":  # Only at the end of training, when the last checkpoint has been written.
            command = ["tools/serving/fetch_weights.py", "weights.safetensors", "--port", str(port)]
            fetched.append(run_command(command, tmp_path).stdout)
        return [{"prefix": [65, 66], "completions": [[67, 68, 69], [70]], "rewards": [1.0, 0.0]}] * 2

    with SampleServer(answer, port=0) as server:
        config = write_config(
            tmp_path, dataset_impl="online", online_dataserver_ports=server.port, serve_model_weights=True,
            weight_server_port=port, train_iters=4, eval_interval=10, eval_iters=1, log_interval=4, log_dir="logs",
            save="checkpoints", checkpoint_factor=10, num_gpus=1,
        )  # fmt: skip
        shown = run_command(["deepy.py", "train.py", config], tmp_path).stdout
    assert " lm_loss: " in shown and " reward: 5.000000E-01 | advantage: " in shown
    assert fetched and "parameters after iteration 4\n" in fetched[0]
    saved = torch.load(
        tmp_path / "checkpoints" / "global_step4" / "mp_rank_00_model_states.pt", weights_only=False
    )["module"]
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        assert file.metadata() == {"iteration": "4"}
        assert {f"sequential.{name}" for name in file.keys()} == set(saved)  # noqa: SIM118 (no mapping)
        assert all(torch.equal(file.get_tensor(name), saved[f"sequential.{name}"]) for name in file.keys())  # noqa: SIM118
