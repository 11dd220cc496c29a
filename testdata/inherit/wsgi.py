"""A WSGI application that says which generation it is."""
import os


def application(environ, start_response):
    body = b"wsgi\n"
    start_response("200 OK", [
        ("Moult-Generation", os.environ.get("MOULT_GENERATION", "")),
        ("Content-Length", str(len(body))),
    ])
    return [body]
