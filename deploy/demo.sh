#!/usr/bin/env bash
# The main job on the shipped corpora. Every line is a command that can be typed by hand; what is already there is not made again.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
started=$SECONDS
common=(store=store/demo model=tiny hardware=cpu)

say() { printf '\n\033[1m$ medrag'; printf ' %q' "$@"; printf '\033[0m\n'; medrag "$@"; }

say prepare corpora/consultation.jsonl corpora/maternal.jsonl corpora/questions.jsonl corpora/unanswerable.jsonl \
  store=store/demo prepare.titles=true prepare.dev_share=0 prepare.test_share=0
