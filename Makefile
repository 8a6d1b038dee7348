# Everything a developer runs. Each target does its own set-up; `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# ccache lets RocksDB and librdkafka compile once for every profile and target directory.
export PATH := /usr/lib/ccache:$(PATH)
export CARGO_TARGET_DIR ?= $(HOME)/.cache/kedge/target
export KEDGE_CACHE ?= $(HOME)/.cache/kedge

# Where `make install` puts what, and where it finds the two nodes.
PREFIX ?= /usr
DESTDIR ?=
BIN_DIR ?= $(CARGO_TARGET_DIR)/release

BUILD := deploy/setup/build.sh
# The same selection of packages everywhere: another one unifies features anew and compiles twice.
ALL := --workspace --all-targets --locked
# Seeds of the simulations and length of the chaos run: `make soak SOAK_SEEDS=... SOAK_SECONDS=...`.
SOAK_SEEDS ?= 1000000
SOAK_SECONDS ?= 1800

# They measure links and crowds, and do not pass each time on a machine that does something else too.
LINK_SCENARIOS := crowds:: policy:: wan:: transport::a_quiet_site transport::a_site_whose_network transport::an_outage

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

.PHONY: setup
setup: ## Debian packages that a build needs
	@deploy/setup/packages.sh build

.PHONY: setup-test
setup-test: ## What the tests need besides: JDK, Kafka's jars, the clients, the lost-writes shim
	@deploy/setup/packages.sh test
	@tests/setup/kafka-jars.sh
	@tests/setup/clients.sh
	@tests/setup/go-clients.sh
	@tests/setup/node-clients.sh
	@tests/setup/java-clients.sh
	@tests/setup/shim.sh

.PHONY: build
build: setup ## Both nodes and all tests, development profile
	@$(BUILD) build cargo build $(ALL)

.PHONY: release
release: setup ## Both nodes for installing, release profile
	@$(BUILD) release cargo build --release --locked --workspace

.PHONY: install
install: ## Nodes, units, docs, example settings: PREFIX=/usr, DESTDIR=, BIN_DIR=; docs/deploy.md
	@for node in edge-node hub-node; do \
	  [[ -x "$(BIN_DIR)/$$node" ]] || { echo "$(BIN_DIR)/$$node: run 'make release', or give BIN_DIR=" >&2; exit 1; }; \
	done
	install -d $(addprefix "$(DESTDIR)$(PREFIX)"/,bin lib/systemd/system lib/sysusers.d \
	  $(addprefix share/doc/kedge/,docs examples benches/plots))
	install -m 755 "$(BIN_DIR)/edge-node" "$(BIN_DIR)/hub-node" "$(DESTDIR)$(PREFIX)/bin"
	install -m 644 deploy/systemd/sysusers.conf "$(DESTDIR)$(PREFIX)/lib/sysusers.d/kedge.conf"
	install -m 644 deploy/config/edge.toml deploy/config/hub.toml "$(DESTDIR)$(PREFIX)/share/doc/kedge/examples"
	install -m 644 LICENSE "$(DESTDIR)$(PREFIX)/share/doc/kedge"
	install -m 644 benches/plots/*.svg "$(DESTDIR)$(PREFIX)/share/doc/kedge/benches/plots"
	@# where the source has other places than an installed tree, links are led there
	for text in README.md CHANGELOG.md ARCHITECTURE.md docs/*.md benches/README.md; do \
	  sed -E 's,\]\(((\.\./)?)deploy/config/,](\1examples/,g; s,\]\(\.\./deploy/systemd\),](../../../../lib/systemd/system),g' \
	    "$$text" > "$(DESTDIR)$(PREFIX)/share/doc/kedge/$$text"; \
	  chmod 644 "$(DESTDIR)$(PREFIX)/share/doc/kedge/$$text"; \
	done
	for unit in edge-node hub-node; do \
	  sed -E 's,/usr/(bin|share)/,$(PREFIX)/\1/,' "deploy/systemd/$$unit.service" \
	    > "$(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit.service"; \
	  chmod 644 "$(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit.service"; \
	done

.PHONY: demo
demo: build ## The main job on one machine: no Kafka needed; KAFKA_BOOTSTRAP=host:port uses one
	@"$$CARGO_TARGET_DIR/debug/demo"

.PHONY: test
test: setup-test build ## Every test: unit, property, simulation, fuzz (short), system tests on a real Kafka
	"$$CARGO_TARGET_DIR/debug/with-broker" cargo test --workspace --locked
	cargo test --workspace --locked --test scenarios -- --ignored --test-threads=1 \
	  $(addprefix --skip ,$(LINK_SCENARIOS))

.PHONY: test-links
test-links: setup-test build ## Scenarios of thin, cut and crowded links: a quiet machine; part of `test` once they are steady
	cargo test --workspace --locked --test scenarios -- --ignored --test-threads=1 $(LINK_SCENARIOS)

.PHONY: lint
lint: setup ## rustfmt, clippy, the core without its runtime, rustdoc, cargo-deny
	cargo fmt --all --check
	@$(BUILD) clippy cargo clippy $(ALL) -- -D warnings
	cargo check --locked -p shared --no-default-features
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --document-private-items
	@deploy/setup/cargo-deny.sh
	"$$KEDGE_CACHE/tools/bin/cargo-deny" --log-level error --locked check --hide-inclusion-graph bans licenses sources

.PHONY: advisories
advisories: ## cargo-deny's advisories; needs the network
	@deploy/setup/cargo-deny.sh
	"$$KEDGE_CACHE/tools/bin/cargo-deny" --locked check advisories

.PHONY: bench
bench: setup-test ## Speed and memory against peers, into benches/results.json and benches/README.md
	@deploy/setup/packages.sh bench
	@$(BUILD) bench-build cargo build --release --locked --workspace
	@"$$CARGO_TARGET_DIR/release/bench"

.PHONY: test-lanes
test-lanes: setup-test build ## The hub's lanes alone on a real Kafka
	"$$CARGO_TARGET_DIR/debug/with-broker" cargo test --workspace --locked kafka_tests

.PHONY: soak
soak: setup-test build ## A million simulated seeds, ten minutes of a link ten times overloaded, a long chaos run
	KEDGE_SIM_SEEDS=$(SOAK_SEEDS) cargo test --workspace --locked --lib -- --nocapture link::sim::many_seeds
	KEDGE_OVERLOAD_SECONDS=600 cargo test --workspace --locked --test scenarios -- \
	  --ignored --test-threads=1 --nocapture tenfold_overload
	KEDGE_CHAOS_SECONDS=$(SOAK_SECONDS) cargo test --workspace --locked --test scenarios -- \
	  --ignored --test-threads=1 --nocapture chaos
