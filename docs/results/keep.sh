#!/usr/bin/env bash
# Keeps what a comparison measured beside its table: docs/results/keep.sh FOLDER_OF_THE_RESULTS NAME
set -euo pipefail
root=$(realpath "$(dirname "$0")/../..")
mkdir -p "$root/docs/results/$2"
cp "$1/study.csv" "$1/pseudo_labels.csv" "$root/docs/results/$2/"
# paths as seen from the project; of files elsewhere the name alone
sed -E "s|$root/||g; s|\"/[^\"]*/([^\"/]+)\"|\"\1\"|g" "$1/manifest.json" > "$root/docs/results/$2/manifest.json"
