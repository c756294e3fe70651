# make demo   a venv, the requirements, the bundled model, and the page
# make test   everything the tests need, browser included, and the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-gpu quality quality-js npm style browser soak space-check clean

demo: $(VENV)/.installed
	$(BIN)/python -m lora_drop.bundled
	$(BIN)/python app.py

test: $(VENV)/.installed-dev browser
	$(BIN)/python -m lora_drop.bundled
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed-dev browser
	$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m gpu

quality: $(VENV)/.installed-dev quality-js
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The page's scripts: rules and types.
quality-js: npm node_modules/.installed
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

# A venv whose install was interrupted has no mark, and is completed on the next call.
$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -r requirements.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed tests/requirements.txt
	$(BIN)/python -m pip install -r tests/requirements.txt
	touch $@

browser: $(VENV)/.installed-dev
	$(BIN)/python tests/browser/install.py

# 50 visitors at once for 10 minutes, each answer held against a single user's. SOAK="--minutes 2" is shorter.
soak: $(VENV)/.installed
	$(BIN)/python -m lora_drop.tools.soak $(SOAK)

# The folder of a HuggingFace Space in a venv of its own, started as a Space starts it, and driven. Minutes.
space-check: $(VENV)/.installed
	$(BIN)/python -m lora_drop.tools.space_check

clean:
	rm -rf $(VENV) node_modules .pytest_cache .ruff_cache
