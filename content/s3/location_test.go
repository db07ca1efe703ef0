package s3

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nexusfs/meta"
)

func TestParseLocation(t *testing.T) {
	tests := []struct {
		text string
		want Location
	}{
		{"s3://my-bucket?region=eu-central-1", Location{
			Bucket: "my-bucket", Endpoint: "s3.eu-central-1.amazonaws.com", Region: "eu-central-1",
		}},
		{"s3://my-bucket/team/zone-1/?endpoint=https://minio.example:9000&path_style=true", Location{
			Bucket: "my-bucket", Prefix: "team/zone-1/", Endpoint: "minio.example:9000", Region: "us-east-1", PathStyle: true,
		}},
		{"s3://b.c.d/p?endpoint=http://127.0.0.1:7070/&region=here&credentials=/etc/nexusfs/keys&profile=prod&path_style=false", Location{
			Bucket: "b.c.d", Prefix: "p/", Endpoint: "127.0.0.1:7070", Plain: true, Region: "here", Credentials: "/etc/nexusfs/keys", Profile: "prod",
		}},
	}
	for _, test := range tests {
		got, err := ParseLocation(test.text)
		if err != nil {
			t.Errorf("%s: %v", test.text, err)
			continue
		}
		if d := cmp.Diff(got, test.want); d != "" {
			t.Errorf("%s: got -, want +\n%s", test.text, d)
		}
		if again, err := got.checked(); err != nil || again != got {
			t.Errorf("%s: checked twice: got %+v, %v", test.text, again, err)
		}
	}
}

func TestParseLocationRefuses(t *testing.T) {
	const secret = "wJalrXUtnFEMI"
	tests := []struct{ text, want string }{
		{"", "s3://"},
		{"file:///srv/blobs", "s3://"},
		{"s3:bucket", "not the name of a bucket"},
		{"s3:///prefix", "not the name of a bucket"},
		{"s3://Bucket?region=x", "not the name of a bucket"},
		{"s3://b?region=x", "not the name of a bucket"},
		{"s3://bucket:443?region=x", "not the name of a bucket"},
		{"s3://my..bucket?region=x", "not the name of a bucket"},
		{"s3://AKIA:" + secret + "@bucket?region=x", "keys do not belong into the URL"},
		{"s3://" + secret + "@bucket?region=x", "keys do not belong into the URL"},
		{"s3://bucket/%zz" + secret, "not a URL"},
		{"s3://bucket#" + secret, "behind #"},
		{"s3://bucket?secret_key=" + secret, `"secret_key" is not known`},
		{"s3://bucket?region=%zz" + secret, "cannot be read"},
		{"s3://bucket?region=a&region=b", "2 times"},
		{"s3://bucket", "neither endpoint nor region"},
		{"s3://bucket?region=EU", "not the name of a region"},
		{"s3://bucket/a//b?region=x", "prefix"},
		{"s3://bucket/a/../b?region=x", "prefix"},
		{"s3://bucket/a%20b?region=x", "prefix"},
		{"s3://bucket/" + strings.Repeat("x", 600) + "?region=x", "at most 512"},
		{"s3://bucket?endpoint=minio:9000", "https://HOST:PORT"},
		{"s3://bucket?endpoint=minio", "https://HOST:PORT"},
		{"s3://bucket?endpoint=ftp://minio", "neither https:// nor http://"},
		{"s3://bucket?endpoint=https://minio/path", "https://HOST:PORT"},
		{"s3://bucket?endpoint=https://key:" + secret + "@minio", "https://HOST:PORT"},
		{"s3://bucket?region=x&path_style=maybe", "neither true nor false"},
		{"s3://bucket?region=x&credentials=keys", "absolute path"},
	}
	for _, test := range tests {
		_, err := ParseLocation(test.text)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", test.text, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error repeats a secret: %v", test.text, err)
		}
	}
}

func TestKeysSayAllOfABlob(t *testing.T) {
	blobs := []meta.Blob{
		{ID: meta.BlobID{0xab, 1}, Size: 1, Place: meta.PlaceFile},
		{ID: meta.BlobID{0, 31: 0xff}, Size: meta.BlobMax, Place: meta.PlaceFile, Segment: 1<<63 - 1, Offset: 1 << 40},
	}
	for _, b := range blobs {
		got, ok := parseKey(objectKey(b))
		if !ok || got != b {
			t.Errorf("%s: got %+v %v, want %+v", objectKey(b), got, ok, b)
		}
	}
	good := objectKey(blobs[0])
	for _, key := range []string{
		"", "blobs/", markerName, strings.ToUpper(good), good + "0", good + "-1", good + " ", "x" + good,
		strings.Replace(good, "blobs/ab", "blobs/ac", 1), strings.Replace(good, "-1-", "-0-", 1),
		strings.Replace(good, "-1-", "-01-", 1), strings.Replace(good, "-1-", "-400001-", 1), strings.Replace(good, "-1-", "--1-", 1),
	} {
		if b, ok := parseKey(key); ok {
			t.Errorf("%q: got %+v, want no blob", key, b)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add(objectKey(meta.Blob{ID: meta.BlobID{1, 2}, Size: 77, Segment: 3, Offset: 4}))
	f.Fuzz(func(t *testing.T, key string) {
		if b, ok := parseKey(key); ok && objectKey(b) != key {
			t.Errorf("%q: got %+v, whose key is %q", key, b, objectKey(b))
		}
	})
}
