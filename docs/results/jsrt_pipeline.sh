#!/usr/bin/env bash
# The pipeline on chest radiographs in docs/results.md.
#   docs/results/jsrt_pipeline.sh FOLDER [MOBILE_SAM_WEIGHTS]      FOLDER holds images/ and landmarks/ of JSRT
set -euo pipefail
folder=$(realpath "${1:?the folder that holds images/ and landmarks/}")
checkpoint=$(realpath "${2:-$(dirname "$0")/../../data/sam_checkpoints/mobile_sam.pt}")
cd "$(dirname "$0")/../.."
export PATH="$PWD/.venv/bin:$PATH"
python -m scripts.prepare_jsrt --source "$folder"
python -m scripts.run_pipeline --dataset jsrt --num_train_samples 20 --sam_type vit_t --sam_checkpoint "$checkpoint" \
    --epochs 40 --batch_size 4 --lr 4e-3 --base_width 8 --n_last_channel 8 --input_size 128 128 \
    --results_dir results/jsrt_pipeline
mkdir -p docs/results/jsrt_pipeline
cp results/jsrt_pipeline/table.csv docs/results/jsrt_pipeline/results.csv
