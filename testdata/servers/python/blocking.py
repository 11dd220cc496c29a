"""One connection at a time: accept, answer, close. No signal is handled."""
import os
import socket
import sys

BIG = open(os.environ["BIG"], "rb").read()


def answer(connection):
    request = b""
    while b"\r\n\r\n" not in request:
        received = connection.recv(65536)
        if not received:
            return
        request += received
    body = BIG if request.startswith(b"GET /big ") else b"ok\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    connection.sendall(head + body)


listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((sys.argv[1], int(sys.argv[2])))
listener.listen(5)
while True:
    connection, _ = listener.accept()
    with connection:
        answer(connection)
