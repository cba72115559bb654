"""The noise scale is the ratio of the covariance's trace to the square of the true gradient."""

from types import SimpleNamespace

import pytest
import torch

from megatron import mpu
from megatron.gradient_noise_scale import GradientNoiseScale, ema


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """A process grid of one, whose groups nobody asks for."""
    for group in ("tensor_model", "pipe", "data"):
        monkeypatch.setattr(mpu, f"get_{group}_parallel_group", lambda: None)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 1)
    with mpu.use(mpu.ParallelState()):
        yield


class Engine:
    """As much of an engine as the logger asks for."""

    def __init__(self, *shapes: tuple[int, ...]):
        self.optimizer = SimpleNamespace()
        self.parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
        for parameter in self.parameters:
            parameter.model_parallel = False
        named = [(str(number), parameter) for number, parameter in enumerate(self.parameters)]
        self.module = SimpleNamespace(logical_named_parameters=lambda: iter(named))

    def zero_optimization_stage(self) -> int:
        return 0

    def set_gradients(self, *gradients: torch.Tensor) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient


def test_the_moving_average_is_corrected_for_its_start():
    average, corrected = ema(None, 0.9, 5.0, 0)
    assert (average, corrected) == (pytest.approx(0.5), pytest.approx(5.0))
    average, corrected = ema(average, 0.9, 7.0, 1)
    assert average == pytest.approx(0.9 * 0.5 + 0.1 * 7)
    assert corrected == pytest.approx(average / (1 - 0.81))


@pytest.mark.parametrize("cpu_offload", [False, True])
def test_two_windows_give_the_ratio_of_the_corrected_averages(cpu_offload):
    engine = Engine((2,), (1, 1))
    logger = GradientNoiseScale(engine, batch_size_small=4, n_batches=2, beta=0.9, cpu_offload=cpu_offload)
    steps = [
        (torch.tensor([1.0, 2.0]), torch.tensor([[2.0]])),
        (torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])),
        (torch.tensor([1.0, 1.0]), torch.tensor([[1.0]])),
        (torch.tensor([2.0, 0.5]), torch.tensor([[2.0]])),
    ]
    traces, squares = [], []
    for number, gradients in enumerate(steps, start=1):
        engine.set_gradients(*(gradient.clone() for gradient in gradients))
        logger.update()
        if number % 2:
            continue
        first, second = (torch.cat([part.flatten() for part in step]) for step in steps[number - 2 : number])
        small, large = second.square().sum().item(), ((first + second) / 2).square().sum().item()
        squares.append((8 * large - 4 * small) / 4)
        traces.append((small - large) / (1 / 4 - 1 / 8))
        expected = traces[0] / squares[0]
        if number == 4:
            expected = (0.9 * traces[0] + traces[1]) / (0.9 * squares[0] + squares[1])
        assert logger.noise_scale == pytest.approx(expected)


def test_nothing_is_said_before_a_window_is_complete():
    engine = Engine((3,))
    logger = GradientNoiseScale(engine, batch_size_small=1, n_batches=3)
    for _ in range(2):
        engine.set_gradients(torch.ones(3))
        logger.update()
    assert logger.noise_scale is None


def test_the_estimate_approaches_the_true_ratio():
    """Gradients of batches of 8: the true one plus noise of covariance I / 8; tr(I) = 500, |G|^2 = 20."""
    generator = torch.Generator().manual_seed(3)
    truth = torch.full((500,), (20 / 500) ** 0.5)
    engine = Engine((500,))
    logger = GradientNoiseScale(engine, batch_size_small=8, n_batches=5)
    for _ in range(1500):
        engine.set_gradients(truth + torch.randn(500, generator=generator) / 8**0.5)
        logger.update()
    assert logger.noise_scale == pytest.approx(500 / 20, rel=0.1)


def test_a_window_with_an_overflow_does_not_count():
    engine = Engine((2,))
    logger = GradientNoiseScale(engine, batch_size_small=2, n_batches=2)
    found = []
    for gradient in ([1.0, 2.0], [2.0, 1.0], [float("inf"), 0.0], [1.0, 1.0], [1.0, 2.0], [2.0, 1.0]):
        engine.set_gradients(torch.tensor(gradient))
        logger.update()
        found.append(logger.noise_scale)
    assert found[1] == found[2] == found[3] == pytest.approx(found[5])


def test_a_resumed_logger_goes_on_with_the_averages():
    gradients = [torch.randn(6, generator=torch.Generator().manual_seed(number)) + 1 for number in range(8)]

    def run(logger, engine, part):
        for gradient in part:
            engine.set_gradients(gradient.clone())
            logger.update()
        return logger.noise_scale

    engine = Engine((6,))
    straight = run(GradientNoiseScale(engine, 4, n_batches=2), engine, gradients)
    first = GradientNoiseScale(engine, 4, n_batches=2)
    run(first, engine, gradients[:4])
    second = GradientNoiseScale(engine, 4, n_batches=2)
    second.load_state_dict(first.state_dict())
    assert second.noise_scale == first.noise_scale
    assert run(second, engine, gradients[4:]) == pytest.approx(straight)
