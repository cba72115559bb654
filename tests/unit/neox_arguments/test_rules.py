import pytest

from megatron.common.errors import ConfigError
from megatron.neox_arguments import NeoXArgs
from tests.unit.neox_arguments.basic import minimal

THREE = {"train_data_paths": ["a"], "valid_data_paths": ["b"], "test_data_paths": ["c"]}

BAD = [
    ({"eval_tasks": []}, "eval_tasks=[] must list names"),
    ({"eval_limit": 2.5}, "eval_limit=2.5 must be a number of documents, or a share of them below 1"),
    ({"eval_limit": 0}, "eval_limit=0 must be a number of documents"),
    ({"eval_batch_size": 0}, "eval_batch_size=0 must be at least 1"),
    ({"eval_num_fewshot": -1}, "eval_num_fewshot=-1 must be at least 0"),
    ({"max_restarts": 3}, "max_restarts=3 needs save: a job that is started again goes on from a checkpoint"),
    (
        {"max_restarts": 3, "save": "a", "checkpoint_factor": 1, "text_gen_type": "interactive"},
        "max_restarts=3 is for jobs that nobody talks to",
    ),
    ({"watchdog_timeout": -1.0}, "watchdog_timeout=-1.0 must not be negative"),
    ({"profile": True}, "profile needs tensorboard_dir or log_dir"),
    ({"profile_step_start": 0}, "profile_step_start=0 must be above 0"),
    ({"profile_step_stop": 9}, "profile_step_stop=9 must not lie before profile_step_start=10"),
    ({"memory_profiling": True}, "memory_profiling needs memory_profiling_path"),
    (
        {"serve_model_weights": True, "weight_server_port": [6000], "global_num_gpus": 2},
        "weight_server_port has 1 entries and the job 2 processes",
    ),
    (
        {"serve_model_weights": True, "weight_server_port": 65535, "global_num_gpus": 2},
        "weight_server_port=65535 leaves no port for the last of 2 processes",
    ),
    (
        {"serve_model_weights": True, "weight_server_port": 0},
        "weight_server_port=0 must lie between 1 and 65535",
    ),
    (
        {"dataset_impl": "online", "data_path": None, "online_dataserver_ports": [99, 70000]},
        "online_dataserver_ports=[99, 70000] must lie between 1 and 65535",
    ),
    (
        {"dataset_impl": "online", "data_path": None, "online_dataserver_ips": ["a"], "global_num_gpus": 2},
        "online_dataserver_ips has 1 entries and the job 2 data-parallel ranks",
    ),
    ({"online_dataserver_timeout": 0.0}, "online_dataserver_timeout=0.0 must be above 0"),
    ({"num_layers": None}, "num_layers must be set"),
    ({"num_layers": 0}, "num_layers=0 must be above 0"),
    ({"prompt_end": ""}, "prompt_end must not be empty"),
    ({"num_nodes": 0}, "num_nodes=0 must be above 0, or -1 for all machines"),
    ({"train_iters": -5}, "train_iters=-5 must be above 0"),
    ({"num_workers": -1}, "num_workers=-1 must not be negative"),
    ({"seed": 0}, "seed=0 must be above 0"),
    (
        {"log_grad_norm": True, "optimizer": {"type": "onebitadam", "params": {"lr": 1e-3}}},
        "log_grad_norm needs gradients that are averaged over replicas",
    ),
    ({"gradient_noise_scale_n_batches": 1}, "gradient_noise_scale_n_batches=1 must be at least 2"),
    ({"z_loss": -0.1}, "z_loss=-0.1 must not be negative"),
    ({"hidden_dropout": 1.5}, "hidden_dropout=1.5 must lie between 0 and 1"),
    ({"warmup": -0.1}, "warmup=-0.1 must lie between 0 and 1"),
    ({"hidden_size": 66}, "hidden_size=66 must be a multiple of num_attention_heads=4"),
    (
        {"model_parallel_size": 8, "global_num_gpus": 8},
        "num_attention_heads=4 must be a multiple of model_parallel_size=8",
    ),
    ({"intermediate_size": 128, "expansion_factor": 2.0}, "both set the width of the MLP"),
    ({"intermediate_size": 129}, "matrices disagree (130 features come out of the first, 129 go"),
    (
        {"intermediate_size": 768, "mlp_multiple_of": 256},
        "(1024 features come out of the first, 768 go into the second); choose another width",
    ),
    (
        {"intermediate_size": 102, "model_parallel_size": 4, "global_num_gpus": 4},
        "MLP width 102 must be a multiple of model_parallel_size=4",
    ),
    ({"pos_emb": "rotary", "rotary_pct": 0.2}, "turns 3 of the 16 dimensions of a head"),
    ({"seq_length": 33}, "max_position_embeddings=32 must be at least seq_length=33"),
    (
        {"sequence_parallel": True, "model_parallel_size": 4, "global_num_gpus": 4, "seq_length": 30},
        "sequence_parallel needs seq_length=30 to be a multiple of model_parallel_size=4",
    ),
    ({"pipe_parallel_size": 4, "global_num_gpus": 4}, "pipe_parallel_size=4 exceeds num_layers=2"),
    ({"pipe_parallel_size": -1}, "pipe_parallel_size=-1 must not be negative"),
    (
        {"pipe_partition_method": "profile"},
        "pipe_partition_method='profile' must be parameters, uniform or type:REGEX",
    ),
    ({"pipe_partition_method": "type:("}, "pipe_partition_method='type:(' has no regular expression behind"),
    ({"split": "nan,1"}, "split='nan,1' must be up to three shares"),
    ({"split": "inf"}, "split='inf' must be up to three shares"),
    ({"pos_emb": "rotary", "rotary_emb_base": 1}, "rotary_emb_base=1 gives all features"),
    (
        {"pos_emb": "rpe", "checkpoint_activations": True, "zero_optimization": {"stage": 2}},
        "pos_emb: rpe with checkpoint_activations needs zero_optimization.stage 0 or 1, not 2",
    ),
    (
        {
            "soft_prompt_tuning": {"enabled": True, "n_tokens": 8},
            "curriculum_learning": {
                "schedule_type": "fixed_discrete",
                "schedule_config": {"difficulty": [8, 32], "max_step": [5]},
            },
        },
        "soft_prompt_tuning.n_tokens=8 leaves no room for text in the shortest samples of curriculum_learning, 8",
    ),
    ({"attention_config": [[["flsh"], "all"]]}, "attention_config: unknown kind 'flsh'"),
    ({"gpt_j_tied": True}, "it needs gpt_j_residual: true"),
    ({"num_kv_heads": 3}, "num_kv_heads=3 must divide num_attention_heads=4"),
    (
        {
            "num_attention_heads": 6,
            "num_kv_heads": 3,
            "hidden_size": 66,
            "model_parallel_size": 2,
            "global_num_gpus": 2,
        },
        "num_kv_heads=3 and model_parallel_size=2: one must be a multiple of the other",
    ),
    (
        {
            "num_attention_heads": 4,
            "num_kv_heads": 1,
            "hidden_size": 60,
            "model_parallel_size": 2,
            "global_num_gpus": 2,
        },
        "cuts a key head of 15 features into 2 parts",
    ),
    ({"head_dim": 0}, "head_dim=0 must be above 0"),
    ({"attention_softmax_scale": -1.0}, "attention_softmax_scale=-1.0 must be above 0"),
    ({"optimizer": {"type": "Adamm", "params": {}}}, "did you mean 'adam'?"),
    ({"optimizer": {"type": "Lion", "params": {"eps": 1e-8}}}, "optimizer.params: unknown key 'eps'"),
    ({"optimizer": {"type": "sm3", "params": {"beta": 1}}}, "beta=1 must be a number in [0, 1)"),
    (
        {"optimizer": {"type": "muon", "params": {"ns_steps": 0}}},
        "ns_steps=0 must be a whole number of at least 1",
    ),
    ({"optimizer": {"type": "muon", "params": {"adjust_lr_fn": "x"}}}, "be one of match_rms_adamw, original"),
    ({"optimizer": {"type": "sgd", "params": {"nesterov": "no"}}}, "nesterov='no' must be true or false"),
    (
        {"optimizer": {"type": "lion", "params": {}}, "use_bnb_optimizer": True},
        "needs optimizer.type: adam, not lion",
    ),
    ({"wsd_decay_fraction": 0.0}, "wsd_decay_fraction=0.0 must be above 0 and at most 1"),
    (
        {"warmup": 0.1, "warmup_iters": 5},
        "warmup_iters and warmup all set the length of the warm-up; keep one",
    ),
    ({"warmup_iters": -5}, "warmup_iters=-5 must not be negative"),
    (
        {"warmup_iters": 2000, "lr_decay_iters": 1000},
        "warmup_iters=2000 makes a warm-up of 2000 iterations, longer than the schedule of 1000",
    ),
    ({"optimizer": {"params": {}}}, "optimizer must be a mapping of type (text) and params (a mapping)"),
    (
        {"optimizer": {"type": "Adam", "params": {"eps": "1.0e_8"}}},
        "optimizer.params.eps='1.0e_8' must be a number",
    ),
    (
        {"optimizer": {"type": "Adam", "params": {"lr": "high"}}},
        "optimizer.params.lr='high' must be a number",
    ),
    ({"optimizer": {"type": "Adam", "params": {"beta": 0.9}}}, "unknown key 'beta'; did you mean 'betas'?"),
    ({"optimizer": {"type": "Adam", "params": {"betas": [0.9]}}}, "must be a list of two numbers"),
    ({"optimizer": {"type": "Adam", "params": {}, "lr": 1}}, "optimizer: unknown key 'lr'"),
    (
        {"optimizer": {"type": "sgd", "params": {"lr": 0.1, "nesterov": True}}},
        "optimizer.params.nesterov: true needs momentum above 0",
    ),
    (
        {"optimizer": {"type": "Adam", "params": {"lr": 0.1, "eps": float("inf")}}},
        "optimizer.params.eps=inf must be a number",
    ),
    ({"train_batch_size": 8, "train_micro_batch_size_per_gpu": 0}, "batch sizes must be positive"),
    ({"train_batch_size": 8, "gradient_accumulation_steps": 0}, "batch sizes must be positive"),
    ({"rotary_pct": float("nan"), "pos_emb": "rotary"}, "rotary_pct=nan must be a number"),
    (
        {"num_unique_layers": 1, "checkpoint_activations": True, "zero_optimization": {"stage": 2}},
        "num_unique_layers=1 with checkpoint_activations needs zero_optimization.stage 0 or 1, not 2",
    ),
    ({"min_lr": 0.01}, "min_lr=0.01 exceeds the learning rate"),
    ({"override_lr_scheduler": True, "use_checkpoint_lr_scheduler": True}, "contradict each other"),
    ({"lr_decay_iters": 5, "lr_decay_fraction": 0.5}, "both set the length of the schedule"),
    (
        {"pipe_parallel_size": 1, "zero_optimization": {"stage": 2}},
        "zero_optimization.stage=2 cannot be combined with pipe_parallel_size=1: the pipeline engine needs",
    ),
    ({"train_iters": 5, "train_epochs": 1}, "both set the length; keep one"),
    ({"train_epochs": 1, "pack_impl": "unpacked"}, "train_epochs needs pack_impl: packed"),
    ({"train_epochs": 1, **THREE, "train_data_weights": [2.0]}, "train_epochs needs equal weights"),
    ({"train_epochs": 1, "weight_by_num_documents": True}, "equal weights: remove weight_by_num_documents"),
    ({"train_epochs": 1, "dataset_impl": "online"}, "train_epochs needs dataset_impl: gpt2, not online"),
    ({"save": "there"}, "save='there' needs checkpoint_factor or extra_save_iters"),
    ({"checkpoint_factor": 1.5}, "checkpoint_factor=1.5 must be a whole number of iterations"),
    ({"checkpoint_factor": 1, "checkpoint_scale": "log"}, "checkpoint_factor=1 must be above 1"),
    ({"text_gen_type": "input-file"}, "needs sample_input_file"),
    ({"fp16_lm_cross_entropy": True}, "fp16_lm_cross_entropy needs precision: fp16, not fp32"),
    ({"onnx_safe": True, "bias_gelu_fusion": True}, "onnx_safe and bias_gelu_fusion"),
    ({"train_data_paths": ["a"]}, "train_data_paths given, but valid_data_paths, test_data_paths missing"),
    ({**THREE, "data_path": "d"}, "exclude each other; keep one kind"),
    (
        {**THREE, "train_data_weights": [1.0, 2.0]},
        "train_data_weights has 2 entries, but train_data_paths has 1",
    ),
    (
        {**THREE, "test_label_data_paths": ["x", "y"]},
        "test_label_data_paths has 2 entries, but test_data_paths has 1",
    ),
    ({**THREE, "valid_data_weights": [-1.0]}, "must not be negative"),
    ({"train_label_data_paths": ["a"]}, "train_label_data_paths has 1 entries, but train_data_paths has 0"),
    ({"split": "all"}, "split='all' must be up to three numbers"),
    ({"split": "1,2,3,4"}, "split='1,2,3,4' must be up to three shares"),
    ({"master_port": 70000}, "master_port=70000 must lie between 1 and 65535"),
    ({"launcher_args": "-x 'A"}, "cannot be split into words: No closing quotation"),
    ({"include": "localhost", "exclude": "localhost"}, "include and exclude are both set"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_mistake_is_named_with_its_keys_and_values(changes, message):
    with pytest.raises(ConfigError) as caught:
        NeoXArgs.from_dict(minimal(**changes))
    (problem,) = caught.value.problems
    assert message in problem and "\n" not in problem


def test_a_mistake_is_told_once_and_without_its_consequences():
    mistakes = (
        {"hidden_size": 66, "pos_emb": "rotary"},
        {"num_layers": -2},
        {"num_gpus": -1, "global_num_gpus": None},
        {"global_num_gpus": 0},
        {"optimizer": {"type": "Adam", "params": {"lr": -1}}},
        {"include": "localhost", "exclude": "localhost", "global_num_gpus": None},
    )
    for changes in mistakes:
        with pytest.raises(ConfigError) as caught:
            NeoXArgs.from_dict(minimal(**changes))
        assert len(caught.value.problems) == 1, caught.value.problems


GOOD = [
    {"profile": True, "log_dir": "logs"},
    {"memory_profiling": True, "memory_profiling_path": "snapshots"},
    {"memory_profiling": True, "tensorboard_dir": "events"},
    {"serve_model_weights": True, "weight_server_port": [6000, 7000], "global_num_gpus": 2},
    {"dataset_impl": "online", "data_path": None, "online_dataserver_ports": [1, 2], "global_num_gpus": 2},
    {"eval_iters": 0},
    {"eval_interval": 0},
    {"eval_limit": 0.5, "eval_num_fewshot": 0, "eval_bootstrap_iters": 0, "eval_include_path": "tasks"},
    {"sequence_parallel": True, "model_parallel_size": 2, "global_num_gpus": 2},
    {"zero_optimization": {"stage": 3}, "model_parallel_size": 2, "global_num_gpus": 4},
    {"zero_optimization": {"stage": 1}, "pipe_parallel_size": 2, "global_num_gpus": 2},
    {"checkpoint_factor": 10.0, "save": "there"},
    {"extra_save_iters": [0, 5], "save": "there"},
    {"split": "90/5/5"},
    {"train_epochs": 1, **THREE},
    {"num_kv_heads": 4},
    {"num_kv_heads": 1, "model_parallel_size": 4, "global_num_gpus": 4},
    {"hidden_size": 66, "head_dim": 8},
    {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.95]}}},
    {"optimizer": {"type": "sgd", "params": {"lr": 1e-3, "momentum": 0.9}}},
    {"tokenizer_type": "hftokenizer"},
]


@pytest.mark.parametrize("changes", GOOD, ids=str)
def test_sound_combinations_pass(changes):
    assert NeoXArgs.from_dict(minimal(**changes)).validate_values()
