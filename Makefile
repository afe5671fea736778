# make site           install what is pinned, run the tutorials that are stale, build the site, serve it
# make site SERVE=0   the same, without serving: the strict build in site/
# make test           install what is pinned, then every check; SLOW=1 adds the slow ones, as CI does
# make page T=02_seq2seq   run one tutorial, build its page in .run/page, leave the others as they are
# make bench          rnnkit beside other libraries: an environment for each, then docs/peers.md anew; an hour
# PYTHON=python3.12 chooses the interpreter, PORT=8001 where the site is served.

PYTHON ?= python3
SERVE ?= 1
SLOW ?= 0
PORT ?= 8000
BIN := .venv/bin
INSTALLED := .venv/.installed
EXECUTE := $(BIN)/python docs/_hooks run
export NO_MKDOCS_2_WARNING := 1
export SLOW
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: site test page tutorials slow bench constraints clean

site: $(INSTALLED)
	@echo "== tutorials: running what is stale"
	@$(EXECUTE)
ifeq ($(SERVE),0)
	@echo "== site: strict build"
	@RNNKIT_EXECUTE=never $(BIN)/mkdocs build --strict
	@echo "== site/index.html is built"
else
	@echo "== site: building, then serving on http://localhost:$(PORT)/ (Ctrl-C ends it)"
	@$(BIN)/mkdocs serve --livereload --dev-addr localhost:$(PORT)
endif

test: $(INSTALLED)
	@echo "== 1/6 ruff"
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@echo "== 2/6 pyright"
	@$(BIN)/pyright
	@echo "== 3/6 package, doctests, code blocks of the pages, road; coverage of rnnkit by branch"
	@$(BIN)/pytest -q -n 2 -m "not site and not slow" --cov --cov-report=term
	@echo "== 4/6 tutorials: running what is stale"
	@$(EXECUTE)
	@echo "== 5/6 site: strict build"
	@RNNKIT_EXECUTE=never $(BIN)/mkdocs build --strict
	@echo "== 6/6 built site"
	@$(BIN)/pytest -q -m "site and not slow"
ifneq ($(SLOW),0)
	@$(MAKE) --no-print-directory slow
endif
	@echo "== all checks passed"

# Minutes of work: the downloads in fresh environments, the tutorials on a package broken on purpose.
slow: $(INSTALLED)
	@echo "== slow checks: downloads in fresh environments, tutorials on a broken package"
	@$(BIN)/pytest -v -n 2 --dist worksteal --tb=short -m slow --durations=0

tutorials: $(INSTALLED)
	@$(EXECUTE) $(T)

page: $(INSTALLED)
	@test -n "$(T)" || { echo "which one? make page T=02_seq2seq"; exit 1; }
	@$(EXECUTE) $(T)
	@RNNKIT_EXECUTE=never $(BIN)/mkdocs build --site-dir .run/page
	@echo "== .run/page/tutorials/$(T)/index.html"

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "rnnkit needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	  echo "Likely fix: name one that is, as in  make PYTHON=python3.12"; exit 1; }
	@echo "== installing the pinned dependencies into .venv (once; about a minute and 2 GB)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install -qq --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $@

bench: $(INSTALLED)
	@$(BIN)/python tests/benchmarks/bench_peers.py install
	@$(BIN)/python tests/benchmarks/bench_peers.py run
	@$(BIN)/python tests/benchmarks/bench_peers.py page
	@$(BIN)/python tests/benchmarks/bench_sampling.py run
	@$(BIN)/python tests/benchmarks/bench_sampling.py page

# The pins, from what is installed and passes.
constraints:
	@$(BIN)/pip freeze --exclude-editable | sed -e '/ @ /d' -e 's/+cpu$$//' > constraints.txt

clean:
	rm -rf site .run dist docs/tutorials
