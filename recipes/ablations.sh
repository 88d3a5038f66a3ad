#!/usr/bin/env bash
# What carries the gain: short distillations from the same mined skills, each without one part of the method, or with other skills.
# Needs runs of recipes/compare.sh (runs/siri-SEED).  Resumable.  On one core about 2 minutes per ablation and seed.
#   bash recipes/ablations.sh [SEEDS] [ITERATIONS of distillation] [more arguments for training]
#   JOBS=2 bash recipes/ablations.sh "0 1 2" 6 --threads 1          two at a time
# Further arguments of evaluation: EVALUATE="--threads 1"
set -euo pipefail
cd "$(dirname "$0")/.."
seeds=${1:-0 1 2} iterations=${2:-6} source=${SOURCE:-siri}
shift $(($# < 2 ? $# : 2))
more=("$@") pids=
mkdir -p runs
python -m tiny.players >runs/oracle.jsonl
python -m tiny.players --useless >runs/useless.jsonl
beside() { # runs a command beside at most JOBS - 1 others
  while [ "$(jobs -rp | wc -l)" -ge "${JOBS:-1}" ]; do wait -n; done
  "$@" &
  pids="$pids $!"
}
join() { # waits for all of them, and fails where one has failed
  for pid in $pids; do wait "$pid"; done
  pids=
}
train() { # phase, run, its arguments
  [ -f "runs/$2/$1/done" ] || python "$1.py" --run "$2" "${@:3}" "${more[@]}"
}
distil() { # name, source run, its arguments
  arms="$arms abl-$1"
  beside train distill "abl-$1-$seed" --from "runs/$2-$seed/mine" --seed "$seed" --iterations "$iterations" --lr-end 1 "${@:3}"
}
for seed in $seeds; do # skills that no pair has tested, before they are used
  beside train mine "abl-untested-$seed" --from "runs/$source-$seed/warmup" --seed "$seed" --promote-all
done
join
for seed in $seeds; do
  arms=
  other=$(printf '%s\n' $seeds | grep -vx "$seed" | head -1 || true)
  distil siri "$source"
  distil no-gate "$source" --without gate
  distil no-weight "$source" --without weight
  distil all-tokens "$source" --without mask
  distil oracle "$source" --skills runs/oracle.jsonl
  distil useless "$source" --skills runs/useless.jsonl
  [ -z "$other" ] || distil other-seed "$source" --skills "runs/$source-$other/mine/skills.jsonl" # one seed alone has no other
  distil lambda-0 "$source" --lambda-max 0
  distil lambda-0.1 "$source" --lambda-max 0.1
  distil lambda-2 "$source" --lambda-max 2
  distil no-validation abl-untested
  # GiGPO alone for as many iterations, with as many episodes (mining's included), and with twice as many
  rounds=$((iterations + $(wc -l <"runs/$source-$seed/mine/metrics.jsonl")))
  for arm in gigpo gigpo-twice; do
    arms="$arms abl-$arm"
    beside train warmup "abl-$arm-$seed" --model "runs/$source-$seed/warmup/policy" --seed "$seed" --stop-at 0 --iterations $rounds \
      $([ $arm = gigpo-twice ] && echo --groups 32)
  done
done
join
for temperature in 0.4 1.0; do
  # shellcheck disable=SC2086
  python recipes/compare.py --final --arms $arms --seeds $seeds --temperature $temperature --out "results/ablations-t$temperature" \
    ${EVALUATE:-}
done
