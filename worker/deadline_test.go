package worker

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A pipeListener makes connections without the kernel, so that the clock of a
// synctest bubble stands still while nothing happens.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (l *pipeListener) dial() net.Conn {
	client, server := net.Pipe()
	l.conns <- server
	return client
}

// bubble runs f with a worker and a listener of it, in a bubble.
func bubble(t *testing.T, cfg Config, f func(*testing.T, *Worker, *pipeListener)) {
	synctest.Test(t, func(t *testing.T) { f(t, newTestWorker(t, cfg), newPipeListener()) })
}

func wantTook(t *testing.T, r Result, want time.Duration) {
	t.Helper()
	if r.Took != want {
		t.Errorf("the end took %v, want exactly %v", r.Took, want)
	}
}

// stubborn does not end before its context does, and then some.
func stubborn(more time.Duration) func(context.Context, net.Conn) {
	return func(ctx context.Context, _ net.Conn) {
		<-ctx.Done()
		time.Sleep(more)
	}
}

func TestNothingToDo(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, w *Worker, _ *pipeListener) {
		w.Drain("test")
		wantTook(t, wantGraceful(t, w), 0)
	})
}

func TestDrainLimitThenGraceThenForce(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, w *Worker, ln *pipeListener) {
		cutAt := make(chan time.Time, 1)
		w.Conns(ln, func(_ context.Context, c net.Conn) {
			_, _ = c.Read(make([]byte, 1))
			cutAt <- time.Now()
		})
		ln.dial()
		synctest.Wait()
		began := time.Now()
		w.Drain("test")
		r := w.Wait()
		wantTook(t, r, 35*time.Second) // 30s and 5s
		if at := (<-cutAt).Sub(began); at != 35*time.Second {
			t.Errorf("cut after %v", at)
		}
		if len(r.Cut) != 1 || r.Cut[0].State != "open" || r.Err() == nil {
			t.Errorf("cut %v, error %v; want the one connection", r.Cut, r.Err())
		}
	})
}

func TestContextsEndWithTheDrainLimit(t *testing.T) {
	bubble(t, Config{Drain: 10 * time.Second, Grace: 3 * time.Second}, func(t *testing.T, w *Worker, ln *pipeListener) {
		w.Conns(ln, stubborn(2*time.Second))
		ln.dial()
		synctest.Wait()
		w.Drain("test")
		wantTook(t, wantGraceful(t, w), 12*time.Second)
	})
}

// TestIdleTimeExactly: an idle connection lives for Config.Idle after the
// beginning of the drain, or after its last answer if that is later.
func TestIdleTimeExactly(t *testing.T) {
	bubble(t, Config{Idle: 4 * time.Second}, func(t *testing.T, w *Worker, ln *pipeListener) {
		w.HTTP(ln, &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			rw.(http.Flusher).Flush() // the header says nothing about the end
			if r.URL.Path == "/slow" {
				time.Sleep(3 * time.Second)
			}
		})})
		idle, busy := ln.dial(), ln.dial()
		mustWrite2(t, busy, "GET /slow HTTP/1.1\r\nHost: test\r\n\r\n")
		synctest.Wait()
		began := time.Now()
		w.Drain("test")
		var wg sync.WaitGroup
		for c, want := range map[net.Conn]time.Duration{idle: 4 * time.Second, busy: 7 * time.Second} {
			wg.Go(func() {
				_, _ = io.Copy(io.Discard, c)
				if got := time.Since(began); got != want {
					t.Errorf("a connection ended after %v, want %v", got, want)
				}
			})
		}
		wg.Wait()
		wantGraceful(t, w)
	})
}

func TestDownloadInsideTheLimitIsNotCut(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, w *Worker, ln *pipeListener) {
		w.HTTP(ln, &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			for range 29 {
				_, _ = io.WriteString(rw, "x")
				time.Sleep(time.Second)
			}
		})})
		c := ln.dial()
		mustWrite2(t, c, "GET / HTTP/1.0\r\n\r\n")
		synctest.Wait()
		go w.Drain("test")
		body, err := io.ReadAll(c)
		if err != nil || len(body) < 29 {
			t.Errorf("%d bytes, %v", len(body), err)
		}
		wantTook(t, wantGraceful(t, w), 29*time.Second)
	})
}

func TestLameDuck(t *testing.T) {
	bubble(t, Config{LameDuck: 7 * time.Second}, func(t *testing.T, w *Worker, ln *pipeListener) {
		w.Conns(ln, func(_ context.Context, c net.Conn) { _, _ = io.Copy(c, c) })
		if err := w.Ready(); err != nil {
			t.Fatal(err)
		}
		w.Drain("test")
		time.Sleep(6 * time.Second)
		c := ln.dial() // everything still works
		mustWrite2(t, c, "x")
		if w.Stage() != StageLameDuck {
			t.Errorf("stage %v", w.Stage())
		}
		_, _ = c.Read(make([]byte, 1))
		_ = c.Close()
		wantTook(t, wantGraceful(t, w), 7*time.Second)
	})
}

