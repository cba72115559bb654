"""A conversation with the model on a terminal: line editing, text as it comes, Ctrl-C to stop it, Ctrl-D to leave."""

import itertools
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from megatron.common.console import info, warn, write
from megatron.engine.exchange import broadcast_json, heartbeat
from megatron.engine.inference import InferenceModel
from megatron.generation.decoding import DecodingOptions, stream_tokens
from megatron.generation.prompts import TextStream
from megatron.generation.records import is_writer
from megatron.generation.sampling import row_seed

PROMPT_LABEL = "Context prompt >>> "
CONTINUATION_LABEL = "... "
HEARTBEAT_SECONDS = 30.0


def converse(neox_args, model: InferenceModel, options: DecodingOptions, prompt_end: str) -> None:
    """Ask for prompts and continue them until the end of input. Collective over all ranks; rank 0 has the terminal.

    Args: prompt_end: the line break makes every line a prompt; any other text ends a prompt of several lines.
    """
    if is_writer():
        _enable_line_editing()
        info("Type a prompt. Ctrl-C stops a sample, Ctrl-D ends.")
    with _InterruptFlag() as interrupt:
        for number in itertools.count():
            prompt = _shared_prompt(prompt_end, interrupt)
            if prompt is None:
                return
            interrupt.is_set = False
            _answer(neox_args, model, options, prompt, number, interrupt)


def _answer(neox_args, model, options, prompt: str, number: int, interrupt: "_InterruptFlag") -> None:
    tokenizer = neox_args.tokenizer
    tokens = tokenizer.tokenize(prompt) if prompt else [tokenizer.eod]
    if not 0 < len(tokens) < neox_args.seq_length:
        warn(f"the prompt has {len(tokens)} tokens; the model takes 1 to {neox_args.seq_length - 1}")
        return
    text = TextStream(tokenizer)
    shown = len(tokens)
    steps = stream_tokens(
        neox_args,
        model,
        [tokens],
        eos_token_id=options.eos_token_id,
        maximum_tokens=options.maximum_tokens,
        recompute=options.recompute,
        temperature=options.sampling.temperature,
        top_k=options.sampling.top_k,
        top_p=options.sampling.top_p,
        stop_tokens=options.stop_tokens,
        seeds=[row_seed(neox_args.seed, number)],
        return_logits=False,
        should_stop=interrupt.shared,
    )
    write(prompt)
    for batch_tokens, _, end, _, _ in steps:
        for position in range(shown, int(end[0]) + 1):
            write(text.push(int(batch_tokens[0, position])))
        shown = max(shown, int(end[0]) + 1)
    remark = "\n[stopped]" if interrupt.is_set else ""
    if not remark and shown == neox_args.seq_length:
        remark = f"\n[seq_length={neox_args.seq_length} is full]"
    write(f"{text.rest()}{remark}\n")


def _enable_line_editing() -> None:
    """Arrow keys, history and the like for input(), where Python has them."""
    if sys.stdin is not None and sys.stdin.isatty():
        try:
            import readline  # noqa: F401 (importing it is what does it)
        except ImportError:
            info("(this Python has no readline: no line editing)")


def _shared_prompt(prompt_end: str, interrupt: "_InterruptFlag") -> str | None:
    """The next prompt, on all ranks; None at the end of input."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return _read_prompt(prompt_end, interrupt)
    if dist.get_rank() != 0:
        while (message := broadcast_json(None)) == "wait":
            continue
        return message["prompt"]
    with heartbeat(lambda: broadcast_json("wait"), HEARTBEAT_SECONDS):
        prompt = _read_prompt(prompt_end, interrupt)
    broadcast_json({"prompt": prompt})
    return prompt


def _read_prompt(prompt_end: str, interrupt: "_InterruptFlag") -> str | None:
    """Read from the terminal until `prompt_end`; Ctrl-C drops what was typed. None at the end of input."""
    lines: list[str] = []
    while True:
        try:
            with interrupt.reading():
                line = _typed(CONTINUATION_LABEL if lines else PROMPT_LABEL)
            lines.append(line)
        except EOFError:
            write("\n")
            return None
        except KeyboardInterrupt:
            write("\n")
            lines = []
            continue
        if prompt_end == "\n":
            return lines[0]
        text = "\n".join(lines)
        if prompt_end in text:
            return text.split(prompt_end)[0]


def _typed(label: str) -> str:
    """A line of input. Bytes that are no text become U+FFFD, which a tokenizer takes and a pipe may hold.

    Raises: EOFError at the end of input, or without any.
    """
    if sys.stdin is None:  # closed by whoever has started the program
        raise EOFError
    return input(label).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class _InterruptFlag:
    """Turns Ctrl-C into a flag; only while somebody types it stays what it is, and is raised.

    Every process of the job gets the signal from the terminal, each at its own moment: rank 0's decides.

    Attributes: is_set: what all ranks have agreed on. The signal only ever sets a flag of its own, so that one that
    comes while they agree counts the next time instead of being overwritten, and one that comes between a prompt and
    its sample stops that sample.
    """

    def __init__(self):
        self.is_set = False
        self._asked = False
        self._reads = False
        self._before = None

    def __enter__(self) -> "_InterruptFlag":
        self._before = signal.signal(signal.SIGINT, self._caught)
        return self

    def __exit__(self, kind, value, trace) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _caught(self, number, frame) -> None:
        if self._reads:
            self._reads = False  # Another one shall not strike whoever handles this one.
            raise KeyboardInterrupt
        self._asked = True

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Within the block Ctrl-C is raised, at most once."""
        try:
            self._reads = True
            self._asked = False
            yield
        finally:
            self._reads = False

    def shared(self) -> bool:
        """Whether rank 0 was interrupted, on all ranks."""
        self.is_set = bool(broadcast_json(self._asked))
        return self.is_set
