package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"time"

	"nexusfs/meta"
)

// actorInfo is who did an operation, as commands show it.
type actorInfo struct {
	UID       uint32 `json:"uid"`
	GID       uint32 `json:"gid"`
	PID       uint32 `json:"pid,omitempty"`
	StartTime uint64 `json:"start_time,omitempty"`
	Exe       string `json:"exe,omitempty"`
	Cgroup    string `json:"cgroup,omitempty"`
	Node      string `json:"node,omitempty"`
	Agent     string `json:"declared_agent,omitempty"`
	Task      string `json:"declared_task,omitempty"`
}

func toActor(a meta.Actor) actorInfo {
	return actorInfo{a.UID, a.GID, a.PID, a.StartTime, a.Exe, a.Cgroup, a.Node, a.Agent, a.Task}
}

// recordInfo is one operation record, as `nexusfs log --json` shows it.
type recordInfo struct {
	Rev     meta.Rev        `json:"rev"`
	Op      string          `json:"op"`
	Time    time.Time       `json:"time"`
	Ino     meta.Ino        `json:"ino"`
	Path    bytesName       `json:"path,omitempty"`
	NewPath bytesName       `json:"new_path,omitempty"`
	Parent  meta.Ino        `json:"parent,omitempty"`
	Name    bytesName       `json:"name,omitempty"`
	NewDir  meta.Ino        `json:"new_parent,omitempty"`
	NewName bytesName       `json:"new_name,omitempty"`
	Version int64           `json:"version,omitempty"`
	Size    int64           `json:"size,omitempty"`
	Actor   actorInfo       `json:"actor"`
	Before  json.RawMessage `json:"before,omitempty"`
	After   json.RawMessage `json:"after,omitempty"`
	Late    string          `json:"late,omitempty"`
}

func (p *pathNames) record(ctx context.Context, r *meta.Record) recordInfo {
	info := recordInfo{
		Rev: r.Rev, Op: r.Kind.String(), Time: time.Unix(0, r.Time).UTC(), Ino: r.Ino,
		Parent: r.Parent, Name: bytesName(r.Name), NewDir: r.NewParent, NewName: bytesName(r.NewName),
		Version: r.Version, Size: r.Size, Actor: toActor(r.Actor),
		Before: rawObject(r.Before), After: rawObject(r.After),
	}
	switch {
	case r.Name != "":
		info.Path = p.name(ctx, r.Parent, r.Name)
	case r.Ino != 0:
		info.Path = bytesName(p.of(ctx, r.Ino))
	}
	if r.NewName != "" {
		info.NewPath = p.name(ctx, r.NewParent, r.NewName)
	}
	return info
}

// rawObject passes JSON on as it is stored; what is none becomes a string.
func rawObject(s string) json.RawMessage {
	if s == "" {
		return nil
	}
	if json.Valid([]byte(s)) {
		return json.RawMessage(s)
	}
	return mustJSON(s)
}

// logEnd closes a log: how far it reached.
type logEnd struct {
	Last meta.Rev `json:"last"`
}

// records answers `nexusfs log`.
func (c *control) records(ctx context.Context, r *http.Request, s *sender) (logEnd, error) {
	q := query{r: r}
	f := meta.RecordFilter{
		Since: meta.Rev(q.int("since")), Until: meta.Rev(q.int("until")),
		Limit: int(q.int("limit")), Reverse: q.bool("reverse"),
	}
	follow := q.bool("follow")
	from, to := q.time("since_time"), q.time("until_time")
	if q.err != nil {
		return logEnd{}, q.err
	}
	if some, err := c.between(ctx, &f, from, to); err != nil || !some {
		return logEnd{f.Since}, err
	}
	if p := r.FormValue("path"); p != "" && p != "/" {
		at, err := c.find(ctx, p)
		if err != nil {
			return logEnd{}, err
		}
		f.Ino = at.ino
	}
	if follow && c.engine.news == nil {
		return logEnd{}, fail(exitDaemon, "the store is not mounted, so nothing can follow: leave --follow out")
	}
	names := c.pathNames()
	last := f.Since
	for {
		wake := c.engine.news.wait()
		read, err := c.someRecords(ctx, f, names, s)
		last = max(last, read)
		if err != nil || !follow {
			return logEnd{last}, err
		}
		s.flush()
		f.Since, f.Limit, f.Reverse = last, 0, false
		names = c.pathNames()
		select {
		case <-ctx.Done():
			return logEnd{last}, ctx.Err()
		case <-c.engine.stopping:
			return logEnd{last}, nil
		case <-wake:
		}
	}
}

