"""What parity tests end with."""

import torch


def give_weights(reference: torch.nn.Module, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """A transformers model, ready to answer, with these weights, which must be just those that it has."""
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert not missing and not unexpected
    return reference.eval()


@torch.no_grad()
def assert_same_logits(
    model, reference: torch.nn.Module, vocabulary: int = 64, length: int = 12, rows: int = 3
) -> None:
    """That a model gives the logits of a transformers model with the same weights, for random tokens."""
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(0, vocabulary, (rows, length), generator=generator)
    expected = reference(tokens, use_cache=False).logits
    assert expected.std() > 0.1  # the comparison has something to compare
    found = model((tokens, torch.arange(length).expand(rows, length)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
