package integration

import (
	"crypto/sha256"
	"unsafe"
)

// uintptrOf is for raw system calls that x/sys/unix has no function for.
func uintptrOf[T any](p *T) uintptr { return uintptr(unsafe.Pointer(p)) }

func sum(data []byte) [32]byte { return sha256.Sum256(data) }
