"""Weights & Biases."""

import json
from typing import Any

from megatron.common.errors import NeoXError
from megatron.common.optional import require
from megatron.common.wandb_key import get_wandb_api_key
from megatron.registry import register

PUBLIC_HOST = "https://api.wandb.ai"


@register("log sink", "wandb", needs="wandb")
class WandbSink:
    """Values and config go to a run of wandb_project; WANDB_MODE=offline keeps them in a file of this machine."""

    def __init__(self, neox_args):
        self._run = start_run(neox_args)

    @staticmethod
    def wanted(neox_args, rank: int) -> bool:
        return bool(neox_args.use_wandb) and (rank == 0 or neox_args.wandb_init_all_ranks)

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self, failed: bool = False) -> None:
        self._run.finish(exit_code=int(failed))


def start_run(neox_args) -> Any:
    """Open the run that the config describes, or return the one that is open already.

    Raises: MissingPackageError; NeoXError if nobody is logged in; whatever the package raises if the run cannot start.
    """
    wandb = require("wandb", "wandb", "use_wandb")
    # The package would ask for the key on a terminal, and the job would wait for the answer.
    online = wandb.setup().settings.mode not in ("offline", "disabled")
    if online and get_wandb_api_key(neox_args) is None:
        raise NeoXError(
            f"use_wandb found no API key for wandb_host={neox_args.wandb_host!r}: set WANDB_API_KEY, "
            "run `wandb login`, or set WANDB_MODE=offline"
        )
    # WANDB_BASE_URL counts unless the config names another server.
    settings = {} if neox_args.wandb_host == PUBLIC_HOST else {"base_url": neox_args.wandb_host}
    return wandb.init(
        project=neox_args.wandb_project,
        group=neox_args.wandb_group,
        name=neox_args.wandb_run_name,
        entity=neox_args.wandb_team,
        config=json.loads(json.dumps(neox_args.all_config, default=str)),
        save_code=False,
        settings=wandb.Settings(**settings),
    )
