package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nexusfs/bench/gitrepo"
	"nexusfs/integration/harness"
)

// makeRepo imports a generated history as a bare repository.
func makeRepo(t *testing.T, dir string, files, commits int) string {
	t.Helper()
	repo := filepath.Join(dir, "origin.git")
	harness.Run(t, dir, "git", "init", "-q", "--bare", "-b", "main", repo)
	var stream bytes.Buffer
	must(t, gitrepo.Write(&stream, files, commits))
	harness.RunCmd(t, harness.Cmd{Dir: repo, Args: []string{"git", "fast-import", "--quiet", "--done"}, Stdin: stream.String()})
	return repo
}

// TestGit imports, clones, checks, changes, branches, merges and collects a
// repository; every object and every work tree file must be right.
func TestGit(t *testing.T) {
	harness.Need(t, "git")
	harness.Mounted(t, func(t *testing.T, dir string) {
		repo := makeRepo(t, dir, 1500, 150)
		harness.Run(t, repo, "git", "fsck", "--full", "--strict")
		work := filepath.Join(dir, "work")
		harness.Run(t, dir, "git", "clone", "-q", repo, work)
		clean := func() {
			t.Helper()
			if got := harness.Run(t, work, "git", "status", "--porcelain"); got != "" {
				t.Errorf("git status: %s", got)
			}
		}
		clean()
		must(t, os.Remove(filepath.Join(work, ".git", "index"))) // now status has to read every file
		harness.Run(t, work, "git", "reset", "-q")
		clean()
		harness.Shell(t, work, `
			git checkout -q -b topic HEAD~40
			for i in 1 2 3 4 5; do echo "topic $i" > topic$i; git add .; git commit -q -m "topic $i"; done
			git checkout -q main
			git merge -q --no-edit topic
			git tag v1; git stash list; git worktree add -q ../tree2 HEAD~10
			git gc -q --prune=now
			git fsck --full --strict
			git push -q origin main topic v1
			git clone -q --no-hardlinks ../origin.git ../second
			git -C ../second fsck --full
			git -C ../tree2 status --porcelain`)
		clean()
		if got := strings.TrimSpace(harness.Run(t, filepath.Join(dir, "second"), "git", "rev-list", "--count", "HEAD")); got != "156" {
			t.Errorf("commits after clone: %s, want 156", got)
		}
		harness.Run(t, repo, "git", "repack", "-q", "-a", "-d")
		harness.Run(t, repo, "git", "fsck", "--full", "--strict")
	})
}

// fixture builds a tree with everything that archivers carry: links, holes,
// modes, owners, times, attributes, ACLs, odd names, devices.
func fixture(t *testing.T, dir string) string {
	t.Helper()
	root := mkdir(t, filepath.Join(dir, "fixture"))
	p := func(s string) string { return filepath.Join(root, s) }
	for i := range 60 {
		d := p(fmt.Sprintf("dir%02d/sub", i%12))
		must(t, os.MkdirAll(d, 0o755))
		write(t, filepath.Join(d, fmt.Sprintf("file%d", i)), pattern(uint64(i), i*i*37))
	}
	write(t, p("big"), pattern(1, 9<<20+1))
	write(t, p("new\nline \x1b[0m\xff"), []byte("odd name"))
	must(t, os.Link(p("big"), p("dir00/hardlink")))
	must(t, os.Link(p("big"), p("hard2")))
	must(t, os.Symlink("dir00/hardlink", p("symlink")))
	must(t, os.Symlink("nowhere\n", p("dangling")))
	sparse := open(t, p("sparse"), os.O_RDWR|os.O_CREATE)
	_, err := sparse.WriteAt([]byte("end of a hole"), 64<<20)
	must(t, err)
	must(t, sparse.Close())
	must(t, unix.Mkfifo(p("fifo"), 0o620))
	must(t, os.Mkdir(p("empty"), 0o700))
	must(t, unix.Setxattr(p("big"), "user.comment", []byte("with\x00zero"), 0))
	must(t, unix.Setxattr(p("empty"), "user.dir", nil, 0))
	if os.Geteuid() == 0 {
		must(t, unix.Mknod(p("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		must(t, os.Lchown(p("symlink"), 1000, 1000))
		must(t, os.Chown(p("dir01"), 1234, 5678))
		write(t, p("setuid"), []byte("#!/bin/sh\n"))
		must(t, unix.Chmod(p("setuid"), 0o6755))
	}
	if _, err := exec.LookPath("setfacl"); err == nil {
		harness.Run(t, root, "setfacl", "-m", "u:1000:rwx", "dir02")
		harness.Run(t, root, "setfacl", "-d", "-m", "g:3000:rx", "dir03")
	}
	for i, name := range []string{"big", "sparse", "dir04", "fifo"} {
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, p(name), []unix.Timespec{{Sec: int64(i) * 1e8, Nsec: 1}, {Sec: int64(i) * 1e8, Nsec: 123456789}}, 0))
	}
	return root
}

// describe lists a tree with everything that must survive a copy.
func describe(t *testing.T, root string) string {
	t.Helper()
	return harness.Shell(t, root, `
		find . -printf '%P|%y|%m|%U|%G|%l|%n|%T@|' -a \( -type f -printf '%s' -o -true \) -printf '\0' | sort -z | tr '\0\n' '\n_'
		find . -type f -print0 | sort -z | xargs -0 sha256sum
		find . \( -type f -o -type d \) -print0 | sort -z | xargs -0 getfattr -h -d -m '^user\.|^system\.posix_acl' -e hex -- | sort`)
}

func wantSameText(t *testing.T, what, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			t.Errorf("%s: line %d: got %q, want %q", what, i, g[i], w[i])
			return
		}
	}
	t.Errorf("%s: got %d lines, want %d", what, len(g), len(w))
}

