"""A run through the real command line trains on live samples and serves its weights, until the samples run out."""

import torch
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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
        prefix = [9999] if split == "test" else [65, 66]
        return [{"prefix": prefix, "completions": [[67, 68, 69], [70]], "rewards": [1.0, 0.0]}] * 2

    with SampleServer(answer, port=0) as server:
        config = write_config(
            tmp_path, dataset_impl="online", online_dataserver_ports=server.port, serve_model_weights=True,
            weight_server_port=port, train_iters=4, eval_interval=10, eval_iters=1, log_interval=4,
            save="checkpoints", checkpoint_factor=10, tensorboard_dir="events", online_dataserver_timeout=60.0,
            num_gpus=1,
        )  # fmt: skip
        done = run_command(["deepy.py", "train.py", config], tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "error: the data has token 9999 and the model a vocabulary of 512"
    )
    assert " lm_loss: " in done.stdout and " reward: 5.000000E-01 | advantage: " in done.stdout
    assert fetched and "parameters after iteration 4\n" in fetched[0]
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [event.step for event in events.Scalars("validation/lm_loss")] == [4], (
        "a failing run loses no values"
    )
    saved = torch.load(
        tmp_path / "checkpoints" / "global_step4" / "mp_rank_00_model_states.pt", weights_only=False
    )["module"]
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        assert file.metadata() == {"iteration": "4"}
        assert {f"sequential.{name}" for name in file.keys()} == set(saved)  # noqa: SIM118 (no mapping)
        assert all(torch.equal(file.get_tensor(name), saved[f"sequential.{name}"]) for name in file.keys())  # noqa: SIM118
