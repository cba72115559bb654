"""Models of other programs into checkpoints of this one and back, tensor by tensor.

What belongs to a model family stands in megatron/families; here files are read and written.
"""
