"""Let the processes of a job meet and measure the network between their hosts. `deepy.py --preflight` runs this.

python deepy.py tools/clusters/measure_network.py -d configs 20B.yml local_setup.yml
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.common.errors import run_main  # noqa: E402
from megatron.launcher.links import measure  # noqa: E402

if __name__ == "__main__":
    run_main(measure)
