"""Looks a name up by libc for each request, as a proxy or a client of a
database does. A few threads, no other work, so that the lookup weighs."""
import socket
import sys
import threading


def look_up():
    # With this flag libc asks the kernel which families have an address: it
    # binds a netlink socket each time.
    socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)


def answer(connection):
    request = b""
    while b"\r\n\r\n" not in request:
        received = connection.recv(65536)
        if not received:
            return
        request += received
    look_up()
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n")


def serve(listener):
    while True:
        connection, _ = listener.accept()
        with connection:
            answer(connection)


listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((sys.argv[1], int(sys.argv[2])))
listener.listen(128)
for _ in range(3):
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
serve(listener)
