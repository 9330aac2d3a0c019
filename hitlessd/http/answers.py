"""stub"""


def error_answer(status):
    return b"HTTP/1.1 %d X\r\nconnection: close\r\ncontent-length: 3\r\n\r\nerr" % status
