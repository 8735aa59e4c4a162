#!/usr/bin/env bash
# The comparison on chest radiographs in docs/results.md, figures included. Needs requirements_nnunet.txt.
#   docs/results/jsrt.sh FOLDER [MOBILE_SAM_WEIGHTS]      FOLDER holds images/ and landmarks/ of JSRT
set -euo pipefail
folder=$(realpath "${1:?the folder that holds images/ and landmarks/}")
checkpoint=$(realpath "${2:-$(dirname "$0")/../../data/sam_checkpoints/mobile_sam.pt}")
cd "$(dirname "$0")/../.."
export PATH="$PWD/.venv/bin:$PATH"
python -m scripts.prepare_jsrt --source "$folder"
python -m scripts.run_study --dataset jsrt --num_train_samples 5 20 \
    --methods initial raw random_walk sam mixed mean_teacher reliable_mean_teacher lraspp_on_sam nnunet_alone nnunet \
    --sam_type vit_t --sam_checkpoint "$checkpoint" --epochs 40 --batch_size 4 --lr 4e-3 --base_width 8 \
    --n_last_channel 8 --input_size 128 128 --random_walk active --walk_seeds masks --nnunet_epochs 20 --nnunet_iterations 25 \
    --results_dir results/jsrt_study
python -m scripts.plot_results --results_dir results/jsrt_study --n 20
docs/results/keep.sh results/jsrt_study jsrt
