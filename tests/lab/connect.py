"""ssh's ProxyCommand into a lab from outside: `connect.py PID ADDRESS PORT`, with ProxyUseFdpass=yes.

Makes the connection in the network of the lab whose first process is PID and hands it to ssh, which then needs no
process in between. Imports nothing of the lab: it runs for every connection.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys

CLONE_NEWNET = 0x40000000
INSIDE = "LAB_INSIDE"


def main(pid: str, address: str, port: str) -> None:
    if not os.environ.get(INSIDE):
        with open(f"/proc/{pid}/ns/net") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "the lab's network cannot be entered")
    connection = socket.create_connection((address, int(port)))
    with socket.socket(fileno=os.dup(1)) as ssh:
        socket.send_fds(ssh, [b"\0"], [connection.fileno()])


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OSError as error:
        sys.exit(f"error: no way into the lab: {error}")
