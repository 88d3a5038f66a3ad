#!/usr/bin/env bash
# SIRI against its control, over seeds: from the same warm-up checkpoint, with the same fresh
# optimizer and falling rate, GiGPO alone trains on for the wall-clock that mining and distilling
# take.  The two stand side by side, one thread each, so that a busy machine slows both alike.
# Resumable.  On two cores about 13 minutes a seed, and 5 more to play the snapshots.
#   bash recipes/compare.sh [SEEDS] [REGIME] [more arguments for training]
#   bash recipes/compare.sh "0 1 2 3 4"                      10 minutes of distillation
# an hour instead:
#   MINUTES=52 AT="1 2 4 8 16 32" bash recipes/compare.sh "0 1 2" hour --snapshots 1
# another base: runs/siri-less-0, ..., results/compare-less/
#   WARMUP="--model runs/bases/less" bash recipes/compare.sh "0 1 2 3 4" less
# WebShop; without WEBSHOP_DATA the generated shop, with it an hour in the real one:
#   bash recipes/compare.sh "0 1 2" shop --env webshop
#   WARMUP="--stop-at 0.08" MINUTES=57 bash recipes/compare.sh 0 real --env webshop
# SPLIT="held_out" plays only training games that were set aside: for tuning.
set -euo pipefail
set -f # a word such as * is not looked for among files
cd "$(dirname "$0")/.."
seeds=${1:-0 1 2 3 4} regime=${2:-} minutes=${MINUTES:-10}
shift $(($# < 2 ? $# : 2))
more=("$@") name=${regime:+-$regime}
refuse() {
  echo "error: $1" >&2
  exit 2
}
# what becomes part of a command or of a path is checked here
one='(0|[1-9][0-9]*)'
[[ $seeds =~ ^$one(\ +$one)*$ ]] || refuse "SEEDS: expected such as '0 1 2', found '$seeds'"
[[ $regime =~ ^[A-Za-z0-9._-]*$ ]] || refuse "REGIME: expected letters and digits, found '$regime'"
[[ $minutes =~ ^[0-9]+(\.[0-9]+)?$ ]] || refuse "MINUTES: expected a number, found '$minutes'"
[[ ${AT:-1} =~ ^[0-9.]+(\ +[0-9.]+)*$ ]] || refuse "AT: expected such as '1 2 4', found '$AT'"
# a job in the background is a process group of its own, which ends with this script however that
# ends
set -m
trap 'for job in $(jobs -p); do kill -- "-$job" 2>/dev/null || true; done' EXIT
trap 'exit 130' INT TERM HUP
train() { # phase, run, its own arguments
  [ -f "runs/$2/$1/done" ] || $by "$1.py" --run "$2" --seed "$seed" --threads 1 \
    --snapshots 0.2 "${more[@]}" "${@:3}"
}
draw() { # shellcheck disable=SC2086  # several words or none
  $by recipes/compare.py --run "siri$name-$seed" ${world:+--env "$world"} \
    --arms "gigpo$name" "siri$name" "siri$name+skills" --seeds $seeds ${SPLIT:+--split $SPLIT} \
    --out "results/compare$name" --at ${AT:-0.2 0.4 0.6 0.8 1 1.4 1.8 2.2 2.6 3 4 6 8}
}
# the world that is typed, for the command that reads no run
[[ " ${more[*]} ${WARMUP:-} " =~ \ --env[\ =]([^\ ]+)\  ]] && world=${BASH_REMATCH[1]} || world=
# every command line is read before the first of them runs
lines=() by=collect seed=${seeds%% *}
collect() { lines+=("$@" ---); }
# shellcheck disable=SC2086
train warmup "siri$name-$seed" ${WARMUP:-}
train mine "siri$name-$seed"
train distill "siri$name-$seed" --minutes "$minutes"
draw
python recipes/check.py "${lines[@]}"
by=python
# the minutes of distillation and those that the phase whose `done` is named took
together='import json, sys; spent = json.load(open(sys.argv[2]))["seconds"] / 60
print(round(float(sys.argv[1]) + spent, 2))'
for seed in $seeds; do
  siri=siri$name-$seed control=gigpo$name-$seed
  # shellcheck disable=SC2086  # several words or none
  train warmup "$siri" ${WARMUP:-}
  train mine "$siri"
  as_long=$(python -c "$together" "$minutes" "runs/$siri/mine/done")
  train distill "$siri" --minutes "$minutes" &
  one=$!
  train warmup "$control" --model "runs/$siri/warmup/policy" --stop-at 0 --lr-end 0.1 \
    --minutes "$as_long" &
  two=$!
  wait -n || refuse "a run of seed $seed failed, its message is above; the other one is stopped"
  wait $one
  wait $two
done
draw
