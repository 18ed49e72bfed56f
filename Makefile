# sockpath: build, demonstrate, test. Every target works on a fresh Debian machine with Rust, git and make:
# what else it needs is installed with apt, once, by .ci/deps.

SHELL := /bin/bash
HOST := x86_64-unknown-linux-gnu
ARCH := amd64
ifeq ($(shell uname -m),aarch64)
HOST := aarch64-unknown-linux-gnu
ARCH := arm64
endif
BIN := target/release
STATIC := target/$(HOST)/release/sockpath-helper
RUN_TESTS := RUST_BACKTRACE=1 SOCKPATH_HELPER=$(CURDIR)/$(STATIC) cargo test --release --locked

.PHONY: build demo test unit kernel-tests torture bench e2e kernels image reproducible lint deps clean help

help: ## Show the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: target/.deps-build

target/.deps-build: .ci/deps
	.ci/deps build
	@mkdir -p target && touch $@

target/.deps-test: .ci/deps tests/apt-packages
	.ci/deps build test
	@mkdir -p target && touch $@

# The helper is one static binary (glibc, crt-static): the same file serves as a child process of the lab and in the image.
# crt-static needs --target, or it would reach the proc macros.
build: deps ## Build target/release/{kubectl-sockpath,sockpath-helper}
	cargo build --release --locked -p kubectl-sockpath
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target $(HOST) -p sockpath-helper
	@install -m 755 $(STATIC) $(BIN)/.sockpath-helper.new && mv $(BIN)/.sockpath-helper.new $(BIN)/sockpath-helper
	@install -D -m 755 $(STATIC) target/image/$(ARCH)/sockpath-helper

demo: build ## Bring up the lab and trace real packets in every scenario
	tests/demo

test: build target/.deps-test ## Unit, golden, real-kernel and short torture tests
	tests/run-all

unit: build ## Tests that need neither root nor a lab
	$(RUN_TESTS) --workspace --exclude sockpath-tests

kernel-tests: build target/.deps-test ## Tests on this machine's kernel, in the lab (root)
	$(RUN_TESTS) -p sockpath-tests -- --test-threads=1

torture: build target/.deps-test ## 20,000 connections with acceleration switched on and off at random (root)
	cargo build --release --locked -p sockpath-tests --bins
	$(BIN)/torture --connections 20000

bench: build target/.deps-test ## The tables of docs/benchmarks.md (root, quiet machine)
	cargo build --release --locked -p sockpath-tests --bins
	$(BIN)/bench

e2e: build ## End-to-end tests on two nodes from K8S_BIN, or on the cluster of KUBECONFIG
	cargo build --release --locked -p sockpath-tests --bins
	$(RUN_TESTS) -p sockpath-tests --no-fail-fast --test cluster --test cluster_faults --test cluster_names --test cluster_policy --test cluster_refusals --test cluster_accelerate --test cluster_accelerate_faults -- --test-threads=1 --nocapture

kernels: build ## Trace and accelerate in virtual machines with Debian's kernels, 5.10 to sid's (no KVM needed)
	.ci/deps build kernels
	tests/kernels/run $(STATIC) $(BIN)/kubectl-sockpath

image: build ## The helper's image as an OCI archive, without a daemon
	cargo build --release --locked -p sockpath-tests --bin oci-image
	$(BIN)/oci-image $(STATIC) target/sockpath-helper.oci.tar

reproducible: deps ## Build the image twice from two directories and compare the digests
	.ci/reproducible

lint: deps ## Format and clippy, warnings denied
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings

clean: ## Remove what was built
	cargo clean
