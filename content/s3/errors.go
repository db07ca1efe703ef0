package s3

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"

	"github.com/minio/minio-go/v7"

	"nexusfs/meta"
)

// errDamaged marks bytes that are not those that the blob's name promises, and
// bytes that are missing.
var errDamaged = errors.New("damaged")

// codeOf returns S3's code for an error; empty when the server did not answer
// with one.
func codeOf(err error) string {
	var e minio.ErrorResponse
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// classify says what an error is and what to do about it.
func classify(err error) (kind meta.Kind, advice string) {
	var (
		own  *meta.Error
		keys keysError
		e    minio.ErrorResponse
	)
	switch {
	case errors.As(err, &own):
		return own.Kind, ""
	case errors.Is(err, errDamaged):
		return meta.KindDamaged, ""
	case errors.As(err, &keys):
		return meta.KindIO, ""
	case errors.Is(err, context.DeadlineExceeded):
		return meta.KindIO, "the server did not answer in time: check it and the network"
	case !errors.As(err, &e):
		return meta.KindIO, "the server cannot be reached: check it, the network and the endpoint"
	}
	switch e.Code {
	case "NoSuchKey", "InvalidRange":
		return meta.KindDamaged, ""
	case "NoSuchBucket":
		return meta.KindIO, "create the bucket, or correct the URL"
	case "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired":
		return meta.KindIO, "the keys have expired: renew them; a credentials file is read again by itself"
	case "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidClientTokenId", "UnrecognizedClientException":
		return meta.KindIO, "the keys are wrong: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the credentials file"
	case "AccessDenied", "AllAccessDisabled", "AccountProblem":
		return meta.KindIO, "the keys do not allow this: grant s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket"
	case "RequestTimeTooSkewed":
		return meta.KindIO, "this machine's clock is wrong: set it, for instance by timedatectl set-ntp true"
	case "AuthorizationHeaderMalformed", "InvalidRegion", "PermanentRedirect":
		return meta.KindIO, "the region is wrong: set region= in the URL"
	case "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded":
		return meta.KindNoSpace, ""
	}
	switch {
	case e.StatusCode == http.StatusInsufficientStorage:
		return meta.KindNoSpace, ""
	case e.StatusCode == http.StatusServiceUnavailable || e.StatusCode == http.StatusTooManyRequests:
		return meta.KindIO, "the server is overloaded: try again later"
	}
	return meta.KindIO, ""
}

// fail turns the plain error of a call into the one that callers get. ctx is
// the caller's.
func (s *Store) fail(ctx context.Context, op, name string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return meta.E(op, 0, name, meta.KindInterrupted, ctx.Err())
	}
	kind, advice := classify(err)
	var own *meta.Error
	if errors.As(err, &own) && own.Err != nil {
		err = own.Err // its kind is known now
	}
	err = fmt.Errorf("%s: %w", s.o.Location, err)
	if code := codeOf(err); code != "" {
		err = fmt.Errorf("%w (%s)", err, code)
	}
	if advice != "" {
		err = fmt.Errorf("%w: %s", err, advice)
	}
	return meta.E(op, 0, name, kind, err)
}

// openError is fail for Open.
func (s *Store) openError(ctx context.Context, err error) error {
	err = s.fail(ctx, "open content", "", err)
	if codeOf(err) == "NoSuchBucket" {
		var own *meta.Error
		if errors.As(err, &own) {
			own.Kind = meta.KindNotExist
		}
	}
	return err
}

func blobName(b meta.Blob) string { return "blob " + hex.EncodeToString(b.ID[:8]) }
