"""What is aimed at. Ratios are of user and system CPU a unit, to haproxy 2.6 on the same core in the same run."""

from __future__ import annotations

from typing import Final

TCP_SINGLE: Final = 1.05
TCP_KEPT: Final = 1.05
BULK: Final = 0.40
"""With splice(2), to haproxy as shipped, which has splicing off."""
HTTP_KEPT: Final = 1.10
HTTP_KEPT_NGINX: Final = 0.90
HTTP_SINGLE: Final = 1.25
"""With http-reuse safe, the default of both: a client's first request gets a connection of its own to the server."""
IDLE_MEMORY: Final = 1.00
LATENCY: Final = 2.0
"""p99.9 of new connections at half load during RELOADS_A_SECOND, to the same left alone."""
RELOADS_A_SECOND: Final = 4.0
RELOAD_MS: Final = 150.0
"""Median, 10 binds and 10 servers."""
MOVED_S: Final = 0.5
"""For 10,000 connections."""
FLAT: Final = 1.15
"""CPU a connection beside many idle ones, with many servers or many proxies, to that with the fewest."""
