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
brief=(task.global_batch=16 task.options.answer_tokens=96 task.patience=0)
say train task=closed_book "${here[@]}" "${brief[@]}" task.epochs=2.2 task.learning_rate=2e-3 task.options.source_tokens=64 \
  task.validate_every_steps=500 task.validate_examples=192
# what reads passages costs three to seven times as much a step: each has about the same minutes
reads=("${brief[@]}" task.learning_rate=1e-3 task.options.source_tokens=128 task.options.passages=3 task.validate_examples=96)
say train task=rag_sequence "${here[@]}" "${reads[@]}" task.epochs=0.21
say train task=rag_token "${here[@]}" "${reads[@]}" task.epochs=0.21
say train task=fid "${here[@]}" "${reads[@]}" task.epochs=0.42
say evaluate "${here[@]}" 'evaluate.methods=[dense,closed_book,rag_sequence,rag_token,fid]' evaluate.questions=200 answer.decoding.answer_tokens=96
