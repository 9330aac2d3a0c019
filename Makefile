# What a newcomer needs: make demo, make test. Everything that they need, they install.
SHELL = /bin/bash
.ONESHELL:
.SHELLFLAGS = -euo pipefail -c

PYTHON = /usr/bin/python3
VENV = .venv
BIN = $(VENV)/bin
# Byte code is kept, as an installed package has it: a reload starts a Python.
unexport PYTHONDONTWRITEBYTECODE
SUDO = $(shell [ $$(id -u) = 0 ] || echo sudo)
APT = DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get -qq -o DPkg::Lock::Timeout=300

RUNTIME_PACKAGES = python3 python3-venv python3-systemd python3-prometheus-client python3-rich
TEST_PACKAGES = bash-completion chromium-headless-shell fish fonts-dejavu-core haproxy hatop iproute2 man-db nghttp2-client \
	libnginx-mod-stream nginx prometheus prometheus-haproxy-exporter python3-pyte slowhttptest strace systemd wrk zsh
VM_PACKAGES = mmdebstrap systemd-container debian-archive-keyring iproute2 util-linux e2fsprogs qemu-system-x86 qemu-utils

# Two machines at a time.
VM_PYTEST = $(SUDO) $(BIN)/python -m pytest vm-tests -n 2

# What builds the package, see debian/control, and what criticises it.
DEB_PACKAGES = build-essential debhelper dh-python lintian pybuild-plugin-pyproject python3-all python3-setuptools

.PHONY: help deb demo test lint vm-quick vm-test vm-long bench clean

help:
	@echo 'make demo     watch hitlessd being reloaded under load'
	@echo 'make test     linters and all tests but those that boot machines'
	@echo 'make vm-test  tests on booted Debian 12 and 13 (root)'
	@echo 'make vm-long  those of them that take minutes each (root)'
	@echo 'make vm-quick a few of those, on Debian 13 (root)'
	@echo 'make deb      the Debian package, in dist/'
	@echo 'make bench    side by side with haproxy and nginx'
	@echo 'make lint     ruff and mypy alone'

# The packages of a target, installed if one is missing: $(call need,list)
define need
	missing=$$(for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done)
	# The tests run servers of their own; Debian's would take the usual ports.
	for p in nginx prometheus prometheus-haproxy-exporter; do
		if grep -qx $$p <<<"$$missing"; then $(SUDO) mkdir -p /etc/systemd/system; $(SUDO) ln -sf /dev/null /etc/systemd/system/$$p.service; fi
	done
	if [ -n "$$missing" ]; then $(APT) update; $(APT) install -y --no-install-recommends $$missing >/dev/null; fi
endef

$(VENV)/.runtime: pyproject.toml
	@$(call need,$(RUNTIME_PACKAGES))
	[ -x $(BIN)/python ] || $(PYTHON) -m venv --system-site-packages $(VENV)
	touch $@

$(VENV)/.test: $(VENV)/.runtime pyproject.toml
	@$(call need,$(TEST_PACKAGES))
	$(BIN)/pip install -q 'setuptools>=66' 'pytest>=8' 'pytest-xdist>=3' 'hypothesis>=6' 'h11>=0.14' 'httptools>=0.6' 'mypy>=1.10' 'ruff>=0.6' 'websockets>=15' \
		'haproxyadmin==0.2.4' 'haproxystats==0.5.1' 'pandas>=2,<3' 'py-spy>=0.3.14'
	touch $@

demo: $(VENV)/.runtime
	@$(BIN)/python -m benchmarks.demo

lint: $(VENV)/.test
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Most tests wait for something, and some for a deadline that a crowded machine would miss: two at a time on two CPUs.
test: $(VENV)/.test
	@$(BIN)/python -m pytest -n 2 --dist worksteal

deb:
	@$(call need,$(DEB_PACKAGES))
	$(PYTHON) vm-tests/package.py dist

vm-test: $(VENV)/.test
	@$(call need,$(VM_PACKAGES) $(DEB_PACKAGES))
	$(SUDO) $(BIN)/python vm-tests/image.py
	$(VM_PYTEST) -m 'not long'

vm-long: $(VENV)/.test
	@$(call need,$(VM_PACKAGES) $(DEB_PACKAGES))
	$(SUDO) $(BIN)/python vm-tests/image.py
	$(VM_PYTEST) -m long

vm-quick: $(VENV)/.test
	@$(call need,$(VM_PACKAGES) $(DEB_PACKAGES))
	$(SUDO) $(BIN)/python vm-tests/image.py debian-13
	$(VM_PYTEST) -m quick -k debian-13

bench: $(VENV)/.test
	@$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
