// Package sqlssot holds the SQL stores behind meta.Store: one package per
// dialect (sqlite), what the dialects share (chain) and the conformance suite
// that every dialect passes (ssottest). This package itself has no code.
package sqlssot
