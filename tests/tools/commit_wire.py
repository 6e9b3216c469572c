"""Between a client and a server of PostgreSQL: a test can break a connection around a COMMIT."""

import contextlib
import socket
import threading


class CommitWire:
    """Forwards connections to the server at `url`; those to its own `url` go through it. `cut`: the connection that next sends
    a COMMIT breaks, "before" it passes, or "behind" it, when the server has answered and nobody was told. With "late" the
    server gets that COMMIT when `deliver` is called, long after the connection of the client has broken. `bound`: a socket with the
    address at which to listen; by default one of its own.
    """

    def __init__(self, url: str, bound: socket.socket | None = None) -> None:
        before, _, port = url.rpartition(":")
        number, _, database = port.partition("/")
        self._port = int(number)
        self._listening = bound or socket.create_server(("127.0.0.1", 0))
        self._listening.listen()
        self.url = f"{before}:{self._listening.getsockname()[1]}/{database}"
        self.cut = ""
        self._late = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self._port))
            threading.Thread(target=self._pass, args=(client, there, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(there, client, False), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, from_client: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                cut = self.cut if from_client and b"COMMIT" in data else ""
                if cut == "before":
                    self.cut = ""
                    break
                if cut:
                    self.cut = ""
                    source.shutdown(socket.SHUT_RDWR)
                    if cut == "late":
                        self._late.wait()
                    target.sendall(data)
                    return  # the other thread reads the answer, cannot pass it on, and closes both
                target.sendall(data)
        except OSError:
            pass
        for each in (source, target):
            with contextlib.suppress(OSError):  # the other thread, which may wait for data, has ended it
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def deliver(self) -> None:
        self._late.set()

    def close(self) -> None:
        self._late.set()
        self._listening.close()
