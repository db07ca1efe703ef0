package s3test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The keys that the server accepts, and its region.
const (
	AccessKey = "nexusfs-test"
	SecretKey = "the-secret-of-the-tests"
	Region    = "us-east-1"
)

// Server is a running S3 server.
type Server struct {
	Addr string // host:port on loopback
	Dir  string // each folder in it is a bucket, each file below an object

	cmd  *exec.Cmd
	out  bytes.Buffer // read only after done
	done chan struct{}
}

// binary builds the server, at most once per process, and returns its path in
// Go's build cache.
var binary = sync.OnceValues(func() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("the sources of the test server are not to be found")
	}
	cmd := exec.Command("go", "-C", filepath.Join(filepath.Dir(file), "server"), "tool", "-n", "versitygw")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	path, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("build the S3 server: %w: %s", err, stderr.Bytes())
	}
	return strings.TrimSpace(string(path)), nil
})

// starters starts processes from one thread that lives as long as this process:
// the kernel sends the parent-death signal when the starting thread ends.
var starters = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for fn := range work {
			fn()
		}
	}()
	return work
})

// Start runs a server until the test ends. bucket exists when it returns.
func Start(t testing.TB, bucket string) *Server {
	t.Helper()
	s, err := start(t.TempDir(), bucket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

func start(dir, bucket string) (*Server, error) {
	if err := os.Mkdir(filepath.Join(dir, bucket), 0o755); err != nil {
		return nil, err
	}
	addr, err := freePort()
	if err != nil {
		return nil, err
	}
	s := &Server{Addr: addr, Dir: dir}
	if err := s.Restart(); err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

// Restart starts a server that was stopped, at the same address.
func (s *Server) Restart() error {
	bin, err := binary()
	if err != nil {
		return err
	}
	return s.run(bin)
}

// Stop kills the server, as the loss of its machine would. What it has
// acknowledged stays in Dir.
func (s *Server) Stop() {
	if s.cmd == nil {
		return
	}
	s.cmd.Process.Kill()
	<-s.done
	s.cmd = nil
}

// run starts the process and waits until it answers.
func (s *Server) run(bin string) error {
	cmd := exec.Command(bin, "--port", s.Addr, "--region", Region, "--keep-alive", "--quiet", "--health", "/health", "posix", s.Dir)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+AccessKey, "ROOT_SECRET_KEY="+SecretKey)
	s.out.Reset()
	cmd.Stdout, cmd.Stderr = &s.out, &s.out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	starters() <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return err
	}
	s.cmd, s.done = cmd, make(chan struct{})
	go func() {
		cmd.Wait()
		close(s.done)
	}()
	return s.answers()
}

// answers polls the health endpoint until the server serves or has died.
func (s *Server) answers() error {
	deadline := time.After(30 * time.Second)
	for {
		resp, err := http.Get("http://" + s.Addr + "/health")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-s.done:
			return fmt.Errorf("the S3 server ended: %s", s.out.Bytes())
		case <-deadline:
			return fmt.Errorf("the S3 server does not answer at %s: %w", s.Addr, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// freePort returns a loopback address that nobody listens at.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// Main runs a package's tests with one server for all of them: use takes it
// before the first test. It returns the exit code.
func Main(m *testing.M, bucket string, use func(*Server)) int {
	dir, err := os.MkdirTemp("", "s3test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	s, err := start(dir, bucket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer s.Stop()
	use(s)
	return m.Run()
}
