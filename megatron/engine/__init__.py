"""Model and optimizer as a DeepSpeed engine, and what a training loop needs around it."""
