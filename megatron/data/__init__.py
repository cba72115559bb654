"""From token files to batches: indexed data sets, index maps, blending, samplers and loaders."""
