"""Jobs on several machines go through DeepSpeed's launcher."""

from megatron.common.console import info


def run_multi_host(arguments: list[str]) -> int:
    """Run `deepspeed ARGUMENTS`.

    Returns: its exit code.
    """
    info(f"deepspeed {' '.join(arguments[:-4])} ...")
    from deepspeed.launcher import runner

    try:
        runner.main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
