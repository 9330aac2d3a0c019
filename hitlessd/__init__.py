"""hitlessd: a systemd-native load balancer that no operator action makes drop a connection."""

__version__ = "0.1.0"
