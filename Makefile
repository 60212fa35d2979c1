# `make` alone shows the menu.
CARGO ?= cargo
DENY := target/tools/bin/cargo-deny
# Property tests: the same cases each time, for chance is no judge of a change. `make soak` leaves it to chance.
SEED := PROPTEST_RNG_SEED=$${PROPTEST_RNG_SEED:-7}
# Where failpoints are used: the other tests have nothing new to say in a build with them, and would fill a small disk.
FALLS := --lib --test failpoints --test data_path_falls --test file_input_falls --test outputs_failpoints

N ?= 2000
STAND ?= 60

.DEFAULT_GOAL := help
.PHONY: help setup build release check test test-overlay test-etcd demo bench bench-files bench-parts bench-jobs rotation-matrix fleet soak plugins-page doc clean

help: ## This menu
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Make a fresh clone ready: what is missing, cargo-deny, servers for bench; again is quick
	@scripts/setup.sh

build: ## Build for development: target/debug/agent
	@scripts/setup.sh build
	$(CARGO) build --locked

release: ## Build for use: target/release/agent, with optimisation: some minutes
	@scripts/setup.sh build
	$(CARGO) build --locked --release

check: ## Form, clippy (also with failpoints), licenses and bans of dependencies
	@scripts/setup.sh tools
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --all-targets --features failpoints -- -D warnings
	$(DENY) --log-level error --all-features --locked check bans licenses sources

test: ## All tests, then those that make things fall (one at a time: a failpoint counts for the whole process)
	@scripts/setup.sh build
	@scripts/setup.sh etcd
	$(SEED) $(CARGO) test --locked
	@test -z "$$CI" || rm -rf target/debug/incremental
	$(SEED) $(CARGO) test --locked --features failpoints $(FALLS) -- --test-threads=1

test-overlay: ## The tests about files on overlayfs and on a tmpfs: TESTS='file_model file_model_v2'
	@scripts/setup.sh build
	$(SEED) TESTS='$(TESTS)' scripts/test-overlay.sh

test-etcd: ## The tests about etcd on another one: ETCD=/path/to/etcd; without, on 3.7, built with Go into target/servers
	@scripts/setup.sh build
	@scripts/setup.sh etcd
	etcd='$(ETCD)' && { test -n "$$etcd" || etcd=$$(scripts/etcd-new.sh); } && \
		ETCD="$$etcd" $(CARGO) test --locked --test etcd

demo: ## The agent on this machine's own logs, for a few seconds
	@scripts/demo.sh

bench: release ## The agent beside this machine's limits, rsyslog and jq: ARGS='--runs 11 --mib 1024'
	@scripts/setup.sh servers
	benches/side_by_side/bench.py target/release/agent \
		$$(test -e target/servers/packages && echo --rsyslog '$(CURDIR)/target/servers') $(ARGS)
	benches/side_by_side/files.py target/release/agent

bench-files: release ## 10,000 files: idle, delay, rotation, ten busy ones, with file:v2 and file:v1: ARGS='--rounds 100'
	benches/side_by_side/files.py target/release/agent $(ARGS)

bench-parts: ## Benchmarks of the parts, by criterion: ARGS='checkpoint --save-baseline before'
	$(CARGO) bench --locked --bench checkpoint --bench framing --bench schedule -- $(ARGS)

bench-jobs: ## 100,000 jobs, 200 firings a second, from a put in etcd to a process
	@scripts/setup.sh etcd
	$(CARGO) bench --locked --bench jobs

fleet: ## N agents against one real etcd beside bare clients: N=2000 STAND=60 (seconds each fleet stands)
	@scripts/setup.sh etcd
	$(CARGO) bench --locked --bench fleet -- --agents $$(for n in 100 500; do [ $$n -lt $(N) ] && printf "$$n,"; done)$(N) --stand $(STAND)

rotation-matrix: ## Every rotation × running, stopped, lagging × file:v1, file:v2: a table of exact counts
	$(CARGO) test --locked --test rotation_matrix -- --nocapture

soak: ## 1,000 kills -9, then all tests again and again with more cases: KILLS=1000 MINUTES=10 CASES=5000
	@scripts/setup.sh build
	@scripts/setup.sh etcd
	@scripts/soak.sh

plugins-page: ## docs/plugins.md, from what the plugins say of themselves
	@scripts/setup.sh build
	$(CARGO) run --quiet --locked -- plugins --markdown > docs/plugins.md

doc: ## The crate's own documentation: target/doc/luffly_agent/index.html
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --lib --document-private-items

clean: ## Remove what was built; the tools in target/tools stay
	$(CARGO) clean --profile dev
	$(CARGO) clean --profile release
