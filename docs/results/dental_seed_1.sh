#!/usr/bin/env bash
# Dental panoramic radiographs from another seed, four methods, in docs/results.md.
#   docs/results/dental_seed_1.sh FOLDER [MOBILE_SAM_WEIGHTS]      FOLDER holds img/ and masks_machine/
set -euo pipefail
folder=$(realpath "${1:?the folder that holds img/ and masks_machine/}")
checkpoint=$(realpath "${2:-$(dirname "$0")/../../data/sam_checkpoints/mobile_sam.pt}")
cd "$(dirname "$0")/../.."
export PATH="$PWD/.venv/bin:$PATH"
mkdir -p data/dental_standin
cp docs/dental_standin.toml data/dental_standin/description.toml
ln -sfn "$folder/img" "$folder/masks_machine" data/dental_standin/
python -m scripts.run_study --dataset dental_standin --num_train_samples 45 --seeds 1 --methods initial raw sam mixed \
    --sam_type vit_t --sam_checkpoint "$checkpoint" --epochs 12 --batch_size 4 --data_sample_per_epoch 180 --lr 4e-3 \
    --bf16 --base_width 16 --n_last_channel 16 --input_size 112 192 --no-train_from_scratch \
    --max_positive_weight 2 --results_dir results/dental_seed_1_study
python -m scripts.plot_results --results_dir results/dental_seed_1_study --n 45
docs/results/keep.sh results/dental_seed_1_study dental_seed_1
