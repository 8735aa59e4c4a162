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
types=results/tooth_types
python - data/dental_standin "$types" <<'END'
"""Four types in the place of the 32 teeth, and the splits of the teeth."""
import sys
import tomllib
from pathlib import Path
import cv2
import numpy as np
teeth, types = map(Path, sys.argv[1:])
(types / "masks").mkdir(parents=True, exist_ok=True)
values = np.zeros(256, np.uint8)  # of a type, by that of a tooth
for value, tooth in enumerate(tomllib.loads((teeth / "description.toml").read_text())["labels"], 1):
    to_middle = abs((int(tooth) - 1) % 16 - 7.5)  # from 0.5, an incisor, to 7.5, the last molar
    values[value] = 1 + (to_middle < 5) + (to_middle < 3) + (to_middle < 2)
rows = ["stem,split"]
for number, path in enumerate(sorted((teeth / "masks_machine").glob("*.png"))):
    cv2.imwrite(str(types / "masks" / path.name), values[cv2.imread(str(path), cv2.IMREAD_UNCHANGED)])
    rows.append(f"{path.stem},{'train' if number < 200 else 'val' if number < 240 else 'test'}")
(types / "splits.csv").write_text("\n".join(rows))
END
python -m scripts.init_dataset tooth_types --images "$dental/img" --annotations "$types/masks" --splits "$types/splits.csv" --values molar=1 premolar=2 canine=3 incisor=4

methods="initial raw sam recommended recommended_twice"
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
    python -m scripts.run_pipeline --dataset "$1" --preset recommended --ensemble 1 $trained "${mobile_sam[@]}" \
        --results_dir "results/recommended_$2" "${@:3}"
}
parts() {  # data set, number of labeled images, name of the study, more arguments; of the initial U-Net of seed 42
    local initial
    initial=$(awk -F, -v n="$2" '$2 == "initial" && $3 == n && $4 == 42 {sub("\r", ""); print $NF; exit}' \
        "results/recommended_$3/study.csv")
    python -m benchmarks.refinement_parts --dataset "$1" --num_train_samples "$2" --model_id "$initial" --threads 1 \
        --sam_type medsam_lite "${@:4}"
}
study jsrt jsrt "5 20" --methods $methods recommended_ensemble $chest "${mobile_sam[@]}"
study jsrt jsrt_medsam_lite "5 20" --methods $methods $chest --sam_type medsam_lite
parts jsrt 20 jsrt
parts jsrt 20 jsrt --validation 3 5 10 20
parts jsrt 20 jsrt --estimate
parts jsrt 5 jsrt --estimate
study jsrt jsrt_192 "20" --methods $methods $chest --input_size 192 192 "${mobile_sam[@]}"
study dental_standin dental "20 45" --methods $methods recommended_ensemble $teeth "${mobile_sam[@]}"
study dental_standin dental_medsam_lite "20 45" --methods $methods $teeth --sam_type medsam_lite
parts dental_standin 45 dental --estimate
study legs legs "5 20" --methods $methods recommended_ensemble $small --input_size 384 48 --epochs 40 \
    --final_epochs 20 --sam_type medsam_lite
parts legs 5 legs --estimate
parts legs 20 legs --estimate
study tooth_types tooth_types "45" --methods $methods $teeth --sam_type medsam_lite
parts tooth_types 45 tooth_types
parts tooth_types 45 tooth_types --estimate
study phantom phantom "5 43" --methods $methods recommended_ensemble $wrist --sam_type medsam_lite
parts phantom 5 phantom --estimate
parts phantom 43 phantom --estimate
study phantom phantom_mobile_sam "5 43" --methods $methods $wrist "${mobile_sam[@]}"
study phantom phantom_paper_size "5" --methods ${methods% *} $small --epochs 24 --final_epochs 12 \
    --data_sample_per_epoch 60 --sam_type medsam_lite
study dental_standin dental_wide "45" --methods initial raw recommended_ensemble $wide_teeth "${mobile_sam[@]}"
full() {  # data set, number of labeled images, images in an epoch of the initial training; wants a GPU
    study "$1" "full_$1" "$2" --methods initial raw sam recommended_ensemble --batch_size 16 --lr 1e-3 --epochs 40 \
        --final_epochs 25 --data_sample_per_epoch "$3" --threads 2 --sam_type medsam_lite
}
full jsrt 20 160
full phantom 43 160
full dental_standin 45 192
pipeline dental_standin dental_three --rounds 3 --num_train_samples 45 $wide_teeth
pipeline jsrt jsrt_three --ensemble 3 --rounds 3 --num_train_samples 20 $chest
pipeline dental_standin dental_rounds --ensemble 3 --rounds 3 --num_train_samples 45 $teeth
for setting in "20 42" "20 1" "5 42"; do
    read -r n seed <<< "$setting"
    pipeline jsrt "initial_${n}_$seed" --initial_training recommended --num_train_samples "$n" --seed "$seed" $chest
done
