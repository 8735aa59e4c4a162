#!/usr/bin/env bash
# The recommended way beside the paper's, docs/experiments.md.
#   docs/results/recommended.sh JSRT DENTAL LEGS [MOBILE_SAM_WEIGHTS]
# JSRT holds images/ and landmarks/, DENTAL holds img/ and masks_machine/ of the 300 radiographs, LEGS the files of
# data/train/images and data/test/images of the public repository
# YouOnlyLiftOnce/Bone-Segmentation-and-Knee-Alignment-Analysis. SEEDS="42 1 2" for more.
set -euo pipefail
jsrt=$(realpath "${1:?the folder that holds images/ and landmarks/}")
dental=$(realpath "${2:?the folder that holds img/ and masks_machine/}")
legs=$(realpath "${3:?the folder of long-leg radiographs with their labelme files}")
checkpoint=$(realpath "${4:-$(dirname "$0")/../../data/sam_checkpoints/mobile_sam.pt}")
cd "$(dirname "$0")/../.."
export PATH="$PWD/.venv/bin:$PATH"
python -m scripts.make_phantoms
python -m scripts.prepare_jsrt --source "$jsrt"
mkdir -p data/dental_standin
cp docs/dental_standin.toml data/dental_standin/description.toml
ln -sfn "$dental/img" "$dental/masks_machine" data/dental_standin/
python -m scripts.init_dataset legs --images "$legs" --annotations "$legs"

methods="initial raw sam recommended"
trained="--batch_size 4 --lr 4e-3 --bf16 --threads 1"
small="--base_width 8 --n_last_channel 8"
chest="$small --input_size 128 128 --epochs 40 --final_epochs 20"
teeth="$small --input_size 96 160 --epochs 12 --data_sample_per_epoch 180"
wide_teeth="--base_width 16 --n_last_channel 16 --input_size 112 192 --epochs 12 --data_sample_per_epoch 180"
wrist="--base_width 16 --n_last_channel 16 --input_size 128 80 --epochs 24 --data_sample_per_epoch 60"
mobile_sam=(--sam_type vit_t --sam_checkpoint "$checkpoint")
study() {  # data set, name, numbers of labeled images, more arguments
    python -m scripts.run_study --dataset "$1" --seeds ${SEEDS:-42} $trained --results_dir "results/recommended_$2" \
        --num_train_samples $3 "${@:4}"
    for n in $3; do python -m scripts.plot_results --results_dir "results/recommended_$2" --n "$n"; done
}
pipeline() {  # data set, name, more arguments
    python -m scripts.run_pipeline --dataset "$1" --preset recommended $trained "${mobile_sam[@]}" \
        --results_dir "results/recommended_$2" "${@:3}"
}
study jsrt jsrt "5 20" --methods $methods recommended_twice $chest "${mobile_sam[@]}"
study jsrt jsrt_medsam_lite "20" --methods $methods recommended_twice $chest --sam_type medsam_lite
study jsrt jsrt_192 "20" --methods $methods recommended_twice $chest --input_size 192 192 "${mobile_sam[@]}"
study dental_standin dental "20 45" --methods $methods recommended_twice $teeth "${mobile_sam[@]}"
study dental_standin dental_medsam_lite "45" --methods $methods recommended_twice $teeth --sam_type medsam_lite
study legs legs "5 20" --methods $methods recommended_twice $small --input_size 384 48 --epochs 40 --final_epochs 20 \
    --sam_type medsam_lite
study phantom phantom "5 43" --methods $methods recommended_twice $wrist --sam_type medsam_lite
study phantom phantom_paper_size "5" --methods $methods $small --epochs 24 --final_epochs 12 \
    --data_sample_per_epoch 60 --sam_type medsam_lite
pipeline dental_standin dental_three --rounds 3 --num_train_samples 45 $wide_teeth
for n in 20 5; do
    pipeline jsrt initial_$n --initial_training recommended --num_train_samples $n $chest
done
