"""A TCP proxy on loopback that a test can cut: what goes through stops without a word, as on a network that is broken, or is reset."""

import contextlib
import socket
import threading


class TcpProxy:
    """Forwards connections to `target` ("host:port") until `cut` or `reset`. A context manager."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._open = threading.Event()
        self._open.set()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._spawn(self._accept)

    def cut(self) -> None:
        """From now on nothing goes through, in either direction, and nobody is told."""
        self._open.clear()

    def mend(self) -> None:
        """Undoes `cut`: what waited goes through."""
        self._open.set()

    def reset(self) -> None:
        """Ends all connections at once."""
        for each in self._sockets:
            with contextlib.suppress(OSError):  # ended already
                each.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "TcpProxy":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()
        for thread in self._threads:
            thread.join(60)
        for each in self._sockets:
            each.close()

    def _spawn(self, run, *given) -> None:
        thread = threading.Thread(target=run, args=given, name="tcp-proxy", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(near)  # before the target answers: `reset` ends this connection too
            try:
                far = socket.create_connection(self._target)
            except OSError:  # the target is away, and may come back
                near.close()
                continue
            self._sockets.append(far)
            self._spawn(self._forward, near, far)
            self._spawn(self._forward, far, near)

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the connection was ended
            while data := source.recv(65_536):
                self._open.wait()
                target.sendall(data)
        self._open.wait()
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
