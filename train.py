#!/usr/bin/env python
"""Train a model: `python deepy.py train.py -d configs 125M.yml local_setup.yml`; started once per device."""

from megatron.common.errors import run_main


def main(input_args: list[str] | None = None, overwrite_values: dict | None = None) -> int:
    """Train with the config that deepy.py hands over (`input_args` or the command line).

    Returns: the exit code, 75 if a scheduler's signal has ended the training and another start goes on.
    """
    from megatron.neox_arguments import NeoXArgs

    neox_args = NeoXArgs.consume_neox_args(overwrite_values=overwrite_values, input_args=input_args)
    neox_args.configure_distributed_args()
    neox_args.build_tokenizer()
    neox_args.initialize_tensorboard_writer()
    from megatron.initialize import shut_down
    from megatron.training import pretrain

    status = pretrain(neox_args)
    shut_down()
    return status


if __name__ == "__main__":
    run_main(main)
