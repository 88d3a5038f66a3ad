#!/usr/bin/env bash
# SIRI against its control, over seeds: from the same warm-up checkpoint, with the same fresh optimizer and falling rate, GiGPO alone
# trains on for the wall-clock that mining and distilling took.  Resumable.  On two cores about 30 minutes a seed, a third of it evaluating snapshots.
#   bash recipes/compare.sh [SEEDS] [REGIME] [more arguments for training]
#   bash recipes/compare.sh "0 1 2 3 4"                         the default
#   bash recipes/compare.sh "0 1 2 3 4" few --train-games 100   few games: runs/siri-few-0, ..., results/compare-few/
#   MINUTES=52 SNAPSHOTS=4 bash recipes/compare.sh "0 1 2" hour  an hour instead of the default's 10 minutes of distillation
#   bash recipes/compare.sh "0 1 2" shop --env webshop          WebShop; without WEBSHOP_DATA the generated shop
#   WARMUP="--stop-at 0.08" MINUTES=57 SNAPSHOTS=6 bash recipes/compare.sh 0 real --env webshop    an hour in the real one
set -euo pipefail
cd "$(dirname "$0")/.."
seeds=${1:-0 1 2 3 4} regime=${2:-}
shift $(($# < 2 ? $# : 2))
name=${regime:+-$regime}
for seed in $seeds; do
  siri=siri$name-$seed control=gigpo$name-$seed
  for phase in warmup mine distill; do
    case $phase in warmup) own=${WARMUP:-} ;; mine) own= ;; distill) own=${MINUTES:+--minutes $MINUTES} ;; esac
    # shellcheck disable=SC2086  # several words or none
    [ -f "runs/$siri/$phase/done" ] || python $phase.py --run "$siri" --seed "$seed" --snapshots "${SNAPSHOTS:-0.5}" $own "$@"
  done
  minutes=$(python -c "
import json
print(round(sum(json.load(open(f'runs/$siri/{p}/done'))['seconds'] for p in ('mine', 'distill')) / 60, 2))")
  [ -f "runs/$control/warmup/done" ] || python warmup.py --run "$control" --seed "$seed" --model "runs/$siri/warmup/policy" \
    --stop-at 0 --lr-end 0.1 --minutes "$minutes" --snapshots "${SNAPSHOTS:-0.5}" "$@"
done
python recipes/compare.py --arms "gigpo$name" "siri$name" --seeds $seeds --run "$siri" --out "results/compare$name"
