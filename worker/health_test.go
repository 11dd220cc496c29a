package worker

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func ask(t *testing.T, h http.Handler, method string) (int, health) {
	t.Helper()
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(method, "/", nil))
	var got health
	if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil {
		t.Errorf("%q is no JSON: %v", rec.Body, err)
	}
	return rec.Code, got
}

func TestHealthHandlers(t *testing.T) {
	bubble(t, Config{LameDuck: time.Minute}, func(t *testing.T, w *Worker, _ *pipeListener) {
		check := func(code int, status, stage string) {
			t.Helper()
			if c, h := ask(t, w.ReadyHandler(), "GET"); c != code || h.Status != status || h.Stage != stage {
				t.Errorf("readiness %d %+v, want %d %s %s", c, h, code, status, stage)
			}
			if c, h := ask(t, w.LiveHandler(), "GET"); c != 200 || h.Status != status {
				t.Errorf("liveness %d %+v, want 200 %s", c, h, status)
			}
		}
		check(503, "starting", "starting")
		if err := w.Ready(); err != nil {
			t.Fatal(err)
		}
		check(200, "ready", "serving")
		if c, _ := ask(t, w.DrainHandler(), "POST"); c != http.StatusAccepted {
			t.Errorf("the request to drain: %d", c)
		}
		time.Sleep(time.Second)
		check(503, "shutting_down", "lame-duck")
		wantTook(t, w.Wait(), time.Minute)
		check(503, "shutting_down", "ended")
	})
}

func TestDrainHandlerWantsPost(t *testing.T) {
	w := newTestWorker(t, Config{})
	rec := httptest.NewRecorder()
	w.DrainHandler().ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
	if rec.Code != http.StatusMethodNotAllowed || w.Draining().Err() != nil {
		t.Errorf("GET: %d, draining %v", rec.Code, w.Draining().Err())
	}
}

// TestHealthListenerAnswersUntilTheEnd, unless the socket is somebody else's
// as well.
func TestHealthListenerAnswersUntilTheEnd(t *testing.T) {
	for _, alone := range []bool{true, false} {
		w := newTestWorker(t, Config{})
		w.sockets.alone = alone
		ln, err := w.Listen("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		w.Health(ln)
		release := w.Hold("the end")
		w.Drain("test")
		eventually(t, "connections are told", func() bool { return w.Stage() == StageTelling })
		resp, err := http.Get("http://" + ln.Addr().String() + "/readyz")
		if (err == nil) != alone {
			t.Errorf("alone %v: %v, %v", alone, resp, err)
		}
		if err == nil {
			if resp.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("answer %v", resp.Status)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			http.DefaultClient.CloseIdleConnections()
		}
		release()
		wantGraceful(t, w)
	}
}
