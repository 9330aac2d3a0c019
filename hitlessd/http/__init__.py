"""HTTP/1.1 without I/O: heads, bodies, and what is changed in them."""
