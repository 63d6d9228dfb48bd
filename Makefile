# make paper   run the whole study: executed notebooks in runs/$(PROFILE)/, tables and figures in figures/$(PROFILE)/
#              MINUTES=8: a piece; no computation is started after that, and the same command goes on
#              FROM=figures/<profile>/results: from published results, without a GPU; nothing is computed
# make publish pack the finished cells of PROFILE, without weights, into figures/$(PROFILE)/results/
# make unpack  put the published cells FROM=... among the finished ones of PROFILE, to go on on another machine
# make grid    the same for each of several profiles and numbers of seeds: make grid PROFILES="smoke laptop" SEEDS="2 4"
# make test    ruff; unit, property and parity tests; the examples in docstrings; nbval: the kept notebooks from the published laptop results
# make check   what make test leaves out: notebooks from nothing at the smoke profile, and nbval over the kept outputs
#              with everything computed again; a laptop study that is killed twenty times
# make lab     open the notebooks in JupyterLab
# make site    the kept notebooks as web pages in site/, which ask for nothing outside of it; nothing is computed
# make test-browser   the site and JupyterLab in a headless Chromium that is there (Debian: chromium)
# make class   for a lesson: exercise sheets with and without solutions and slides of the tour, in runs/class/
# make bench   what the project claims about speed, as ratios in one run, into figures/bench/; with ROWS="feeding" those
#              rows alone whose title has it in it
# make plan    cells, hours, disk and memory of a study before it is begun; DEVICES=8 workers, TFLOPS=300: of devices that
#              are not here. PROFILE=imagenet is only for this
# make status  what the study has done, and what is missing, failed or stale, with its cost; make clean-stale
#              removes the cells that belong to other code, data or settings than the present ones
# make verify  compute a sample of finished cells again and compare; with FIGURE=figures/laptop/overview.json: what has
#              changed since that figure was made
# make clean   remove everything that a run made (not .venv)
#
# PROFILE=smoke | laptop | cifar10-small | cifar10-cpu | cifar10n-cpu | cifar10 | cifar100 | tiny_imagenet
#                                                 how big a study (rumlib/lab/profiles.py)
# RUM_ENGINE=loky | serial | dask                  where the work runs (rumlib/lab/engine.py): Dask for clusters
# RUM_DEVICE=auto | cuda | cuda:1 | mps | cpu       what computes where the profile says auto (rumlib/device.py)
# PYTHON=/path/to/python                          use an environment that exists and install nothing

.PHONY: paper publish unpack grid test test-browser check lab site class bench plan status clean-stale verify clean keep lock
.DEFAULT_GOAL := paper

PROFILE ?= laptop
PROFILES ?= $(PROFILE)
SEEDS ?= 2 4 8
NOTEBOOKS := $(sort $(wildcard notebooks/[0-9]*.ipynb))

ifeq ($(origin PYTHON),command line)
READY :=
MORE :=
else
PYTHON := $(CURDIR)/.venv/bin/python
READY := .venv/ready
MORE := .venv/more
endif

# Parallel work is done by processes. Two processes of two threads each on two cores can be a hundred times slower.
export OMP_NUM_THREADS ?= 1

# Two at a time, a file by one process; the notebook of the claims gathers what the others have written.
TWO := -n 2 --dist loadfile
NBVAL = RUM_FIGURES=$(CURDIR)/runs/figures $(PYTHON) -m pytest --nbval-lax --nbval-sanitize-with tests/nbval.cfg \
    --nbval-cell-timeout 1200
# Those that train before the reader's eyes need no results; the others take theirs from the published ones.
LIVE := $(shell grep -l '"live"' $(NOTEBOOKS))
CLAIMS := $(filter %_claims.ipynb,$(NOTEBOOKS))
STORY := $(filter-out $(LIVE) $(CLAIMS),$(NOTEBOOKS))
FROM_KEPT := RUM_FROM=$(CURDIR)/figures/laptop/results

