package main

import (
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"nexusfs/meta"
)

// question is a statement of docs/SQL.md.
type question struct{ number, title, sql string }

func questions(t *testing.T) []question {
	t.Helper()
	page, err := os.ReadFile("../../docs/SQL.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(page), "\n## Ten questions\n")
	if !ok {
		t.Fatal("docs/SQL.md has no questions")
	}
	var out []question
	for _, m := range regexp.MustCompile("(?s)### ([0-9]+)\\. ([^\n]+)\n.*?```sql\n(.*?)```").FindAllStringSubmatch(section, -1) {
		out = append(out, question{m[1], m[2], m[3]})
	}
	return out
}

// opener mounts a store, as an agent declares itself.
type opener func(agent string) *engine

// askedTree makes the tree that the questions are asked about. border lies
// between what was done before the date in the questions and after it.
func askedTree(t *testing.T, open opener) (border string, started time.Time) {
	t.Helper()
	ctx, c := t.Context(), meta.Caller{UID: 7, GID: 7}
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	started = time.Now().UTC()
	e := open("")
	docs, err := e.fs.Mkdir(ctx, c, meta.RootIno, "docs", 0o755, 0)
	ok(err)
	put(t, e.fs, docs.Ino, "cold", strings.Repeat("c", 5000))
	put(t, e.fs, docs.Ino, "grows", "small")
	put(t, e.fs, docs.Ino, "draft.txt", "draft")
	put(t, e.fs, meta.RootIno, "copy", strings.Repeat("same", 1000))
	put(t, e.fs, meta.RootIno, "busy", "1")
	ok(e.Close())
	border = time.Now().UTC().Format("2006-01-02T15:04:05.000000000Z")

	agent := open("builder")
	put(t, agent.fs, docs.Ino, "grows", strings.Repeat("g", 3000))
	put(t, agent.fs, docs.Ino, "copy too", strings.Repeat("same", 1000))
	ok(agent.Close())
	e = open("")
	for i := range 3 {
		put(t, e.fs, meta.RootIno, "busy", strings.Repeat("b", 100*(i+2)))
	}
	ok(e.fs.Rename(ctx, c, docs.Ino, "draft.txt", meta.RootIno, "moved.txt", 0))
	ok(e.fs.Rename(ctx, c, meta.RootIno, "moved.txt", docs.Ino, "final.txt", 0))
	put(t, e.fs, docs.Ino, "report.txt", "gone soon")
	ok(e.fs.Unlink(ctx, c, docs.Ino, "report.txt"))
	ok(e.Close())
	return border, started
}

func openAgentEngine(t *testing.T, store, agent string) *engine {
	t.Helper()
	e, err := openEngine(t.Context(), engineOptions{
		dir: storeDir(store), mount: mountOptions{History: defaultHistory(), Agent: agent}, log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestQuestionsOfTheDocumentation: each has the answer that it should have, on
// each engine.
func TestQuestionsOfTheDocumentation(t *testing.T) {
	for name, fresh := range map[string]func(t *testing.T) (string, opener){
		"SQLite": func(t *testing.T) (string, opener) {
			store := testStore(t, nil)
			return store, func(agent string) *engine { return openAgentEngine(t, store, agent) }
		},
		"PostgreSQL": func(t *testing.T) (string, opener) {
			zone, content := testDatabase(t)("default"), sharedDir(t)
			return zone, func(agent string) *engine { return openTestZone(t, zone, content, agent) }
		},
	} {
		t.Run(name, func(t *testing.T) { askTheQuestions(t, fresh) })
	}
}

// askTheQuestions shows times in the answers as T, so that they are the same
// every day.
func askTheQuestions(t *testing.T, fresh func(t *testing.T) (string, opener)) {
	store, open := fresh(t)
	border, started := askedTree(t, open)
	for started.Day() != time.Now().UTC().Day() { // midnight would be between
		store, open = fresh(t)
		border, started = askedTree(t, open)
	}
	want := map[string]string{
		"1": "T,truncate,/docs/grows,1000,,builder\nT,write,/docs/grows,1000,,builder\nT,create,/docs/copy too,1000,,builder\nT,write,/docs/copy too,1000,,builder\n" +
			"T,rename,/docs/final.txt,7,,\nT,rename,/docs/final.txt,7,,\n",
		"2":  "/docs/copy too,4000\n/docs/grows,2995\n/busy,399\n/copy,0\n/docs/cold,0\n/docs/final.txt,0\n",
		"3":  "4000,2,/copy,/docs/copy too\n",
		"4":  "T,/docs,7,,,1\n",
		"5":  "/docs/copy too,2,T\n/docs/grows,2,T\n",
		"6":  "/busy,4\n/docs/grows,2\n/copy,1\n/docs/cold,1\n/docs/copy too,1\n/docs/final.txt,1\n",
		"7":  "/,501\n/docs/,5\n",
		"8":  fmt.Sprintf("D,%d,,1\nD,7,,4\nD,1000,,18\nD,1000,builder,4\n", os.Getuid()),
		"9":  "/docs/cold,5000,T\n/copy,4000,T\n/docs/final.txt,5,T\n",
		"10": "7,23,/docs,draft.txt\n23,24,/,moved.txt\n24,,/docs,final.txt\n",
	}
	list := questions(t)
	if len(list) != 10 || len(want) != 10 {
		t.Fatalf("%d questions and %d answers", len(list), len(want))
	}
	day := started.Format(time.DateOnly)
	for _, q := range list {
		t.Run(q.number+" "+q.title, func(t *testing.T) {
			out, code := command(t, "sql", store, "--csv", strings.ReplaceAll(q.sql, "'2025-11-15'", "'"+border+"'"))
			_, rows, _ := strings.Cut(out, "\n")
			rows = regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:.]+Z`).ReplaceAllString(rows, "T")
			rows = strings.ReplaceAll(rows, day, "D")
			if code != 0 || rows != want[q.number] {
				t.Errorf("code %d, got\n%s\nwant\n%s", code, rows, want[q.number])
			}
		})
	}
}
