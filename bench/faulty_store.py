"""A way to the bucket that can be made to fail: a proxy that passes bytes on, answers 503, hangs, or drops."""

import contextlib
import socket
import threading
from typing import Self
from urllib.parse import urlsplit

_REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class FaultyStore:
    """`mode` is `well`, `503`, `hang` or `drop`; `drop` ends each connection once some of an upload has passed."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self._door = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._door.getsockname()[1]}"
        self.mode = "well"

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._door.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._door.accept()
                threading.Thread(target=self._connection, args=(client,), daemon=True).start()

    def _connection(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(self._upstream) as server:
            threading.Thread(target=self._pass_back, args=(server, client), daemon=True).start()
            while data := client.recv(65536):
                if self.mode == "hang":
                    # Until the client loses its patience.
                    while client.recv(65536):
                        pass
                    return
                if self.mode == "503":
                    client.sendall(_REFUSAL)
                    return
                if self.mode == "drop":
                    server.sendall(data[: len(data) // 2])
                    return
                server.sendall(data)

    @staticmethod
    def _pass_back(server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)
