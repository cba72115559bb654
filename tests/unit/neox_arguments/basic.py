"""The smallest complete configuration."""

MINIMAL = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "train_micro_batch_size_per_gpu": 2,
    "global_num_gpus": 1,
}


def minimal(**changes) -> dict:
    """MINIMAL with some keys changed; None removes a key."""
    return {key: value for key, value in {**MINIMAL, **changes}.items() if value is not None}
