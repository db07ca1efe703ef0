# make mount    set up, build, make a store, mount it
# make test     unit tests and tests on real mounts
# make help     the other targets

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

STORE ?= .nexusfs/store
MNT ?= mnt

PREFIX ?= /usr/local
SBINDIR ?= /sbin
DESTDIR ?=

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
GO ?= go
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
BIN := build/nexusfs
ROOMS := ./meta/... ./fusefs/... ./content/... ./hooks/... ./raftnode/... ./cmd/... ./internal/...
# SQLite in Go is ten times slower under the race detector: CI runs its suite
# without, 'make race' with.
SQL := ./sqlssot/...
SOURCES := $(shell git ls-files -co --exclude-standard '*.go' '*.sql' go.mod go.sum 2>/dev/null)
FUZZTIME ?= 30s
KILLS ?= 500
# SQLite's machine-translated C keeps pointers in integers, which the pointer
# checks that come with -race do not allow; data races are still found.
RACEFLAGS := -gcflags=all=-d=checkptr=0

.PHONY: help build mount umount test unit integration check fmt vet staticcheck lint race fuzz bench campaign \
	pjdfstest install uninstall man clean

help:
	@echo 'make mount            install what is needed, build, make a store, mount it (STORE=$(STORE) MNT=$(MNT))'
	@echo 'make umount           end that mount'
	@echo 'make test             unit tests (with the race detector) and tests on real mounts'
	@echo 'make check            gofmt, go vet, staticcheck, import rules'
	@echo 'make build            build $(BIN)'
	@echo 'make install          into PREFIX=$(PREFIX), mount helpers into SBINDIR=$(SBINDIR); DESTDIR for packages'
	@echo 'make race             everything with the race detector, the daemon under test too'
	@echo 'make fuzz             every fuzz target for FUZZTIME=$(FUZZTIME)'
	@echo 'make bench            speed against loopback, ext4 and tmpfs (docs/PERFORMANCE.md)'
	@echo 'make campaign         KILLS=$(KILLS) kills of the daemon under load, and an hour of random operations'
	@echo 'make pjdfstest PJD=DIR  run pjdfstest from its sources in DIR'

build: $(BIN)

$(BIN): $(SOURCES)
	CGO_ENABLED=0 $(GO) build -ldflags '-X main.version=$(VERSION)' -o $@ ./cmd/nexusfs

build/nexusfs-failpoints: $(SOURCES) packaging/failpoints.sh
	packaging/failpoints.sh $@

build/nexusfs-race: $(SOURCES)
	$(GO) build -race $(RACEFLAGS) -ldflags '-X main.version=$(VERSION)-race' -o $@ ./cmd/nexusfs

mount:
	@packaging/setup.sh mount
	@$(MAKE) --no-print-directory build
	@mkdir -p '$(dir $(STORE))' && { [ -d '$(MNT)' ] || mkdir -p '$(MNT)' 2>/dev/null || true; }
	@if grep -qF " $$(realpath -ms '$(MNT)') " /proc/self/mountinfo && ./$(BIN) status '$(MNT)' 2>/dev/null; then \
		echo; echo "$(MNT) is mounted already; make umount ends it"; \
	else \
		./$(BIN) mount --background '$(STORE)' '$(MNT)'; \
	fi

umount: build
	./$(BIN) umount '$(MNT)'

test: unit integration

unit:
	@packaging/setup.sh test
	$(GO) test -race $(RACEFLAGS) -tags invariants -timeout 10m $(ROOMS)
	$(GO) test -tags invariants -timeout 10m $(SQL)

integration: $(BIN) build/nexusfs-failpoints
	@packaging/setup.sh test
	NEXUSFS_BIN=$(CURDIR)/$(BIN) NEXUSFS_FAILPOINTS_BIN=$(CURDIR)/build/nexusfs-failpoints \
		$(GO) test -timeout 20m ./integration/... ./bench/...

check: fmt vet staticcheck lint

fmt:
	packaging/gofmt.sh

vet:
	$(GO) vet -tags invariants ./...

staticcheck:
	$(GO) run $(STATICCHECK) -tags invariants ./...

lint:
	$(GO) test -count=1 ./internal/lint

race: build/nexusfs-race build/nexusfs-failpoints
	@packaging/setup.sh test
	$(GO) test -race $(RACEFLAGS) -tags invariants -timeout 30m $(ROOMS) $(SQL)
	NEXUSFS_BIN=$(CURDIR)/build/nexusfs-race NEXUSFS_FAILPOINTS_BIN=$(CURDIR)/build/nexusfs-failpoints \
		$(GO) test -race $(RACEFLAGS) -timeout 60m ./integration/...

fuzz:
	packaging/fuzz.sh $(FUZZTIME)

campaign: $(BIN) build/nexusfs-failpoints
	@packaging/setup.sh test
	NEXUSFS_LONG=1h NEXUSFS_KILLS=$(KILLS) NEXUSFS_MATRIX=$(CURDIR)/build/matrix.md \
		NEXUSFS_BIN=$(CURDIR)/$(BIN) NEXUSFS_FAILPOINTS_BIN=$(CURDIR)/build/nexusfs-failpoints \
		$(GO) test -count=1 -v -timeout 12h ./integration/campaign ./integration/random

bench:
	@packaging/setup.sh test
	$(GO) run ./bench $(BENCH)

pjdfstest: $(BIN)
	@[ -n '$(PJD)' ] || { echo 'make pjdfstest PJD=folder: the folder with the sources of pjdfstest' >&2; exit 2; }
	@packaging/setup.sh pjdfstest
	packaging/pjdfstest.sh '$(PJD)' $(BIN)

man: build/man/nexusfs.1

build/man/nexusfs.1: $(BIN)
	rm -rf build/man && ./$(BIN) man build/man

SHARE = $(DESTDIR)$(PREFIX)/share
HELPERS := mount.nexusfs mount.fuse.nexusfs umount.nexusfs umount.fuse.nexusfs

install: $(BIN) build/man/nexusfs.1
	install -D -m 0755 $(BIN) $(DESTDIR)$(PREFIX)/bin/nexusfs
	install -d $(SHARE)/man/man1 && install -m 0644 build/man/*.1 $(SHARE)/man/man1
	install -d $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d
	./$(BIN) completion bash > $(SHARE)/bash-completion/completions/nexusfs
	./$(BIN) completion zsh > $(SHARE)/zsh/site-functions/_nexusfs
	./$(BIN) completion fish > $(SHARE)/fish/vendor_completions.d/nexusfs.fish
	@if install -d $(DESTDIR)$(SBINDIR) 2>/dev/null && [ -w $(DESTDIR)$(SBINDIR) ]; then \
		for helper in $(HELPERS); do ln -sfn $(PREFIX)/bin/nexusfs $(DESTDIR)$(SBINDIR)/$$helper; done; \
		echo 'mount -t nexusfs and fstab will find nexusfs by $(DESTDIR)$(SBINDIR)/mount.nexusfs'; \
	else \
		echo 'left out: $(SBINDIR)/mount.nexusfs for mount(8) and fstab, which only root can install'; \
	fi

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/nexusfs $(SHARE)/man/man1/nexusfs.1 $(SHARE)/man/man1/nexusfs-*.1 \
		$(SHARE)/bash-completion/completions/nexusfs $(SHARE)/zsh/site-functions/_nexusfs \
		$(SHARE)/fish/vendor_completions.d/nexusfs.fish $(addprefix $(DESTDIR)$(SBINDIR)/,$(HELPERS))

# A mount below the tree is never followed.
clean:
	rm -rf --one-file-system build
