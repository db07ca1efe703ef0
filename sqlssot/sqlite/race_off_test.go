//go:build !race

package sqlite

// raceDetector is set when tests run some twenty times slower.
const raceDetector = false
