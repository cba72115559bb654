"""From text files to token datasets: read in blocks, tokenised by worker processes, written in order."""
