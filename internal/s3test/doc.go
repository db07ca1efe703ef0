// Package s3test starts a real S3 server for tests: versitygw on a folder,
// listening on loopback, ended with the test and with the test's process.
//
// The server is built from the module in the folder server, which pins it with
// all it needs and keeps that out of the product's own module. Shipped code
// never imports this package; the callers are tests of any room.
package s3test
