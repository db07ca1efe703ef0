#!/usr/bin/env bash
# Builds nexusfs with failpoints: failpoints.sh OUTPUT. The sources are rewritten
# in a copy below build/, never in the work tree.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "$1")
src=build/failpoints-src
rooms="meta fusefs sqlssot content hooks raftnode cmd"

rm -rf "$src"
mkdir -p "$src" "$(dirname "$out")"
cp go.mod go.sum "$src"
# shellcheck disable=SC2086
tar -cf - --exclude='*_test.go' $rooms | tar -xf - -C "$src"
cd "$src"
mapfile -t dirs < <(grep -rl --include='*.go' '// gofail:' . | xargs -r -n1 dirname | sort -u)
if [ "${#dirs[@]}" -eq 0 ]; then
	echo "no failpoints in the sources" >&2
	exit 1
fi
go run go.etcd.io/gofail enable "${dirs[@]}"
CGO_ENABLED=0 go build -ldflags "-X main.version=failpoints" -o "$out" ./cmd/nexusfs
