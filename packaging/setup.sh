#!/usr/bin/env bash
# Installs what a make target needs, when it is missing: setup.sh mount|test.
# As root with apt-get, else with sudo; where neither works it says what to do.
set -euo pipefail

case "${1-}" in
mount) want="fusermount3:fuse3 git:git" ;;
test) want="fusermount3:fuse3 git:git gcc:gcc make:make fio:fio rsync:rsync sqlite3:sqlite3 getfattr:attr setfacl:acl
	mkfs.ext4:e2fsprogs unshare:util-linux flock:util-linux vim:vim tar:tar ps:procps initdb:postgresql" ;;
pjdfstest) want="autoreconf:autoconf automake:automake gcc:gcc make:make prove:perl" ;;
*)
	echo "usage: $0 mount|test|pjdfstest" >&2
	exit 2
	;;
esac
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
for dir in /usr/lib/postgresql/*/bin; do # Debian keeps the server's programs out of the PATH
	PATH=$PATH:$dir
done

missing=()
for pair in $want; do
	command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if [ "${#missing[@]}" -gt 0 ]; then
	run=()
	if [ "$(id -u)" -ne 0 ]; then
		if ! command -v sudo >/dev/null; then
			echo "missing: ${missing[*]}; install them as root: apt-get install ${missing[*]}" >&2
			exit 1
		fi
		run=(sudo)
	fi
	if ! command -v apt-get >/dev/null; then
		echo "missing: ${missing[*]}; install them with this system's package manager" >&2
		exit 1
	fi
	echo "installing ${missing[*]}"
	"${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
	"${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if ! command -v go >/dev/null; then
	echo "Go is missing: install it from https://go.dev/dl (the version in go.mod or newer)" >&2
	exit 1
fi
# The first build takes two minutes, which no test's time limit should pay for.
if [ "$1" = test ]; then
	go -C "$(dirname "$0")/../internal/s3test/server" tool -n versitygw >/dev/null
fi
if [ ! -e /dev/fuse ]; then
	[ "$(id -u)" -ne 0 ] || modprobe fuse 2>/dev/null || true
	if [ ! -e /dev/fuse ]; then
		echo "/dev/fuse is missing: load the module (modprobe fuse); in a container start it with --device /dev/fuse --cap-add SYS_ADMIN" >&2
		exit 1
	fi
fi
# udev gives the device to everybody; where there is no udev the tests of
# ordinary users' mounts need the same.
if [ "$1" = test ] && [ "$(id -u)" -eq 0 ] && [ "$(stat -c %a /dev/fuse)" != 666 ]; then
	echo "opening /dev/fuse to all users, as udev does"
	chmod 0666 /dev/fuse
fi
