# Everything a person does with this project. `make help` lists it.

CARGO ?= cargo
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
PLUGIN := $(TARGET)/plugin/libspank_credd.so
# Where tests, demo and bench find what was built.
BUILT = CREDD_BIN_DIR=$(TARGET)/debug CREDD_PLUGIN_SO=$(PLUGIN)

# The pretend AWS, which credvend's own tests start by themselves. An `export` of the command itself would hide its failure.
MINISTACK = python=$$(testbed/python-environment $(TARGET)/testbed-cache <testbed/requirements.txt) && \
	export CREDD_MINISTACK=$$python/bin/ministack

.DEFAULT_GOAL := help
.PHONY: help
help: ## Lists what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
		printf '  make %-16s %s\n' "$$name" "$$text"; done

.PHONY: demo
demo: root deps build ## Brings up a private cluster and shows jobs of two projects at a pretend AWS
	@$(BUILT) $(TARGET)/debug/testbed demo

.PHONY: demo-shell
demo-shell: root deps build ## The same cluster, with a shell of one of its users
	@$(BUILT) $(TARGET)/debug/testbed shell

# What runs the tests, with everything at hand that they need.
TEST ?= $(CARGO) test --locked --workspace

.PHONY: test
test: deps build ## Every test, those on a real Slurm cluster included
	$(MINISTACK) && $(BUILT) $(TEST) $(TESTFLAGS)

.PHONY: soak
soak: root deps build ## Deals faults to a cluster under load and checks what must hold (SOAKFLAGS="--minutes 60 --seed 7 --json")
	@$(BUILT) $(TARGET)/debug/testbed soak $(SOAKFLAGS)

.PHONY: bench
bench: ## Measures speed and size against the project's bounds (BENCHFLAGS="--json", or topics)
	@testbed/install-deps wrk binutils
	$(CARGO) build --locked --release -p credvend -p testbed --bins
	$(CARGO) build --locked --profile node -p credd --bins
	$(CARGO) build --locked --profile plugin -p spank-plugin
	$(CARGO) build --locked --profile plugin -p slurm-spank --examples
	@mkdir -p $(TARGET)/shipped && \
		ln -sf $(TARGET)/node/credd $(TARGET)/release/credvend $(TARGET)/release/testbed $(TARGET)/shipped/
	@CREDD_BIN_DIR=$(TARGET)/shipped CREDD_PLUGIN_SO=$(PLUGIN) $(CARGO) bench --locked -p credd-cluster-tests --bench bench -- $(BENCHFLAGS)

.PHONY: sim
sim: ## A job on 10,000 simulated nodes against a real credvend and an STS that throttles (SIMFLAGS="--nodes 1000 --json")
	$(CARGO) build --locked --release -p credvend --bins
	@CREDD_BIN_DIR=$(TARGET)/release $(CARGO) bench --locked -q -p credd-cluster-tests --bench sim -- $(SIMFLAGS)

.PHONY: lint
lint: ## Formatting, clippy, cargo-deny
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@tests/dependencies

.PHONY: mutants
mutants: root deps build ## Applies each known sabotage and shows which test notices
	$(CARGO) run --locked -q -p testbed --bin mutants

.PHONY: notices
notices: ## Writes packaging/THIRD-PARTY-NOTICES, after a change of Cargo.lock
	$(CARGO) run --locked -q -p testbed --bin notices

.PHONY: completions
completions: ## Writes packaging/completions, after a change of the command lines
	CREDD_WRITE_COMPLETIONS=1 $(CARGO) test --locked -q -p credd --test shipped completions
	CREDD_WRITE_COMPLETIONS=1 $(CARGO) test --locked -q -p credvend --test packaging completions

# Said before the long build, not after it.
.PHONY: root
root:
	@[ "$$(id -u)" = 0 ] || { echo "This needs root: the cluster's hosts are network namespaces, its users private." >&2; exit 1; }

.PHONY: build
build: ## The programs, and the plugin as it is shipped
	$(MINISTACK) && $(CARGO) build --locked --workspace --bins
	$(CARGO) build --locked --profile plugin -p spank-plugin

.PHONY: deps
deps: ## Installs what is missing (Debian, as root); starts no system daemon
	@testbed/install-deps

