"""RWKV: blocks whose attention is a recurrence with a state of fixed size."""
