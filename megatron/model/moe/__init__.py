"""Mixture of experts: an MLP of which every token uses a few parts, chosen by a router."""
