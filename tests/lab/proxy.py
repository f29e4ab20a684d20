"""A TCP proxy in front of a host that loses connections on demand."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from .namespaces import GATEWAY, LabError, World

PIECE_BYTES = 65536
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Proxy:
    """Passes connections on to a host until it cuts (RST to both sides) or stalls (open, but nothing passes).

    The counters hold the bytes passed on over all connections; limits count those of one connection, in the direction
    "from_host" or "to_host". Only the first `times` connections are limited, or all of them.
    """

    def __init__(
        self, world: World, target: tuple[str, int], *, cut_after_bytes: int | None = None,
        stall_after_bytes: int | None = None, dead: bool = False, direction: str = "from_host",
        times: int | None = None,
    ) -> None:  # fmt: skip
        if direction not in ("from_host", "to_host"):
            raise LabError(f"the direction of a proxy is 'from_host' or 'to_host', not {direction!r}")
        self.world = world
        self.target = target
        self.cut_after_bytes = cut_after_bytes
        self.stall_after_bytes = 0 if dead else stall_after_bytes
        self.dead = dead
        self.direction = direction
        self.times = times
        self.connections = 0
        self.from_host_bytes = 0
        self.to_host_bytes = 0
        self.all_stalled = threading.Event()
        self.closed = threading.Event()
        self.lock = threading.Lock()
        self.open: set[socket.socket] = set()
        self.listener = world.in_network(lambda: socket.create_server((GATEWAY, 0)))
        self.address, self.port = self.listener.getsockname()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while not self.closed.is_set():
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            limited = self.times is None or self.connections <= self.times
            threading.Thread(target=self.serve, args=(client, limited), daemon=True).start()

    def serve(self, client: socket.socket, limited: bool) -> None:
        self.keep(client)
        if limited and self.dead:
            return
        try:
            host = self.world.in_network(lambda: socket.create_connection(self.target, timeout=30))
        except OSError:
            self.drop(client)
            return
        host.settimeout(None)
        self.keep(host)
        stalled = threading.Event()
        for source, sink, direction in ((client, host, "to_host"), (host, client, "from_host")):
            counted = limited and direction == self.direction
            threading.Thread(target=self.pump, args=(source, sink, direction, counted, stalled), daemon=True).start()

    def pump(
        self, source: socket.socket, sink: socket.socket, direction: str, counted: bool, stalled: threading.Event
    ) -> None:
        passed = 0
        limits = [limit for limit in (self.cut_after_bytes, self.stall_after_bytes) if limit is not None]
        limit = min(limits) if counted and limits else None
        with contextlib.suppress(OSError):
            while limit is None or passed < limit:
                piece = source.recv(PIECE_BYTES if limit is None else min(PIECE_BYTES, limit - passed))
                if stalled.is_set() or self.all_stalled.is_set():
                    return
                if not piece:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(piece)
                passed += len(piece)
                with self.lock:
                    name = f"{direction}_bytes"
                    setattr(self, name, getattr(self, name) + len(piece))
            if self.cut_after_bytes is not None and passed >= self.cut_after_bytes:
                self.drop(source, sink)
            else:
                stalled.set()

    def keep(self, connection: socket.socket) -> None:
        with self.lock:
            self.open.add(connection)

    def drop(self, *connections: socket.socket) -> None:
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                # A close alone does not wake a thread that reads; this does, and still resets.
                connection.shutdown(socket.SHUT_RD)
            connection.close()
            with self.lock:
                self.open.discard(connection)

    def cut(self) -> None:
        """Reset the connections that are open now; new ones are served."""
        with self.lock:
            now = list(self.open)
        self.drop(*now)

    def stall(self) -> None:
        """Pass nothing on any more on any connection, without closing one."""
        self.all_stalled.set()

    def close(self) -> None:
        self.closed.set()
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()
