# Everything a fresh machine needs: python3, make, git. Set PYTHON to choose another interpreter (3.11 to 3.13).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: serve test test-cluster fuzz soak lint types wheel-check bench demo proto dashboards chart chart-check \
	image-requirements image-check release publish clean
.DEFAULT_GOAL := test

# for the Python of the image, wherever this runs
export UV_CUSTOM_COMPILE_COMMAND := make image-requirements
PINNED := --generate-hashes --no-annotate --python-version 3.13 --python-platform linux

# the broker and its run-time dependencies; from nothing, whatever an attempt with another Python left behind
$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[postgres]"
	touch $@

# what developing needs besides
$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

serve: $(VENV)/.installed  ## run the broker on the embedded store (ARGS="--listen ..." for more)
	$(BIN)/trio-broker serve $(ARGS)

test: $(VENV)/.dev  ## run the tests (ARGS="-k fanout" for some)
	$(BIN)/python -m pytest $(ARGS)

test-cluster: $(VENV)/.dev  ## run the tests that need three Cassandra nodes (Java 17, Maven, 2 GB of memory)
	$(BIN)/python -m pytest -m cluster $(ARGS)

SECONDS ?= 60
fuzz: $(VENV)/.dev  ## look for bytes that break something, for SECONDS=60 (docs/SECURITY.md)
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(ARGS)

MINUTES ?= 30
soak: $(VENV)/.dev  ## hostile and ordinary clients against one broker, for MINUTES=30 (docs/SECURITY.md)
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/flake8 trio_broker persistence metrics
	$(BIN)/lint-imports

types: $(VENV)/.dev
	$(BIN)/mypy

wheel-check: $(VENV)/.dev  ## the wheel runs in a venv of its own, outside the checkout
	rm -rf build/wheel && $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv --clear build/wheel/venv
	build/wheel/venv/bin/pip install --quiet build/wheel/*.whl
	cd build/wheel && venv/bin/trio-broker version && venv/bin/python -c "import trio_broker; trio_broker.open_broker"

demo: $(VENV)/.installed  ## 20,000 real events through a real broker, killed half-way
	$(BIN)/python examples/demo.py

bench: $(VENV)/.dev  ## side by side with grpcio.aio, interleaved
	$(BIN)/python -m benchmarks $(ARGS)

proto: $(VENV)/.dev  ## generate trio_broker/_proto again
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python protos/generate.py

dashboards: $(VENV)/.dev  ## generate docker/grafana/dashboards again
	$(BIN)/python docker/grafana/generate.py

chart: $(VENV)/.dev  ## generate what the Helm chart has from elsewhere again, and its README (Go)
	$(BIN)/python helm/generate.py
	helm/ci/install.sh $(BIN)/python
	helm/ci/readme.sh

chart-check: $(VENV)/.dev  ## lint, render and validate the Helm chart (Go; installs helm beside)
	helm/ci/install.sh $(BIN)/python
	$(BIN)/python -m pytest -m chart $(ARGS)

image-requirements: $(VENV)/.dev  ## pin what the image is built of again (docker/*requirements.txt)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --upgrade $(PINNED) --extra postgres --extra cassandra --extra otel setup.cfg \
		--output-file docker/requirements.txt
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'])" \
		| $(BIN)/uv pip compile --quiet --upgrade $(PINNED) - --output-file docker/build-requirements.txt

image-check: $(VENV)/.dev  ## build the image, run it hardened, bring compose stack and chart up (Debian; installs podman as root)
	docker/ci/install.sh
	helm/ci/install.sh $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[containers]"
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -m containers $(ARGS)

# where a release is published: the image without a tag, the chart as oci://host/path; what building the image needs here
IMAGE_REPOSITORY ?= localhost/trio-broker
CHART_REPOSITORY ?=
IMAGE_ARGUMENTS ?=

release: $(VENV)/.dev  ## wheel, source, image, chart, SBOM and checksums of the last commit, in dist/ (docs/RELEASE.md)
	$(BIN)/python docker/release/build.py --image-repository "$(IMAGE_REPOSITORY)" --image-arguments "$(IMAGE_ARGUMENTS)" $(ARGS)

publish:  ## push image and chart of dist/ to IMAGE_REPOSITORY and CHART_REPOSITORY
	docker/release/publish.sh "$(IMAGE_REPOSITORY)" "$(CHART_REPOSITORY)"

clean:
	rm -rf $(VENV) build dist *.egg-info
