#!/usr/bin/env bash
# SIRI with the paper's settings (README, "--preset paper"): Qwen2.5-1.5B-Instruct, all weights, 2
# GPUs of 80 GB.  Resumable.
#   bash recipes/qwen1_5b.sh [alfworld|webshop] [RUN] [more arguments for the three training phases]
# Further arguments of one phase: MINE="--n-eval 4", DISTILL="...", EVALUATE="...".
# Other machines: GPUS=1 MODEL=... LAUNCH="...".  Several machines: recipes/fsdp.yaml.
# No whole run has been measured yet (single updates: docs/gpus.md); estimates of
#   python recipes/plan.py --model Qwen/Qwen2.5-1.5B-Instruct --gpus 2 --gradient-checkpointing:
#   memory per GPU   16 GB while updating (weights 3, reference 2, gradients 3, AdamW 6, gathered
#                    copies 2), and the micro-batch, which is chosen for what is free, 243,968
#                    tokens at most: 57 GB; while sampling vLLM's weights take 3, 55 are left for
#                    its cache, of which 64 episodes of full length need 5
#   an iteration     at most 6,400 rows in ALFWorld, 1,920 in WebShop: 2.8 (1.4) million prompt
#                    tokens and, at the limit of 512 a response, 3.3 (1.0) million sampled ones; the
#                    update reads 6.1 (2.4) million, 3.1 (1.2) per GPU
set -euo pipefail
export GPUS=${GPUS:-2} MODEL=${MODEL:-Qwen/Qwen2.5-1.5B-Instruct}
exec bash "$(dirname "$0")/qwen7b.sh" "${1:-alfworld}" "${2:-qwen1_5b-${1:-alfworld}}" "${@:3}"
