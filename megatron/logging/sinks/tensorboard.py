"""TensorBoard event files."""

from megatron.registry import register


@register("log sink", "tensorboard")
class TensorBoardSink:
    """Writes the config as text, and scalars, through the writer that initialize_tensorboard_writer made."""

    def __init__(self, neox_args):
        self._writer = neox_args.tensorboard_writer
        for name, value in neox_args.all_config.items():
            self._writer.add_text(name, str(value))

    @staticmethod
    def wanted(neox_args, rank: int) -> bool:
        return rank == 0 and getattr(neox_args, "tensorboard_writer", None) is not None

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool = False) -> None:
        self._writer.flush()
