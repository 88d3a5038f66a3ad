#!/usr/bin/env bash
# SIRI with adapters (LoRA, rank 64, learning rate 3e-6) on one GPU of 24 to 141 GB:
# Qwen2.5-1.5B-Instruct or 7B.  Resumable.
#   bash recipes/qwen_lora.sh [alfworld|webshop] [1.5B|7B] [RUN] [more arguments for training]
#   MEMORY=24 bash recipes/qwen_lora.sh alfworld 7B          gigabytes of the GPU (default: 80)
# Further arguments of one phase: MINE="--n-eval 4", DISTILL="...", EVALUATE="...".
# Other models: MODEL=...  The other settings are the paper's (README, "--preset paper"); the
# adapter switched off is the reference policy, for free.  No whole run has been measured yet
# (single updates: docs/gpus.md); estimates of
#   python recipes/plan.py --model ... --memory ... --lora-rank 64 --gradient-checkpointing \
#       --env webshop:
#   memory         while updating 4 GB (1.5B) or 18 (7B), and the micro-batch, which is chosen for
#                  what is free: 72,448 tokens for 1.5B on 24 GB, 101,888 for 7B on 80; 7B on 24 GB
#                  has room for one of WebShop's longest rows, 4 GB, and no spare.  While sampling
#                  vLLM's weights take 3 (15), 128 episodes of 4,608 tokens 17 (34) of cache; where
#                  there is less vLLM runs as many at once as it has room for
#   an iteration   at most 6,400 rows in ALFWorld, 1,920 in WebShop: 2.8 (1.4) million prompt tokens
#                  and, at the limit of 512 a response, 3.3 (1.0) million sampled ones; the update
#                  reads 6.1 (2.4) million
set -euo pipefail
# a model's folder is looked for where the recipe is called
[ ! -d "${MODEL:-}" ] || MODEL=$(cd "$MODEL" && pwd)
cd "$(dirname "$0")/.."
env=${1:-alfworld} size=${2:-1.5B}
run=${3:-qwen$size-lora-$env}
shift $(($# < 3 ? $# : 3))
launch=${LAUNCH:-python} model=${MODEL:-Qwen/Qwen2.5-$size-Instruct} memory=${MEMORY:-80}
if [[ ! $memory =~ ^[0-9]{1,6}$ ]]; then
  echo "error: MEMORY: expected gigabytes, a whole number, found '$memory'" >&2
  exit 2
fi
if [[ ! $size =~ ^(1\.5B|7B)$ ]]; then
  echo "error: the size: expected 1.5B or 7B, found '$size' (other models: MODEL=...)" >&2
  exit 2
fi
for name in "$env" "$run"; do
  if [[ ! $name =~ ^[A-Za-z0-9_][A-Za-z0-9_.:-]*$ ]]; then
    echo "error: expected the world and the run's name first, found '$name'" >&2
    exit 2
  fi
done
if ! command -v ${launch%% *} >/dev/null; then
  echo "error: no command '${launch%% *}' here: run pip install -e '.[gpu]', or say LAUNCH=..." >&2
  exit 2
fi
rows=$([ "$env" = webshop ] && echo 64 || echo 256) # per optimizer step
engine=vllm
# 7B below 48 GB: after its 16 GB of weights there is no room for vLLM's own
if [ "$memory" -lt 48 ] && [ "$size" = 7B ]; then engine=transformers; fi
how="--device cuda --engine $engine --rollout-batch $([ $engine = vllm ] && echo 128 || echo 16)"
how+=" --dtype bfloat16"
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
      --model "$model" $how --lora-rank 64 --lr 3e-6 --gradient-checkpointing \
      --mini-batch-rows "$rows" "$@" $more
  done
  # the plain prompt, every validation task three times, temperature 0.4
  # shellcheck disable=SC2086
  $python evaluate.py --run "$run" --env "$env" $how --repetitions 3 ${EVALUATE:-}
  [ "$run_by" != collect ] || ${PYTHON:-python} recipes/check.py "${lines[@]}"
done
