#!/usr/bin/env bash
# The comparison on the phantoms in docs/results.md, figures included. Needs requirements_nnunet.txt.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PWD/.venv/bin:$PATH"
python -m scripts.make_phantoms
python -m scripts.run_study --dataset phantom --num_train_samples 5 43 \
    --methods initial raw random_walk sam mixed mean_teacher reliable_mean_teacher lraspp_on_sam nnunet_alone nnunet \
    --epochs 24 --data_sample_per_epoch 60 --batch_size 4 --lr 4e-3 --base_width 16 --n_last_channel 16 \
    --input_size 128 80 --ccl_selection largest --morphology paper --morphology_operation erosion --morphology_element centered_square \
    --morphology_radius 2 --no-train_from_scratch --max_positive_weight 2 --random_walk active --walk_seeds masks \
    --nnunet_epochs 20 --nnunet_iterations 25 --results_dir results/phantom_study
python -m scripts.plot_results --results_dir results/phantom_study --n 43
docs/results/keep.sh results/phantom_study phantoms
