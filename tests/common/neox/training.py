"""A GPT-NeoX model and its training in plain torch: one process, fp32, no module classes."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sizes:
    layers: int = 2
    hidden: int = 32
    heads: int = 4
    vocabulary: int = 512
    length: int = 16
    rotary: float = 0.5


@dataclass
class Run:
    """A run in progress. Norms are the final norm and the two of each block; the order of names is the modules'."""

    sizes: Sizes
    parallel_residual: bool
    weights: Tensors
    exp_avg: Tensors = field(default_factory=dict)
    exp_avg_sq: Tensors = field(default_factory=dict)
    steps: int = 0
    lr: float = 5e-3
    min_lr: float = 5e-4
    length: int = 100
    warmup: float = 0.05
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clipping: float = 1.0


def parameter_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """{layer index.path: shape} in module order."""
    hidden, vocabulary = sizes.hidden, sizes.vocabulary
    shapes = {"0.word_embeddings.weight": (vocabulary, hidden)}
    for index in range(2, sizes.layers + 2):
        block = {
            "input_layernorm.weight": (hidden,),
            "input_layernorm.bias": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
            "post_attention_layernorm.bias": (hidden,),
            "attention.query_key_value.weight": (3 * hidden, hidden),
            "attention.query_key_value.bias": (3 * hidden,),
            "attention.dense.weight": (hidden, hidden),
            "attention.dense.bias": (hidden,),
            "mlp.linear1.weight": (4 * hidden, hidden),
            "mlp.linear1.bias": (4 * hidden,),
            "mlp.linear2.weight": (hidden, 4 * hidden),
            "mlp.linear2.bias": (hidden,),
        }
        shapes |= {f"{index}.{path}": shape for path, shape in block.items()}
    last = sizes.layers + 3
    shapes |= {f"{last}.norm.weight": (hidden,), f"{last}.norm.bias": (hidden,)}
    return shapes | {f"{last + 1}.final_linear.weight": (vocabulary, hidden)}


def decays(name: str) -> bool:
    return not name.endswith("bias") and "norm" not in name


def new_run(parallel_residual: bool, sizes: Sizes | None = None) -> Run:
    sizes = sizes or Sizes()
    generator = torch.Generator().manual_seed(17)
    weights = {}
    for name, shape in parameter_shapes(sizes).items():
        weights[name] = torch.randn(shape, generator=generator) * 0.1
        if "norm.weight" in name:
            weights[name] += 1.0
    return Run(sizes, parallel_residual, weights)


def logits(run: Run, weights: Tensors, tokens: torch.Tensor) -> torch.Tensor:
    """int64 [b, s] -> [b, s, V]."""
    sizes = run.sizes
    hidden = weights["0.word_embeddings.weight"][tokens]
    for index in range(2, sizes.layers + 2):
        block = {
            name.split(".", 1)[1]: value for name, value in weights.items() if name.startswith(f"{index}.")
        }
        attended = _attention(sizes, block, _norm(block, "input_layernorm", hidden))
        if run.parallel_residual:
            hidden = hidden + attended + _mlp(block, _norm(block, "post_attention_layernorm", hidden))
        else:
            hidden = hidden + attended
            hidden = hidden + _mlp(block, _norm(block, "post_attention_layernorm", hidden))
    last = sizes.layers + 3
    hidden = _norm(weights, f"{last}.norm", hidden)
    return hidden @ weights[f"{last + 1}.final_linear.weight"].T


def _norm(weights: Tensors, name: str, hidden: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(hidden, hidden.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)


def _mlp(block: Tensors, hidden: torch.Tensor) -> torch.Tensor:
    inner = F.gelu(hidden @ block["mlp.linear1.weight"].T + block["mlp.linear1.bias"])
    return inner @ block["mlp.linear2.weight"].T + block["mlp.linear2.bias"]


def _attention(sizes: Sizes, block: Tensors, hidden: torch.Tensor) -> torch.Tensor:
    batch, length, _ = hidden.shape
    width = sizes.hidden // sizes.heads
    joint = hidden @ block["attention.query_key_value.weight"].T + block["attention.query_key_value.bias"]
    query, key, value = joint.view(batch, length, sizes.heads, 3, width).permute(3, 0, 2, 1, 4)
    query, key = _rotate(sizes, query), _rotate(sizes, key)
    scores = query @ key.transpose(-1, -2) / math.sqrt(width)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(future, -math.inf).softmax(-1) @ value
    mixed = mixed.transpose(1, 2).reshape(batch, length, sizes.hidden)
    return mixed @ block["attention.dense.weight"].T + block["attention.dense.bias"]


def _rotate(sizes: Sizes, x: torch.Tensor) -> torch.Tensor:
    """Rotary positions on the first part of each head, [b, heads, s, width]."""
    count = int(sizes.hidden // sizes.heads * sizes.rotary)
    frequencies = 10000.0 ** (-torch.arange(0, count, 2).float() / count)
    angles = torch.outer(torch.arange(x.shape[2]).float(), frequencies).repeat(1, 2)
    turned, rest = x[..., :count], x[..., count:]
    swapped = torch.cat([-turned[..., count // 2 :], turned[..., : count // 2]], -1)
    return torch.cat([turned * angles.cos() + swapped * angles.sin(), rest], -1)


def learning_rate(run: Run) -> float:
    """Of the next update."""
    warmup = run.warmup * run.length
    if run.steps <= warmup:
        return run.lr * max(1, run.steps) / warmup
    progress = (run.steps - warmup) / (run.length - warmup)
    return run.min_lr + (run.lr - run.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def train_step(run: Run, samples: torch.Tensor) -> float:
    """One update on a global batch int64 [b, s+1]; returns the loss before it."""
    weights = {name: value.clone().requires_grad_() for name, value in run.weights.items()}
    output = logits(run, weights, samples[:, :-1])
    loss = F.cross_entropy(output.flatten(0, 1), samples[:, 1:].flatten())
    gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    scale = min(1.0, run.clipping / (float(norm) + 1e-6))
    rate = learning_rate(run)
    run.steps += 1
    for name, gradient in gradients.items():
        _adam(run, name, gradient * scale, rate)
    return loss.item()


def _adam(run: Run, name: str, gradient: torch.Tensor, rate: float) -> None:
    first, second = run.betas
    m = run.exp_avg.get(name, torch.zeros_like(gradient)) * first + (1 - first) * gradient
    v = run.exp_avg_sq.get(name, torch.zeros_like(gradient)) * second + (1 - second) * gradient**2
    step = m / (1 - first**run.steps) / ((v / (1 - second**run.steps)).sqrt() + run.eps)
    decay = run.weight_decay if decays(name) else 0.0
    run.weights[name] = run.weights[name] * (1 - rate * decay) - rate * step
    run.exp_avg[name], run.exp_avg_sq[name] = m, v
