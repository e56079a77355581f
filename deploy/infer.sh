#!/usr/bin/env bash
#SBATCH --job-name=medrag-infer
#SBATCH --array=0-3
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
# Batch inference, `medrag infer`, on this machine or as a job array of Slurm (from the project's root, or with MEDRAG=its folder):
#
#   deploy/infer.sh QUESTIONS ANSWERS.jsonl [key=value ...]
#   sbatch [--array=0-7] deploy/infer.sh QUESTIONS ANSWERS.jsonl [key=value ...]
#
# QUESTIONS is .jsonl or .csv with a question column. In an array each task answers a part of the rows in ANSWERS.jsonl.parts/, and whichever
# ends last joins them in order, as one run would have written them (rows keep their numbers). Killed or out of time, the same command goes on
# after the last whole row; under Slurm a task that is told to stop asks for its requeue itself. All tasks must be given the same input, keys
# and store: one that finds others in the folder of parts says so. When ANSWERS.jsonl is there, the folder can go.
set -euo pipefail
[[ $# -ge 2 && $1 != -* ]] || { sed -n '11,/^set/{/^#/p}' "$0" >&2; exit 2; }
questions=$1 answers=$2
shift 2
root=${MEDRAG:-${SLURM_SUBMIT_DIR:-$(cd "$(dirname "$0")/.." && pwd)}}
PATH="$root/.venv/bin:$PATH"
if [[ ${SLURM_CPUS_PER_TASK-} ]]; then set -- "hardware.threads=$SLURM_CPUS_PER_TASK" "$@"; fi

answer() { # medrag infer; told to stop, it finishes the rows in hand, and the task goes back into Slurm's queue
  local status=0
  medrag infer "$@" &
  trap 'stopped=yes; kill -TERM $! 2>/dev/null || true' TERM INT
  wait $! || status=$?
  while kill -0 $! 2>/dev/null; do
    status=0
    wait $! || status=$?
  done
  if [[ ${stopped-} && $status -ne 0 && ${SLURM_JOB_ID-} ]]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
  fi
  return "$status"
}

if [[ -z ${SLURM_ARRAY_TASK_ID-} ]]; then
  answer "$questions" "$answers" "$@"
  exit
fi

parts=$SLURM_ARRAY_TASK_COUNT folder=$answers.parts number=$((SLURM_ARRAY_TASK_ID - ${SLURM_ARRAY_TASK_MIN:?}))
if ((${SLURM_ARRAY_TASK_MAX:?} - SLURM_ARRAY_TASK_MIN + 1 != parts)); then echo "infer.sh: --array must be one range, as 0-7" >&2; exit 2; fi
if [[ -e $answers ]]; then echo "infer.sh: $answers is already there; remove it, or name another output" >&2; exit 2; fi
mkdir -p "$folder"

store=store
for word; do if [[ $word == store=* ]]; then store=${word#store=}; fi; done
claim=$({ sha256sum <"$questions"; printf '%s\n' "$parts" "$@"; tail -n +1 "$store"/*/CURRENT; } | sha256sum)
mine=$(mktemp "$folder/.claim-XXXXXX")
echo "$claim" >"$mine"
ln "$mine" "$folder/claim" 2>/dev/null || true # the first one stands
rm "$mine"
if [[ $(<"$folder/claim") != "$claim" ]]; then
  echo "infer.sh: $folder was begun with another input, other keys, another --array or another state of $store; remove it, or name another output" >&2
  exit 2
fi

part=$folder/$number.${questions##*.}
answered=$folder/$number.answers.jsonl
# rows are those that medrag infer counts: lines of JSON that are not blank, records of CSV that are not empty
[[ -e $part ]] || python - "$questions" "$part" "$number" "$parts" <<'END'
import csv, itertools, os, sys
source, target, number, parts = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
as_is = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
def table():
    with open(source, **as_is) as stream:
        yield from filter(None, csv.reader(line.replace("\0", "") for line in stream))
def lines():
    with open(source, "rb") as stream:
        yield from (line.rstrip(b"\n") + b"\n" for line in stream if line.strip())
head = source.endswith(".csv")
csv.field_size_limit(2**31 - 1)
rows = table if head else lines
count = sum(1 for _ in rows()) - head
chosen = itertools.islice(rows(), count * number // parts + head, count * (number + 1) // parts + head)
if head:
    with open(target + ".partial", "w", **as_is) as out:
        csv.writer(out).writerows(itertools.chain(itertools.islice(rows(), 1), chosen))
else:
    with open(target + ".partial", "wb") as out:
        out.writelines(chosen)
os.replace(target + ".partial", target)
END
[[ -e $answered ]] || answer "$part" "$answered" "$@"

for ((each = 0; each < parts; each++)); do
  [[ -e $folder/$each.answers.jsonl ]] || { echo "part $((number + 1)) of $parts is done; the others are not yet"; exit 0; }
done
# two tasks that end together both join: to the same bytes, and each to a file of its own before it takes the place
python - "$folder" "$parts" "$answers" "$folder/joined.$number" <<'END'
import json, os, pathlib, sys
folder, parts, target, partial = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
number = 0
with open(partial, "w", encoding="utf-8") as out:
    for part in range(parts):
        with open(folder / f"{part}.answers.jsonl", encoding="utf-8", newline="\n") as stream:
            for line in stream:
                number += 1
                out.write(json.dumps(json.loads(line) | {"row": number}, ensure_ascii=False) + "\n")
    out.flush()
    os.fsync(out.fileno())
os.replace(partial, target)
print(f"{target}: {number} rows of {parts} parts")
END
