"""Conversations as the text that a model was trained on: the chat template beside a tokenizer's file."""

from pathlib import Path
from typing import Any

from megatron.common.errors import ConfigError
from megatron.common.optional import require


class ChatTemplate:
    """Renders conversations; transformers knows the template language and the special tokens in it.

    Args: vocab_file: tokenizer.json in a folder with chat_template.jinja or a chat_template in tokenizer_config.json.
    Raises: ConfigError where there is no template.
    """

    def __init__(self, tokenizer_type: str, vocab_file: str | None):
        folder = Path(vocab_file or "").parent if Path(vocab_file or "").is_file() else Path(vocab_file or "")
        places = [folder / "tokenizer_config.json", folder / "chat_template.jinja"]
        known = tokenizer_type in ("HFTokenizer", "HFGPT2Tokenizer") and any(
            path.is_file() for path in places
        )
        self._tokenizer = _load(folder) if known else None
        if getattr(self._tokenizer, "chat_template", None) is None:
            raise ConfigError(
                f"eval_apply_chat_template: {tokenizer_type} with vocab_file={vocab_file} has no chat template; put "
                "the model's tokenizer_config.json or chat_template.jinja beside vocab_file, or unset the key"
            )
        self.name = str(folder.resolve())

    @property
    def text(self) -> str:
        """The template itself."""
        return self._tokenizer.chat_template

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Text of a conversation of {"role", "content"}; without the prompt for an answer the last message goes on."""

        def rendered(history: list[dict[str, str]]) -> str:
            return self._tokenizer.apply_chat_template(
                history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

        from jinja2.exceptions import TemplateError

        try:
            return rendered(messages)
        except TemplateError:
            # Templates of models that know no system role refuse it.
            return rendered([message for message in messages if message["role"] != "system"])


def _load(folder: Path) -> Any:
    transformers = require("transformers", "hf", "eval_apply_chat_template")
    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # what transformers raises is of many kinds
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"eval_apply_chat_template: the tokenizer in {folder} cannot be read: {reason}"
        ) from error
