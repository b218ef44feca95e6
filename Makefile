PYTHON ?= .venv/bin/python
SEEDS ?= 2000

.PHONY: simulate stories

simulate:  ## Run the consensus simulator: SEEDS seeds in each mode, on all cores.
	$(PYTHON) -m tests.simulation.run --seeds $(SEEDS)

stories:  ## Write the golden stories anew after a change of behaviour that is meant.
	$(PYTHON) -m tests.simulation.run --regenerate
