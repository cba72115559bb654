"""The public names of text generation. What they do lives in megatron.generation."""

import torch

from megatron import mpu
from megatron.common import device
from megatron.common.console import info
from megatron.engine.exchange import broadcast_json
from megatron.engine.inference import as_inference_model
from megatron.generation.decoding import (
    DecodingOptions,
    matched_stop,
    pad_batch,
    stop_sequences,
    stream_tokens,
)
from megatron.generation.interactive import converse
from megatron.generation.precompute import precompute_logits
from megatron.generation.prompts import read_prompts
from megatron.generation.records import RecordFile, generate_records
from megatron.generation.sampling import SamplingOptions, filter_logits

__all__ = [
    "broadcast_terminate_signal",
    "filter_logits",
    "forward_model",
    "generate_samples_from_prompt",
    "generate_samples_input_from_file",
    "generate_samples_interactive",
    "generate_samples_unconditional",
    "get_batch",
    "get_logp",
    "pad_batch",
    "precompute_logits",
    "stop_tokens_in_completion",
    "stream_tokens",
    "switch",
]


def get_batch(neox_args, context_tokens) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Model inputs for tokens [b, s] (a tensor or lists).

    Returns: (tokens int64 [b, s], attention_mask bool [1, 1, s, s] with True where a query must not look,
    position_ids int64 [b, s]) on this rank's device. The models here know causality without the mask.
    """
    tokens = torch.as_tensor(context_tokens, dtype=torch.int64, device=device.current_device()).contiguous()
    length = tokens.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
    position_ids = torch.arange(length, device=tokens.device).expand_as(tokens).contiguous()
    return tokens, mask[None, None], position_ids


def switch(val1: torch.Tensor, val2: torch.Tensor, boolean: torch.Tensor) -> torch.Tensor:
    """Row by row `val2` where `boolean` [b] holds, else `val1`."""
    rows = boolean.to(torch.bool).reshape(-1, *[1] * (val1.dim() - 1))
    return torch.where(rows, val2, val1)


def forward_model(model, model_inputs, is_pipe_parallel: bool = False) -> torch.Tensor | None:
    """Full-vocabulary logits [b, n, V] of model_inputs = (tokens, position_ids, ...); None before the last stage.

    Args: model: InferenceModel; is_pipe_parallel: kept for callers, the model knows its layout.
    """
    tokens, position_ids = model_inputs[:2]
    return model(tokens, position_ids)


def broadcast_terminate_signal(terminate_runs: int) -> int:
    """Rank 0's decision whether to stop, on all ranks."""
    return int(broadcast_json(int(terminate_runs)))


def stop_tokens_in_completion(stop_tokens, context_tokens, batch_index: int, current_index: int) -> bool:
    """Whether row `batch_index` of context_tokens [b, s] ends with a stop sequence at `current_index`."""
    row = torch.as_tensor(context_tokens[batch_index])[: current_index + 1].tolist()
    return matched_stop(stop_sequences(stop_tokens), row) > 0


def get_logp(logits: torch.Tensor, labels: torch.Tensor, force_fp32: bool = False) -> torch.Tensor:
    """Log-probabilities [b, s] of labels int64 [b, s] under vocabulary-parallel logits [b, s, V/tp]."""
    logits = logits.float() if force_fp32 else logits
    return -mpu.vocab_parallel_cross_entropy(logits, labels)


def generate_samples_from_prompt(
    neox_args,
    model,
    text: str | list[str],
    eos_token_id: int | None = None,
    maximum_tokens: int | None = 64,
    recompute: bool = False,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 0.0,
    stop_tokens: list | None = None,
    return_logits: bool = False,
) -> list[dict]:
    """Continue one prompt or several. Collective over all ranks of the job.

    Args:
        model: InferenceModel, or the module or engine to be wrapped into one.
        text: "" starts from the end-of-document token.
        maximum_tokens: new tokens of each prompt; None fills the model's seq_length.
        stop_tokens: a token sequence or a list of them that end a text and are cut off it.
        return_logits: add the logits of the new tokens to the records.
    Returns: one record per prompt (megatron.generation.records.Record), on every rank.
    """
    prompts = [text] if isinstance(text, str) else list(text)
    options = _options(locals())
    rounds = generate_records(neox_args, as_inference_model(model, neox_args), prompts, options)
    return [record for finished in rounds for record in finished]


def generate_samples_input_from_file(
    neox_args,
    model,
    input_file: str,
    output_file: str | None = None,
    eos_token_id: int | None = None,
    maximum_tokens: int | None = 64,
    prompt_end: str = "\n",
    recompute: bool = False,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 0.0,
    stop_tokens: list | None = None,
    return_logits: bool = False,
) -> list[dict]:
    """Continue the prompts of a file and write the records as JSON lines.

    Args: output_file: None: INPUT.output.jsonl; prompt_end: separates the prompts. The rest: see
    generate_samples_from_prompt.
    Raises: DataError when the input cannot be read or the output not be written.
    """
    prompts = read_prompts(input_file, prompt_end)
    output_file = output_file or f"{input_file}.output.jsonl"
    return _generate_into_file(neox_args, model, prompts, output_file, _options(locals()))


def generate_samples_unconditional(
    neox_args,
    model,
    number_of_samples: int = 10,
    output_file: str | None = None,
    eos_token_id: int | None = None,
    maximum_tokens: int | None = 64,
    recompute: bool = False,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 0.0,
    stop_tokens: list | None = None,
    return_logits: bool = False,
) -> list[dict]:
    """Sample texts from nothing but the end-of-document token; see generate_samples_from_prompt."""
    return _generate_into_file(neox_args, model, [""] * number_of_samples, output_file, _options(locals()))


def generate_samples_interactive(
    neox_args,
    model,
    maximum_tokens: int | None = 64,
    prompt_end: str = "\n",
    eos_token_id: int | None = None,
    recompute: bool = False,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 0.0,
    stop_tokens: list | None = None,
) -> None:
    """Continue what is typed, until the end of input; see megatron.generation.interactive."""
    options = _options(locals() | {"return_logits": False})
    converse(neox_args, as_inference_model(model, neox_args), options, prompt_end)


def _generate_into_file(neox_args, model, prompts, output_file, options: DecodingOptions) -> list[dict]:
    records = []
    with RecordFile(output_file) as file:
        for finished in generate_records(neox_args, as_inference_model(model, neox_args), prompts, options):
            file.write(finished)
            records += finished
    if output_file is not None:
        info(f"{len(records)} samples written to {output_file}")
    return records


def _options(arguments: dict) -> DecodingOptions:
    """The decoding options among a public function's arguments."""
    return DecodingOptions(
        sampling=SamplingOptions(arguments["temperature"], arguments["top_k"], arguments["top_p"]),
        maximum_tokens=arguments["maximum_tokens"],
        eos_token_id=arguments["eos_token_id"],
        stop_tokens=arguments["stop_tokens"],
        recompute=arguments["recompute"],
        return_logits=arguments["return_logits"],
    )
