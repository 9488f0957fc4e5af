# Each target is self-sufficient on a fresh Debian 12 or 13 machine, as root or with sudo: it first runs scripts/setup, which
# says what it does to the machine. CARGO_TARGET_DIR is honoured.

export PATH := $(HOME)/.cargo/bin:$(PATH)
target := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help build demo test test-hosts test-hosts-full soak bench bench-quick fuzz deb apt-repo ova test-vm fmt lint clean

help: ## this list
	@sed -n 's/^\([a-z -]*\):.*## /  make \1\t/p' Makefile | expand -t 26

build: ## release binaries of the daemons and of coderingctl, in target/release/
	@scripts/setup build
	cargo build --release --locked --workspace --bins
	@ls -lh $(addprefix $(target)/release/,codering-brokerd codering-workerd coderingctl)

# The demo runs the binaries of the dev profile, which the tests use too: a cold release build takes twice as long, and
# nothing that the demo does is bound by this code's speed.
demo: ## the first example on one machine: prints the answer beside the expected one
	@scripts/setup demo
	cargo build --locked --workspace --bins
	@scripts/with-docker scripts/demo $(target)/debug

test: ## every test, those with real RabbitMQ, git and Docker included
	@scripts/setup test
	@scripts/with-docker packaging/runtimes/base
	@scripts/with-docker scripts/test

test-hosts: ## three Debian hosts with systemd, set up by Ansible from the packages, and what happens to hosts; needs root
	@scripts/setup hosts
	@SUITES=bookworm packaging/deb
	@scripts/with-docker scripts/test-hosts

test-hosts-full: ## before a release: the same, with a broker and a worker of Debian 13 too, packages built twice, and the appliance in QEMU
	@scripts/setup hosts
	@CHECK=reproducible packaging/deb
	@scripts/with-docker scripts/test-hosts
	@scripts/with-docker scripts/test-hosts --trixie h1,h3
	@scripts/with-docker scripts/test-hosts --release --only answer,release,purge
	@$(MAKE) ova test-vm

soak: ## 10^6 simulated tasks under random kills of the release binaries, on both queue backends: nothing lost, nothing doubled
	@scripts/setup test
	cargo build --release --locked --workspace --bins
	cargo build --locked -p codering-tests --example soak
	CODERING_TEST_BINARIES=$(abspath $(target))/release $(target)/debug/examples/soak $(TASKS)

# Whoever measures all of it writes the README's figures and the plots: they are of one run.
whole = $(if $(ONLY),,$(filter bench,$@))

bench bench-quick: ## the release binaries beside their peers, in one table; bench-quick takes a few minutes
	@scripts/setup test
	@scripts/with-docker packaging/runtimes/base
	cargo build --release --locked --workspace --bins
	@CODERING_TEST_BINARIES=$(abspath $(target))/release scripts/with-docker $(target)/release/codering-bench \
	    --json $(target)/$@.json $(if $(filter bench-quick,$@),--quick) $(if $(ONLY),--only $(ONLY)) \
	    $(if $(whole),--write README.md)
	$(if $(whole),scripts/plot $(target)/$@.json docs)
	$(if $(whole),cargo bench --locked -p codering-bench)

fuzz: ## every parser of outside bytes with random ones, a minute each
	@scripts/setup fuzz
	@scripts/fuzz

deb: ## Debian packages in target/deb/SUITE/; SUITES=bookworm for one release, CHECK=reproducible builds twice and compares
	@scripts/setup deb
	@packaging/deb

apt-repo: ## a signed apt repository of them in target/apt/
	@ls $(target)/deb/*/codering_*.deb > /dev/null 2>&1 || $(MAKE) deb
	@scripts/setup deb
	@packaging/apt-repo

ova: ## a VirtualBox appliance of them, target/ova/codering-VERSION.ova: Debian 12, a broker and a worker
	@ls $(target)/deb/bookworm/codering_*.deb > /dev/null 2>&1 || $(MAKE) deb SUITES=bookworm
	@scripts/setup ova
	@packaging/ova

test-vm: ## boots it in QEMU, without KVM: REST answers, and tasks' limits hold under cgroup version 2
	@ls $(target)/ova/codering-*.ova > /dev/null 2>&1 || $(MAKE) ova
	@scripts/setup ova
	@scripts/test-vm

fmt: ## formats the code
	cargo fmt --all

lint: ## what .ci/run checks before the tests
	@scripts/setup build
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

clean: ## removes what was built
	cargo clean
