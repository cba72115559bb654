"""How much of which data: the split of one data set, and the weights of several."""

import math
import re

import numpy as np

from megatron.common.errors import ConfigError

PARTS = 3
# Members of a blend hold a little more than their share: the greedy blend may run a sample ahead of it.
RESERVE = 1.005


def get_train_valid_test_split_(splits_string, size: int) -> list[int]:
    """Boundaries [0, b1, b2, size] of the training, validation and test documents.

    Args: splits_string: up to three shares, separated by commas or slashes, e.g. "969, 30, 1"; size: documents.
    Raises: ConfigError for something else.
    """
    try:
        shares = [float(part) for part in re.split(r"[,/]", str(splits_string)) if part.strip()]
    except ValueError:
        shares = []
    shares = (shares + [0.0] * PARTS)[:PARTS]
    total = sum(shares)
    if min(shares) < 0 or not 0 < total < math.inf:
        raise ConfigError(f"split {splits_string!r} must be up to three shares such as '969, 30, 1'")
    bounds = [0]
    for share in shares:
        bounds.append(bounds[-1] + round(share / total * size))
    surplus = bounds[-1] - size
    return [0, *(bound - surplus for bound in bounds[1:])]


def get_normalized_weights_and_num_samples(weights, num_samples: int) -> tuple[list[float], list[int]]:
    """Weights with sum 1, and how many samples each member of a blend of num_samples should have.

    Raises: ConfigError unless the weights are non-negative numbers that are not all 0.
    """
    total = sum(weights)
    if not weights or min(weights) < 0 or not 0 < total < math.inf:
        raise ConfigError(f"data weights must be non-negative numbers, not all 0: {list(weights)}")
    shares = [weight / total for weight in weights]
    return shares, [math.ceil(num_samples * share * RESERVE) for share in shares]


def weights_by_num_docs(l: list[int], alpha: float = 0.3) -> list[float]:  # noqa: E741 (public name)
    """Weights from document counts, flattened by the exponent alpha (arXiv 1901.07291).

    With shares u = n / sum(n) and p = u^alpha / sum(u^alpha), the weight is p * (1 - u), normalised. It is not u for
    alpha 1: this is the formula of GPT-NeoX, kept so that configs keep their meaning. Args: l: document counts.
    """
    if len(l) == 1:
        return [1.0]
    shares = np.asarray(l, dtype=np.float64) / sum(l)
    flattened = shares**alpha
    weights = flattened / flattened.sum() * (1 - shares)
    return (weights / weights.sum()).tolist()
