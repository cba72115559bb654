"""Comet."""

import os
from typing import Any

from megatron.common.errors import NeoXError
from megatron.common.optional import require
from megatron.registry import register

FRAMEWORK = "gpt-neox"
# Only what training reports is recorded: no source code, command line or output, and no copies of what others log.
_NOT_RECORDED = {
    "log_code": False,
    "log_graph": False,
    "log_git_patch": False,
    "parse_args": False,
    "auto_output_logging": False,
    "auto_metric_logging": False,
    "auto_param_logging": False,
    "display_summary_level": 0,
}


@register("log sink", "comet", needs="comet_ml")
class CometSink:
    """Values and config go from rank 0 to an experiment, which others find as neox_args.comet_experiment."""

    def __init__(self, neox_args):
        if neox_args.comet_experiment is None:
            neox_args.comet_experiment = start_experiment(neox_args)
        self._experiment = neox_args.comet_experiment

    @staticmethod
    def wanted(neox_args, rank: int) -> bool:
        return bool(neox_args.use_comet) and rank == 0

    # Comet takes the label of a framework through these names only; its own integrations use them.

    def log(self, values: dict[str, float], step: int) -> None:
        self._experiment.__internal_api__log_metrics__(values, step=step, framework=FRAMEWORK)

    def close(self, failed: bool = False) -> None:
        self._experiment.end()


def start_experiment(neox_args) -> Any:
    """Open the experiment that the config describes: an archive where COMET_OFFLINE_DIRECTORY is set, else online.

    Raises: MissingPackageError; NeoXError if an experiment is to be online and there is no key.
    """
    # Otherwise it complains that it was imported after torch, into which it would hook.
    os.environ.setdefault("COMET_DISABLE_AUTO_LOGGING", "1")
    comet = require("comet_ml", "comet", "use_comet")
    place = {"project_name": neox_args.comet_project, "workspace": neox_args.comet_workspace}
    if folder := os.environ.get("COMET_OFFLINE_DIRECTORY"):
        experiment = comet.OfflineExperiment(offline_directory=folder, **place, **_NOT_RECORDED)
    elif comet.get_config("comet.api_key"):
        experiment = comet.Experiment(**place, **_NOT_RECORDED)
    else:
        raise NeoXError(
            "use_comet found no API key: set COMET_API_KEY, run `comet login`, or set COMET_OFFLINE_DIRECTORY"
        )
    if neox_args.comet_experiment_name:
        experiment.set_name(neox_args.comet_experiment_name)
    if neox_args.comet_tags:
        experiment.add_tags(neox_args.comet_tags)
    experiment.log_others(neox_args.comet_others or {})
    # The handle itself says nothing about the run.
    config = {key: value for key, value in neox_args.all_config.items() if key != "comet_experiment"}
    experiment.__internal_api__log_parameters__(config, framework=FRAMEWORK)
    return experiment
