"""How one generation replaces another: HAProxy's `_getsocks` and our own `_takeover`."""
