"""Scores of a model by EleutherAI's lm-evaluation-harness, in every layout; see docs/evaluation.md."""
