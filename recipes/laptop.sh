#!/usr/bin/env bash
# The default: base, warm-up, mining, distillation and evaluation on two cores.  Resumable: run it
# again after an interruption.
#   bash recipes/laptop.sh [RUN] [more arguments for the three training phases, e.g. --seed 1]
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-default}
shift || true
[[ " $* " != *" --run"* ]] || { echo "error: --run: the first word names the run" >&2 && exit 2; }
for phase in warmup mine distill; do
  [ -f "runs/$run/$phase/done" ] || python $phase.py --run "$run" "$@"
done
python evaluate.py --run "$run"
