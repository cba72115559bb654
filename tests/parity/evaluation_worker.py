"""What the processes of the evaluation's parity test do."""

import random
from pathlib import Path

import torch

from tests.common.evaluation import TASKS
from tests.grid.worker import share_process_groups

LENGTH = 48
SETTINGS = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "seq_length": LENGTH,
    "max_position_embeddings": LENGTH,
    "pos_emb": "rotary",
    "no_weight_tying": True,
    "gpt_j_residual": True,
    "init_method_std": 0.15,
    "make_vocab_size_divisible_by": 12,  # two ranks pad the vocabulary further
    "tokenizer_type": "HFTokenizer",
    "train_micro_batch_size_per_gpu": 2,
    "train_iters": 1,
    "optimizer": {"type": "Adam", "params": {"lr": 1e-3}},
    "data_path": "none",
    "checkpoint_factor": 1,
    "eval_log_samples": True,
}


def save_and_export(config: str, settings: dict, folder: str) -> None:
    """A fresh model as a checkpoint and as a Hugging Face folder."""
    from megatron.checkpointing import save_checkpoint
    from megatron.conversion.to_hf import export_hf
    from megatron.engine.setup import build_engine, get_model
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.objectives import build_objective

    neox_args = NeoXArgs.from_dict({**settings, "save": settings["load"], "global_num_gpus": 1})
    neox_args.configure_distributed_args()
    neox_args.build_tokenizer()
    initialize_megatron(neox_args)
    engine, optimizer, scheduler = build_engine(neox_args, get_model(neox_args), build_objective(neox_args))
    assert save_checkpoint(neox_args, 3, engine, optimizer, scheduler)
    export_hf(Path(settings["load"], "global_step3"), [config], folder, vocab_is_hf_tokenizer=True)


def evaluate_exported(folder: str, tasks: str) -> dict:
    """lm_eval's own model of an exported folder."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from megatron.evaluation.harness import without_inventory

    with without_inventory():
        results = simple_evaluate(
            model=HFLM(folder, device="cpu", batch_size=4, dtype="float32"),
            tasks=[name for name in TASKS if name != "toy_drawn"],
            task_manager=TaskManager(include_path=tasks, include_defaults=False),
            bootstrap_iters=20,
        )
    return summary(results)


def evaluate_ours(config: str, layout: dict, world_size: int) -> dict:
    """This project's, through what eval.py runs."""
    from megatron import mpu
    from megatron.engine.inference import setup_for_inference_or_eval
    from megatron.evaluation.run import run_eval_harness

    values = {**layout, "global_num_gpus": world_size}
    model, neox_args = setup_for_inference_or_eval(
        use_cache=False, overwrite_values=values, input_args=[config]
    )
    states = random.getstate(), torch.random.get_rng_state()
    results = run_eval_harness(model, None, neox_args, bootstrap_iters=20)
    assert random.getstate() == states[0] and torch.equal(torch.random.get_rng_state(), states[1])
    assert model.neox_args.is_pipe_parallel == ("pipe_parallel_size" in layout)
    assert mpu.get_data_parallel_world_size() == (1 if layout else world_size)
    mpu.destroy_model_parallel()  # the next layout makes its own
    return summary(results)


def reference(config: str, settings: dict, exported: str) -> tuple[dict, dict]:
    """(lm_eval's own, ours) in one process, of the model that is saved on the way."""
    from megatron import mpu

    share_process_groups()
    save_and_export(config, settings, exported)
    mpu.destroy_model_parallel()
    return evaluate_exported(exported, settings["eval_include_path"]), evaluate_ours(config, {}, 1)


def in_layouts(config: str, layouts: dict[str, dict]) -> dict[str, dict]:
    """Ours in several layouts of two processes."""
    from megatron.evaluation import team

    team.HEARTBEAT_SECONDS = 0.01  # many of them while rank 0 reads and counts
    share_process_groups()
    return {name: evaluate_ours(config, layout, 2) for name, layout in layouts.items()}


def summary(results: dict) -> dict:
    """{"metrics": numbers by task, "answers": of every request by task, as the harness has kept them}."""
    answers = {}
    for task, samples in results["samples"].items():
        ordered = sorted(samples, key=lambda sample: sample["doc_id"])
        answers[task] = [reply for sample in ordered for request in sample["resps"] for reply in request]
    metrics = {
        task: {key: value for key, value in values.items() if isinstance(value, float)}
        for task, values in results["results"].items()
    }
    return {"metrics": metrics, "answers": answers}
