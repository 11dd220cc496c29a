# moult alone, as the base of an image that runs a server under it:
#
#     FROM moult
#     COPY server /server
#     CMD ["--", "/server"]
#
# A new program in a running container (a volume, a copied file) is then taken
# into service by `docker kill --signal HUP CONTAINER`.

FROM golang:1.26 AS build
WORKDIR /src

# The modules come before the sources, so that an edit does not fetch them anew.
COPY go.mod go.sum ./
RUN go mod download
COPY . .

# The last stage has no libc: without cgo the binary needs none. Symbols are
# dropped because the master stays resident; a trace of a panic does not need
# them. The tag leaves out a renderer of Markdown that the library of the command
# line brings along. TARGETOS and TARGETARCH are set by builders that build for another
# platform, and are empty elsewhere, which means "this one".
ARG VERSION=dev
ARG TARGETOS
ARG TARGETARCH
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -tags urfave_cli_no_docs -ldflags "-s -w -X main.version=$VERSION" -o /moult .

# Nothing but the master: no shell that could swallow the signals on the way.
FROM scratch
COPY --from=build /moult /moult

# TERM drains and then stops. It is the default of docker and podman, but a
# base image may have changed it (nginx's says QUIT, which cuts here).
STOPSIGNAL SIGTERM

# The exec form: moult itself is PID 1, gets the signals, and reaps what the
# server orphans. Everything after the image's name is moult's command line.
ENTRYPOINT ["/moult"]
