"""A way to a server that takes as long as a test says."""

import contextlib
import selectors
import socket
import threading
import time


class SlowWay:
    """A port of this machine that leads to another, and keeps each piece of what the server says for `seconds`."""

    def __init__(self, port):
        self._to, self.seconds = port, 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._ending = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client):
        with (
            client,
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self._to)) as server,
            selectors.DefaultSelector() as both,
        ):
            for one, other in ((client, server), (server, client)):
                both.register(one, selectors.EVENT_READ, other)
            while not self._ending.is_set():
                for key, _ in both.select(0.1):
                    if not (data := key.fileobj.recv(1 << 16)):
                        return
                    if key.fileobj is server:
                        time.sleep(self.seconds)
                    key.data.sendall(data)

    def close(self):
        """Lead nowhere any more."""
        self._ending.set()
        self._listener.close()
