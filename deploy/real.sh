#!/usr/bin/env bash
# The preset for about 20,000 consultation pairs on two CPU cores, in under two hours: deploy/real.sh DATA_FOLDER
# DATA_FOLDER holds toyhom/, huatuo_llama/, caregpt/ and medicalgpt/ as they are published. bf16 halves the time on CPUs that have it;
# say PRECISION=fp32 on others.
set -euo pipefail
data=$(realpath "${1:?usage: deploy/real.sh DATA_FOLDER}")
cd "$(dirname "$0")/.."
here=(store=store/real model=small hardware=cpu "hardware.precision=${PRECISION:-bf16}")
. deploy/say.sh

say prepare "$data/toyhom/internal_medicine_sample.csv" "$data/toyhom/internal_medicine_pairs.txt" "$data/huatuo_llama/llama_data.json" \
  "$data/caregpt/test_datasets.jsonl" "$data/medicalgpt/medical_sft_1K_format.jsonl" corpora/unanswerable.jsonl \
  store=store/real prepare.dev_share=0.03 prepare.test_share=0.06
say train task=dense "${here[@]}" hardware.precision=fp32 task.global_batch=1024 task.epochs=8 task.learning_rate=3e-3 task.patience=0 \
  task.options.retriever.question_tokens=96 task.options.retriever.passage_tokens=192 task.validate_every_steps=19
say index build "${here[@]}"
say train task=closed_book "${here[@]}" task.global_batch=16 task.epochs=1 task.learning_rate=1e-3 \
  task.options.source_tokens=64 task.options.answer_tokens=128 task.validate_every_steps=300 task.validate_examples=256
say train task=rag_token "${here[@]}" task.global_batch=16 task.epochs=0.12 task.learning_rate=5e-4 task.options.passages=3 \
  task.options.source_tokens=160 task.options.answer_tokens=96 \
  task.validate_every_steps=73 task.validate_examples=96
say evaluate "${here[@]}" 'evaluate.methods=[dense,closed_book,rag_token]' evaluate.questions=40