# Where `make install` puts things; DESTDIR goes before all of them. Nothing is put below /lib, which is a link to /usr/lib
# on today's systems: a tree with a directory of that name, copied onto one, takes the C library's place.
PREFIX ?= /usr
SBINDIR ?= $(PREFIX)/sbin
MANDIR ?= $(PREFIX)/share/man
DOCDIR ?= $(PREFIX)/share/doc/credd
BASHCOMPDIR ?= $(PREFIX)/share/bash-completion/completions
# Where Debian's zsh looks; another distribution's looks in share/zsh/site-functions.
ZSHCOMPDIR ?= $(PREFIX)/share/zsh/vendor-completions
FISHCOMPDIR ?= $(PREFIX)/share/fish/vendor_completions.d
UNITDIR ?= $(PREFIX)/lib/systemd/system
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d
TMPFILESDIR ?= $(PREFIX)/lib/tmpfiles.d
SYSCONFDIR ?= /etc
# Where this machine's Slurm keeps its own plugins.
SLURMLIBDIR ?= $(or $(patsubst %/,%,$(dir $(firstword $(wildcard \
	/usr/lib/*/slurm-wlm/select_cons_tres.so /usr/lib*/slurm/select_cons_tres.so /usr/lib/*/slurm/select_cons_tres.so)))),$(PREFIX)/lib/slurm)

# Units name the programs by path; another SBINDIR is written into them.
UNITS = for unit in $(1); do install -D -m 644 "$$unit" "$(DESTDIR)$(UNITDIR)/$${unit\#\#*/}" && \
	sed -i 's|/usr/sbin/|$(SBINDIR)/|' "$(DESTDIR)$(UNITDIR)/$${unit\#\#*/}" || exit 1; done
# Configuration is put where it is read only on this host itself, and only where there is none yet. A tree below DESTDIR has
# the examples alone: it is copied again at an upgrade. (A package, which knows what its admin changed, says CONFIGS=yes.)
CONFIGS ?= $(if $(DESTDIR),no,yes)
# From, to.
CONFIG = [ $(CONFIGS) = no ] || [ -e "$(DESTDIR)$(SYSCONFDIR)/$(2)" ] || install -D -m 644 $(1) "$(DESTDIR)$(SYSCONFDIR)/$(2)"
# The shells' completions of one program.
COMPLETIONS = install -D -m 644 packaging/completions/$(1).bash "$(DESTDIR)$(BASHCOMPDIR)/$(1)" && \
	install -D -m 644 -t "$(DESTDIR)$(ZSHCOMPDIR)" packaging/completions/_$(1) && \
	install -D -m 644 -t "$(DESTDIR)$(FISHCOMPDIR)" packaging/completions/$(1).fish
# Goes with every part, the plugin alone included.
ABOUT = LICENSE CHANGELOG.md SECURITY.md packaging/THIRD-PARTY-NOTICES
# Builds a program, or takes the one that is there where cargo is not: the file, cargo's arguments.
BUILD = if command -v $(CARGO) >/dev/null; then $(CARGO) build --locked $(2); \
	elif [ -e $(1) ]; then echo "There is no cargo here; $(1) is installed as it is."; \
	else echo "$(1) is not built, and there is no cargo here. Build it where there is, and copy target/." >&2; exit 1; fi

.PHONY: install
install: install-node install-service ## Installs everything under DESTDIR; enables and starts nothing

.PHONY: install-plugin
install-plugin: ## The plugin alone, for login nodes
	@$(call BUILD,$(PLUGIN),--profile plugin -p spank-plugin)
	install -D -m 755 $(PLUGIN) $(DESTDIR)$(SLURMLIBDIR)/spank_credd.so
	install -D -m 644 -t $(DESTDIR)$(DOCDIR)/examples plugstack.conf.example packaging/slurm/job_submit_credd.lua
	install -D -m 644 -t $(DESTDIR)$(DOCDIR) $(ABOUT)

.PHONY: install-node
install-node: install-plugin ## The plugin and credd, for compute nodes
	@$(call BUILD,$(TARGET)/node/credd,--profile node -p credd --bins)
	install -D -m 755 -t $(DESTDIR)$(SBINDIR) $(TARGET)/node/credd
	@$(call UNITS,packaging/systemd/credd*)
	install -D -m 644 -t $(DESTDIR)$(SYSUSERSDIR) packaging/sysusers.d/credd.conf
	install -D -m 644 -t $(DESTDIR)$(TMPFILESDIR) packaging/tmpfiles.d/credd.conf
	install -D -m 644 -t $(DESTDIR)$(MANDIR)/man8 packaging/man/credd.8
	install -D -m 644 -t $(DESTDIR)$(MANDIR)/man5 packaging/man/credd.toml.5
	@$(call COMPLETIONS,credd)
	install -D -m 644 -t $(DESTDIR)$(DOCDIR)/examples packaging/credd.toml
	install -D -m 644 -t $(DESTDIR)$(DOCDIR) docs/*.md docs/openapi.yaml
	@$(call CONFIG,packaging/credd.toml,credd/credd.toml)

.PHONY: install-service
install-service: ## credvend, for the service host
	@$(call BUILD,$(TARGET)/release/credvend,--release -p credvend --bins)
	install -D -m 755 -t $(DESTDIR)$(SBINDIR) $(TARGET)/release/credvend
	@$(call UNITS,packaging/systemd/credvend*)
	install -D -m 644 -t $(DESTDIR)$(SYSUSERSDIR) packaging/sysusers.d/credvend.conf
	install -D -m 644 -t $(DESTDIR)$(MANDIR)/man8 packaging/man/credvend.8
	install -D -m 644 -t $(DESTDIR)$(MANDIR)/man5 packaging/man/credvend.toml.5 packaging/man/projects.toml.5
	@$(call COMPLETIONS,credvend)
	install -D -m 644 packaging/logrotate/credvend $(DESTDIR)$(DOCDIR)/examples/credvend.logrotate
	install -D -m 644 -t $(DESTDIR)$(DOCDIR)/examples packaging/credvend.toml packaging/projects.toml packaging/hook.toml \
		packaging/prometheus/credd.rules.yml
	install -D -m 644 -t $(DESTDIR)$(DOCDIR) docs/*.md docs/openapi.yaml $(ABOUT)
	@$(call CONFIG,packaging/credvend.toml,credvend/credvend.toml)
	@$(call CONFIG,packaging/projects.toml,credvend/projects.toml)
	@$(call CONFIG,packaging/logrotate/credvend,logrotate.d/credvend)

.PHONY: clean
clean: ## Removes what was built
	$(CARGO) clean
