"""The model as lm-evaluation-harness sees it. Importing this module needs the package lm_eval, and says so."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from megatron.common.console import Progress, warn
from megatron.common.optional import require
from megatron.engine.inference import as_inference_model
from megatron.evaluation.chat import ChatTemplate
from megatron.evaluation.generation_options import read_options
from megatron.evaluation.harness import evaluate_tasks
from megatron.evaluation.plan import merge, rounds
from megatron.evaluation.team import Team
from megatron.evaluation.texts import Question, TextCoder
from megatron.evaluation.worker import Continuations, Worker
from megatron.generation.records import is_writer
from megatron.neox_arguments.features import refusals

LM = require("lm_eval.api.model", "eval", "eval_tasks").LM

MAX_GEN_TOKS = 128
# Rounds that rank 0 hands out at once: pipeline stages work on neighbouring ones at the same time.
ROUNDS_AT_ONCE = 8


class EvalHarnessAdapter(LM):
    """A model of any layout as a language model of lm_eval 0.4.

    The harness runs on global rank 0 alone, inside `run_eval`, which all ranks call.

    Args:
        model: InferenceModel, or the module or engine to be wrapped into one.
        forward_step_fn: kept for callers; the inference model runs its own passes.
        batch_size: texts of full length per data-parallel replica and pass; None: eval_batch_size, else
            train_micro_batch_size_per_gpu. Shorter texts run in larger batches.
    """

    def __init__(self, model, forward_step_fn, neox_args, batch_size: int | None = None):
        super().__init__()
        self.neox_args = neox_args
        self.model = as_inference_model(model, neox_args)
        self._rows = batch_size or neox_args.eval_batch_size or neox_args.train_micro_batch_size_per_gpu or 1
        self._device = self.model.device
        self._worker = Worker(self.model, neox_args)
        self._team = Team(self._worker)
        self._coder = TextCoder(neox_args.tokenizer, self.max_length)
        self._chat: ChatTemplate | None = None

    @property
    def vocab_size(self) -> int:
        return self.neox_args.padded_vocab_size

    @property
    def eot_token_id(self) -> int:
        return self.neox_args.tokenizer.eod

    @property
    def max_length(self) -> int:
        return self.neox_args.seq_length

    @property
    def max_gen_toks(self) -> int:
        return MAX_GEN_TOKS

    @property
    def batch_size(self) -> int:
        """Texts of full length per pass, over all replicas."""
        return self._rows * self._worker.replicas

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        return self._coder.encode([string], bare=add_special_tokens is False)[0]

    def tok_decode(self, tokens: Iterable[int], **kwargs) -> str:
        return self.neox_args.tokenizer.detokenize(list(tokens))

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding would give it) of each (context, continuation)."""
        pairs = [request.args for request in requests]
        answers = self._ask(self._coder.pairs(pairs), "log-likelihoods", disable_tqdm)
        for pair, answer in zip(pairs, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole (text,), every token with as many before it as fit."""
        windows = [self._coder.windows(request.args[0]) for request in requests]
        questions = [question for part in windows for question in part]
        answers = iter(self._ask(questions, "log-likelihoods of texts", disable_tqdm))
        totals = [sum(next(answers)[0] for _ in part) for part in windows]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _ask(self, questions: list[Question], label: str, quiet: bool) -> list[tuple[float, bool]]:
        """(sum of the log-probabilities, whether all were likeliest) of every question."""
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(questions)
        planned = list(self._rounds(merge(questions), lambda row: len(row.inputs)))
        with Progress(len(questions), "requests", label, enabled=is_writer() and not quiet) as progress:
            for first in range(0, len(planned), ROUNDS_AT_ONCE):
                chunk = planned[first : first + ROUNDS_AT_ONCE]
                values = self._team.score(chunk).tolist()
                start = 0
                for row in (row for rows in chunk for row in rows):
                    for number, place in row.owners:
                        begin = start + place
                        found = values[begin : begin + len(questions[number].targets)]
                        likeliest = all(flag == 1.0 for _, flag in found)
                        answers[number] = (sum(value for value, _ in found), likeliest)
                    start += len(row.targets)
                    progress.update(len(row.owners))
        return answers

    def _rounds(self, items: Iterable[Any], length: Callable[[Any], int]) -> Iterator[list]:
        return rounds(items, length, self._rows, self._worker.replicas, self.max_length)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each (context, generation_kwargs), up to the first of its stop strings."""
        contexts = self._coder.encode_all(request.args[0] for request in requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        texts = [""] * len(requests)
        with Progress(
            len(requests), "requests", "generating", enabled=is_writer() and not disable_tqdm
        ) as progress:
            for numbers in groups.values():
                options = self._options(requests[numbers[0]].args[1])
                new = options["max_gen_toks"]
                prompts = self._prompts({n: contexts[requests[n].args[0]] for n in numbers}, new)
                for batch in self._rounds(prompts, lambda n: len(prompts[n]) + new):  # noqa: B023 (used at once)
                    work = Continuations([prompts[n] for n in batch], batch, **options)
                    for number, text in zip(batch, self._team.generate(work), strict=True):
                        texts[number] = text
                    progress.update(len(batch))
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _prompts(self, contexts: dict[int, list[int]], new: int) -> dict[int, list[int]]:
        """The ends of the contexts that leave room for `new` tokens, as the harness wants it."""
        room = self.max_length - new
        if cut := sum(len(context) > room for context in contexts.values()):
            warn(
                f"eval_tasks: {cut} of {len(contexts)} prompts keep their last {room} tokens only, since seq_length="
                f"{self.max_length} has to hold {new} new ones too"
            )
        return {number: context[-room:] or [self._coder.prefix] for number, context in contexts.items()}

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        options = read_options(given, self.max_gen_toks)
        if options["max_gen_toks"] >= self.max_length:
            # The harness's own models give up here. Half the sequence is kept for the question.
            new = max(1, self.max_length // 2)
            warn(
                f"eval_tasks: a task asks for {options['max_gen_toks']} new tokens, which seq_length={self.max_length} "
                f"cannot hold; its texts end after {new}"
            )
            options["max_gen_toks"] = new
        return options

    def _template(self) -> ChatTemplate:
        if self._chat is None:
            self._chat = ChatTemplate(self.neox_args.tokenizer_type, self.neox_args.vocab_file)
        return self._chat

    @property
    def tokenizer_name(self) -> str:
        """What the harness tells caches of rendered conversations apart by."""
        return self._template().name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self._template().text if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self._template().render(chat_history, add_generation_prompt)

    def run_eval(
        self,
        eval_tasks: list[str] | None = None,
        num_fewshot: int | None = None,
        bootstrap_iters: int = 2,
        use_cache: bool = True,
        name: str = "neox",
        limit: float | None = None,
    ) -> dict[str, Any]:
        """Evaluate; collective over all ranks of the job. A model in training goes on as it was.

        Args:
            eval_tasks: names or wildcards; None: eval_tasks of the config, else DEFAULT_TASKS.
            num_fewshot: examples before each question, except where a task fixes 0; None: eval_num_fewshot, else the
                tasks' own.
            bootstrap_iters: draws for standard errors that have no formula; 0: no standard errors at all.
            use_cache: keep keys and values while generating, where the model can and `recompute` is not set.
            name: of the model, in the results.
            limit: documents per task, or below 1 their share; None: eval_limit, else all.
        Returns: what lm_eval's evaluator returns, with `config` of this run and `git_hash`, on all ranks.
        """
        recomputes = self.neox_args.recompute or any(refusals(self.neox_args, cached=True))
        self._worker.use_cache = use_cache and not recomputes
        training = self.model.module.training
        if self.neox_args.eval_apply_chat_template:
            self._template()  # told before anything is loaded
        try:
            return self._team.run(
                lambda: evaluate_tasks(
                    self,
                    eval_tasks,
                    num_fewshot,
                    bootstrap_iters,
                    limit,
                    {"model": name, "use_cache": use_cache},
                )
            )
        finally:
            if training:
                self.model.train_mode()
