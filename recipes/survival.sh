#!/usr/bin/env bash
# Kills a short quickstart of a small model, with all that a run keeps beside its weights, at random moments, resumes it,
# and compares the final weights with those of a run that was not killed: recipes/survival.sh [KILLS, by default 30] [FOLDER, by default runs/survival]
set -euo pipefail
kills=${1:-30}
folder=${2:-runs/survival}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # sums in one order

train() {  # folder, more options
    local output=$1
    shift
    exec conr-hf train quickstart --model timm/test_resnet --conr_gradient_share 0.15 --base_loss bni --fds gaussian --ema_decay 0.99 \
        --num_train_epochs 2 --save_strategy steps --eval_strategy steps --save_steps 10 --eval_steps 10 \
        --dataloader_num_workers 1 --disable_tqdm true --output_dir "$output" "$@" >>"$output.log" 2>&1
}

if [ -e "$folder" ]; then
    echo "$folder is there already, and its runs would be gone on with. Name another folder." >&2
    exit 1
fi
mkdir -p "$folder"
begun=$(date +%s%N)
(train "$folder/whole")
milliseconds=$((($(date +%s%N) - begun) / 1000000))
printf '%4s  %11s  %-14s  %s\n' kill 'after (s)' 'resumed from' weights
for number in $(seq "$kills"); do
    output=$folder/$number
    train "$output" &
    process=$!
    after=$((RANDOM * milliseconds / 32768))
    sleep "$((after / 1000)).$(printf %03d $((after % 1000)))"
    kill -KILL "$process" 2>/dev/null || true
    wait "$process" 2>/dev/null || true
    last=none resume=false
    for state in $(ls -d "$output"/checkpoint-*/trainer_state.json 2>/dev/null | sort -V); do
        last=$(basename "$(dirname "$state")") resume=true
    done
    (train "$output" --resume_from_checkpoint "$resume")
    same=other
    cmp -s "$folder/whole/model.safetensors" "$output/model.safetensors" && same=same
    printf '%4s  %7d.%03d  %-14s  %s\n' "$number" $((after / 1000)) $((after % 1000)) "$last" "$same"
done
