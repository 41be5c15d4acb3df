# What runs Cargo's tools; every target runs from a fresh clone on Debian or Ubuntu with Go, make and git.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The tests of the other rooms need an engine; make test runs them.
unit = $(shell go list ./... | grep -vE '/(cmd/cargo|executor/containerd|executor/docker|worker)$$')
fuzztime ?= 10s

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 18

.PHONY: demo
demo: ## build somebody's app on this machine from start to end, and run it
	@scripts/demo

.PHONY: build
build: ## bin/cargo, a static program
	CGO_ENABLED=0 go build -trimpath -buildvcs=auto -o bin/cargo ./cmd/cargo

.PHONY: builder-image
builder-image: bin/builder.tar ## bin/builder.tar, the image that builds run in; -B makes it anew, with today's packages

bin/builder.tar: $(wildcard scripts/builder-image/*.go)
	go run ./scripts/builder-image -o $@

.PHONY: test
test: ## everything, on both engines, from nothing
	@scripts/test

.PHONY: test-hostile
test-hostile: ## repositories that mean harm, all of them on both engines
	@CARGO_TEST_HOSTILE=all scripts/test -v -run TestHostile ./cmd/cargo

.PHONY: test-crash
test-crash: export CARGO_TEST_SEED = $(SEED)
test-crash: export CARGO_TEST_ROUNDS = $(or $(ROUNDS),100)
test-crash: ## kill it, cut it off and pause it, and look whether anything is lost; SEED= plays a run again, ROUNDS= is how often
	@scripts/test -v -timeout 24h -run TestCrash ./cmd/cargo

.PHONY: test-unit
test-unit: ## what needs no engine
	go test -short $(unit)

.PHONY: check
check: lint ## what must be green before a commit: lint, and the unit tests under the race detector
	@scripts/install gcc gcc=libc6-dev
	CGO_ENABLED=1 go test -short -race $(unit)

.PHONY: lint
lint: vet bin/golangci-lint ## format, vet, staticcheck and golangci-lint
	bin/golangci-lint run ./...

.PHONY: vet
vet: bin/staticcheck ## format, vet and staticcheck
	@unformatted=$$(gofmt -l .); [[ -z $$unformatted ]] || { echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; } >&2
	go vet ./...
	bin/staticcheck ./...

bin/staticcheck: package := honnef.co/go/tools/cmd/staticcheck
bin/golangci-lint: package := github.com/golangci/golangci-lint/v2/cmd/golangci-lint
bin/staticcheck bin/golangci-lint: scripts/tools/go.mod scripts/tools/go.sum
	cd scripts/tools && CGO_ENABLED=0 go build -trimpath -buildvcs=false -o ../../$@ $(package)

# What stands for a cluster in the tests and in scripts/cluster: NATS, and an S3 server on a directory.
bin/nats-server: export package = github.com/nats-io/nats-server/v2@v2.15.2
bin/versitygw: export package = github.com/versity/versitygw/cmd/versitygw@v1.8.0
bin/nats-server bin/versitygw:
	GOBIN="$(CURDIR)/bin" CGO_ENABLED=0 go install -trimpath "$$package"

.PHONY: fuzz
fuzz: ## every fuzz test for fuzztime (10s)
	@for room in $$(grep -rlE --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
		for target in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' $$room/*_test.go | cut -d' ' -f2); do \
			echo "$$room $$target"; go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(fuzztime) $$room; \
		done; \
	done

.PHONY: bench
bench: build builder-image bin/nats-server bin/versitygw ## the benchmarks, then Cargo against bare go build and others, figures last; benchflags='-run hey -rounds 3'
	go test -run '^$$' -bench . -benchmem $$(grep -rlE --include='*_test.go' '^func Benchmark' . | xargs -n1 dirname | sort -u)
	go build -o bin/bench ./scripts/bench
	@scripts/install git
	@command -v nginx >/dev/null || scripts/unpack nginx bin/nginx
	@root=; ((EUID == 0)) || root="sudo --preserve-env=GOPROXY,GOSUMDB,GOPRIVATE env PATH=$$PATH"; $$root bin/bench $(benchflags)

.PHONY: engines
engines: ## containerd and Docker, installed and started where they do not run
	@scripts/engines up

.PHONY: clean
clean: ## remove what the other targets made here
	rm -rf bin
