#!/usr/bin/env bash
# What a GPU shows of this project: the tests that need one, then speed and memory as one Markdown table to paste, in at
# most 8 minutes on one card. Nothing is fetched. Without a GPU the same runs at toy sizes, in about a minute:
#
#     tests/gpu.sh
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"

if ! missing=$(python -c "import datasets, evaluate, pytest, timm; from conr_hf import ConRTrainer" 2>&1); then
  echo "The project and its dependencies do not load (${missing##*$'\n'}): pip install -e '.[dev]' first." >&2
  exit 2
fi

said=$(python -m pytest -o addopts="" --import-mode importlib -q -p no:cacheprovider -k "gpu" \
  tests/losses/test_conr_windowed.py tests/imbalance/test_fds.py tests/imbalance/test_density.py 2>&1)
failed=$?
echo "$said"
timeout 440 python tests/benchmarks/bench_gpu.py --tests "$(tail -n 1 <<< "$said")" || exit
exit $failed