// between narrows a filter to the records from one time to another, both
// included. some: there may be any.
func (c *control) between(ctx context.Context, f *meta.RecordFilter, from, to *int64) (some bool, err error) {
	head, err := c.engine.store.Head(ctx)
	if err != nil {
		return false, err
	}
	if from != nil {
		before, err := lastBefore(ctx, c.engine.history, head.Rev, *from)
		if err != nil {
			return false, err
		}
		f.Since = max(f.Since, before)
	}
	if to != nil {
		last, err := lastBefore(ctx, c.engine.history, head.Rev, *to+1)
		if err != nil || last <= f.Since {
			return false, err
		}
		if f.Until == 0 || last < f.Until {
			f.Until = last
		}
	}
	return true, nil
}

// lastBefore finds the newest revision, up to head, whose record is older than
// a time, by bisection: times grow with revisions. Where the clock was set back
// it finds one of the places where they pass that time.
func lastBefore(ctx context.Context, h meta.History, head meta.Rev, ns int64) (meta.Rev, error) {
	lo, hi := meta.Rev(0), head // the record of lo is older, those above hi are not
	for lo < hi {
		mid := lo + (hi-lo)/2
		next, older := meta.Rev(0), false
		err := h.Records(ctx, meta.RecordFilter{Since: mid, Until: hi, Limit: 1}, func(r *meta.Record) bool {
			next, older = r.Rev, r.Time < ns
			return false
		})
		switch {
		case err != nil:
			return 0, err
		case older:
			lo = next
		default:
			hi = mid
		}
	}
	return lo, nil
}

// someRecords sends what the filter selects, within one bounded read.
func (c *control) someRecords(ctx context.Context, f meta.RecordFilter, names *pathNames, s *sender) (last meta.Rev, err error) {
	const page = 1000 // records read before their paths are: no transaction stays open meanwhile
	want := f.Limit
	for {
		f.Limit = page
		if want > 0 {
			f.Limit = min(page, want)
		}
		var buf []meta.Record
		err := c.engine.history.Records(ctx, f, func(r *meta.Record) bool {
			buf = append(buf, *r)
			return true
		})
		if err != nil {
			return last, err
		}
		late, err := c.lateAnswers(ctx, buf)
		if err != nil {
			return last, err
		}
		for i := range buf {
			info := names.record(ctx, &buf[i])
			info.Late = late[info.Rev]
			last = max(last, info.Rev)
			if err := s.item(info); err != nil {
				return last, err
			}
		}
		want -= len(buf)
		if len(buf) < f.Limit || want == 0 {
			return last, nil
		}
		if f.Reverse {
			f.Until = buf[len(buf)-1].Rev - 1
		} else {
			f.Since = buf[len(buf)-1].Rev
		}
		if f.Reverse && f.Until <= 0 {
			return last, nil
		}
	}
}

// lateAnswers finds which of the records were committed and not acknowledged (P6).
func (c *control) lateAnswers(ctx context.Context, buf []meta.Record) (map[meta.Rev]string, error) {
	if len(buf) == 0 {
		return nil, nil
	}
	lo, hi := buf[0].Rev, buf[len(buf)-1].Rev
	late := map[meta.Rev]string{}
	err := c.engine.history.Query(ctx, lateAnswersQuery, []any{int64(min(lo, hi)), int64(max(lo, hi)), c.engine.zone},
		func([]string) error { return nil },
		func(row []any) error {
			rev, _ := row[0].(int64)
			reason, _ := row[1].(string)
			late[meta.Rev(rev)] = reason
			return nil
		})
	return late, err
}

// lateAnswersQuery reads by key: the view operations has the same as
// not_acknowledged, but a range of its revisions is a scan.
const lateAnswersQuery = `SELECT l.rev & 281474976710655, l.reason FROM zones z
	JOIN late_answers l ON l.rev BETWEEN (z.zone << 48) + ? AND (z.zone << 48) + ? WHERE z.name = ?`

