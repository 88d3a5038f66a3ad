#!/usr/bin/env bash
# What carries the gain: short distillations from the same mined skills, each without one part of
# the method (a patch of recipes/ablations/), or with other skills.  Needs runs of
# recipes/compare.sh (runs/siri-SEED).  Resumable.  On one core about 2 minutes per ablation and
# seed.
#   bash recipes/ablations.sh [SEEDS] [ITERATIONS of distillation] [more arguments for training]
#   JOBS=2 bash recipes/ablations.sh "0 1 2" 6 --threads 1          two at a time
# Some arms only: ONLY="siri gigpo without-gate".  Evaluation: TEMPERATURES="0.4",
# EVALUATE="--threads 1".
set -euo pipefail
set -f # a word such as * is not looked for among files
cd "$(dirname "$0")/.."
seeds=${1:-0 1 2} iterations=${2:-6} source=${SOURCE:-siri} at_once=${JOBS:-1}
shift $(($# < 2 ? $# : 2))
more=("$@") pids=
refuse() {
  echo "error: $1" >&2
  exit 2
}
one='(0|[1-9][0-9]*)'
[[ $seeds =~ ^$one(\ +$one)*$ ]] || refuse "SEEDS: expected such as '0 1 2', found '$seeds'"
[[ $iterations =~ ^[1-9][0-9]{0,8}$ ]] || refuse "ITERATIONS: a number, found '$iterations'"
[[ $source =~ ^[A-Za-z0-9._-]+$ ]] || refuse "SOURCE: a run's name, found '$source'"
[[ $at_once =~ ^[1-9][0-9]?$ ]] || refuse "JOBS: expected a number, found '$at_once'"
in_distill="without-gate without-weight all-tokens gate-by-utility leave-one-out"
in_distill="$in_distill separate-statistics wrong-type muon only-new"
in_mine="no-validation lower-bound type-held-out"
known="siri $in_distill oracle useless other-seed lambda-0 lambda-1 lambda-20 $in_mine gigpo"
known="$known gigpo-twice gigpo-muon self-imitation"
for arm in ${ONLY:-}; do
  [[ " $known " == *" $arm "* ]] || refuse "ONLY: expected some of $known, found '$arm'"
done
for seed in $seeds; do
  for needed in warmup/policy mine/skills.jsonl mine/metrics.jsonl; do
    [ -e "runs/$source-$seed/$needed" ] ||
      refuse "runs/$source-$seed/$needed is not there: run recipes/compare.sh first"
  done
done
# the patched arms are the last commit with one idea changed; the others are what lies here
changed=$(git diff HEAD -- '*.py' '*.sh' 2>&1) || refuse "expected a git checkout: git clone one"
[ -z "$changed" ] || refuse "the patched arms are of the last commit: commit your changes first"
play() { # what runs it, temperature, arms
  # shellcheck disable=SC2086  # several words or none
  $1 recipes/compare.py --final --arms $3 --seeds $seeds --temperature "$2" \
    --run "$source-${seeds%% *}" --out "results/ablations-t$2" ${EVALUATE:-}
}
# every command line is read before the first of them runs
lines=()
collect() { lines+=("$@" ---); }
for phase in warmup mine distill; do collect $phase.py --run abl-check "${more[@]}"; done
for temperature in ${TEMPERATURES:-0.4 1.0}; do play collect "$temperature" abl-siri; done
python recipes/check.py "${lines[@]}"
copies=$(mktemp -d)
# a job in the background is a process group of its own, which ends with this script however that
# ends
set -m
trap 'for job in $(jobs -p); do kill -- "-$job" 2>/dev/null || true; done; rm -rf "$copies"' EXIT
trap 'exit 130' INT TERM HUP
mkdir -p runs
python -m tiny.players >runs/oracle.jsonl
python -m tiny.players --useless >runs/useless.jsonl
patched() { # a folder with the committed code and one idea changed: name of a patch
  [ -d "$copies/$1" ] && return
  mkdir "$copies/$1"
  git archive HEAD | tar -x -C "$copies/$1"
  (cd "$copies/$1" && GIT_CEILING_DIRECTORIES=$copies git apply "recipes/ablations/$1.patch")
}
beside() { # runs a command beside at most JOBS - 1 others
  while [ "$(jobs -rp | wc -l)" -ge "$at_once" ]; do wait -n; done
  "$@" &
  pids="$pids $!"
}
join() { # waits for all of them, and fails where one has failed
  for pid in $pids; do wait "$pid"; done
  pids=
}
train() { # folder of the code, phase, run, its arguments
  [ -f "runs/$3/$2/done" ] || python "$1/$2.py" --run "$3" "${@:4}" "${more[@]}"
}
wanted() { [[ " ${ONLY:-$1} " == *" $1 "* ]]; }
distil() { # name, code, source run, its arguments
  wanted "$1" || return 0
  arms="$arms abl-$1"
  beside train "$2" distill "abl-$1-$seed" --from "runs/$3-$seed/mine" --seed "$seed" \
    --iterations "$iterations" --lr-end 1 "${@:4}"
}
for patch in $in_distill $in_mine self-imitation; do patched "$patch"; done
for seed in $seeds; do # patches of mine.py mine anew
  for patch in $in_mine; do
    ! wanted $patch || beside train "$copies/$patch" mine "abl-$patch-mined-$seed" \
      --from "runs/$source-$seed/warmup" --seed "$seed"
  done
done
join
arms=
for seed in $seeds; do
  other=$(printf '%s\n' $seeds | grep -vx "$seed" | head -1 || true)
  distil siri . "$source"
  for patch in $in_distill; do distil "$patch" "$copies/$patch" "$source"; done
  distil oracle . "$source" --skills runs/oracle.jsonl
  distil useless . "$source" --skills runs/useless.jsonl
  # one seed alone has no other
  [ -z "$other" ] || distil other-seed . "$source" --skills "runs/$source-$other/mine/skills.jsonl"
  distil lambda-0 . "$source" --lambda-max 0
  distil lambda-1 . "$source" --lambda-max 1
  distil lambda-20 . "$source" --lambda-max 20
  for patch in $in_mine; do distil "$patch" . "abl-$patch-mined"; done
  # GiGPO alone for as many iterations, with as many episodes (mining's included), and with twice
  # as many
  rounds=$((iterations + $(wc -l <"runs/$source-$seed/mine/metrics.jsonl")))
  for arm in gigpo gigpo-twice gigpo-muon; do
    wanted $arm || continue
    arms="$arms abl-$arm"
    code=$([ $arm = gigpo-muon ] && echo "$copies/muon" || echo .)
    groups=$([ $arm = gigpo-twice ] && echo 32 || echo 16)
    beside train "$code" warmup "abl-$arm-$seed" --model "runs/$source-$seed/warmup/policy" \
      --seed "$seed" --stop-at 0 --iterations $rounds --groups "$groups"
  done
done
join
for seed in $seeds; do # it needs what SIRI has taught
  distil self-imitation "$copies/self-imitation" "$source" --dose-of "runs/abl-siri-$seed/distill"
done
join
arms=$(printf '%s\n' $arms | awk '!seen[$0]++') # each once, SIRI first
for temperature in ${TEMPERATURES:-0.4 1.0}; do play python "$temperature" "$arms"; done