func TestTar(t *testing.T) {
	harness.Need(t, "tar", "find", "getfattr")
	src := fixture(t, harness.Scratch(t))
	want := describe(t, src)
	harness.Mounted(t, func(t *testing.T, dir string) {
		const flags = "--xattrs --xattrs-include='*' --acls --sparse --numeric-owner"
		harness.Shell(t, dir, "tar "+flags+" -cpf in.tar -C "+src+" . && mkdir a b && tar "+flags+" -xpf in.tar -C a")
		wantSameText(t, "tar in", describe(t, filepath.Join(dir, "a")), want)
		harness.Shell(t, dir, "tar "+flags+" -cpf - -C a . | tar "+flags+" -xpf - -C b")
		wantSameText(t, "tar out and in", describe(t, filepath.Join(dir, "b")), want)
		harness.Shell(t, dir, "tar --compare -f in.tar -C a")
		if st := stat(t, filepath.Join(dir, "a", "sparse")); st.Blocks*512 > 4<<20 {
			t.Errorf("the sparse file holds %d bytes after tar", st.Blocks*512)
		}
	})
}

func TestRsync(t *testing.T) {
	harness.Need(t, "rsync", "find", "getfattr")
	src := fixture(t, harness.Scratch(t))
	want := describe(t, src)
	harness.Mounted(t, func(t *testing.T, dir string) {
		flags := []string{"rsync", "-aHAXS", "--modify-window=-1", "--delete", "-i"}
		copyTo := func(from, to string) string {
			t.Helper()
			return harness.Run(t, dir, append(flags, from+"/", to+"/")...)
		}
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		copyTo(src, a)
		wantSameText(t, "rsync in", describe(t, a), want)
		if again := copyTo(src, a); again != "" {
			t.Errorf("the second rsync had something to send:\n%s", again)
		}
		copyTo(a, b)
		if again := copyTo(a, b) + harness.Run(t, dir, append(flags, "-c", a+"/", b+"/")...); again != "" {
			t.Errorf("between two directories of the mount:\n%s", again)
		}
		must(t, os.RemoveAll(filepath.Join(src, "dir05")))
		write(t, filepath.Join(src, "extra"), []byte("x"))
		copyTo(src, b)
		copyTo(src, b) // rsync itself leaves the root's time to a second run after deletions
		wantSameText(t, "rsync of a change", describe(t, b), describe(t, src))
	})
}

func TestCopyArchive(t *testing.T) {
	harness.Need(t, "cp", "find", "getfattr", "diff")
	src := fixture(t, harness.Scratch(t))
	want := describe(t, src)
	harness.Mounted(t, func(t *testing.T, dir string) {
		harness.Shell(t, dir, "cp -a "+src+" a && cp -a --sparse=always a b && mv b c")
		for _, name := range []string{"a", "c"} {
			wantSameText(t, "cp -a to "+name, describe(t, filepath.Join(dir, name)), want)
		}
		harness.Shell(t, dir, "rm -rf a && test ! -e a && rm -r c")
		wantNames(t, dir)
	})
}

