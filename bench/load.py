"""The load of bench/submits.py: one POST after the other on each of some kept connections, by raw sockets.

    python -m bench.load PORT SECONDS CONNECTIONS BODY

Prints rate, p50_ms and p99_ms as JSON. A process of its own, and next to no work a request: neither the client's own
time nor another's interpreter is in the figures. Any answer but 202 ends it.
"""

import json
import re
import selectors
import socket
import statistics
import sys
import time

LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


class Connection:
    """One kept connection with one request under way; `times` are the seconds that each took."""

    def __init__(self, port: int, request: bytes) -> None:
        self.times: list[float] = []
        self._request = request
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._ask()

    def read(self) -> None:
        """Take what is there; when the answer is whole, ask again."""
        self._answer += self.socket.recv(65536)
        if whole(self._answer):
            self.times.append(time.perf_counter() - self._asked_at)
            self._ask()

    def _ask(self) -> None:
        self._answer = b""
        self._asked_at = time.perf_counter()
        self.socket.sendall(self._request)


def whole(answer: bytes) -> bool:
    """Whether head and body have come; raises RuntimeError for a refusal."""
    head, end, body = answer.partition(b"\r\n\r\n")
    if answer and not answer.startswith(b"HTTP/1.1 202 "[: len(answer)]):
        raise RuntimeError(answer.decode(errors="replace"))
    length = LENGTH.search(head + b"\r\n")
    return bool(end and length and len(body) >= int(length[1]))


def main(port: int, seconds: float, connections: int, body: bytes) -> None:
    """Ask for so many seconds, then print."""
    head = (
        f"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    with selectors.DefaultSelector() as selector:
        all_of_them = [Connection(port, head.encode() + b"\r\n\r\n" + body) for _ in range(connections)]
        for connection in all_of_them:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        start = time.perf_counter()
        while time.perf_counter() - start < seconds or not all(c.times for c in all_of_them):
            for key, _ in selector.select():
                key.data.read()
        took = time.perf_counter() - start
    times = [1000 * spent for connection in all_of_them for spent in connection.times]
    cuts = statistics.quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
    print(json.dumps({"rate": len(times) / took, "p50_ms": cuts[49], "p99_ms": cuts[98]}))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4].encode())
