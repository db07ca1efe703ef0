package s3

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
)

// keysFrom returns where the client finds its keys: the file that l names;
// else the AWS_* variables; else ~/.aws/credentials. Nothing is read yet.
func keysFrom(l Location) (*credentials.Credentials, error) {
	if l.Credentials == "" && os.Getenv("AWS_ACCESS_KEY_ID") != "" {
		return credentials.NewEnvAWS(), nil
	}
	path := l.Credentials
	if path == "" {
		path = os.Getenv("AWS_SHARED_CREDENTIALS_FILE")
	}
	if path == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, fmt.Errorf("no keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a file by credentials=: %w", err)
		}
		path = filepath.Join(home, ".aws", "credentials")
	}
	return credentials.New(&keyFile{path: path, file: credentials.FileAWSCredentials{Filename: path, Profile: l.Profile}}), nil
}

// keyFile reads keys from a file, and again when the file has changed, so that
// whoever renews them needs no restart. The client calls it from one goroutine
// at a time, before every request.
type keyFile struct {
	path string
	file credentials.FileAWSCredentials

	read    time.Time // the file's time of change when it was read
	expires bool      // the keys have an end, which file knows
}

// Retrieve reads the file.
func (k *keyFile) Retrieve() (credentials.Value, error) { return k.RetrieveWithCredContext(nil) }

// RetrieveWithCredContext reads the file.
func (k *keyFile) RetrieveWithCredContext(c *credentials.CredContext) (credentials.Value, error) {
	st, err := os.Stat(k.path)
	if errors.Is(err, fs.ErrNotExist) {
		return credentials.Value{}, noKeys(fmt.Errorf("no keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write %s", k.path))
	}
	if err != nil {
		return credentials.Value{}, noKeys(err)
	}
	v, err := k.file.RetrieveWithCredContext(c)
	switch {
	case err != nil: // its text may quote the file
		return credentials.Value{}, noKeys(fmt.Errorf("no keys in %s: write aws_access_key_id and aws_secret_access_key below [default], or name another section by profile=", k.path))
	case v.AccessKeyID == "" || v.SecretAccessKey == "":
		return credentials.Value{}, noKeys(fmt.Errorf("no keys in this section of %s: write aws_access_key_id and aws_secret_access_key", k.path))
	}
	k.read, k.expires = st.ModTime(), !v.Expiration.IsZero()
	return v, nil
}

// IsExpired reports whether the file has changed since it was read, or the keys
// have come to their end. A file that is gone has not changed: the keys read
// last may still be good.
func (k *keyFile) IsExpired() bool {
	if k.read.IsZero() || k.expires && k.file.IsExpired() {
		return true
	}
	st, err := os.Stat(k.path)
	return err == nil && !st.ModTime().Equal(k.read)
}

// keysError marks errors about keys that never reached a server.
type keysError struct{ error }

func noKeys(err error) error { return keysError{err} }

func (e keysError) Unwrap() error { return e.error }
