#!/usr/bin/env bash
# The main job on the shipped corpora: every line is a command that can be typed by hand. What is already there is not made again.
set -euo pipefail
cd "$(dirname "$0")/.."
here=(store=store/demo model=tiny hardware=cpu)
. deploy/say.sh

started=$SECONDS
say prepare corpora/consultation.jsonl corpora/maternal.jsonl corpora/questions.jsonl corpora/unanswerable.jsonl \
  store=store/demo prepare.titles=true prepare.dev_share=0 prepare.test_share=0
say train task=dense "${here[@]}" task.global_batch=64 task.epochs=8 task.learning_rate=2e-3 \
  task.options.retriever.question_tokens=48 task.options.retriever.passage_tokens=160
say index build "${here[@]}" index.questions=true
say train task=closed_book "${here[@]}" task.global_batch=16 task.epochs=5 task.learning_rate=2e-3 \
  task.options.source_tokens=48 task.options.answer_tokens=128 task.validate_examples=64
say train task=rag_token "${here[@]}" task.global_batch=16 task.epochs=1 task.learning_rate=1e-3 task.options.passages=2 \
  task.options.source_tokens=128 task.options.answer_tokens=128 task.validate_examples=32
say train task=fid "${here[@]}" task.global_batch=16 task.epochs=1 task.learning_rate=1e-3 task.options.passages=3 \
  task.options.source_tokens=128 task.options.answer_tokens=128 task.validate_examples=32
say evaluate "${here[@]}" 'evaluate.methods=[dense,closed_book,rag_token,fid]' evaluate.questions=24 answer.decoding.answer_tokens=96
say ask "${here[@]}" 'answer.beside=[fid]' 孕期可以喝咖啡吗？ 宝宝发烧38度5怎么办？ 高血压患者能不能突然停药？ 喂奶的时候乳头裂了好疼怎么办？ 明天北京会下雨吗？

printf '\nThe main job took %d minutes. Next:\n' $(((SECONDS - started + 30) / 60))
printf '  .venv/bin/medrag ask store=store/demo "剖宫产后多久可以洗澡？"\n'
printf '  .venv/bin/medrag infer store=store/demo questions.jsonl answers.jsonl\n'
printf '  .venv/bin/medrag prepare YOUR_RECORDS.jsonl store=store/mine      # then train, index, evaluate as above\n'
