"""Command lines: of deepy.py, of a worker script, and the base64 hand-over from one to the other."""

import argparse
import base64
import binascii
import hashlib
import json
import os
import shlex
from pathlib import Path
from typing import Any

from megatron.common.errors import ConfigError, LaunchError
from megatron.common.files import atomic_write_text

# A single argument may be 128 KiB long on Linux; a larger configuration goes through a file.
LONGEST_ARGUMENT = 100_000


def deepy_parser() -> argparse.ArgumentParser:
    """Options of deepy.py. Each option but the configuration files overrides the key of its name."""
    parser = argparse.ArgumentParser(
        prog="deepy.py",
        description="Start a script of GPT-NeoX on every device of the job.",
        allow_abbrev=False,
    )
    parser.add_argument("user_script", help="script to start, such as train.py")
    parser.add_argument(
        "conf_file", nargs="+", help="configuration files (YAML or JSON); .yml is added where missing"
    )
    parser.add_argument("--conf_dir", "-d", help="folder of the configuration files")
    parser.add_argument(
        "--dry-run", action="store_true", help="print configuration, plan and command; do not start the job"
    )
    parser.add_argument(
        "--preflight", action="store_true", help="first check every host and the network between them"
    )
    keys = _key_options(parser)
    keys.add_argument("-H", "--hostfile", help="file of machines")
    keys.add_argument("--autotuning", choices=["tune", "run"], help="run DeepSpeed's autotuner")
    return parser


def _key_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Options that override the keys of their names, None where they are not given."""
    keys = parser.add_argument_group("configuration keys")
    keys.add_argument("--wandb_group", help="Weights & Biases group")
    keys.add_argument("--wandb_run_name", help="Weights & Biases run name")
    keys.add_argument("--wandb_team", help="Weights & Biases entity")
    keys.add_argument("--eval_tasks", nargs="+", help="evaluation tasks")
    keys.add_argument("--iteration", type=int, help="iteration of the checkpoint to load")
    keys.add_argument("--eval_results_prefix", help="start of the results file's name")
    for name, what in (("profile", "trace some iterations"), ("memory_profiling", "record CUDA's allocator")):
        keys.add_argument(f"--{name}", action="store_true", default=None, help=what)
    keys.add_argument("-i", "--sample_input_file", help="file of prompts")
    keys.add_argument("-o", "--sample_output_file", help="file of generated texts")
    return keys


def parse_deepy(input_args: list[str] | None = None) -> tuple[list[Path], dict[str, Any], dict[str, bool]]:
    """Returns: (configuration files, overriding values, what else is wanted: dry_run, preflight).

    Raises: LaunchError if the script does not exist.
    """
    given = vars(deepy_parser().parse_args(input_args))
    files = config_paths(given.pop("conf_file"), given.pop("conf_dir"))
    wanted = {name: given.pop(name) for name in ("dry_run", "preflight")}
    given["autotuning_run"] = given.pop("autotuning")
    if not Path(given["user_script"]).is_file():
        raise LaunchError(f"{given['user_script']}: no such script; name an existing one, such as train.py")
    return files, {key: value for key, value in given.items() if value is not None}, wanted


def worker_parser() -> argparse.ArgumentParser:
    """Options of a worker script: the launcher's, and for a start without deepy.py those that stand for keys."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument(
        "--megatron_config", help="configuration from the launcher: base64 of JSON, or a file"
    )
    parser.add_argument("--deepspeed_config", help="DeepSpeed's part of it")
    parser.add_argument("--local_rank", type=int, help="set by some launchers; LOCAL_RANK is what counts")
    parser.add_argument("--conf_dir", "-d", help="folder of the configuration files")
    parser.add_argument("conf_file", nargs="*", help="configuration files, when started without deepy.py")
    _key_options(parser)
    return parser


