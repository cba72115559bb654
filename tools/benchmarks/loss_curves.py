"""A training curve for every block and every optimizer, on the quickstart's corpus, through the real command line.

    python prepare_data.py stdlib --train-tokenizer --vocab-size 2048
    python tools/benchmarks/loss_curves.py            writes docs/loss_curves/{blocks,optimizers}.{csv,svg}
    python tools/benchmarks/loss_curves.py --only mamba adam --iterations 50 --output /tmp/curves

The rows come from the registry. Finished curves are kept in the CSV files, so a run that was stopped goes on, and a
choice added later adds its curve. --again NAME makes a curve anew.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron import registry
from megatron.common.console import info
from megatron.common.errors import DataError, run_main
from megatron.common.files import atomic_write_text
from megatron.common.optional import require
from megatron.neox_arguments.features import settings_of

ROOT = Path(__file__).resolve().parents[2]
GROUPS = {"blocks": ("attention", "block", "router"), "optimizers": ("optimizer",)}
# A rate that suits each at this size; the others take Adam's.
LEARNING_RATES = {"sgd": 0.5, "sm3": 0.05, "lion": 1e-3, "muon": 0.01, "madgrad_wd": 3e-3}
ADAM_RATE = 3e-3
WINDOW = 10  # iterations averaged per point
SMALL = {
    "num_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "seq_length": 128, "max_position_embeddings": 128,
    "train_batch_size": 16, "num_gpus": 1, "log_interval": WINDOW, "eval_interval": 10**6, "eval_iters": 1,
    "save": None, "s3_path": None, "load": None, "checkpoint_factor": None, "keep_last_n_checkpoints": None,
    "tensorboard_dir": None, "zero_optimization": {"stage": 0}, "master_port": 29611,
}  # fmt: skip


def choices(group: str) -> dict[str, dict]:
    """Name of each curve of a group -> the config values that make it."""
    return {name: settings_of(kind, name) for kind in GROUPS[group] for name in registry.names(kind)}


def configuration(name: str, settings: dict, iterations: int, folder: str) -> dict:
    """What is laid over configs/quickstart.yml."""
    schedule = {"train_iters": iterations, "lr_decay_iters": iterations}
    rate, chosen = LEARNING_RATES.get(name, ADAM_RATE), settings.get("optimizer", {})
    optimizer = {"type": chosen.get("type", "adam"), "params": {**chosen.get("params", {}), "lr": rate}}
    return {
        **SMALL, **settings, **schedule, "optimizer": optimizer, "min_lr": 0.1 * rate, "log_dir": folder,
    }  # fmt: skip


def train(name: str, settings: dict, iterations: int) -> list[tuple[int, float]]:
    """[(iteration, training loss)] of a run.

    Raises: DataError if it fails, with the last line that it wrote.
    """
    quickstart = ROOT / "configs/quickstart.yml"
    with tempfile.TemporaryDirectory(prefix="loss-curve-") as folder:
        values = configuration(name, settings, iterations, folder)
        overlay = Path(folder, "overlay.json")
        overlay.write_text(json.dumps(merged(quickstart, values)))
        command = [sys.executable, "deepy.py", "train.py", str(overlay)]
        run = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
        if run.returncode:
            raise DataError(
                f"the run of {name} failed: {(run.stderr or run.stdout).strip().splitlines()[-1]}"
            )
        lines = Path(folder, "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(record["iteration"], record["train/lm_loss"]) for record in records if "train/lm_loss" in record]


def merged(config: Path, values: dict) -> dict:
    """One config of a file and the values that win over it."""
    import yaml

    return {**yaml.safe_load(config.read_text()), **values}


def read_curves(path: Path) -> dict[str, dict[int, float]]:
    """name -> {iteration: loss} of a CSV file; nothing of a file that is not there."""
    curves: dict[str, dict[int, float]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                curves.setdefault(row["name"], {})[int(row["iteration"])] = float(row["loss"])
    return curves


def write_curves(path: Path, curves: dict[str, dict[int, float]]) -> None:
    lines = ["name,iteration,loss"]
    for name in sorted(curves):
        lines += [f"{name},{iteration},{loss:.4f}" for iteration, loss in sorted(curves[name].items())]
    atomic_write_text(path, "\n".join(lines) + "\n")


def plot(path: Path, title: str, curves: dict[str, dict[int, float]]) -> None:
    """Draw all curves of a group into an SVG file, the lowest end first in the legend."""
    matplotlib = require("matplotlib", "plot", "drawing loss curves")
    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = title  # the same file for the same curves
    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    styles = ("-", "--", ":")
    for number, name in enumerate(sorted(curves, key=lambda name: curves[name][max(curves[name])])):
        points = sorted(curves[name].items())
        label = f"{name} ({points[-1][1]:.2f})"
        axes.plot(*zip(*points, strict=True), label=label, linewidth=1.3, linestyle=styles[number // 10 % 3])
    axes.set(xlabel="iteration", ylabel=f"training loss, mean of {WINDOW} iterations", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    pyplot.close(figure)


def make_group(group: str, options: argparse.Namespace) -> None:
    """Train what is missing of a group and draw it."""
    table = options.output / f"{group}.csv"
    curves = {
        name: points for name, points in read_curves(table).items() if name not in (options.again or [])
    }
    wanted = choices(group)
    for number, (name, settings) in enumerate(wanted.items(), start=1):
        if name in curves or (options.only and name not in options.only):
            continue
        try:
            curves[name] = dict(train(name, settings, options.iterations))
        except DataError as error:
            info(f"[{group} {number}/{len(wanted)}] {error}")
            continue
        info(f"[{group} {number}/{len(wanted)}] {name}: {curves[name][max(curves[name])]:.3f}")
        write_curves(table, curves)
    if curves:
        plot(options.output / f"{group}.svg", f"{group.capitalize()} on the quickstart's corpus", curves)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of the choices to train")
    parser.add_argument("--again", nargs="+", metavar="NAME", help="curves to make anew")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/loss_curves")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for group in GROUPS:
        make_group(group, options)


if __name__ == "__main__":
    run_main(main)
