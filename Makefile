# make demo         a venv, the requirements, the bundled model, and the page
# make test         everything the tests need, a browser included, and the tests of every day
# make test-full    make test, and the long ones: the whole page, faults, fuzzing, a short soak and attack, the wheel
# make test-gpu     those that need a CUDA device
# make gpu-day      a card's first day: these tests, the benchmarks, the page; 25 minutes a call; see scripts/gpu_day.py
# make test-floors  the bundled model and the page on the oldest versions that requirements.txt allows (several GB)
# make wheels     the wheels with the C kernels inside, of four platforms, into dist; WHEELS=linux-x86_64 is one
# make golden       rewrite the golden files in tests/golden with what the code says now
# make mutants      mutation tests of the method, the report of a run, the lane and the refresher (half an hour)
# make quality      style, format and types; the documentation as a site, without a warning, in build/site
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FLOORS := .venv-floors
PYTEST := $(BIN)/python -m pytest
SPREAD := -n 2 --dist loadfile  # a file's tests in one process: they share a server, a browser, a model

.PHONY: demo test test-full test-gpu gpu-day test-floors wheels golden mutants model quality quality-js npm style browser soak
.PHONY: space-check emulator clean

demo: $(VENV)/.installed model
	$(BIN)/python app.py

test: $(VENV)/.installed-dev model browser
	$(PYTEST) $(SPREAD)

test-full: test $(VENV)/.installed-wheels emulator
	$(PYTEST) $(SPREAD) -m "full and not gpu and not floors"

test-gpu: $(VENV)/.installed-dev model
	$(PYTEST) -m gpu

# DAY="bench-bundled profile" takes these steps alone.
gpu-day: $(VENV)/.installed-dev model
	$(BIN)/python -m scripts.gpu_day $(DAY)

wheels: $(VENV)/.installed-wheels
	$(BIN)/python -m scripts.wheels $(WHEELS)

# Look at `git diff tests/golden` afterwards.
golden: $(VENV)/.installed-dev model
	LORA_DROP_GOLDEN=1 $(PYTEST) $(SPREAD) -m "" $$(grep -rl check_golden tests --include='test_*.py')

# Not in continuous integration. MUTANTS="--only speed words" takes the drawn ones of these files.
mutants: $(VENV)/.installed-dev model
	$(BIN)/python -m scripts.mutants --json test-results/mutants.json $(MUTANTS)

# Not in continuous integration: the oldest torch on the package index is its CUDA build.
test-floors: $(FLOORS)/.installed model
	$(FLOORS)/bin/python -m pytest -m floors

quality: $(VENV)/.installed-dev quality-js
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find lora_drop -name '*.pyi' -delete  # Gradio's, beside its components: mypy would read them in the code's place
	$(BIN)/mypy
	$(BIN)/python -m scripts.site  # the documentation, into build/site

# The page's scripts: rules and types; plotly.js is the package's file, byte for byte.
quality-js: npm node_modules/.installed
	cmp node_modules/plotly.js-cartesian-dist-min/plotly-cartesian.min.js assets/vendor/plotly-cartesian.min.js
	npm run --silent lint
	npm run --silent types

npm:
	@command -v npm > /dev/null || { echo "quality: npm is missing. Install Node.js 20.19 or newer (nodejs.org), which brings it." >&2; exit 1; }

# The lock decides what is installed; an interrupted install has no mark.
node_modules/.installed: package-lock.json | npm
	npm ci --no-audit --no-fund
	touch $@

style: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

model: $(VENV)/.installed
	$(BIN)/python -m lora_drop fetch

# A venv whose install was interrupted has no mark, and is completed on the next call.
$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -r requirements.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed tests/requirements.txt
	$(BIN)/python -m pip install -r tests/requirements.txt
	touch $@

# Zig, which compiles C for every platform (about 100 MB), and what the tests read its libraries with.
$(VENV)/.installed-wheels: $(VENV)/.installed-dev scripts/requirements.txt
	$(BIN)/python -m pip install -r scripts/requirements.txt
	touch $@

$(FLOORS)/.installed: $(VENV)/.installed-dev
	$(BIN)/uv venv --allow-existing --python $(BIN)/python $(FLOORS)
	$(BIN)/uv pip install --python $(FLOORS)/bin/python --resolution lowest-direct -r requirements.txt
	$(BIN)/uv pip install --python $(FLOORS)/bin/python -r tests/requirements.txt
	touch $@

browser: $(VENV)/.installed-dev
	$(BIN)/python tests/browser/install.py

# Runs the kernels of arm64, and of old x86 processors, in the tests of the wheels.
emulator:
	@command -v qemu-aarch64 > /dev/null || (apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install \
		-y --no-install-recommends qemu-user libc6-arm64-cross) || echo "emulator: no qemu-user; these tests run without"

# 50 visitors at once for 10 minutes, each answer held against a single user's. SOAK="--minutes 2" is shorter.
soak: $(VENV)/.installed
	$(BIN)/python -m scripts.soak $(SOAK)

# The folder of a HuggingFace Space in a venv of its own, started as a Space starts it, and driven. Minutes.
space-check: $(VENV)/.installed
	$(BIN)/python -m scripts.space_check

clean:
	rm -rf $(VENV) $(FLOORS) node_modules .pytest_cache .ruff_cache .mypy_cache