def parse_worker(input_args: list[str] | None = None) -> tuple[str | None, list[Path], dict[str, Any]]:
    """Returns: (the launcher's hand-over, configuration files, overriding values); of the first two one is there.

    Raises: ConfigError without either, and for what is no option of a script that is started by itself. What a launcher
    adds beside its hand-over is ignored.
    """
    parsed, unknown = worker_parser().parse_known_args(input_args)
    given = vars(parsed)
    handed_over, _, _ = (given.pop(name) for name in ("megatron_config", "deepspeed_config", "local_rank"))
    files = config_paths(given.pop("conf_file"), given.pop("conf_dir"))
    if handed_over is None and unknown:
        raise ConfigError(
            f"{unknown[0]!r} is not understood here: configuration files stand side by side, and other keys in them"
        )
    if handed_over is None and not files:
        raise ConfigError("no configuration: name configuration files, or start the script through deepy.py")
    return handed_over, files, {key: value for key, value in given.items() if value is not None}


def config_paths(names: list[str], folder: str | None) -> list[Path]:
    """File names with the folder in front and the suffix .yml where there is neither .yml nor .json."""
    named = [name if name.endswith((".yml", ".json")) else f"{name}.yml" for name in names]
    return [Path(folder, name) if folder else Path(name) for name in named]


def encode(values: dict[str, Any]) -> str:
    """URL-safe base64 of the JSON of a configuration."""
    return base64.urlsafe_b64encode(json.dumps(values).encode("utf-8")).decode("ascii")


def hand_over(values: dict[str, Any], folder: str | None) -> str:
    """A configuration as one argument: base64, or the path of a file in `folder` where it is too long for that."""
    encoded = encode(values)
    if len(encoded) <= LONGEST_ARGUMENT:
        return encoded
    name = f"neox_config_{hashlib.sha256(encoded.encode()).hexdigest()[:16]}.json"
    path = Path(folder or ".", name).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json.dumps(values))
    return str(path)


def decode(text: str) -> dict[str, Any]:
    """Counterpart of encode; also takes the path of a JSON file.

    Raises: ConfigError.
    """
    try:
        raw = Path(text).read_bytes() if text.endswith(".json") else base64.urlsafe_b64decode(text)
        values = json.loads(raw)
    except OSError as error:
        raise ConfigError(f"--megatron_config {text}: {error.strerror}") from None
    except (ValueError, binascii.Error):
        raise ConfigError("--megatron_config is neither base64 of JSON nor a .json file") from None
    if not isinstance(values, dict):
        raise ConfigError("--megatron_config does not hold a mapping")
    return values


def as_argument(key: str, value: Any) -> list[str]:
    """A launcher option: true is a bare flag; false and None are nothing."""
    if value is True:
        return [f"--{key}"]
    return [] if value in (False, None) else [f"--{key}", str(value)]


def launcher_options(args: Any) -> list[str]:
    """Options of DeepSpeed's launcher that differ from its defaults."""
    options: list[str] = []
    for key, value in args.runner_options().items():
        if key == "num_gpus" and (args.include or args.exclude):
            continue
        if key in ("comment", "account", "autotuning_run", "launcher_args"):
            continue
        options += as_argument(key, value)
    starter = starter_arguments(args)
    # One word, because the value itself begins with dashes.
    options += [f"--launcher_args={starter}"] if starter else []
    for key, variable in (("hostfile", "DLTS_HOSTFILE"), ("master_addr", "MASTER_ADDR")):
        if os.environ.get(variable):
            options += [f"--{key}", os.environ[variable]]
    return options


def starter_arguments(args: Any) -> str:
    """What the program behind `launcher` is told besides; "" for nothing.

    Comment and account are among it, for Slurm: mainline DeepSpeed's launcher has no flags for them.
    """
    keys = ("comment", "account") if args.launcher == "slurm" else ()
    slurm = [f"--{key}={shlex.quote(value)}" for key in keys if (value := getattr(args, key))]
    return " ".join([*([args.launcher_args] if args.launcher_args else []), *slurm])
