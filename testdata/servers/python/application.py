"""The same two answers for a WSGI server and for an ASGI server."""
import os

BIG = open(os.environ["BIG"], "rb").read()


def body_of(path):
    return BIG if path == "/big" else b"ok\n"


def wsgi(environ, start_response):
    body = body_of(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        raise ValueError("cannot answer " + scope["type"])
    body = body_of(scope["path"])
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
