"""Next-token prediction."""

import torch
import torch.nn.functional as F

from megatron import mpu
from megatron.model import cross_entropy
from megatron.model.gpt2_model import masked_mean
from megatron.neox_arguments.soft_prompt import SoftPrompt
from megatron.objectives.base import Loss
from megatron.registry import register


def positions_in_documents(tokens: torch.Tensor, eod_token: int) -> torch.Tensor:
    """Position ids of tokens, int64 [b, s], which start again from 0 after each EOD token."""
    index = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    after_eod = F.pad(tokens[:, :-1] == eod_token, (1, 0))
    return index - (index * after_eod).cummax(1).values


def positions_and_loss_mask(
    tokens: torch.Tensor, eod_token: int, eod_mask_loss: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Position ids int64 [b, s] counting from 0, and the loss mask float32 [b, s]: 0 where the input is an EOD token
    if `eod_mask_loss`, else 1."""
    loss_mask = torch.ones(tokens.shape, dtype=torch.float32, device=tokens.device)
    if eod_mask_loss:
        loss_mask[tokens == eod_token] = 0.0
    position_ids = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0).expand_as(tokens)
    return position_ids, loss_mask


def behind_prompt(targets: torch.Tensor, length: int) -> torch.Tensor:
    """Labels or mask [b, s] of a text that a prompt of `length` has moved back: nothing (0) is wanted of the prompt,
    and the end of the text has been cut off."""
    return F.pad(targets[:, : targets.shape[1] - length], (length, 0)) if length else targets


@register("objective", "normal")
class Pretrain:
    """Mean cross entropy of the next token over the tokens that the loss mask keeps.

    The batch has `text` int64 [b, s+1] and, when the run has label data, `label` int64 [b, s+1], where a negative
    label keeps its position out of the loss. Of online samples the mean reward, and the mean of what it is above its
    baseline, are logged.
    """

    def __init__(self, neox_args):
        self.eod_mask_loss = neox_args.eod_mask_loss
        self.isolate_documents = neox_args.isolate_documents
        # A tokenizer without such a token is asked for it only where it is needed.
        needed = self.eod_mask_loss or self.isolate_documents
        self.eod_token = neox_args.tokenizer.eod if needed else -1
        prompt = SoftPrompt.from_config(neox_args)
        self.prompt = prompt.n_tokens if prompt is not None else 0
        self.half_precision_loss = neox_args.fp16_lm_cross_entropy
        self.z_loss = neox_args.z_loss
        self.rewarded = neox_args.dataset_impl == "online"
        self.metric_names = ("lm_loss", "z_loss") if self.z_loss else ()
        if self.rewarded:
            self.metric_names += ("reward", "advantage")

    def collate(self, batch: dict[str, torch.Tensor]):
        """-> ((tokens, position_ids), (labels, loss_mask)), each [b, s]; online also raw_reward and reward, [b, 1]."""
        text = batch["text"]
        tokens = text[:, :-1].contiguous()
        position_ids, loss_mask = positions_and_loss_mask(tokens, self.eod_token, self.eod_mask_loss)
        if self.isolate_documents:
            position_ids = positions_in_documents(tokens, self.eod_token)
        labels = batch.get("label", text)[:, 1:].contiguous()
        if "label" in batch:
            loss_mask = loss_mask * (labels >= 0)
            labels = labels.clamp(min=0)
        labels, loss_mask = behind_prompt(labels, self.prompt), behind_prompt(loss_mask, self.prompt)
        targets = (labels, loss_mask)
        if self.rewarded:
            targets += batch["raw_reward"], batch["reward"]
        return (tokens, position_ids.contiguous()), targets

    def loss(self, outputs: torch.Tensor, targets) -> Loss:
        """outputs: logits [b, s, V/tp]; targets: of `collate`.

        The z-loss belongs to training: it is left out where no gradient is wanted, and of the logged lm_loss.
        """
        labels, loss_mask, *rewards = targets
        means = {name: values.mean() for name, values in zip(("reward", "advantage"), rewards, strict=False)}
        if not (self.z_loss and torch.is_grad_enabled()):
            return Loss(cross_entropy(outputs, (labels, loss_mask), _fp16=self.half_precision_loss), means)
        dtype = outputs.dtype if self.half_precision_loss else torch.float32
        losses, z_losses = mpu.vocab_parallel_cross_entropy_with_z_loss(outputs, labels, self.z_loss, dtype)
        value, z_loss = masked_mean(losses, loss_mask), masked_mean(z_losses, loss_mask)
        return Loss(value, {"lm_loss": value.detach() - z_loss, "z_loss": z_loss, **means})
