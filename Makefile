PYTHON ?= .venv/bin/python
SEEDS ?= 2000
SECONDS ?= 60

.PHONY: fuzz simulate stories

fuzz:  ## Fuzz everything that decodes, SECONDS seconds a target; installs atheris beside the locked dependencies.
	$(PYTHON) -m pip install -q --disable-pip-version-check --require-hashes -r requirements-fuzz.lock
	FUZZ_SECONDS=$(SECONDS) $(PYTHON) -m pytest -m fuzz tests/fuzz

simulate:  ## Run the consensus simulator: SEEDS seeds in each mode, on all cores.
	$(PYTHON) -m tests.simulation.run --seeds $(SEEDS)

stories:  ## Write the golden stories anew after a change of behaviour that is meant.
	$(PYTHON) -m tests.simulation.run --regenerate
