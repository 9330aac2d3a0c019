"""HTTP/1 without I/O: heads, bodies, what is changed in a head that is passed on, and answers of our own."""
