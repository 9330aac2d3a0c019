"""stub"""

from __future__ import annotations


class Body:
    def __init__(self, kind, length):
        self.kind = kind
        self.left = length if kind == 1 else (1 << 60 if kind == 3 else 0)
        self.done = kind == 0 or (kind == 1 and not length)
        self.buf = b""
        self.state = 0  # 0 size line 1 data 2 crlf 3 trailer

    @property
    def until_close(self):
        return self.kind == 3

    def end(self):
        if self.kind == 3:
            self.done = True
        return self.done

    @property
    def countable(self):
        return self.kind != 2

    @property
    def raw(self):
        return self.left if self.state == 1 or self.kind in (1, 3) else 0

    def skip(self, n):
        self.left -= n
        if not self.left:
            if self.kind == 1:
                self.done = True
            elif self.kind == 2:
                self.state = 2

    def take(self, data):
        if self.kind != 2:
            n = min(len(data), self.left)
            self.skip(n) if n else None
            return n
        at = 0
        data = bytes(data)
        while at < len(data) and not self.done:
            if self.state == 1:
                n = min(len(data) - at, self.left)
                self.left -= n
                at += n
                if not self.left:
                    self.state = 2
                continue
            self.buf += data[at : at + 1]
            at += 1
            if self.buf.endswith(b"\r\n"):
                line = self.buf[:-2]
                self.buf = b""
                if self.state == 0:
                    self.left = int(line.split(b";")[0], 16)
                    self.state = 1 if self.left else 3
                elif self.state == 2:
                    self.state = 0
                elif not line:
                    self.done = True
        return at

    def words(self):
        return (self.kind, self.left, self.state, int(self.done), *self.buf)

    @classmethod
    def of(cls, w):
        b = cls(w[0], 0)
        b.left = w[1]
        b.state = w[2]
        b.done = bool(w[3])
        b.buf = bytes(w[4:])
        return b


NOTHING = Body(0, 0)
