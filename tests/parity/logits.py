"""What a parity test ends with."""

import torch


@torch.no_grad()
def assert_same_logits(model, reference: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """That a model gives the logits of a transformers model which was given its weights; both of 64 tokens."""
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert not missing and not unexpected
    tokens = torch.randint(0, 64, (3, 12), generator=torch.Generator().manual_seed(0))
    expected = reference(tokens).logits
    assert expected.std() > 0.1
    found = model((tokens, torch.arange(12).expand(3, 12)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
