PYTHON ?= python3
SEED ?= 42
BIN := .venv/bin

.PHONY: demo test test-fast stress help

# With a small U-Net; the paper's way with the demo SAM, the recommended one with LiteMedSAM.
demo: .venv/installed  ## run the whole pipeline on the phantoms (SEED=1 for another seed)
	@echo "On two CPU cores this takes about six minutes and 0.5 GB of disk."
	$(BIN)/python -m scripts.make_phantoms --num_unlabeled 40
	$(BIN)/python -m scripts.run_pipeline --dataset phantom --num_train_samples 20 --seed $(SEED) --epochs 24 \
	    --data_sample_per_epoch 60 --batch_size 4 --lr 4e-3 --base_width 16 --n_last_channel 16 --input_size 128 80 \
	    --ccl_selection largest --morphology paper --morphology_operation erosion --morphology_element centered_square \
	    --morphology_radius 2 --no-train_from_scratch --max_positive_weight 2 \
	    --recommended medsam_lite --results_dir results/demo_seed$(SEED)

# The tests' networks are too small for threads, so processes share the cores.
test: .venv/installed .agent/installed  ## check the style, run all tests
	@echo "On two CPU cores this takes about a quarter of an hour."
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-fast: .venv/installed  ## check the style, run the tests that take less than two seconds each
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -m "not slow"

stress: .venv/installed  ## kill every stage 20 times, damage 20,000 files (a quarter of an hour)
	OMP_NUM_THREADS=1 STRESS=20 $(BIN)/python -m pytest -n logical --maxprocesses 4 -rP -p no:warnings \
	    tests/test_kills.py tests/test_fuzzing.py

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.agent/installed: requirements_agent.txt
	$(PYTHON) -m venv .agent
	.agent/bin/python -m pip install --disable-pip-version-check -r requirements_agent.txt
	touch $@

.venv/installed: requirements.txt
	@echo "Installing the packages into .venv: some minutes, 6 GB of disk."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	touch $@
