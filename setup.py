"""Packaging. Ranges here are wide; requirements/*.txt pin what the tests run with (a test keeps both in step)."""

from pathlib import Path

from setuptools import find_packages, setup

INSTALL_REQUIRES = [
    "torch>=2.6,<3",
    "deepspeed>=0.19,<0.20",
    "numpy>=1.26,<3",
    "PyYAML>=6.0",
    "tokenizers>=0.20",
    "tqdm>=4.60",
    "pybind11>=2.11",
    "zstandard>=0.20",
    "zlib-ng>=0.5",
    "ftfy>=6.0",
    "tensorboard>=2.14",
    "setuptools>=68",  # torch.utils.cpp_extension, which builds the optional C++ helpers
]

EXTRAS = {
    "tensorboard": ["tensorboard>=2.14"],
    "wandb": ["wandb>=0.16"],
    "comet": ["comet-ml>=3.45"],
    "bnb": ["bitsandbytes>=0.45"],
    "flashattention": ["flash-attn>=2.5"],
    "transformerengine": ["transformer-engine[pytorch]>=2.0"],
    "plot": ["matplotlib>=3.8"],
    "mamba": ["mamba-ssm>=2.0", "causal-conv1d>=1.2"],
    "s3": ["boto3>=1.28"],
    "hf": ["transformers>=5,<6", "safetensors>=0.4"],
    "spm": ["sentencepiece>=0.2"],
    "tiktoken": ["tiktoken>=0.7"],
    "eval": ["lm-eval>=0.4.10,<0.5"],  # 0.4.4 to 0.4.9 cannot be imported beside transformers 5
}
EXTRAS["dev"] = [
    *EXTRAS["hf"],
    *EXTRAS["spm"],
    *EXTRAS["tiktoken"],
    *EXTRAS["s3"],
    *EXTRAS["plot"],
    *EXTRAS["eval"],
    *EXTRAS["wandb"],
    *EXTRAS["comet"],
    "accelerate>=0.26",  # with peft, for lm_eval's own model, which ours is compared with
    "peft>=0.10",
    "moto[s3]>=5",  # with these two a server that speaks S3's language; its extra [server] is for all of AWS
    "flask>=3",
    "flask-cors>=5",
    "mypy>=1.10",
    "pre-commit>=3",
    "pytest>=8",
    "pytest-xdist>=3",
    "ruff>=0.6",
    "types-PyYAML",
    "types-tqdm",
]
# These compile CUDA code while they install, so "all" leaves them to the extras of their own.
COMPILED = ("flashattention", "transformerengine", "mamba")
EXTRAS["all"] = sorted({name for extra, names in EXTRAS.items() if extra not in COMPILED for name in names})

if __name__ == "__main__":
    setup(
        name="gpt-neox",
        version=Path(__file__).with_name("VERSION").read_text(encoding="utf-8").strip(),
        description="Training large autoregressive language models with Megatron-style parallelism and DeepSpeed",
        long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
        long_description_content_type="text/markdown",
        license="Apache-2.0",
        python_requires=">=3.10,<3.14",
        packages=find_packages(include=["megatron", "megatron.*", "eval_tasks"]),
        package_data={"megatron": ["**/*.cpp", "**/*.cu", "**/*.h", "**/*.html", "**/*.css", "**/*.js"]},
        install_requires=INSTALL_REQUIRES,
        extras_require=EXTRAS,
    )
