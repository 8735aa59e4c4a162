PYTHON ?= python3
SEED ?= 42
BIN := .venv/bin

.PHONY: demo test

# The whole pipeline on the sample data, with a small U-Net and the embedded small SAM.
demo: .venv/installed
	$(BIN)/python -m scripts.make_phantoms
	$(BIN)/python -m scripts.run_pipeline --dataset phantom --num_train_samples 20 --seed $(SEED) --epochs 24 \
	    --data_sample_per_epoch 60 --batch_size 4 --lr 4e-3 --base_width 16 --n_last_channel 16 --input_size 128 80 \
	    --ccl_selection largest --morphology paper --morphology_operation erosion --morphology_radius 2 \
	    --no-train_from_scratch --max_positive_weight 2 --results_dir results/demo_seed$(SEED)

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/python -m pytest

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	touch $@