// TestSqliteCLI runs writers against one database in several processes, in
// both journal kinds, and lets SQLite check it.
func TestSqliteCLI(t *testing.T) {
	harness.Need(t, "sqlite3")
	for _, mode := range []string{"wal", "delete", "truncate"} {
		t.Run(mode, func(t *testing.T) {
			harness.Mounted(t, func(t *testing.T, dir string) {
				harness.Run(t, dir, "sqlite3", "t.db", "pragma journal_mode="+mode+"; create table n(writer, i, v blob);")
				const writers, each = 4, 40
				parallel(writers, func(w int) {
					var script strings.Builder
					script.WriteString(".timeout 60000\n")
					for i := range each {
						fmt.Fprintf(&script, "begin immediate; insert into n values(%d,%d,randomblob(3000)); update n set v=zeroblob(100) where rowid=%d; commit;\n", w, i, i)
					}
					res := harness.Try(harness.Cmd{Dir: dir, Args: []string{"sqlite3", "-bail", "t.db"}, Stdin: script.String()})
					if res.Err != nil {
						t.Errorf("writer %d: %v %s", w, res.Err, res.Stderr)
					}
				})
				got := harness.Run(t, dir, "sqlite3", "t.db", "select count(*) from n; pragma integrity_check; vacuum; pragma integrity_check;")
				if want := fmt.Sprintf("%d\nok\nok\n", writers*each); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		})
	}
}

// TestCBuild builds a small C project with make -j, twice: the second time
// make must see that nothing is to do.
func TestCBuild(t *testing.T) {
	harness.Need(t, "gcc", "make", "ar")
	harness.Mounted(t, func(t *testing.T, dir string) {
		var sum int
		var calls, decls strings.Builder
		for i := range 12 {
			write(t, filepath.Join(dir, fmt.Sprintf("m%d.c", i)), fmt.Appendf(nil, "#include \"all.h\"\nint f%d(void) { return %d; }\n", i, i*7))
			fmt.Fprintf(&calls, " + f%d()", i)
			fmt.Fprintf(&decls, "int f%d(void);\n", i)
			sum += i * 7
		}
		write(t, filepath.Join(dir, "all.h"), []byte("#include <stdio.h>\n"+decls.String()))
		write(t, filepath.Join(dir, "main.c"), []byte("#include \"all.h\"\nint main(void) { printf(\"%d\\n\", 0"+calls.String()+"); return 0; }\n"))
		write(t, filepath.Join(dir, "Makefile"), []byte(`OBJ = $(patsubst %.c,%.o,$(filter-out main.c,$(wildcard *.c)))
prog: main.o libm.a
	gcc -g -o $@ main.o libm.a
libm.a: $(OBJ)
	rm -f $@ && ar rcs $@ $^
%.o: %.c all.h
	gcc -g -O1 -c -o $@ $<
`))
		harness.Run(t, dir, "make", "-s", "-j4")
		if got := harness.Run(t, dir, "./prog"); got != strconv.Itoa(sum)+"\n" {
			t.Errorf("the program says %q, want %d", got, sum)
		}
		if got := harness.Run(t, dir, "make"); !strings.Contains(got, "up to date") {
			t.Errorf("the second make: %s", got)
		}
		tick()
		write(t, filepath.Join(dir, "m3.c"), []byte("#include \"all.h\"\nint f3(void) { return 1000; }\n"))
		if got := harness.Run(t, dir, "make"); strings.Count(got, "gcc") != 2 {
			t.Errorf("make after one change: %s", got)
		}
		if got := harness.Run(t, dir, "./prog"); got != strconv.Itoa(sum-21+1000)+"\n" {
			t.Errorf("the rebuilt program says %q", got)
		}
	})
}

// TestGoBuild builds and tests a module with its source, GOCACHE and temporary
// files on the mount.
func TestGoBuild(t *testing.T) {
	harness.Need(t, "go")
	harness.NotShort(t)
	harness.Mounted(t, func(t *testing.T, dir string) {
		src := mkdir(t, filepath.Join(dir, "src"))
		write(t, filepath.Join(src, "go.mod"), []byte("module example.org/m\n\ngo 1.26\n"))
		for i := range 8 {
			d := mkdir(t, filepath.Join(src, fmt.Sprintf("p%d", i)))
			write(t, filepath.Join(d, "p.go"), fmt.Appendf(nil, "package p%d\n\nimport \"strconv\"\n\nfunc F() string { return strconv.Itoa(%d) }\n", i, i))
			write(t, filepath.Join(d, "p_test.go"), fmt.Appendf(nil, "package p%d\n\nimport \"testing\"\n\nfunc TestF(t *testing.T) { if F() != \"%d\" { t.Fatal(F()) } }\n", i, i))
		}
		goTool(t, dir, src, "build", "./...")
		goTool(t, dir, src, "test", "./...")
		if got := goTool(t, dir, src, "test", "./..."); strings.Count(got, "(cached)") != 8 {
			t.Errorf("the second go test did not come from the cache:\n%s", got)
		}
	})
}

// TestGoBuildRepository builds this repository with an empty GOCACHE on the mount.
func TestGoBuildRepository(t *testing.T) {
	harness.OnlyLong(t)
	harness.Mounted(t, func(t *testing.T, dir string) {
		src := filepath.Join(dir, "src")
		harness.Run(t, dir, "git", "clone", "-q", harness.Root(), src)
		goTool(t, dir, src, "build", "./...")
		goTool(t, dir, src, "vet", "./meta/...")
		goTool(t, dir, src, "test", "./meta/...")
	})
}

// goTool runs the go command in src with everything it writes below dir.
func goTool(t *testing.T, dir, src string, args ...string) string {
	t.Helper()
	tmp := filepath.Join(dir, "tmp")
	must(t, os.MkdirAll(tmp, 0o755))
	return harness.RunCmd(t, harness.Cmd{
		Dir: src, Args: append([]string{"go"}, args...), Limit: 20 * 60e9,
		Env: []string{"GOCACHE=" + filepath.Join(dir, "gocache"), "GOTMPDIR=" + tmp, "GOFLAGS=-buildvcs=false", "CGO_ENABLED=0"},
	})
}

// TestEditorSave saves the way editors do, and with vim itself where it is.
func TestEditorSave(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "file")
		must(t, os.WriteFile(p, []byte("line 0\n"), 0o640))
		for i := range 30 { // backup by rename, new file under the old name
			must(t, os.Rename(p, p+"~"))
			f, err := os.OpenFile(p, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
			must(t, err)
			_, err = fmt.Fprintf(f, "line %d\n", i)
			must(t, err)
			must(t, f.Sync())
			must(t, f.Close())
			must(t, os.Remove(p+"~"))
			wantContent(t, p, fmt.Appendf(nil, "line %d\n", i))
		}
		for i := range 30 { // write aside, rename over
			write(t, p+".tmp", fmt.Appendf(nil, "other %d\n", i))
			must(t, os.Rename(p+".tmp", p))
			wantContent(t, p, fmt.Appendf(nil, "other %d\n", i))
		}
		wantNames(t, dir, "file")
		if _, err := exec.LookPath("vim"); err != nil {
			return
		}
		for _, mode := range []string{"yes", "no", "auto"} {
			harness.Run(t, dir, "vim", "-es", "-u", "NONE", "-N", "-i", "NONE", "file",
				"-c", "set backup writebackup backupskip= backupcopy="+mode, "-c", "%s/$/ "+mode+"/", "-c", "wq")
		}
		wantContent(t, p, []byte("other 29 yes no auto\n"))
		wantNames(t, dir, "file", "file~")
	})
}

