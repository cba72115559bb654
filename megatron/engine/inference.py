"""A model that answers: full-vocabulary logits in any layout, without DeepSpeed's engines."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from megatron import mpu
from megatron.checkpointing import load_for_inference
from megatron.common import activity, device
from megatron.common.errors import ConfigError
from megatron.engine.setup import get_model
from megatron.initialize import initialize_megatron
from megatron.model.transformer import LAST, Places
from megatron.mpu.linear import answering
from megatron.mpu.state import current
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.soft_prompt import SoftPrompt

# What training needs and answering does not.
INFERENCE_OVERRIDES = {
    "checkpoint_activations": False,
    "partition_activations": False,
    "sequence_parallel": False,
    "no_load_optim": True,
    "optimizer": None,
    "zero_optimization": None,
    "save": None,  # and so a missing checkpoint is no fresh start
    "s3_path": None,
}


class InferenceModel:
    """The model of this rank, answering together with the ranks that hold its other parts.

    Stages pass hidden states point to point. The last stage's first tensor rank is the sampler: it alone
    chooses tokens, and `share` takes them to the ranks of its replica, so that ranks never disagree.

    Args: module: SequentialWrapper, GPT2ModelPipe, or an engine around one of them.
    """

    def __init__(self, module: torch.nn.Module, neox_args):
        self.module = getattr(module, "module", module)
        self.neox_args = neox_args
        self.device = device.current_device()
        self.hidden_dtype = next(p.dtype for p in self.module.parameters() if p.is_floating_point())
        pipe = current().pipe
        self._stages, self._stage = pipe.ranks, pipe.rank
        self._prompt = SoftPrompt.from_config(neox_args)
        self._generating = self._use_cache = self._begun = False
        self._outputs = self.module.output_layers()

    @property
    def is_first_stage(self) -> bool:
        return self._stage == 0

    @property
    def is_last_stage(self) -> bool:
        return self._stage == len(self._stages) - 1

    @property
    def is_sampler(self) -> bool:
        """Whether this rank chooses the tokens of its replica."""
        return self.is_last_stage and mpu.get_model_parallel_rank() == 0

    def eval(self) -> "InferenceModel":
        self.module.eval()
        return self

    def inference_mode(self, use_cache: bool = True) -> None:
        """Gathered logits, no dropout; with `use_cache` keys and values of the past are kept between calls."""
        self.module.inference_mode(use_cache=use_cache)
        self._generating, self._use_cache, self._begun = True, use_cache, False

    def train_mode(self) -> None:
        """Back to training."""
        self.module.train_mode()
        self._generating = False

    def clear_cache(self) -> None:
        """Forget the past; due before every new prompt."""
        self.module.clear_cache()
        self._begun = False

    @torch.no_grad()
    def forward(
        self, tokens: torch.Tensor, position_ids: torch.Tensor, last_only: bool = False
    ) -> torch.Tensor | None:
        """One pass through all stages; collective over the ranks of the replica.

        Args: tokens, position_ids: int64 [b, n], the same on all ranks; with a cache only the new tokens;
        last_only: leave out the logits of all positions but the last.
        Returns: logits [b, n or 1, V] of the padded vocabulary on the last stage, None on the others.
        """
        prompt = self._prompt_due()
        with self._output(LAST if last_only else None, parallel=False):
            outputs = self._run_stages(tokens, position_ids, prompt)
        return outputs if outputs is None or last_only else outputs[:, prompt:]

    __call__ = forward

    @torch.no_grad()
    def logits_at(
        self, tokens: torch.Tensor, position_ids: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
    ) -> torch.Tensor | None:
        """Like forward, but without the logits of other positions, and every rank keeps its part of the vocabulary.

        Args: rows, columns: int64 [n], the positions whose logits are wanted.
        Returns: logits [n, V/tp] on the ranks of the last stage, None on the others.
        """
        prompt = self._prompt_due()
        with self._output((rows, columns + prompt), parallel=True):
            return self._run_stages(tokens, position_ids, prompt)

    @contextlib.contextmanager
    def _output(self, places: Places | None, parallel: bool) -> Iterator[None]:
        """Within the block the model puts out the logits of these places, cut over the ranks or whole."""
        before = [layer.parallel_output for layer in self._outputs]
        for layer in self._outputs:
            layer.places, layer.parallel_output = places, parallel
        try:
            yield
        finally:
            for layer, was_parallel in zip(self._outputs, before, strict=True):
                layer.places, layer.parallel_output = None, was_parallel

    def _run_stages(
        self, tokens: torch.Tensor, position_ids: torch.Tensor, prompt: int
    ) -> torch.Tensor | None:
        """What the last stage puts out; None on the others."""
        activity.pulse()
        batch, length = tokens.shape
        inputs = (tokens, position_ids) if self.is_first_stage else self._receive(batch, prompt + length)
        with answering():
            outputs = self.module(inputs)
        if self.is_last_stage:
            return outputs
        dist.send(outputs.contiguous(), self._stages[self._stage + 1], group=mpu.get_pipe_parallel_group())
        return None

    def _prompt_due(self) -> int:
        """Positions that a soft prompt adds to this pass: none to the later pieces of a cached text."""
        if self._prompt is None or not self._generating or (self._use_cache and self._begun):
            return 0
        self._begun = True
        return self._prompt.n_tokens

    def _receive(self, batch: int, length: int) -> torch.Tensor:
        # The blocks, layers 2 to num_layers + 1, and the layer that turns their output back work on [s, b, h].
        among_blocks = 2 <= self.module._local_start <= self.neox_args.num_layers + 2
        rows = (length, batch) if among_blocks else (batch, length)
        hidden = torch.empty(*rows, self.neox_args.hidden_size, dtype=self.hidden_dtype, device=self.device)
        dist.recv(hidden, self._stages[self._stage - 1], group=mpu.get_pipe_parallel_group())
        return hidden

    def share(self, tensor: torch.Tensor) -> torch.Tensor:
        """Broadcast the sampler's tensor, in place, to the ranks of its replica."""
        if self.is_last_stage and mpu.get_model_parallel_world_size() > 1:
            dist.broadcast(tensor, mpu.get_model_parallel_src_rank(), group=mpu.get_model_parallel_group())
        if len(self._stages) > 1:
            dist.broadcast(tensor, self._stages[-1], group=mpu.get_pipe_parallel_group())
        return tensor


