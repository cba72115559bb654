"""What can be watched and added in training, all at once, through the command line."""

import json
import math

from tests.common.runs import prepare_corpus, run_command, write_config

OPTIONS = {
    "train_iters": 8,
    "lr_decay_iters": 8,
    "log_interval": 2,
    "eval_interval": 4,
    "eval_iters": 1,
    "num_gpus": 2,
    "wall_clock_breakdown": True,
    "pipe_parallel_size": 2,
    "train_micro_batch_size_per_gpu": 2,
    "checkpoint_activations": True,
    "profile_backward": True,
    "synchronize_each_layer": True,
    "contiguous_checkpointing": True,
    "z_loss": 1e-4,
    "char_level_ppl": True,
    "log_grad_norm": True,
    "log_param_norm": True,
    "log_grad_pct_zeros": True,
    "log_optimizer_states": True,
    "log_gradient_noise_scale": True,
    "gradient_noise_scale_n_batches": 2,
    "checkpoint_validation_with_forward_pass": True,
    "checkpoint_factor": 4,
    "curriculum_learning": {
        "min_difficulty": 16,
        "max_difficulty": 64,
        "schedule_type": "fixed_linear",
        "schedule_config": {"total_curriculum_step": 6, "difficulty_step": 16},
    },
}


def test_everything_that_is_asked_for_is_logged(tmp_path):
    data = prepare_corpus(tmp_path, documents=20)
    settings = {**OPTIONS, "data_path": data, "log_dir": "logs", "save": "saved", "load": "saved"}
    output = run_command(["deepy.py", "train.py", write_config(tmp_path, **settings)], tmp_path).stdout
    assert "recomputation and backward pass (ms per iteration) | block 0: " in output
    assert "time (ms) | forward: " in output and " | stage exchange: " in output
    rows = [json.loads(line) for line in (tmp_path / "logs" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "curriculum_seqlen" in row]
    assert [(row["iteration"], row["curriculum_seqlen"]) for row in steps] == [
        (2, 32),
        (4, 48),
        (6, 64),
        (8, 64),
    ]
    for row in steps:
        assert (
            row["train/grad_norm"] > 0 and row["train/z_loss"] > 0 and math.isfinite(row["train/noise_scale"])
        )
        # Microseconds could be a timer that is not around anything.
        assert 1e-5 < row["timers/backward"] < row["runtime/iteration_time"]
        kinds = [tag.partition("/")[0] for tag in row]
        # Of both stages: the parameters of two blocks, embedding, norm and output.
        parameters = kinds.count("parameter_norms")
        assert parameters == kinds.count("gradient_norms") == kinds.count("pct_grad_zeros") == 28
        assert kinds.count("optimizer_state_norms") == 2 * parameters
    start = rows[0]
    assert (start["iteration"], start["runtime/devices"]) == (0, 2) and start["runtime/startup_time"] > 0
    validation = next(row for row in rows if "validation/lm_loss" in row)
    # A token of this corpus is a character, and ends of documents are none.
    assert validation["validation/lm_loss_char_lvl_ppl"] >= validation["validation/lm_loss_ppl"]

    more = write_config(tmp_path, "more.yml", **{**settings, "train_iters": 9})
    resumed = run_command(["deepy.py", "train.py", more], tmp_path).stdout
    assert "the loaded model gives the logits that were saved with it" in resumed
