#!/usr/bin/env bash
# An hour on two cores: the same phases with 52 minutes of distillation instead
# of 32 iterations (8 minutes at most).  Resumable.
#   bash recipes/laptop_hour.sh [RUN] [--seed 1 ...]
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-hour}
shift || true
[[ " $* " != *" --run"* ]] || { echo "error: --run: the first word names the run" >&2 && exit 2; }
[ -f "runs/$run/warmup/done" ] || python warmup.py --run "$run" "$@"
[ -f "runs/$run/mine/done" ] || python mine.py --run "$run" "$@"
[ -f "runs/$run/distill/done" ] || python distill.py --run "$run" --minutes 52 --snapshots 4 "$@"
python evaluate.py --run "$run"
