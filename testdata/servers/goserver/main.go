// Command goserver is a server that knows of no supervisor: it listens as
// net.Listen does by default, and answers. With "shutdown" as its second
// argument it finishes what is under way when it gets TERM, without it TERM
// ends it at once.
package main

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	big, err := os.ReadFile(os.Getenv("BIG"))
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: answers(big)}
	gone := make(chan struct{})
	if len(os.Args) > 2 && os.Args[2] == "shutdown" {
		go shutDown(server, gone)
	}
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
	<-gone
}

func answers(big []byte) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok\n")) })
	mux.HandleFunc("/big", func(w http.ResponseWriter, _ *http.Request) { w.Write(big) })
	return mux
}

func shutDown(server *http.Server, gone chan<- struct{}) {
	defer close(gone)
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	<-term
	if err := server.Shutdown(context.Background()); err != nil {
		log.Print(err)
	}
}
