"""What training cannot do without, and other scripts can."""

import os

from megatron.common.errors import ConfigError
from megatron.common.messages import WEIGHT_TOKEN, check_exposure


def check_settings(neox_args) -> None:
    """Raises: ConfigError naming everything that training cannot do without and other scripts can."""
    lengths, sources = ("train_iters", "train_epochs"), ("data_path", "train_data_paths")
    missing = [
        f"set {' or '.join(keys)}: {why}"
        for keys, why in (
            (lengths, "how long to train"),
            *([] if neox_args.dataset_impl == "online" else [(sources, "what to train on")]),
            (("optimizer",), "how to train, e.g. {type: Adam, params: {lr: 1.0e-3}}"),
        )
        if not any(getattr(neox_args, key) for key in keys)
    ]
    if neox_args.serve_model_weights:
        token = os.environ.get(WEIGHT_TOKEN)
        exposed = check_exposure(
            neox_args.weight_server_address, token, "weight_server_address", WEIGHT_TOKEN
        )
        missing += [exposed] if exposed else []
    if missing:
        raise ConfigError(missing)
