package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"nexusfs/meta"
)

// The control protocol: HTTP over STORE/control.sock (P30). Arguments travel
// as URL parameters, because names are bytes and JSON strings are not. An
// answer is one JSON object, a stream of envelopes one per line, or raw bytes.
// A command without a daemon opens the store and talks to the same handlers in
// its own process, so there is one way through every verb.

// controlVersion is the protocol's: a client refuses a daemon of another one.
const controlVersion = "1"

const versionHeader = "Nexusfs-Control"

// readingLimit bounds a reading transaction: it holds up checkpoints (P30).
const readingLimit = 30 * time.Second

// envelope is one line of a stream. The last line has End or Error; a stream
// without either was cut.
type envelope struct {
	Item     json.RawMessage `json:"item,omitempty"`
	Progress *progress       `json:"progress,omitempty"`
	End      json.RawMessage `json:"end,omitempty"`
	Error    *apiError       `json:"error,omitempty"`
}

// progress is how far a long command is. Total 0: not known.
type progress struct {
	Phase string `json:"phase"`
	Done  int64  `json:"done"`
	Total int64  `json:"total,omitempty"`
}

// apiError is an error on its way to the user.
type apiError struct {
	Message string `json:"error"`
	Exit    int    `json:"exit"`
}

func (e *apiError) Error() string { return e.Message }

func toAPIError(err error) *apiError {
	return &apiError{Message: userText(err), Exit: exitCode(classify(err))}
}

// userText is what a user reads of an error: names escaped, inside words out.
func userText(err error) string {
	var me *meta.Error
	if errors.As(err, &me) && me.Kind == meta.KindReadOnly {
		return "this mount is read-only: mount the store without ro to change it"
	}
	return err.Error()
}

// control serves the verbs of one open store.
type control struct {
	engine *engine
	log    *slog.Logger
	umount func(lazy bool) error // nil without a mount
}

// route is one verb of the protocol.
type route struct {
	pattern string
	handler func(*control, http.ResponseWriter, *http.Request)
}

// routes is the table of the protocol.
func routes() []route {
	return []route{
		{"GET /v1/status", unary((*control).status)},
		{"POST /v1/probe", unary((*control).probe)},
		{"POST /v1/sync", unary((*control).sync)},
		{"POST /v1/umount", unary((*control).unmount)},
		{"GET /v1/log", stream((*control).records)},
		{"GET /v1/versions", unary((*control).versions)},
		{"GET /v1/deleted", stream((*control).deleted)},
		{"GET /v1/cat", (*control).cat},
		{"GET /v1/dump", (*control).dump},
		{"GET /v1/read", (*control).read},
		{"POST /v1/load", stream((*control).load)},
		{"POST /v1/restore", unary((*control).restore)},
		{"POST /v1/purge", stream((*control).purge)},
		{"POST /v1/gc", stream((*control).gc)},
		{"POST /v1/rmr", stream((*control).rmr)},
		{"POST /v1/fsck", stream((*control).fsck)},
		{"POST /v1/sql", stream((*control).sql)},
	}
}

// handler builds the protocol's HTTP handler.
func (c *control) handler() http.Handler {
	mux := http.NewServeMux()
	for _, r := range routes() {
		mux.HandleFunc(r.pattern, func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set(versionHeader, controlVersion)
			if v := req.Header.Get(versionHeader); v != controlVersion {
				writeError(w, fail(exitDaemon, "the daemon speaks version %s of the control protocol and this command version %q: use the daemon's own nexusfs, or mount again", controlVersion, v))
				return
			}
			r.handler(c, w, req)
		})
	}
	return mux
}

// server wraps the handler for a listener of peerConns.
func (c *control) server() *http.Server {
	return &http.Server{
		Handler:           c.handler(),
		ConnContext:       withPeer,
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    128 << 10,
		ErrorLog:          slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
	}
}

func writeError(w http.ResponseWriter, err error) {
	e := toAPIError(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusUnprocessableEntity)
	_ = json.NewEncoder(w).Encode(e) // the client is gone: nobody to tell
}

// unary adapts a verb that answers one object.
func unary[T any](fn func(*control, context.Context, *http.Request) (T, error)) func(*control, http.ResponseWriter, *http.Request) {
	return func(c *control, w http.ResponseWriter, r *http.Request) {
		v, err := fn(c, r.Context(), r)
		if err != nil {
			writeError(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v) // the client is gone: nobody to tell
	}
}

// stream adapts a verb that answers many items and an end.
func stream[T any](fn func(*control, context.Context, *http.Request, *sender) (T, error)) func(*control, http.ResponseWriter, *http.Request) {
	return func(c *control, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-ndjson")
		s := newSender(w)
		stop := s.flushEvery(200 * time.Millisecond)
		end, err := fn(c, r.Context(), r, s)
		stop()
		if err != nil {
			s.send(envelope{Error: toAPIError(err)})
		} else {
			s.send(envelope{End: mustJSON(end)})
		}
		s.flush()
	}
}

// sender writes the envelopes of one answer. Its methods may run concurrently.
type sender struct {
	mu  sync.Mutex
	w   *bufio.Writer // guarded by mu
	rc  *http.ResponseController
	err error // guarded by mu; the first failed write
}

func newSender(w http.ResponseWriter) *sender {
	return &sender{w: bufio.NewWriterSize(w, 32<<10), rc: http.NewResponseController(w)}
}

func (s *sender) send(e envelope) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		_, s.err = s.w.Write(append(line, '\n'))
	}
	return s.err
}

// item sends one result.
func (s *sender) item(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.send(envelope{Item: data})
}

// progress tells how far a command is; it is lost silently when the client is gone.
func (s *sender) progress(phase string, done, total int64) {
	_ = s.send(envelope{Progress: &progress{phase, done, total}})
}

func (s *sender) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && s.w.Buffered() > 0 {
		s.err = s.w.Flush()
		if s.err == nil {
			s.err = s.rc.Flush()
		}
	}
}

// flushEvery sends what is buffered at intervals, until stop is called.
func (s *sender) flushEvery(d time.Duration) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(d)
		defer t.Stop()
		for {
			select {
			case <-done:
				return
			case <-t.C:
				s.flush()
			}
		}
	}()
	return func() { close(done); <-ended }
}

// mustJSON encodes our own plain structs, which cannot fail.
func mustJSON(v any) json.RawMessage {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}
