#!/usr/bin/env bash
# SIRI against its control, over seeds: from the same warm-up checkpoint, with the same fresh optimizer and falling rate, GiGPO alone
# trains on for the wall-clock that mining and distilling take.  The two stand side by side, one thread each, so that a busy machine slows
# both alike.  Resumable.  On two cores about 13 minutes a seed, and 5 more to play the snapshots.
#   bash recipes/compare.sh [SEEDS] [REGIME] [more arguments for training]
#   bash recipes/compare.sh "0 1 2 3 4"                          the default
#   MINUTES=52 AT="1 2 4 8 16 32" bash recipes/compare.sh "0 1 2" hour --snapshots 1      an hour instead of the default's 10 minutes of distillation
#   WARMUP="--model runs/bases/less" bash recipes/compare.sh "0 1 2 3 4" less          another base: runs/siri-less-0, ..., results/compare-less/
#   bash recipes/compare.sh "0 1 2 3 4" few --train-games 100    few games
#   bash recipes/compare.sh "0 1 2" shop --env webshop           WebShop; without WEBSHOP_DATA the generated shop
#   WARMUP="--stop-at 0.08" MINUTES=57 bash recipes/compare.sh 0 real --env webshop     an hour in the real one
# SPLIT="held_out" plays only training games that were set aside: for tuning.
set -euo pipefail
cd "$(dirname "$0")/.."
seeds=${1:-0 1 2 3 4} regime=${2:-} minutes=${MINUTES:-10}
shift $(($# < 2 ? $# : 2))
more=("$@") name=${regime:+-$regime}
train() { # phase, run, its own arguments
  [ -f "runs/$2/$1/done" ] || python "$1.py" --run "$2" --seed "$seed" --threads 1 --snapshots 0.2 "${more[@]}" "${@:3}"
}
for seed in $seeds; do
  siri=siri$name-$seed control=gigpo$name-$seed
  # shellcheck disable=SC2086  # several words or none
  train warmup "$siri" ${WARMUP:-}
  train mine "$siri"
  as_long=$(python -c "import json; print(round($minutes + json.load(open('runs/$siri/mine/done'))['seconds'] / 60, 2))")
  train distill "$siri" --minutes "$minutes" &
  one=$!
  train warmup "$control" --model "runs/$siri/warmup/policy" --stop-at 0 --lr-end 0.1 --minutes "$as_long" &
  wait $one
  wait $!
done
# shellcheck disable=SC2086
python recipes/compare.py --arms "gigpo$name" "siri$name" "siri$name+skills" --seeds $seeds --run "$siri" --out "results/compare$name" \
  ${SPLIT:+--split $SPLIT} --at ${AT:-0.2 0.4 0.6 0.8 1 1.4 1.8 2.2 2.6 3 4 6 8}