// TestFio lets fio write with checksums in random order and verify them.
func TestFio(t *testing.T) {
	harness.Need(t, "fio")
	harness.Mounted(t, func(t *testing.T, dir string) {
		for name, args := range map[string][]string{
			"psync":  {"--ioengine=psync", "--rw=randwrite", "--bsrange=512-128k", "--size=24m", "--fsync=64"},
			"mixed":  {"--ioengine=psync", "--rw=randrw", "--bs=4k", "--size=16m", "--numjobs=2", "--group_reporting"},
			"mmap":   {"--ioengine=mmap", "--rw=randwrite", "--bs=4k", "--size=16m"},
			"append": {"--ioengine=psync", "--rw=write", "--bs=1m", "--size=64m", "--end_fsync=1"},
			"direct": {"--ioengine=libaio", "--direct=1", "--iodepth=8", "--rw=randwrite", "--bs=16k", "--size=16m"},
		} {
			t.Run(name, func(t *testing.T) {
				all := append([]string{"fio", "--name=" + name, "--directory=" + dir, "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--output-format=terse", "--randseed=7"}, args...)
				harness.Run(t, dir, all...)
			})
		}
	})
}

// TestParallelCopyAndRemove: eight loops of cp -r and rm -rf beside each other.
func TestParallelCopyAndRemove(t *testing.T) {
	harness.Mounted(t, func(t *testing.T, dir string) {
		src := mkdir(t, filepath.Join(dir, "src"))
		for i := range 80 {
			d := filepath.Join(src, fmt.Sprintf("d%d", i%9), fmt.Sprintf("e%d", i%4))
			must(t, os.MkdirAll(d, 0o755))
			write(t, filepath.Join(d, fmt.Sprint("f", i)), pattern(uint64(i), i*300))
		}
		rounds := 4
		if harness.Long() > 0 {
			rounds = 200
		}
		want := tree(t, src)
		parallel(8, func(w int) {
			out := harness.Try(harness.Cmd{Dir: dir, Args: []string{"sh", "-ec", fmt.Sprintf(
				`for i in $(seq %d); do cp -r src w%d; diff -r src w%d; rm -rf w%d; test ! -e w%d; done; cp -r src w%d`, rounds, w, w, w, w, w)}})
			if out.Err != nil {
				t.Errorf("worker %d: %v %s%s", w, out.Err, out.Stdout, out.Stderr)
			}
		})
		for w := range 8 {
			wantSameTree(t, tree(t, filepath.Join(dir, fmt.Sprint("w", w))), want)
		}
	})
}
