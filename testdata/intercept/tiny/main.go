// Tiny is a server on the port of 127.0.0.1 in its first argument, so small
// that it is quickly built for another architecture in the middle of a test.
// Without an argument it leaves at once, with 1.
package main

import (
	"os"
	"strconv"
	"syscall"
)

func main() {
	if len(os.Args) < 2 {
		os.Exit(1)
	}
	port, err := strconv.Atoi(os.Args[1])
	must(err)
	listener, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	must(err)
	must(syscall.Bind(listener, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}))
	must(syscall.Listen(listener, 128))
	answer := "HTTP/1.1 200 OK\r\nMoult-Generation: " + os.Getenv("MOULT_GENERATION") + "\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
	for {
		connection, _, err := syscall.Accept(listener)
		must(err)
		syscall.Read(connection, make([]byte, 4096))
		syscall.Write(connection, []byte(answer))
		syscall.Close(connection)
	}
}

func must(err error) {
	if err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(2)
	}
}
