"""What GPT-NeoX would write and compute, made from its specification without any of this project's own code."""
