#!/usr/bin/env bash
# An hour on two cores: the same phases with longer budgets.  Resumable.      bash recipes/laptop_hour.sh [RUN] [--seed 1 ...]
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-hour}
shift || true
[ -f "runs/$run/warmup/done" ] || python warmup.py --run "$run" --minutes 8 "$@"
[ -f "runs/$run/mine/done" ] || python mine.py --run "$run" --minutes 8 "$@"
[ -f "runs/$run/distill/done" ] || python distill.py --run "$run" --minutes 40 "$@"
python evaluate.py --run "$run"
