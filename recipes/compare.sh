#!/usr/bin/env bash
# SIRI against its control, over seeds: from the same warm-up checkpoint, with the same fresh optimizer and reference, GiGPO alone trains
# on for the wall-clock that mining and distilling took.  About 35 minutes a seed on two cores; resumable; one evaluation of all at the end.
#   bash recipes/compare.sh [SEEDS] [more arguments for training]           e.g. bash recipes/compare.sh "0 1 2"
set -euo pipefail
cd "$(dirname "$0")/.."
seeds=${1:-0 1 2}
shift || true
for seed in $seeds; do
  siri=siri-$seed control=gigpo-$seed
  for phase in warmup mine distill; do
    [ -f "runs/$siri/$phase/done" ] || python $phase.py --run $siri --seed "$seed" "$@"
  done
  minutes=$(python -c "
import json
print(round(sum(json.load(open(f'runs/$siri/{p}/done'))['seconds'] for p in ('mine', 'distill')) / 60, 2))")
  [ -f "runs/$control/warmup/done" ] || python warmup.py --run $control --seed "$seed" --model runs/$siri/warmup/policy --stop-at 0 --minutes "$minutes" "$@"
  python evaluate.py --run $siri --policy runs/$siri/warmup runs/$control/warmup runs/$siri/distill --baseline runs/$control/warmup --out results/compare-$seed
done
