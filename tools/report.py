#!/usr/bin/env python
"""Show what runs have logged, as one page for the browser: `python tools/report.py logs/mine -o report.html`.

With several runs the page compares them. docs/monitoring.md describes it.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron.common.errors import NeoXError, run_main  # noqa: E402


def main(input_args: list[str] | None = None) -> None:
    """Write the page, and pictures where they are asked for.

    Raises: DataError for a folder without metrics; NeoXError for a page that cannot be written; MissingPackageError for
    pictures without matplotlib.
    """
    parser = argparse.ArgumentParser(description="Make a report of a run, or of several to compare them.")
    parser.add_argument(
        "runs", nargs="+", metavar="RUN_DIR", help="folder with metrics.jsonl: log_dir, else save, of a run"
    )
    parser.add_argument("-o", "--output", default="report.html", help="the page (report.html)")
    parser.add_argument("--title", help="heading of the page (the names of the runs)")
    parser.add_argument("--png", metavar="FOLDER", help="also write every chart as a PNG file there")
    args = parser.parse_args(input_args)
    from megatron.common.files import atomic_write_text, check_writable
    from megatron.run_report.page import page
    from megatron.run_report.records import read_runs

    output = Path(args.output)
    if output.exists() and not output.is_file():
        raise NeoXError(f"--output: {output} is there and is no file; name a file, such as report.html")
    check_writable(output.parent, "--output")
    runs = read_runs(args.runs)
    names = ", ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs"
    atomic_write_text(output, page(runs, args.title or names))
    print(f"{output} ({output.stat().st_size / 1e3:,.0f} kB)")
    if args.png:
        from megatron.run_report.pictures import draw_pictures

        for path in draw_pictures(runs, args.png):
            print(path)


if __name__ == "__main__":
    run_main(main)
