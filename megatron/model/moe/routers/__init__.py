"""Routers, one file per choice of the config key `moe_router_type`."""

from megatron.model.moe.routers.base import Router, Routing

__all__ = ["Router", "Routing"]
