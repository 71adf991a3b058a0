# What is needed: Go, make and git; a C compiler too for tests with -race.

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)
COMMIT  := $(shell git rev-parse HEAD 2>/dev/null)
LDFLAGS := -X dfsd/cli.version=$(VERSION) -X dfsd/cli.commit=$(COMMIT)
GOBUILD := CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "$(LDFLAGS)"

# The race detector needs cgo, and cgo a C compiler.
RACE ?= $(if $(shell command -v $$(go env CC) 2>/dev/null),-race)

# Where `make install` puts things. DESTDIR goes before all of them.
PREFIX      ?= /usr/local
BINDIR      ?= $(PREFIX)/bin
UNITDIR     ?= $(PREFIX)/lib/systemd/system
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d

BENCH ?= all
SOAK  ?= 1h

.PHONY: build run test e2e generate bench soak lint cross install clean

build:
	$(GOBUILD) -o dfsd .

# A whole replicated cluster on this machine.
run: build
	./dfsd dev

# Everything. The simulator's seeds and the engine's random lives run once more
# without -race, all of them: under it only a few are affordable. The simulator begins first: it takes longest, on one
# processor, while the other packages share the rest. The end-to-end tests come last, against the binary as it ships.
test:
	@$(if $(RACE),:,echo "no C compiler ($$(go env CC)) found: testing without -race")
	$(if $(RACE),CGO_ENABLED=1 )go test $(RACE) -timeout 60m ./sim ./...
	$(if $(RACE),go test -count=1 -timeout 60m -v -run 'TestRun$$' ./sim)
	go test -count=1 -timeout 60m -v -run 'TestMetamorphic$$|TestEveryFlippedBit$$|TestCompactionCrashes$$' ./engine -full
	$(if $(RACE),go test -count=1 -timeout 60m -v -run 'TestEveryFault$$' ./engine)
	@$(MAKE) --no-print-directory e2e

# Clusters of real processes, and the power cut of a real file system: that one
# takes root and mkfs.ext4, and says so when it is not run.
e2e: build
	DFSD_E2E_BINARY=$(CURDIR)/dfsd go test -count=1 -timeout 0 -tags e2e ./cli/chaos
	go test -count=1 -timeout 10m -tags e2e -v -run 'TestPowerCut$$' ./engine

# Generated code is committed; a test compares it with this.
generate:
	go run ./transport/wire/gen transport/wire

# Figures of this machine, beside raw baselines: docs/BENCHMARKS.md. Nothing but
# figures goes to stdout. make bench BENCH=engine|client|meta|all|'client/put-*'
bench:
	@$(MAKE) --no-print-directory build >&2
	@./dfsd bench $(BENCH)

# Every error of a store's disk in turn, and each step of a snapshot; the random lives of the engine and of
# Raft groups and the simulator with fresh seeds, each for as long as SOAK says;
# then the proof that the simulator finds what it should.
soak:
	go test -count=1 -timeout 0 -v -run 'TestEveryFault$$' ./engine -full
	DFSD_TEST_SOAK=$(SOAK) go test -count=1 -timeout 0 -v -run 'TestSoakMetamorphic$$' ./engine
	go test -count=1 -timeout 0 -v -run 'TestSnapshotSurvives' ./raftgroup -snapshot.full
	DFSD_TEST_SOAK=$(SOAK) go test -count=1 -timeout 0 -v -run 'OrWhole$$' ./raftgroup
	DFSD_TEST_SOAK=$(SOAK) go test -count=1 -timeout 0 -v -run 'TestSoak' ./raftgroup ./sim
	DFSD_TEST_PLANTED=all go test -count=1 -timeout 0 -v -run 'TestPlanted' ./sim

lint:
	@files=$$(gofmt -l .); if [ -n "$$files" ]; then echo "not formatted by gofmt:"; echo "$$files"; exit 1; fi
	go vet -tags e2e ./...
	go tool staticcheck -tags e2e ./...

cross:
	GOOS=linux GOARCH=arm64 $(GOBUILD) -o /dev/null .

# What was built is installed; as root nothing is built that is there.
install: $(if $(wildcard dfsd),,build)
	install -D -m 755 dfsd $(DESTDIR)$(BINDIR)/dfsd
	install -D -m 644 packaging/sysusers.d/dfsd.conf $(DESTDIR)$(SYSUSERSDIR)/dfsd.conf
	for role in meta storage; do \
		install -D -m 644 packaging/systemd/dfsd-$$role.service $(DESTDIR)$(UNITDIR)/dfsd-$$role.service && \
		sed -i 's|/usr/local/bin/|$(BINDIR)/|' $(DESTDIR)$(UNITDIR)/dfsd-$$role.service || exit 1; \
	done

clean:
	rm -f dfsd
