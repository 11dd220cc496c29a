package worker_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/moult/moult/worker"
)

// embedded is for examples, which share a process: no signals.
var embedded = worker.Config{NoUpgrade: true, Signals: []os.Signal{}}

// A whole server. Here a signal ends it as soon as it is ready.
func ExampleServe() {
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello") })
	cfg := worker.Config{
		NoUpgrade: true, // only because the examples share a process
		OnStage: func(s worker.Stage) {
			if s == worker.StageServing {
				fmt.Println("ready")
				_ = syscall.Kill(os.Getpid(), syscall.SIGTERM)
			}
		},
	}
	if err := worker.Serve(&http.Server{Addr: "127.0.0.1:0"}, cfg); err != nil {
		log.Fatal(err)
	}
	fmt.Println("nothing was cut")
	// Output:
	// ready
	// nothing was cut
}

// The same by parts, with health checks on a port of their own, a hook, and a
// reason of its own to end.
func ExampleNew() {
	w, err := worker.New(embedded)
	if err != nil {
		log.Fatal(err)
	}
	web, err := w.Listen("web=127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	admin, err := w.Listen("admin=127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	w.HTTP(web, &http.Server{Handler: http.NotFoundHandler()})
	w.Health(admin)
	w.Hook(worker.Hook{Name: "database", Timeout: 3 * time.Second, Run: func(context.Context) error {
		fmt.Println("database closed")
		return nil
	}})

	ctx, cancel := context.WithCancelCause(context.Background())
	w.DrainOn(ctx)
	time.AfterFunc(10*time.Millisecond, func() { cancel(fmt.Errorf("out of work")) })
	result := w.Run()
	fmt.Println(result.Reason, result.Err())
	// Output:
	// database closed
	// out of work <nil>
}

// A line-based protocol. The handler finishes the line in hand and says
// goodbye when the connection should end.
func ExampleWorker_Conns() {
	w, err := worker.New(embedded)
	if err != nil {
		log.Fatal(err)
	}
	ln, err := w.Listen("127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	w.Conns(ln, func(ctx context.Context, c net.Conn) {
		// Reading is what the handler waits in.
		stop := context.AfterFunc(worker.Ending(ctx), func() { _ = c.SetReadDeadline(time.Now()) })
		defer stop()
		in := bufio.NewScanner(c)
		for in.Scan() {
			fmt.Fprintln(c, "you said", in.Text())
		}
		fmt.Fprintln(c, "bye")
	})

	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintln(c, "hello")
	in := bufio.NewScanner(c)
	in.Scan()
	fmt.Println(in.Text())
	w.Drain("maintenance")
	in.Scan()
	fmt.Println(in.Text())
	_ = c.Close()
	fmt.Println(w.Wait().Err())
	// Output:
	// you said hello
	// bye
	// <nil>
}

// A stream of events ends when the server wants to, so that it does not hold
// up the drain; the client connects again and reaches the next server.
func ExampleEnding() {
	events := func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(rw, "event")
		_ = http.NewResponseController(rw).Flush()
		select {
		case <-r.Context().Done(): // the client has gone
		case <-worker.Ending(r.Context()).Done():
			fmt.Fprintln(rw, "come again")
		}
	}
	w, err := worker.New(embedded)
	if err != nil {
		log.Fatal(err)
	}
	ln, err := w.Listen("127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	w.HTTP(ln, &http.Server{Handler: http.HandlerFunc(events)})

	resp, err := http.Get("http://" + ln.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	w.Drain("maintenance")
	body, err := io.ReadAll(resp.Body)
	fmt.Print(string(body))
	fmt.Println(err)
	_ = resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	fmt.Println(w.Wait().Err())
	// Output:
	// event
	// come again
	// <nil>
	// <nil>
}

// A server with an accept loop and a graceful stop of its own, such as gRPC's:
// its listener is watched, and a hook of a negative stage stops it.
func ExampleWorker_Watch() {
	w, err := worker.New(embedded)
	if err != nil {
		log.Fatal(err)
	}
	ln, err := w.Listen("127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	srv := &http.Server{} // stands for grpc.NewServer()
	go srv.Serve(w.Watch(ln))
	w.Hook(worker.Hook{Stage: -1, Name: "grpc", Run: func(ctx context.Context) error {
		fmt.Println("graceful stop")
		return srv.Shutdown(ctx)
	}})
	w.Drain("maintenance")
	fmt.Println(w.Run().Err())
	// Output:
	// graceful stop
	// <nil>
}

// Work that is no connection holds the drain up, and is named if it takes too
// long.
func ExampleWorker_Hold() {
	cfg := embedded
	cfg.Drain, cfg.Grace = 10*time.Millisecond, 10*time.Millisecond
	w, err := worker.New(cfg)
	if err != nil {
		log.Fatal(err)
	}
	release := w.Hold("nightly report")
	defer release()
	w.Drain("maintenance")
	fmt.Println(w.Wait().Err())
	// Output:
	// cannot end gracefully: cut: held nightly report
}
