"""Data sets and objectives."""

from dataclasses import dataclass
from typing import Literal

from megatron.neox_arguments.markers import later, partly
from megatron.neox_arguments.template import NeoXArgsTemplate

Paths = list[str] | None
Weights = list[float] | None


@dataclass
class TrainingData(NeoXArgsTemplate):
    """Where samples come from."""

    data_path: str | None = None
    """Prefix of one indexed data set that `split` divides into training, validation and test parts."""

    use_shared_fs: bool = True
    """All machines see the same files, so rank 0 alone builds index maps. False: one process of each machine does."""

    train_data_paths: Paths = None
    """Prefixes of the training data sets. Excludes data_path; needs valid_data_paths and test_data_paths."""

    train_label_data_paths: Paths = None
    """Prefixes of label data sets (unshifted, -100 where no loss is wanted), one per training data set."""

    train_reward_data_paths: Paths = later(None)
    """Prefixes of data sets with one reward per training document."""

    test_data_paths: Paths = None
    """Prefixes of the test data sets."""

    test_label_data_paths: Paths = None
    """Labels of the test data sets."""

    test_reward_data_paths: Paths = later(None)
    """Rewards of the test data sets."""

    valid_data_paths: Paths = None
    """Prefixes of the validation data sets."""

    valid_label_data_paths: Paths = None
    """Labels of the validation data sets."""

    valid_reward_data_paths: Paths = later(None)
    """Rewards of the validation data sets."""

    pos_train_data_paths: Paths = later(None)
    """Preferred answers, training."""

    neg_train_data_paths: Paths = later(None)
    """Rejected answers, training."""

    pos_train_label_data_paths: Paths = later(None)
    """Labels of the preferred answers, training."""

    neg_train_label_data_paths: Paths = later(None)
    """Labels of the rejected answers, training."""

    pos_valid_data_paths: Paths = later(None)
    """Preferred answers, validation."""

    neg_valid_data_paths: Paths = later(None)
    """Rejected answers, validation."""

    pos_valid_label_data_paths: Paths = later(None)
    """Labels of the preferred answers, validation."""

    neg_valid_label_data_paths: Paths = later(None)
    """Labels of the rejected answers, validation."""

    pos_test_data_paths: Paths = later(None)
    """Preferred answers, test."""

    neg_test_data_paths: Paths = later(None)
    """Rejected answers, test."""

    pos_test_label_data_paths: Paths = later(None)
    """Labels of the preferred answers, test."""

    neg_test_label_data_paths: Paths = later(None)
    """Labels of the rejected answers, test."""

    train_data_weights: Weights = None
    """Relative share of each training data set; equal shares when unset."""

    valid_data_weights: Weights = None
    """Relative share of each validation data set; equal shares when unset."""

    test_data_weights: Weights = None
    """Relative share of each test data set; equal shares when unset."""

    weight_by_num_documents: bool = False
    """Take the shares from the number of documents of each data set."""

    weighted_sampler_alpha: float = 1.0
    """Exponent of the document counts in weight_by_num_documents (arXiv 1901.07291)."""

    data_impl: Literal["infer", "mmap", "cached"] = "infer"
    """Reader of the indexed data sets; infer looks at the magic number of the index."""

    pack_impl: Literal["packed", "pack_until_overflow", "unpacked"] = "packed"
    """How documents fill samples: cut from one long stream, several whole ones per sample, or one per sample."""

    dataset_impl: Literal["gpt2", "pairwise", "online"] = partly("gpt2", "online")
    """Kind of samples: token streams, pairs of answers, or those of a live sample server (docs/serving.md)."""

    allow_chopped: bool = True
    """Cut documents longer than a sample instead of leaving them out; packed data is always cut."""

    mmap_warmup: bool = False
    """Read each data file once from end to end before mapping it."""

    split: str = "969, 30, 1"
    """Shares of data_path for training, validation and test."""

    num_workers: int = 2
    """Processes that each data loader reads with."""


@dataclass
class TrainingObjective(NeoXArgsTemplate):
    """What is optimised."""

    train_impl: Literal["normal", "dpo", "rm", "kto", "reinforce"] = partly("normal")
    """Objective: language modelling, preference pairs (dpo), reward model (rm), kto or reinforce."""

    dpo_fp32: bool = later(True)
    """Compute DPO's log-probabilities in fp32."""

    dpo_reference_free: bool = later(False)
    """Use DPO without a reference model."""

    dpo_beta: float = later(0.1)
    """DPO temperature (arXiv 2305.18290)."""

    kto_fp32: bool = later(True)
    """Compute KTO's log-probabilities in fp32."""

    kto_desirable_weight: float = later(1.0)
    """Weight of samples with a positive reward."""

    kto_undesirable_weight: float = later(1.0)
    """Weight of samples with a negative reward."""

    z_loss: float = 0.0
    """Weight of the mean squared log of the softmax's denominator in a language model's loss (arXiv 2204.02311; 1e-4
    is usual), or of the squared scores in a reward model's."""

    kto_beta: float = later(0.1)
    """KTO temperature (arXiv 2402.01306)."""

    fp32_reinforce: bool = later(True)
    """Compute REINFORCE's log-probabilities in fp32."""

    kl_impl: Literal["abs", "mse", "kl", "full"] = later("mse")
    """Estimator of the divergence from the reference model."""

    kl_div_beta: float = later(0.1)
    """Weight of that divergence; above 0 a reference model is loaded."""

    reinforce_leave_one_out: bool = False
    """The baseline of an online sample's reward is the mean of the prompt's other samples, instead of the mean of the
    last prompts. With train_impl normal rewards and advantages are logged and not trained on."""
