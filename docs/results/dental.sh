#!/usr/bin/env bash
# The comparison on dental panoramic radiographs in docs/results.md, figures included. Needs requirements_nnunet.txt.
#   docs/results/dental.sh FOLDER [MOBILE_SAM_WEIGHTS]      FOLDER holds img/ and masks_machine/ of the 300 radiographs
set -euo pipefail
folder=$(realpath "${1:?the folder that holds img/ and masks_machine/}")
checkpoint=$(realpath "${2:-$(dirname "$0")/../../data/sam_checkpoints/mobile_sam.pt}")
cd "$(dirname "$0")/../.."
export PATH="$PWD/.venv/bin:$PATH"
mkdir -p data/dental_standin
cp docs/dental_standin.toml data/dental_standin/description.toml
ln -sfn "$folder/img" "$folder/masks_machine" data/dental_standin/
python -m scripts.run_study --dataset dental_standin --num_train_samples 20 45 \
    --methods initial raw random_walk sam mixed mean_teacher reliable_mean_teacher lraspp_on_sam nnunet_alone nnunet \
    --sam_type vit_t --sam_checkpoint "$checkpoint" --epochs 12 --batch_size 4 --data_sample_per_epoch 180 --lr 4e-3 \
    --bf16 --base_width 16 --n_last_channel 16 --input_size 112 192 --random_walk active --walk_seeds masks --no-train_from_scratch \
    --max_positive_weight 2 --nnunet_epochs 20 --nnunet_iterations 25 --results_dir results/dental_study
python -m scripts.plot_results --results_dir results/dental_study --n 45
docs/results/keep.sh results/dental_study dental
