"""The training run: length, evaluation, checkpoints, regularisation, activation recomputation, muP."""

from dataclasses import dataclass
from typing import Literal

from megatron.neox_arguments.fields.training_data import TrainingData, TrainingObjective
from megatron.neox_arguments.markers import derived, retired, runtime
from megatron.neox_arguments.template import NeoXArgsTemplate


@dataclass
class Checkpoints(NeoXArgsTemplate):
    """Saving and loading."""

    save: str | None = None
    """Folder that checkpoints are written to."""

    s3_path: str | None = None
    """s3:// prefix below which a folder named as `save` gets each finished checkpoint. AWS_ENDPOINT_URL names another
    server than Amazon's."""

    s3_chunk_size: int = 104_857_600
    """Bytes per part of an upload; at least 5 MiB."""

    config_files: dict | None = runtime()
    """Original text of every configuration file by name; goes into each checkpoint."""

    load: str | None = None
    """Folder that a checkpoint is loaded from, or its address in object storage (s3://BUCKET/FOLDER)."""

    checkpoint_validation_with_forward_pass: bool = False
    """Store the logits of a fixed input in the checkpoint and compare them after loading."""

    checkpoint_scale: Literal["linear", "log"] = "linear"
    """Spacing of checkpoints: every checkpoint_factor iterations, or at powers of checkpoint_factor."""

    checkpoint_factor: int | float | None = None
    """Distance (linear, a whole number) or ratio (log, above 1) between checkpoints. Needed with save."""

    extra_save_iters: list[int] | None = None
    """Further iterations at which to save; 0 saves before the first step."""

    async_save: bool = False
    """Copy the state to host memory and write the checkpoint beside the training, which waits for the copy only. Needs
    host memory for one copy of what a process saves."""

    no_save_optim: bool = False
    """Leave the optimizer's state out of checkpoints; training can go on from such a one with no_load_optim only."""

    no_save_rng: bool = False
    """Leave the random generators' states out of checkpoints."""

    no_load_optim: bool = False
    """Load the weights but not the optimizer's state."""

    no_load_rng: bool = False
    """Keep the current states of the random generators when loading."""

    finetune: bool = False
    """Load weights only and start counting at iteration 0."""

    keep_last_n_checkpoints: int | None = None
    """Number of newest checkpoints that are kept; all when unset."""


@dataclass
class TrainingRun(NeoXArgsTemplate):
    """Length, evaluation, regularisation."""

    batch_size: int | None = derived(None, "train_micro_batch_size_per_gpu")
    """Samples per device and forward pass."""

    train_iters: int | None = None
    """Iterations (optimizer steps) to train. Excludes train_epochs."""

    train_epochs: int | None = None
    """Passes over the training data; packed data of equal weights only."""

    eval_iters: int = 100
    """Global batches per evaluation; 0: no evaluation at all."""

    eval_interval: int = 1000
    """Iterations between evaluations on validation data; 0: at the end of training only."""

    vocab_file: str | None = None
    """Tokenizer file, Hugging Face name or tiktoken encoding."""

    merge_file: str | None = None
    """BPE merges (GPT2BPETokenizer)."""

    exit_interval: int | None = None
    """Stop after the first iteration that is a multiple of this."""

    attention_dropout: float = 0.0
    """Dropout probability of attention weights."""

    hidden_dropout: float = 0.0
    """Dropout probability of embeddings and of what the branches add to the residual."""

    weight_decay: float = 0.1
    """Decay of matrices; biases and norms are never decayed."""

    clip_grad: float = derived(1.0, "gradient_clipping")
    """Largest global norm of the gradient."""

    hysteresis: int = retired(2, "set fp16.hysteresis")
    """Overflows tolerated before the loss scale falls."""

    dynamic_loss_scale: bool | None = derived(None, "fp16.loss_scale")
    """True when the loss scale adapts itself."""

    loss_scale: float | None = retired(None, "set fp16.loss_scale")
    """Fixed loss scale."""

    loss_scale_window: float = retired(1000.0, "set fp16.loss_scale_window")
    """Iterations without overflow after which the loss scale doubles."""

    min_scale: float = retired(1.0, "set fp16.min_loss_scale")
    """Lower bound of the loss scale."""

    char_level_ppl: bool = False
    """Report the perplexity per character as well, which does not depend on the tokenizer."""


@dataclass
class ActivationCheckpointing(NeoXArgsTemplate):
    """Recomputation of activations in the backward pass; changes memory and time, never results."""

    checkpoint_activations: bool = False
    """Keep only the inputs of chunks of layers and recompute the rest in the backward pass."""

    checkpoint_num_layers: int = 1
    """Layers per recomputed chunk."""

    deepspeed_activation_checkpointing: bool = retired(
        True, "recomputation is switched by checkpoint_activations alone; remove the key"
    )
    """Old switch of the implementation that recomputes."""

    contiguous_checkpointing: bool = False
    """Copy kept inputs into one contiguous buffer against fragmentation."""

    checkpoint_in_cpu: bool = False
    """Move kept inputs to CPU memory."""

    synchronize_each_layer: bool = False
    """Wait for the device around every recomputed chunk; for timing."""

    profile_backward: bool = False
    """Report the time that recomputation and backward pass of each chunk take, per iteration, at every log line."""

    partition_activations: bool = False
    """Split kept inputs over the tensor-parallel processes."""


@dataclass
class Mup(NeoXArgsTemplate):
    """Maximal-update parametrisation (arXiv 2203.03466)."""

    use_mup: bool = False
    """Maximal update parametrisation: scale initial values, learning rates, attention and logits with the width
    relative to the shapes in base_shapes_file. For adam and sgd."""

    coord_check: bool = False
    """Train models of several widths for a few steps, write how large their activations become, with muP and without
    (coord_check_up.RANK, coord_check_sp.RANK; .csv, and .jpg where matplotlib is installed), and stop."""

    save_base_shapes: bool = False
    """Write the shapes of this config's model to base_shapes_file and stop."""

    base_shapes_file: str | None = None
    """File of the base shapes; ".0" is appended, as GPT-NeoX does."""

    mup_init_scale: float = 1.0
    """Factor on initial weights, with use_mup."""

    mup_attn_temp: float = 1.0
    """Factor on attention scores, with use_mup."""

    mup_output_temp: float = 1.0
    """Factor on the logits, with use_mup."""

    mup_embedding_mult: float = 1.0
    """Factor on what the embedding gives, with use_mup."""

    mup_rp_embedding_mult: float = 1.0
    """Factor on learned position embeddings, applied with and without muP."""

    mup_width_scale: int = 2
    """Width of the second model from which base shapes are inferred, relative to the first."""


@dataclass
class NeoXArgsTraining(
    Mup, ActivationCheckpointing, TrainingRun, Checkpoints, TrainingObjective, TrainingData
):
    """Everything about the run."""