// versionInfo is one version of a file.
type versionInfo struct {
	N     int64     `json:"version"`
	First meta.Rev  `json:"first_rev"`
	Rev   meta.Rev  `json:"rev"`
	Size  int64     `json:"size"`
	Time  time.Time `json:"time"`
	Actor actorInfo `json:"actor"`
}

// versionsInfo answers `nexusfs versions`.
type versionsInfo struct {
	Path     bytesName     `json:"path"`
	Ino      meta.Ino      `json:"ino"`
	Deleted  bool          `json:"deleted,omitempty"`
	Versions []versionInfo `json:"versions"`
}

func (c *control) versions(ctx context.Context, r *http.Request) (versionsInfo, error) {
	p := r.FormValue("path")
	at, err := c.find(ctx, p)
	if err != nil {
		return versionsInfo{}, err
	}
	list, err := c.engine.history.Versions(ctx, at.ino)
	if err != nil {
		return versionsInfo{}, err
	}
	out := versionsInfo{Path: bytesName(p), Ino: at.ino, Deleted: !at.live, Versions: []versionInfo{}}
	for _, v := range list {
		out.Versions = append(out.Versions, versionInfo{v.N, v.First, v.Rev, v.Size, time.Unix(0, v.Time).UTC(), toActor(v.Actor)})
	}
	return out, nil
}

// cat answers with the bytes of one version.
func (c *control) cat(w http.ResponseWriter, r *http.Request) {
	v, err := c.openVersion(r)
	if err != nil {
		writeError(w, err)
		return
	}
	defer v.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Trailer", errorTrailer)
	w.WriteHeader(http.StatusOK)
	if err := copyVersion(r.Context(), w, v); err != nil {
		w.Header().Set(errorTrailer, escapeName(err.Error()))
	}
}

func (c *control) openVersion(r *http.Request) (*meta.VersionHandle, error) {
	q := query{r: r}
	version := q.int("version")
	if q.err != nil {
		return nil, q.err
	}
	ctx := r.Context()
	at, n, err := c.findVersion(ctx, r.FormValue("path"), version)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		if n, err = c.newestVersion(ctx, at.ino); err != nil {
			return nil, err
		}
	}
	v, err := c.engine.fs.OpenVersion(ctx, at.ino, n)
	if meta.KindOf(err) == meta.KindNotExist {
		return nil, fail(exitMissing, "version %d of %s is not kept: `nexusfs versions` lists what is", n, escapeName(r.FormValue("path")))
	}
	return v, err
}

func (c *control) newestVersion(ctx context.Context, ino meta.Ino) (int64, error) {
	list, err := c.engine.history.Versions(ctx, ino)
	if err != nil {
		return 0, err
	}
	if len(list) == 0 {
		return 0, fail(exitMissing, "this is not a file with content of its own: it has no versions")
	}
	return list[len(list)-1].N, nil
}

// copyVersion sends a version in pieces. Holes arrive as zeros.
func copyVersion(ctx context.Context, w io.Writer, v *meta.VersionHandle) error {
	buf := make([]byte, 1<<20)
	for off := int64(0); off < v.Size(); {
		n, err := v.Read(ctx, off, buf[:min(int64(len(buf)), v.Size()-off)])
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// query reads numbers and switches of a request; err is the first mistake.
type query struct {
	r   *http.Request
	err error
}

func (q *query) int(key string) int64 {
	s := q.r.FormValue(key)
	if s == "" {
		return 0
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if (err != nil || n < 0) && q.err == nil {
		q.err = fail(exitUsage, "%s=%s is not a number", key, escapeName(s))
	}
	return n
}

// time reads nanoseconds since 1970; nil when there are none.
func (q *query) time(key string) *int64 {
	s := q.r.FormValue(key)
	if s == "" {
		return nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil && q.err == nil {
		q.err = fail(exitUsage, "%s=%s is not a number of nanoseconds", key, escapeName(s))
	}
	return &n
}

func (q *query) bool(key string) bool { return q.r.FormValue(key) == "true" }
