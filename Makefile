# sockpath: build, demonstrate, test. Every target works on a fresh Debian machine with Rust, git and make;
# .ci/deps installs everything else with apt, once.

SHELL := /bin/bash
ARCH := amd64
ifeq ($(shell uname -m),aarch64)
ARCH := arm64
endif
BIN := target/release
# Programs but the plugin are static: see there.
export RUSTC_WORKSPACE_WRAPPER := $(CURDIR)/.ci/rustc
# All crates, always: cargo chooses the features of what they depend on for those that are named, and builds anew for others. So the helper has
# features of its dependencies here that only the plugin needs; .ci/release builds it alone.
BUILD := cargo build --release --locked --workspace
PROGRAMS := SOCKPATH_HELPER=$(CURDIR)/$(BIN)/sockpath-helper SOCKPATH_LAB_PROGRAM=$(CURDIR)/$(BIN)/sockpath-lab \
	SOCKPATH_LAB_TEST_PROGRAM=$(CURDIR)/$(BIN)/sockpath-lab-test
RUN_TESTS := RUST_BACKTRACE=1 $(PROGRAMS) cargo test --release --locked --workspace

.PHONY: build test-programs test-tools demo test unit kernel-tests torture bench e2e kernels image reproducible lint words msrv deny deps clean help

help: ## Show the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: target/.deps-build

target/.deps-build: .ci/deps
	.ci/deps build
	@mkdir -p target && touch $@

target/.deps-test: .ci/deps tests/apt-packages
	.ci/deps build test
	@mkdir -p target && touch $@

build: deps ## Build target/release/{kubectl-sockpath,sockpath-helper,sockpath-lab}
	$(BUILD) --bin kubectl-sockpath --bin sockpath-helper --bin sockpath-lab
	@install -D -m 755 $(BIN)/sockpath-helper target/image/$(ARCH)/sockpath-helper

# Never shipped: tests show by its switches that they notice faults (helper/src/switches.rs).
test-programs: build ## Build target/release/sockpath-lab-test, the lab with test switches
	$(BUILD) --features sockpath-lab/test-switches --bin sockpath-lab-test

test-tools: deps
	$(BUILD) --bins

demo: build ## Bring up the lab and trace real packets in every scenario
	tests/demo

test: test-programs test-tools target/.deps-test ## Unit, golden, real-kernel and short torture tests
	$(PROGRAMS) tests/run-all unit kernel

unit: build ## Tests that need neither root nor a lab
	$(PROGRAMS) tests/run-all unit

# A single one: make kernel-tests TEST=truth NAME=part_of_its_name
kernel-tests: test-programs test-tools target/.deps-test ## Tests on this machine's kernel, in the lab (root); TEST=PROGRAM NAME=TEST for one
	$(if $(TEST),$(RUN_TESTS) --test $(TEST) -- --test-threads=1 $(NAME),$(PROGRAMS) tests/run-all kernel)

torture: test-programs test-tools target/.deps-test ## 20,000 connections with acceleration switched on and off at random (root)
	$(BIN)/torture --connections 20000

bench: build test-tools target/.deps-test ## The tables of docs/benchmarks.md (root, quiet machine); STRICT=1 fails on a missed goal
	$(BIN)/bench $(if $(STRICT),--strict)

e2e: build test-tools ## End-to-end tests on two nodes from K8S_BIN, or on the cluster of KUBECONFIG
	$(RUN_TESTS) --no-fail-fast --test cluster --test cluster_changes --test cluster_faults --test cluster_interrupted --test cluster_names --test cluster_policy --test cluster_refusals --test cluster_accelerate --test cluster_accelerate_faults --test cluster_short --test cluster_unwell --test cluster_kernels -- --test-threads=1 --nocapture

kernels: test-programs ## Trace and accelerate in virtual machines with Debian's kernels, 5.10 to sid's (no KVM needed)
	.ci/deps build kernels
	tests/kernels/run $(BIN)/sockpath-lab $(BIN)/sockpath-lab-test $(BIN)/kubectl-sockpath

image: build test-tools ## The helper's image as an OCI archive, without a daemon
	$(BIN)/oci-image $(BIN)/sockpath-helper target/sockpath-helper.oci.tar

reproducible: deps ## Build the image twice from two directories and compare the digests
	.ci/reproducible

words: ## Words to avoid (.ci/words)
	.ci/words

lint: words deps ## Words, format and clippy, warnings denied
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	cargo clippy --release --locked --workspace --features sockpath-lab/test-switches,sockpath-helper/test-switches --all-targets -- -D warnings

# Cargo.toml's rust-version; rustup fetches that compiler.
MSRV := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
msrv: deps ## Check that the oldest supported compiler builds everything (rustup fetches it)
	rustup toolchain install $(MSRV) --profile minimal
	cargo +$(MSRV) check --release --locked --workspace --all-targets

deny: ## Licences, sources and duplicates of all dependencies (cargo-deny; deny.toml)
	@command -v cargo-deny >/dev/null || { echo "error: no cargo-deny; install it with: cargo install --locked cargo-deny" >&2; exit 1; }
	cargo deny --offline check licenses sources bans

clean: ## Remove what was built
	cargo clean
