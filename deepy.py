#!/usr/bin/env python
"""Start a script on every device of a job: `python deepy.py train.py -d configs 125M.yml local_setup.yml`."""

from megatron.common.errors import run_main


def main(input_args: list[str] | None = None) -> int:
    """Read the configuration, check the job, start it and wait for its end.

    Args: input_args: command line; the process's own when None.
    Returns: the exit code of the job.
    """
    from megatron import launcher
    from megatron.common.console import info
    from megatron.neox_arguments import NeoXArgs

    neox_args = NeoXArgs.consume_deepy_args(input_args)
    if neox_args.dry_run:
        from megatron.planning import show_plan

        show_plan(neox_args)
        if not neox_args.preflight:
            return 0
    info(neox_args.summary())
    job = launcher.resolve(neox_args, neox_args.worker_arguments())
    if neox_args.preflight:
        launcher.run_preflight(job, lambda job: launcher.run(job).code)
        if neox_args.dry_run:
            return 0
    launcher.check(job)
    info(job.describe())
    return launcher.run_with_restarts(
        job,
        launcher.run,
        launcher.check,
        neox_args.max_restarts,
        neox_args.save,
        neox_args.resuming_arguments,
    )


if __name__ == "__main__":
    run_main(main)
