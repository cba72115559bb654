"""What training cannot do without, and other scripts can."""

from megatron.common.errors import ConfigError


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
    if missing:
        raise ConfigError(missing)
