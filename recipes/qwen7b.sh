#!/usr/bin/env bash
# SIRI with the paper's settings (README, "--preset paper"): Qwen2.5-7B-Instruct, all weights, 8
# GPUs of 80 GB.  Resumable.
#   bash recipes/qwen7b.sh [alfworld|webshop] [RUN] [more arguments for the three training phases]
# Further arguments of one phase: MINE="--n-eval 4", DISTILL="...", EVALUATE="...".
# Other machines: GPUS=4 MODEL=... LAUNCH="...".  Several machines: recipes/fsdp.yaml.
# qwen1_5b.sh and qwen_lora.sh run these lines, too.  No whole run has been measured yet (single
# updates: docs/gpus.md); estimates of
#   python recipes/plan.py --gpus 8 --gradient-checkpointing:
#   memory per GPU   25 GB while updating (weights 4, reference 2, gradients 4, AdamW 8, gathered
#                    copies 8), and the micro-batch, which is chosen for what is free, 91,648 tokens
#                    at most: 47 GB; while sampling vLLM's weights take 15, 40 are left for its
#                    cache, of which 16 episodes of full length need 2
#   an iteration     at most 6,400 rows in ALFWorld, 1,920 in WebShop: 2.8 (1.4) million prompt
#                    tokens and, at the limit of 512 a response, 3.3 (1.0) million sampled ones; the
#                    update reads 6.1 (2.4) million, 0.76 (0.29) per GPU
set -euo pipefail
# a model's folder is looked for where the recipe is called
[ ! -d "${MODEL:-}" ] || MODEL=$(cd "$MODEL" && pwd)
cd "$(dirname "$0")/.."
refuse() {
  echo "error: $1" >&2
  exit 2
}
env=${1:-alfworld} run=${2:-qwen7b-${1:-alfworld}}
shift $(($# < 2 ? $# : 2))
for name in "$env" "$run"; do
  [[ $name =~ ^[A-Za-z0-9_][A-Za-z0-9_.:-]*$ ]] ||
    refuse "expected the world and the run's name first, found '$name'"
done
[[ ${GPUS:-8} =~ ^[1-9][0-9]*$ ]] || refuse "GPUS: expected a number, found '$GPUS'"
launch=${LAUNCH:-accelerate launch --config_file recipes/fsdp.yaml --num_processes ${GPUS:-8}}
command -v ${launch%% *} >/dev/null ||
  refuse "no command '${launch%% *}' here: run pip install -e '.[gpu]', or say LAUNCH=..."
model=${MODEL:-Qwen/Qwen2.5-7B-Instruct}
rows=$([ "$env" = webshop ] && echo 64 || echo 256) # per optimizer step
how="--device cuda --engine vllm --dtype bfloat16"
lines=()
collect() { lines+=("$@" ---); }
# first every command line is read, in one process; then they run
for run_by in collect "$launch"; do
  python=${PYTHON:-python}
  [ "$run_by" != collect ] || python=collect
  for phase in warmup mine distill; do
    case $phase in mine) more=${MINE:-} ;; distill) more=${DISTILL:-} ;; *) more= ;; esac
    # shellcheck disable=SC2086 # words of $run_by, $how and $more are meant to be split
    [ -f "runs/$run/$phase/done" ] || $run_by $phase.py --preset paper --run "$run" --env "$env" \
      --model "$model" $how --gradient-checkpointing --mini-batch-rows "$rows" "$@" $more
  done
  # the plain prompt, every validation task three times, temperature 0.4; one process
  # shellcheck disable=SC2086
  $python evaluate.py --run "$run" --env "$env" $how --repetitions 3 ${EVALUATE:-}
  [ "$run_by" != collect ] || ${PYTHON:-python} recipes/check.py "${lines[@]}"
done
