# Everything a person does with this project. `make help` lists it.

CARGO ?= cargo
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
PLUGIN := $(TARGET)/plugin/libspank_credd.so
# Where tests, demo and bench find what was built.
BUILT = CREDD_BIN_DIR=$(TARGET)/debug CREDD_PLUGIN_SO=$(PLUGIN)

.DEFAULT_GOAL := help
.PHONY: help
help: ## Lists what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
		printf '  make %-12s %s\n' "$$name" "$$text"; done

.PHONY: demo
demo: deps build ## Brings up a private cluster and shows jobs of two projects at a pretend AWS
	@$(BUILT) $(TARGET)/debug/testbed demo

.PHONY: demo-shell
demo-shell: deps build ## The same cluster, with a shell of one of its users
	@$(BUILT) $(TARGET)/debug/testbed shell

.PHONY: test
test: deps build ## Every test, those on a real Slurm cluster included
	$(BUILT) $(CARGO) test --workspace $(TESTFLAGS)

.PHONY: bench
bench: deps ## Measures speed and size against the project's bounds
	$(CARGO) build --release --workspace --bins
	$(CARGO) build --profile plugin -p spank-plugin
	CREDD_BIN_DIR=$(TARGET)/release CREDD_PLUGIN_SO=$(PLUGIN) $(CARGO) bench -p credd-cluster-tests

.PHONY: lint
lint: build ## Formatting, clippy, cargo-deny, and the shipped example configurations
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; \
	else echo "cargo-deny is missing: cargo install --locked cargo-deny" >&2; exit 1; fi

.PHONY: mutants
mutants: deps build ## Applies each known sabotage and shows which test notices
	$(BUILT) tests/mutants

.PHONY: build
build: ## The programs, and the plugin as it is shipped
	$(CARGO) build --workspace --bins
	$(CARGO) build --profile plugin -p spank-plugin

.PHONY: deps
deps: ## Installs what is missing (Debian, as root); starts no system daemon
	@testbed/install-deps

.PHONY: clean
clean: ## Removes what was built
	$(CARGO) clean