// TestHijackedAreToldAfterHTTP: when the last request is over, or after half
// of the limit.
func TestHijackedAreToldAfterHTTP(t *testing.T) {
	for _, test := range []struct{ request, told time.Duration }{
		{3 * time.Second, 3 * time.Second},
		{25 * time.Second, 15 * time.Second},
	} {
		bubble(t, Config{}, func(t *testing.T, w *Worker, ln *pipeListener) {
			plain := newPipeListener()
			told := make(chan time.Time, 1)
			w.Conns(plain, func(ctx context.Context, _ net.Conn) {
				<-Ending(ctx).Done()
				told <- time.Now()
			})
			w.HTTP(ln, &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(test.request) })})
			plain.dial()
			c := ln.dial()
			mustWrite2(t, c, "GET / HTTP/1.0\r\n\r\n")
			synctest.Wait()
			began := time.Now()
			w.Drain("test")
			_, _ = io.Copy(io.Discard, c)
			if got := (<-told).Sub(began); got != test.told {
				t.Errorf("request of %v: told after %v, want %v", test.request, got, test.told)
			}
			wantTook(t, wantGraceful(t, w), test.request)
		})
	}
}

func TestHooks(t *testing.T) {
	bubble(t, Config{HookPause: time.Second}, func(t *testing.T, w *Worker, _ *pipeListener) {
		var mu sync.Mutex
		var ran []string
		began := time.Now()
		add := func(stage int, name string, run func(context.Context) error) {
			w.Hook(Hook{Stage: stage, Name: name, Timeout: 2 * time.Second, Run: func(ctx context.Context) error {
				mu.Lock()
				ran = append(ran, name+" "+time.Since(began).String())
				mu.Unlock()
				return run(ctx)
			}})
		}
		failure := errors.New("on purpose")
		add(3, "last", func(context.Context) error { return nil })
		add(0, "fails", func(context.Context) error { return failure })
		add(1, "panics", func(context.Context) error { panic("on purpose") })
		add(2, "hangs", func(context.Context) error { time.Sleep(time.Minute); return nil })
		w.Drain("test")
		r := w.Wait()
		want := []string{"fails 0s", "panics 1s", "hangs 2s", "last 5s"}
		if !slices.Equal(ran, want) {
			t.Errorf("ran %q, want %q", ran, want)
		}
		wantTook(t, r, 5*time.Second)
		var hook *HookError
		if len(r.Errors) != 3 || !errors.Is(r.Err(), failure) || !errors.Is(r.Err(), context.DeadlineExceeded) || !errors.As(r.Err(), &hook) {
			t.Errorf("errors %v, want those of the three that failed", r.Errors)
		}
		time.Sleep(time.Minute) // what hangs has to leave the bubble
	})
}

// TestHooksOfOneStageRunTogether and of an early stage beside the connections.
func TestHooksOfOneStageRunTogether(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, w *Worker, ln *pipeListener) {
		for range 3 {
			w.Hook(Hook{Name: "slow", Run: func(context.Context) error { time.Sleep(3 * time.Second); return nil }})
		}
		w.Hook(Hook{Stage: -1, Name: "beside", Run: func(context.Context) error { time.Sleep(9 * time.Second); return nil }})
		w.Conns(ln, func(ctx context.Context, _ net.Conn) { <-Ending(ctx).Done(); time.Sleep(10 * time.Second) })
		ln.dial()
		synctest.Wait()
		w.Drain("test")
		wantTook(t, wantGraceful(t, w), 13*time.Second)
	})
}

func TestHoldIsWaitedForAndNamed(t *testing.T) {
	bubble(t, Config{Drain: 8 * time.Second, Grace: time.Second}, func(t *testing.T, w *Worker, _ *pipeListener) {
		released := w.Hold("released")
		w.Hold("forgotten")
		time.AfterFunc(4*time.Second, released)
		w.Drain("test")
		r := w.Wait()
		wantTook(t, r, 9*time.Second)
		if len(r.Cut) != 1 || r.Cut[0].Request != "forgotten" {
			t.Errorf("cut %v, want the one that was forgotten", r.Cut)
		}
		released() // once more does no harm
	})
}

func TestKillEndsAtOnce(t *testing.T) {
	bubble(t, Config{LameDuck: time.Hour}, func(t *testing.T, w *Worker, ln *pipeListener) {
		w.Hook(Hook{Name: "skipped", Run: func(context.Context) error { t.Error("the hook ran"); return nil }})
		w.Conns(ln, stubborn(0))
		ln.dial()
		synctest.Wait()
		w.Drain("test")
		time.Sleep(2 * time.Second)
		w.Kill()
		r := w.Wait()
		wantTook(t, r, 2*time.Second)
		if !r.Killed || len(r.Cut) != 1 || !errors.Is(r.Err(), context.Canceled) {
			t.Errorf("result %+v", r)
		}
	})
}

func TestTriggers(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, w *Worker, _ *pipeListener) {
		ctx, cancel := context.WithCancelCause(context.Background())
		w.DrainOn(ctx)
		synctest.Wait()
		if w.Draining().Err() != nil {
			t.Fatal("it drains without a reason")
		}
		cancel(errors.New("maintenance"))
		if r := wantGraceful(t, w); r.Reason != "maintenance" {
			t.Errorf("reason %q", r.Reason)
		}
	})
}

func TestServerThatFailsEndsTheWorker(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, w *Worker, ln *pipeListener) {
		w.HTTPS(ln, &http.Server{}, "/no/such/file", "/no/such/file")
		if r := w.Wait(); len(r.Errors) != 1 || r.Err() == nil {
			t.Errorf("result %+v", r)
		}
	})
}
