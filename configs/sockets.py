"""Listening TCP sockets whose connections send small frames at once."""

import socket
from typing import Any


def listening_socket(family: int, address: Any) -> socket.socket:
    """A TCP socket listening at `address` (as for `bind`); raises `OSError`.

    The protocol is named because asyncio sets TCP_NODELAY on accepted connections only where it is; without that, small
    frames wait up to 40 ms. Ports of connections just closed count as free; a port with a listener never does.
    """
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener
