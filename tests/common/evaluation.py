"""A tokenizer and tasks for lm-evaluation-harness, all local: what tests of evaluation run on."""

import json
from pathlib import Path

from tests.common.corpus import stdlib_documents

WORDS = "red green blue one two three sun moon star north south east".split()
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TASKS = {
    # Answers of one token and of several.
    "toy_choice": """
        output_type: multiple_choice
        doc_to_text: "{{question}}\\nAnswer:"
        doc_to_choice: "{{choices}}"
        doc_to_target: "{{gold}}"
        num_fewshot: 2
        fewshot_split: train
        metric_list:
          - {metric: acc, aggregation: mean, higher_is_better: true}
          - {metric: acc_norm, aggregation: mean, higher_is_better: true}
    """,
    # Texts shorter and longer than the model's sequence.
    "toy_perplexity": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{text}}"
        metric_list:
          - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
          - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
    """,
    # Prompts of many lengths, and more than one end.
    "toy_generation": """
        output_type: generate_until
        doc_to_text: "{{prompt}}"
        doc_to_target: "{{target}}"
        generation_kwargs: {until: ["\\n\\n", "e"], max_gen_toks: 12, do_sample: false}
        metric_list:
          - {metric: exact_match, aggregation: mean, higher_is_better: true}
          - {metric: bleu, aggregation: bleu, higher_is_better: true}
    """,
    "toy_drawn": """
        output_type: generate_until
        doc_to_text: "{{prompt}}"
        doc_to_target: "{{target}}"
        generation_kwargs: {max_gen_toks: 6, do_sample: true, temperature: 0.8, top_k: 40}
        metric_list:
          - {metric: exact_match, aggregation: mean, higher_is_better: true}
    """,
}


def write_tokenizer(folder: Path, vocabulary: int = 300) -> Path:
    """A byte-level BPE tokenizer with <|endoftext|>, as transformers saves it. Returns: its tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([*stdlib_documents(10), " ".join(WORDS * 50)], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    mark = "<|endoftext|>"
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": mark,
        "eos_token": mark,
        "pad_token": mark,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": CHAT_TEMPLATE}))
    return folder / "tokenizer.json"


def write_tasks(folder: Path) -> Path:
    """The tasks of TASKS as a folder for eval_include_path."""
    folder.mkdir(parents=True)
    data = {
        "toy_choice": {
            "test": [_question(number) for number in range(9)],
            "train": [_question(11), _question(14)],
        },
        "toy_perplexity": {
            "test": [{"text": text[: 40 + 30 * n]} for n, text in enumerate(stdlib_documents(6))]
        },
        "toy_generation": {"test": [_prompt(number) for number in range(7)]},
        "toy_drawn": {"test": [_prompt(number) for number in range(5)]},
    }
    for task, splits in data.items():
        files = {
            split: str(_write_rows(folder / f"{task}_{split}.jsonl", rows)) for split, rows in splits.items()
        }
        head = {
            "task": task,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
            "test_split": "test",
            **({"training_split": "train"} if "train" in files else {}),
        }
        lines = [f"{key}: {json.dumps(value)}" for key, value in head.items()]
        body = [line.removeprefix("        ") for line in TASKS[task].strip("\n").splitlines()]
        (folder / f"{task}.yaml").write_text("\n".join([*lines, *body]) + "\n")
    return folder


def _write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _question(number: int) -> dict:
    words = [WORDS[(number * 5 + 3 * n) % len(WORDS)] for n in range(4)]
    return {
        "question": f"Say {' '.join(words[: 1 + number % 3])}?",
        # "a" and "b" are one token each; the others several, of different lengths.
        "choices": ["a", "b", words[0], f"{words[1]} and {words[2]}"],
        "gold": number % 4,
    }


def _prompt(number: int) -> dict:
    return {"prompt": " ".join(WORDS[number % 5 :][: 1 + 2 * number]), "target": WORDS[number]}
