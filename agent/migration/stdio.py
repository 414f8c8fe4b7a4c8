"""`python -m agent.migration.stdio SOCKET`: joins standard input and output with a UNIX socket, for rsync's `--rsh`.

rsync adds words of its own (the host, and the command that it would run there), which mean nothing here.
"""

import os
import socket
import sys
import threading

PIECE_BYTES = 256 * 1024


def main() -> int:
    """Carry both directions until both have ended."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(sys.argv[1])

    def send() -> None:
        while piece := os.read(0, PIECE_BYTES):
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)

    threading.Thread(target=send, daemon=True).start()
    while piece := connection.recv(PIECE_BYTES):
        view = memoryview(piece)
        while view:
            view = view[os.write(1, view) :]
    return 0


if __name__ == "__main__":
    sys.exit(main())