def as_inference_model(model, neox_args) -> InferenceModel:
    """`model` itself, or the module or engine wrapped."""
    return model if isinstance(model, InferenceModel) else InferenceModel(model, neox_args)


def setup_for_inference_or_eval(
    use_cache: bool = True,
    overwrite_values: dict | None = None,
    input_args: list[str] | None = None,
    check: Callable[[NeoXArgs], None] | None = None,
) -> tuple[InferenceModel, NeoXArgs]:
    """Config from the command line, process grid, model, and the weights of the checkpoint named by `load`.

    Args:
        use_cache: keep keys and values of the past.
        overwrite_values: config values that win over the command line's.
        input_args: the command line; None takes sys.argv.
        check: called with the config on rank 0 before anything is loaded.
    Raises: ConfigError when `load` is not set or the file of prompts does not exist.
    """
    values = INFERENCE_OVERRIDES | dict(overwrite_values or {})
    neox_args = NeoXArgs.consume_neox_args(overwrite_values=values, input_args=input_args)
    if neox_args.load is None:
        raise ConfigError("load must name the folder of a checkpoint to sample from or to evaluate")
    prompts = neox_args.sample_input_file
    if prompts is not None and not Path(prompts).is_file():
        # Found before the minutes that loading a large model may take.
        raise ConfigError(f"sample_input_file={prompts} is no file; name the text file of prompts")
    neox_args.configure_distributed_args()
    if check is not None and neox_args.rank == 0:
        check(neox_args)
    neox_args.build_tokenizer()
    if finish_initialization := initialize_megatron(neox_args):
        finish_initialization()
    activity.beat("loading the model")
    module = get_model(neox_args)
    neox_args.iteration = load_for_inference(neox_args, module, neox_args.iteration)
    model = InferenceModel(module.to(neox_args.params_dtype), neox_args)
    model.inference_mode(use_cache=use_cache)
    activity.beat("inference")
    return model, neox_args
