"""Fetch the weights of a model in training from its weight servers, into one safetensors file (docs/serving.md).

python tools/serving/fetch_weights.py weights.safetensors --ranks 2
python tools/serving/fetch_weights.py weights.safetensors --servers node1:6000 node1:6001 node2:6002 node2:6003
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.common.errors import ConfigError, run_main  # noqa: E402
from megatron.common.files import atomic_path  # noqa: E402
from megatron.common.messages import WEIGHT_TOKEN  # noqa: E402
from megatron.common.optional import require  # noqa: E402
from megatron.serving.client import addresses, fetch_model  # noqa: E402


def _place(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--servers: {text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Fetch the weights of a model in training.",
        epilog=f"What the environment has as {WEIGHT_TOKEN} is sent to the servers.",
    )
    parser.add_argument("output", type=Path, help="safetensors file to write; its metadata has the iteration")
    parser.add_argument("--servers", nargs="+", metavar="HOST:PORT", help="one for each rank of the job")
    parser.add_argument("--host", default="127.0.0.1", help="of a job on one machine")
    parser.add_argument("--port", type=int, default=6000, help="weight_server_port of the job (6000)")
    parser.add_argument("--ranks", type=int, default=1, help="processes of the job (1)")
    parser.add_argument("--wait", type=float, default=60.0, help="seconds to wait for an iteration (60)")
    args = parser.parse_args()
    if args.ranks < 1:
        raise ConfigError(f"--ranks: {args.ranks} must be at least 1")
    places = [_place(text) for text in args.servers or []] or addresses(args.host, args.port, args.ranks)
    version, weights = fetch_model(places, seconds=args.wait)
    with atomic_path(args.output) as path:
        save = require("safetensors.torch", "hf", "fetch_weights.py").save_file
        save(weights, path, metadata={"iteration": str(version)})
    print(f"{args.output}: {len(weights)} parameters after iteration {version}")


if __name__ == "__main__":
    run_main(main)
