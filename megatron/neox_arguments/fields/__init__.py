"""Declarations of all configuration keys, one module per group.

Each field has a type, a default and a docstring; configs/neox_arguments.md is generated from them
(megatron/neox_arguments/reference.py). How a field is treated beyond its type is said by a marker (markers.py).
"""
