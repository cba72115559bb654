"""The key of a Weights & Biases account."""

import netrc
import os
from typing import Any
from urllib.parse import urlsplit


def get_wandb_api_key(neox_args: Any) -> str | None:
    """ "LOCAL" where WANDB_LOCAL is set, else WANDB_API_KEY, else the password that .netrc has for wandb_host."""
    if "WANDB_LOCAL" in os.environ:
        return "LOCAL"
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    host = neox_args.wandb_host
    try:
        entry = netrc.netrc(os.environ.get("NETRC")).authenticators(urlsplit(host).hostname or host)
    except (OSError, netrc.NetrcParseError):
        return None
    return entry[2] if entry else None
