"""Routers, one file per choice of the config key `moe_router_type`."""
