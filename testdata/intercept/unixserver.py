"""An HTTP server on the unix socket in its first argument, which it removes
before it binds, as servers do that find one left behind."""

import contextlib
import http.server
import os
import socketserver
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"ok\n"
        self.send_response(200)
        self.send_header("Moult-Generation", os.environ.get("MOULT_GENERATION", ""))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):
        return "unix"

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


with contextlib.suppress(FileNotFoundError):
    os.unlink(sys.argv[1])
Server(sys.argv[1], Handler).serve_forever()
