"""The weights of a model in training, for other programs."""
