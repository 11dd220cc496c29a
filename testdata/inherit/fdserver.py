"""An HTTP server on an inherited descriptor: fdserver.py FD.

No signal handling at all: TERM ends it wherever it is. HTTP/1.0, a connection
per request, one thread per connection.
"""
import http.server
import os
import socket
import socketserver
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"python\n"
        self.send_response(200)
        self.send_header("Moult-Generation", os.environ.get("MOULT_GENERATION", ""))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

    def __init__(self, fd):
        super().__init__(("", 0), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = socket.socket(fileno=fd)


Server(int(sys.argv[1])).serve_forever()