paper: $(READY)
	@$(PYTHON) -m rumlib.lab.run $(PROFILE) "" "$(MINUTES)" "$(FROM)"

publish: $(READY)
	@$(PYTHON) -m rumlib.lab.results $(PROFILE)

unpack: $(READY)
	@$(PYTHON) -m rumlib.lab.results $(PROFILE) "$(or $(FROM),figures/$(PROFILE)/results)"

grid: $(READY)
	@$(PYTHON) -m rumlib.lab.run "$(PROFILES)" "$(SEEDS)" "$(MINUTES)"

test: $(READY)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m pytest $(TWO) tests
	$(PYTHON) -m pytest --doctest-modules rumlib
	$(FROM_KEPT) $(NBVAL) $(TWO) $(STORY)
	$(FROM_KEPT) $(NBVAL) $(CLAIMS)

class: $(READY) $(MORE)
	$(PYTHON) notebooks/site/classkit.py

test-browser: $(READY) $(MORE) site
	$(PYTHON) -m pytest -m browser tests/browser

check: $(READY)
	$(PYTHON) -m pytest -m "slow or notebook" tests
	$(NBVAL) $(TWO) $(LIVE) $(STORY)
	$(NBVAL) $(CLAIMS)

lab: $(READY)
	$(PYTHON) -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

site: $(READY) $(MORE)
	$(PYTHON) notebooks/site/build.py

bench: $(READY)
	@$(PYTHON) tests/bench.py "$(ROWS)"

plan: $(READY)
	@$(PYTHON) -m rumlib.lab.plan $(PROFILE) devices=$(DEVICES) tflops=$(TFLOPS)

status: $(READY)
	@$(PYTHON) -m rumlib.lab.check status $(PROFILE)

clean-stale: $(READY)
	@$(PYTHON) -m rumlib.lab.check clean-stale $(PROFILE)

verify: $(READY)
	@$(PYTHON) -m rumlib.lab.check $(if $(FIGURE),explain $(FIGURE),verify $(PROFILE) $(SAMPLE))

clean:
	rm -rf runs site figures/smoke

# For those who work on the project: put the outputs of the last laptop run into the notebooks, and those of another
# profile into notebooks beside its figures, with their parameters; renew the pins.
KEPT = $(if $(filter laptop,$(PROFILE)),notebooks,figures/$(PROFILE)/notebooks)
keep: $(READY)
	$(PYTHON) -W ignore -m jupyter nbconvert --to notebook --output-dir $(KEPT) --log-level WARN \
	    --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_cell_tags \
	    $(if $(filter laptop,$(PROFILE)),injected-parameters,parameters) \
	    --ClearMetadataPreprocessor.enabled=True --ClearMetadataPreprocessor.preserve_cell_metadata_mask "['tags', 'jupyter']" \
	    --ClearMetadataPreprocessor.preserve_nb_metadata_mask kernelspec \
	    $(wildcard $(NOTEBOOKS:notebooks/%=runs/$(PROFILE)/%))
	@test $(PROFILE) = laptop || sed -i -E 's#\]\(\.\./([^.])#](../../../\1#g; s#\]\(([0-9]{2}_)#](../../../notebooks/\1#g' \
	    $(KEPT)/[0-9]*.ipynb

LOCK = uv pip compile --universal --python-version 3.11 --no-annotate --no-header pyproject.toml
lock:
	printf 'hatchling\neditables\n' | $(LOCK) - --extra tune --extra dask --extra lab --extra test -o requirements.lock
	$(LOCK) --extra lab --extra site --extra browser -c requirements.lock | grep -vxFf requirements.lock \
	    > notebooks/site/requirements.lock

.venv/ready: requirements.lock pyproject.toml
	@python3 -c "import sys; sys.version_info >= (3, 11) or sys.exit('Python 3.11 or newer is needed; python3 is ' + sys.version)"
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# What the site and the tests in a browser need beyond that.
.venv/more: .venv/ready notebooks/site/requirements.lock
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r notebooks/site/requirements.lock
	@touch $@
