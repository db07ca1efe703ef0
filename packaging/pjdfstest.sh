#!/usr/bin/env bash
# Runs pjdfstest on a fresh mount: pjdfstest.sh SOURCES NEXUSFS. Needs root. With
# PJD_DIR=folder it runs there instead, to compare with another filesystem.
set -euo pipefail
sources=$(realpath "$1")
nexusfs=$(realpath "$2")
if [ "$(id -u)" -ne 0 ]; then
	echo "pjdfstest changes users and makes devices: run it as root" >&2
	exit 1
fi
if [ ! -x "$sources/pjdfstest" ]; then
	(cd "$sources" && autoreconf -ifs && ./configure && make pjdfstest)
fi
if [ -n "${PJD_DIR-}" ]; then
	cd "$PJD_DIR"
	exec prove -r "$sources/tests"
fi
work=$(mktemp -d)
mkdir "$work/mnt"
trap '"$nexusfs" umount "$work/mnt" && rm -rf "$work"' EXIT
"$nexusfs" mount "$work/store" "$work/mnt" --background -o allow_other,dev,suid >/dev/null
cd "$work/mnt"
status=0
prove -r "$sources/tests" || status=$?
cd /
exit "$status"
