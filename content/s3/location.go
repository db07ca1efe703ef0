package s3

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Location says where a store is and where the keys to it are. It holds no
// secret.
type Location struct {
	Bucket      string
	Prefix      string // of all keys; empty, or it ends with "/"
	Endpoint    string // host or host:port; empty: Amazon's for Region
	Plain       bool   // http instead of https
	Region      string // as the server names it; empty: us-east-1 where Endpoint is set
	PathStyle   bool   // the bucket is in the path, not in the host name
	Credentials string // absolute path of a file in the format of ~/.aws/credentials; empty: AWS_* variables, else that file
	Profile     string // section of the credentials file; empty: AWS_PROFILE, else "default"
}

const urlForm = "s3://BUCKET/PREFIX?endpoint=https://HOST:PORT&region=REGION&path_style=true&credentials=/FILE&profile=NAME"

var (
	bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	prefixPart = regexp.MustCompile(`^[A-Za-z0-9_=@+,.-]+$`)
	regionName = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)
)

// maxPrefix bounds a prefix, so that keys stay far below S3's 1,024 bytes.
const maxPrefix = 512

// ParseLocation reads a URL of the form that urlForm shows; only the bucket is
// needed, and without endpoint the region. What it does not know is an error,
// and no error repeats a value that might be a secret.
func ParseLocation(text string) (Location, error) {
	u, err := url.Parse(text)
	if err != nil {
		return Location{}, fmt.Errorf("not a URL: write %s", urlForm) // err repeats the text
	}
	l := Location{Bucket: u.Host, Prefix: u.Path}
	switch {
	case u.Scheme != "s3":
		return Location{}, fmt.Errorf("the URL does not begin with s3://: write %s", urlForm)
	case u.User != nil:
		return Location{}, errors.New("keys do not belong into the URL: put them into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or into a file named by credentials=")
	case u.Fragment != "":
		return Location{}, fmt.Errorf("the URL has a part behind #: write %s", urlForm)
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Location{}, errors.New("what follows ? in the URL cannot be read: write KEY=VALUE pairs with & between them")
	}
	for key, values := range query {
		if len(values) != 1 {
			return Location{}, fmt.Errorf("%s is in the URL %d times: give it once", key, len(values))
		}
		if err := l.set(key, values[0]); err != nil {
			return Location{}, err
		}
	}
	return l.checked()
}

// set takes over one parameter.
func (l *Location) set(key, value string) (err error) {
	switch key {
	case "endpoint":
		return l.setEndpoint(value)
	case "region":
		l.Region = value
	case "path_style":
		if l.PathStyle, err = strconv.ParseBool(value); err != nil {
			return errors.New("path_style is neither true nor false")
		}
	case "credentials":
		if !filepath.IsAbs(value) {
			return errors.New("credentials does not name a file by its absolute path")
		}
		l.Credentials = value
	case "profile":
		l.Profile = value
	default:
		return fmt.Errorf("%q is not known in the URL: there are endpoint, region, path_style, credentials and profile", key)
	}
	return nil
}

func (l *Location) setEndpoint(value string) error {
	u, err := url.Parse(value)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return errors.New("endpoint is not of the form https://HOST:PORT")
	}
	switch u.Scheme {
	case "https":
	case "http":
		l.Plain = true
	default:
		return errors.New("endpoint begins with neither https:// nor http://")
	}
	l.Endpoint = u.Host
	return nil
}

// checked returns l with its defaults, if it can be.
func (l Location) checked() (Location, error) {
	if !bucketName.MatchString(l.Bucket) || strings.Contains(l.Bucket, "..") {
		return Location{}, fmt.Errorf("%q is not the name of a bucket: 3 to 63 lower-case letters, digits, dots and hyphens", l.Bucket)
	}
	if l.Prefix = strings.Trim(l.Prefix, "/"); l.Prefix != "" {
		for part := range strings.SplitSeq(l.Prefix, "/") {
			if !prefixPart.MatchString(part) || part == "." || part == ".." {
				return Location{}, fmt.Errorf("the prefix %q cannot be used: letters, digits and _=@+,.- with single slashes between them", l.Prefix)
			}
		}
		if l.Prefix += "/"; len(l.Prefix) > maxPrefix {
			return Location{}, fmt.Errorf("the prefix has %d bytes: at most %d are allowed", len(l.Prefix), maxPrefix)
		}
	}
	switch {
	case l.Region == "" && l.Endpoint == "":
		return Location{}, errors.New("neither endpoint nor region is given: add region=REGION for Amazon, or endpoint=https://HOST:PORT")
	case l.Region == "":
		l.Region = "us-east-1"
	case !regionName.MatchString(l.Region):
		return Location{}, fmt.Errorf("%q is not the name of a region, such as eu-central-1", l.Region)
	}
	if l.Endpoint == "" {
		l.Endpoint = "s3." + l.Region + ".amazonaws.com"
	}
	return l, nil
}

// String names the store for messages.
func (l Location) String() string {
	return fmt.Sprintf("s3://%s/%s at %s", l.Bucket, strings.TrimSuffix(l.Prefix, "/"), l.Endpoint)
}
