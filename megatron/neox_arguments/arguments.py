"""NeoXArgs: the one flat, typed configuration of a run."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.common.console import print_rank_0
from megatron.common.errors import ConfigError
from megatron.common.hosts import resource_pool
from megatron.neox_arguments import batch, command_line, deepspeed_view, environment, log_files
from megatron.neox_arguments.companions import idle_keys
from megatron.neox_arguments.deepspeed_args import NeoXArgsDeepspeedConfig, NeoXArgsDeepspeedRunner
from megatron.neox_arguments.derive import (
    DERIVATIONS,
    OPT_DEFAULT,
    OPT_PARAMS_DEFAULTS,
    ZERO_DEFAULTS,
    assume_devices,
)
from megatron.neox_arguments.loading import read_files
from megatron.neox_arguments.markers import mark_of
from megatron.neox_arguments.neox_args import (
    NeoXArgsLogging,
    NeoXArgsLRScheduler,
    NeoXArgsModel,
    NeoXArgsMoE,
    NeoXArgsOptimizer,
    NeoXArgsOther,
    NeoXArgsParallelism,
    NeoXArgsTextgen,
    NeoXArgsTokenizer,
    NeoXArgsTraining,
)
from megatron.neox_arguments.report import describe_all, describe_changes
from megatron.neox_arguments.rules import RULES
from megatron.neox_arguments.steps import Findings
from megatron.neox_arguments.suggestions import nearest, unknown_key
from megatron.neox_arguments.support import unsupported
from megatron.neox_arguments.types import Mismatch, admits_none, choices_of, conform, describe
from megatron.registry import lookup

if TYPE_CHECKING:
    import torch

__all__ = ["BASE_CLASSES", "DEEPSPEED_ARG_CLASSES", "NEOX_ARG_CLASSES", "OPT_DEFAULT", "OPT_PARAMS_DEFAULTS"]
__all__ += ["ZERO_DEFAULTS", "NeoXArgs"]

DEEPSPEED_ARG_CLASSES = [NeoXArgsDeepspeedRunner, NeoXArgsDeepspeedConfig]
NEOX_ARG_CLASSES = [
    NeoXArgsTextgen,
    NeoXArgsTraining,
    NeoXArgsTokenizer,
    NeoXArgsMoE,
    NeoXArgsOther,
    NeoXArgsParallelism,
    NeoXArgsLogging,
    NeoXArgsLRScheduler,
    NeoXArgsOptimizer,
    NeoXArgsModel,
]
BASE_CLASSES = DEEPSPEED_ARG_CLASSES + NEOX_ARG_CLASSES


@dataclass
class NeoXArgs(
    NeoXArgsDeepspeedRunner,
    NeoXArgsDeepspeedConfig,
    NeoXArgsTextgen,
    NeoXArgsTraining,
    NeoXArgsTokenizer,
    NeoXArgsMoE,
    NeoXArgsOther,
    NeoXArgsParallelism,
    NeoXArgsLogging,
    NeoXArgsLRScheduler,
    NeoXArgsOptimizer,
    NeoXArgsModel,
):
    """All keys in one namespace, checked and completed on construction.

    Nothing needs to write to it afterwards; `variant` makes a changed copy. Runtime objects that others attach
    (`tokenizer`, `tensorboard_writer`) are plain attributes, not keys.

    Raises: ConfigError that lists every problem of the configuration.
    """

    dry_run = False
    preflight = False
    assumes_devices = False
    tokenizer = None
    tensorboard_writer = None
    adlr_autoresume_object = None

    def __post_init__(self) -> None:
        self.validate_keys()
        findings = Findings()
        self._check_values(findings)
        given = {declared.name: getattr(self, declared.name) for declared in fields(self)}
        DERIVATIONS.run(self, findings)
        self._check_derived(given, findings)
        RULES.run(self, findings)
        if findings.problems:
            raise ConfigError(findings.problems)
        # (as given, as derived): what is handed on is what was given, to be derived again.
        self._derived = {
            key: (value, getattr(self, key)) for key, value in given.items() if getattr(self, key) != value
        }

    # Construction

    @classmethod
    def from_ymls(
        cls, paths_to_yml_files: Iterable[str | Path], overwrite_values: dict[str, Any] | None = None
    ) -> "NeoXArgs":
        """Merge configuration files; `overwrite_values` win over them. Keys may be written with dashes."""
        values, texts = read_files(paths_to_yml_files)
        return cls.from_dict({**values, "config_files": texts, **(overwrite_values or {})})

    @classmethod
    def from_dict(cls, args_dict: dict[str, Any]) -> "NeoXArgs":
        """From values by key, exactly as spelled."""
        known = [declared.name for declared in fields(cls)]
        problems = [unknown_key(str(key), known) for key in args_dict if key not in known]
        try:
            args = cls(**{key: value for key, value in args_dict.items() if key in known})
        except ConfigError as error:
            raise ConfigError(problems + error.problems) from None
        if problems:
            raise ConfigError(problems)
        return args

    @classmethod
    def consume_deepy_args(cls, input_args: list[str] | None = None) -> "NeoXArgs":
        """From the command line of deepy.py.

        Attributes: dry_run: only a plan is wanted; preflight: the hosts are to be checked first.
        """
        files, overrides, wanted = command_line.parse_deepy(input_args)
        values, texts = read_files(files)
        values = {**values, "config_files": texts, **overrides}
        if values.get("use_wandb") and not values.get("wandb_group"):
            values["wandb_group"] = f"run-{secrets.token_hex(4)}"
        planned = assume_devices(values) if wanted["dry_run"] else values
        args = cls.from_dict(planned)
        args.dry_run, args.preflight = wanted["dry_run"], wanted["preflight"]
        args.assumes_devices = planned != values
        return args

    @classmethod
    def consume_neox_args(
        cls, overwrite_values: dict[str, Any] | None = None, input_args: list[str] | None = None
    ) -> "NeoXArgs":
        """From the command line of a worker: the launcher's hand-over, or plain configuration files (torchrun)."""
        handed_over, files, options = command_line.parse_worker(input_args)
        if handed_over is not None:
            args = cls.from_dict({**command_line.decode(handed_over), **(overwrite_values or {})})
        else:
            values, texts = read_files(files)
            values = {**values, **options, "config_files": texts, **(overwrite_values or {})}
            args = cls.from_dict(environment.sized(values))
        args.enable_logging()
        return args

    def variant(self, **changes: Any) -> "NeoXArgs":
        """A copy with some keys changed and everything that follows from them derived anew."""
        return type(self).from_dict({**self.handover(), **changes})

    # Checks

    @classmethod
    def validate_keys(cls) -> None:
        """No key may be declared by two groups."""
        seen: dict[str, str] = {}
        for group in BASE_CLASSES:
            for declared in fields(group):
                owner = seen.setdefault(declared.name, group.__name__)
                assert owner == group.__name__, f"{declared.name} is declared by {owner} and {group.__name__}"

    def validate_types(self) -> bool:
        """Whether every value fits its key's type."""
        findings = Findings()
        self._check_values(findings)
        return not findings.problems

    def validate_values(self) -> bool:
        """Whether the values go together."""
        findings = Findings()
        RULES.run(self, findings)
        return not findings.problems

    def calculate_derived(self) -> None:
        """Complete the values that follow from others.

        Raises: ConfigError.
        """
        findings = Findings()
        DERIVATIONS.run(self, findings)
        if findings.problems:
            raise ConfigError(findings.problems)

    def _check_values(self, findings: Findings) -> None:
        """Types and support of every key; a bad value is set back to the default so that the checks can go on."""
        for declared in fields(self):
            key, value = declared.name, getattr(self, declared.name)
            if value is declared.default:
                continue
            if value is None and not admits_none(declared.type):
                setattr(self, key, declared.default)
                continue
            try:
                setattr(self, key, conform(value, declared.type))
            except Mismatch:
                findings.add(_wrong_type(key, value, declared.type), key)
                setattr(self, key, declared.default)
                continue
            refused = unsupported(declared, getattr(self, key))
            if refused:
                findings.add(refused, key)
                setattr(self, key, declared.default)

    def _check_derived(self, given: dict[str, Any], findings: Findings) -> None:
        """A derived key the user sets must say the same as its source."""
        for declared in fields(self):
            key, mark = declared.name, mark_of(declared)
            if mark is None or mark.kind != "derived" or key in findings.broken:
                continue
            if given[key] != declared.default and given[key] != getattr(self, key):
                findings.add(
                    f"{key}={given[key]!r} follows from {mark.reason}, which makes it {getattr(self, key)!r}; "
                    f"change {mark.reason} instead"
                )

    # Views

    @property
    def params_dtype(self) -> "torch.dtype":
        """Number format of the forward pass."""
        import torch

        return {"fp16": torch.half, "bfloat16": torch.bfloat16}.get(str(self.precision), torch.float)

    @property
    def data_parallel_size(self) -> int:
        """Number of copies of the model."""
        return int(self.global_num_gpus or 1) // (max(1, self.pipe_parallel_size) * self.model_parallel_size)

    @property
    def deepspeed_config(self) -> dict[str, Any]:
        """The dictionary that deepspeed.initialize takes."""
        return deepspeed_view.build(self)

    @property
    def deepspeed_runner(self) -> dict[str, Any]:
        """The launcher's keys."""
        return self.get_parent_class_value_dict(NeoXArgsDeepspeedRunner)

    @property
    def megatron_config(self) -> dict[str, Any]:
        """The keys this program reads."""
        return self.get_parent_class_value_dict(*NEOX_ARG_CLASSES)

    @property
    def all_config(self) -> dict[str, Any]:
        """All keys."""
        return self.get_parent_class_value_dict(*BASE_CLASSES)

    def get_parent_class_value_dict(
        self, *parent_classes: type, only_non_defaults: bool = False
    ) -> dict[str, Any]:
        """Values of the keys of some groups."""
        values = {}
        for group in parent_classes:
            for declared in fields(group):
                value = getattr(self, declared.name)
                if not only_non_defaults or value != declared.default:
                    values[declared.name] = value
        return values

    def get_parent_class_value_dict_extra_ds(
        self, *parent_classes: type, only_non_defaults: bool = False
    ) -> dict[str, Any]:
        """As get_parent_class_value_dict, with the keys of deepspeed_extra_args in place of that key."""
        values = self.get_parent_class_value_dict(*parent_classes, only_non_defaults=only_non_defaults)
        values.pop("deepspeed_extra_args", None)
        return {**values, **self.get_extra_deepspeed_args()}

    def get_extra_deepspeed_args(self) -> dict[str, Any]:
        """The keys handed to DeepSpeed as they are."""
        return dict(self.deepspeed_extra_args or {})

    def runner_options(self) -> dict[str, Any]:
        """The launcher's keys that differ from their defaults, in order of declaration."""
        return self.get_parent_class_value_dict(NeoXArgsDeepspeedRunner, only_non_defaults=True)

    def non_defaults(self) -> dict[str, Any]:
        """Every key that differs from its default."""
        return self.get_parent_class_value_dict(*BASE_CLASSES, only_non_defaults=True)

    def handover(self) -> dict[str, Any]:
        """What a worker needs in order to build the same configuration: what was given, and what only the launcher
        knows."""
        values = {}
        for declared in fields(self):
            key, value = declared.name, getattr(self, declared.name)
            given, derived = self._derived.get(key, (value, value))
            if value == derived and key not in ("global_num_gpus", "git_hash"):
                value = given
            if value != declared.default:
                values[key] = value
        return values

    def notes(self) -> list[str]:
        """One line for each key that is read in another sense than written, dropped, or without effect."""
        found = [*deepspeed_view.notes(self), *idle_keys(self)]
        if self.hostfile and not Path(self.hostfile).is_file():
            allocated = resource_pool(self.hostfile, launcher=self.launcher)
            where = "the hosts of the allocation" if allocated else "this machine only"
            found.append(f"hostfile={self.hostfile!r} does not exist: the job runs on {where}")
        return found

    # Launch

    def worker_arguments(self, may_write: bool = True) -> list[str]:
        """Command line of user_script that carries this configuration to it.

        Args: may_write: put a configuration that is too long for a command line into a file.
        """
        values, folder = self.handover(), self.save or self.log_dir
        carried = command_line.hand_over(values, folder) if may_write else command_line.encode(values)
        return [
            "--deepspeed_config",
            command_line.encode(self.deepspeed_config),
            "--megatron_config",
            carried,
        ]

    def resuming_arguments(self) -> list[str]:
        """worker_arguments of a run that goes on from the newest checkpoint in `save`, wherever this one began."""
        onwards = {
            "load": self.save,
            "iteration": None,
            "finetune": False,
            "no_load_optim": False,
            "no_load_rng": False,
        }
        return type(self).from_dict({**self.handover(), **onwards}).worker_arguments()

    def get_deepspeed_main_args(self) -> list[str]:
        """Command line of DeepSpeed's launcher that starts user_script with this configuration."""
        return [*command_line.launcher_options(self), str(self.user_script), *self.worker_arguments()]

    @staticmethod
    def convert_key_value_to_command_line_arg(k: str, v: Any) -> list[str]:
        """`--k v`; true is a bare flag; false and None are nothing."""
        return command_line.as_argument(k, v)

    def configure_distributed_args(self) -> None:
        """Take local_rank, rank and world_size from the environment (also Slurm's or MPI's)."""
        ranks = environment.place(self.handover())
        self.local_rank, self.rank, self.world_size = ranks.local_rank, ranks.rank, ranks.world_size
        if ranks.world_size != self.global_num_gpus:
            raise ConfigError(
                f"the job was started with {ranks.world_size} processes, but the configuration is for "
                f"global_num_gpus={self.global_num_gpus}"
                + ("" if ranks.launched else "; start the script through deepy.py or torchrun")
            )
        print_rank_0(f"world size {self.world_size}, model parallel size {self.model_parallel_size}")

    # Batch sizes

    @staticmethod
    def calculate_batch_parameters(
        dp_world_size: int,
        train_batch: int | None = None,
        micro_batch: int | None = None,
        grad_acc: int | None = None,
    ) -> tuple[int, int, int]:
        """See megatron.neox_arguments.batch."""
        return batch.calculate_batch_parameters(dp_world_size, train_batch, micro_batch, grad_acc)

    @staticmethod
    def check_batch_parameters(dp_world_size: int, train_batch: int, micro_batch: int, grad_acc: int) -> None:
        """See megatron.neox_arguments.batch."""
        batch.check_batch_parameters(dp_world_size, train_batch, micro_batch, grad_acc)

    # Services

    def build_tokenizer(self) -> None:
        """Build `tokenizer`, which sets padded_vocab_size."""
        from megatron.tokenizer import build_tokenizer

        self.tokenizer = build_tokenizer(self)

    def initialize_tensorboard_writer(self) -> None:
        """On rank 0 open `tensorboard_writer` in tensorboard_dir; without the package, warn and go on."""
        if self.tensorboard_dir and self.rank == 0:
            self.tensorboard_writer = log_files.event_writer(self.tensorboard_dir)

    def initialize_comet(self) -> None:
        """With use_comet start `comet_experiment` on rank 0, which the log goes to.

        Raises: MissingPackageError without the package; NeoXError without a key.
        """
        sink = lookup("log sink", "comet")
        if sink.wanted(self, self.rank or 0):
            sink(self)

    def enable_logging(self) -> None:
        """Copy standard output and error of this process into files of log_dir; rank 0 writes the configuration too."""
        if self.log_dir:
            log_files.tee_output(Path(self.log_dir))
            log_files.write_configuration(Path(self.log_dir), self.all_config)

    def summary(self) -> str:
        """What differs from the defaults, and which old keys are read in another sense."""
        return "\n".join(
            ["configuration:", describe_changes(self), *(f"note: {note}" for note in self.notes())]
        )

    def print(self) -> None:
        """Print all keys on rank 0, changed ones first."""
        print_rank_0(describe_all(self))


def _wrong_type(key: str, value: Any, expected: Any) -> str:
    choices = choices_of(expected)
    close = nearest(value, choices) if isinstance(value, str) and choices else None
    hint = f"; did you mean {close!r}?" if close else ""
    return f"{key}={value!r} must be {describe(expected)}{hint}"
