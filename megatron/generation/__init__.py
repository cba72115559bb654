"""Sampling from a trained model: choosing tokens, decoding batches, prompts in and records out."""
