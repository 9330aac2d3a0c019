"""HTTP/1 between clients and servers: the part of a worker that knows messages."""
