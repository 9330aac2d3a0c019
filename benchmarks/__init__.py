"""What hitlessd costs and how fast it reloads, measured beside Debian's haproxy; and the demonstration."""
