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
refuse() {
  echo "error: $1" >&2
  exit 2
}
env=${1:-alfworld} size=${2:-1.5B} memory=${MEMORY:-80}
run=${3:-qwen$size-lora-$env}
shift $(($# < 3 ? $# : 3))
[[ $memory =~ ^[0-9]{1,6}$ ]] ||
  refuse "MEMORY: expected gigabytes, a whole number, found '$memory'"
[[ $size =~ ^(1\.5B|7B)$ ]] ||
  refuse "the size: expected 1.5B or 7B, found '$size' (other models: MODEL=...)"
engine=vllm
# 7B below 48 GB: after its 16 GB of weights there is no room for vLLM's own
if [ "$memory" -lt 48 ] && [ "$size" = 7B ]; then engine=transformers; fi
sampling="--engine $engine --rollout-batch $([ $engine = vllm ] && echo 128 || echo 16)"
export LAUNCH=${LAUNCH:-${PYTHON:-python}} MODEL=${MODEL:-Qwen/Qwen2.5-$size-Instruct}
export EVALUATE="$sampling ${EVALUATE:-}"
# the lines of all weights on several GPUs, with adapters on one; what comes last counts
# shellcheck disable=SC2086 # words of $sampling are meant to be split
exec bash "$(dirname "$0")/qwen7b.sh" "$env" "$run" $sampling --lora-rank 64 --lr 3e-6 "$@"
