#!/usr/bin/env bash
# Fails when a file is not formatted, and names it.
set -euo pipefail
cd "$(dirname "$0")/.."
bad=$(git ls-files -co --exclude-standard '*.go' | xargs -r gofmt -l)
if [ -n "$bad" ]; then
	echo "not formatted (run gofmt -w): $bad" >&2
	exit 1
fi
