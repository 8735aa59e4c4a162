#!/usr/bin/env bash
# The table of the demo in docs/results.md: three seeds, six minutes each on two CPU cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
for seed in 42 1 2; do
    make demo SEED="$seed"
done
