"""The runtime API: HAProxy's stats socket, in its words and formats."""
