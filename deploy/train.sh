#!/usr/bin/env bash
# Training on the cards of a preset, launched by deepspeed:
#
#   deploy/train.sh --list                                      the presets: card, devices, precision, examples a device holds at once
#   deploy/train.sh PRESET TASK [key=value ...]                 as in: deploy/train.sh 2080ti rag_token store=store/mine model=reference
#   DEVICES=4 deploy/train.sh 3090 dense                        another number of cards than the preset's
#   HOSTFILE=hosts deploy/train.sh 1080ti dense store=/shared   several machines (a line each: gpu-a slots=2); all slots are used
#   FORCE=1 deploy/train.sh 1080ti rag_token                    even where `medrag plan` says that it does not fit
#
# `medrag plan` comes first: where the run does not fit, it prints the smallest change that does, and nothing is launched.
set -euo pipefail
usage() { sed -n '2,/^set/{/^#/p}' "$0" >&2; exit 2; }
from=$PWD
cd "$(dirname "$0")/.."
root=$PWD
. deploy/say.sh
cd "$from"

if [[ ${1-} == --list ]]; then
  printf '%-9s  %-38s  %-7s  %-9s  %s\n' preset card devices precision "micro batch"
  for file in "$root"/configs/hardware/*.yaml; do
    awk -v name="$(basename "$file" .yaml)" '
      NR == 1 { card = $0; sub(/^# */, "", card); sub(/[:.].*/, "", card) }
      $1 == "devices:" { devices = $2 }
      $1 == "precision:" { precision = $2 }
      $1 == "micro_batch:" { held = $0; gsub(/micro_batch: *\{|\}/, "", held); sub(/, mlm.*/, "", held); gsub(/: /, " ", held) }
      END { printf "%-9s  %-38s  %-7d  %-9s  %s\n", name, card, devices, precision, held }' "$file"
  done
  exit
fi
[[ $# -ge 2 && $1 != -* && $1 != *=* && $2 != *=* ]] || usage
run=("hardware=$1" "task=$2")
shift 2
if [[ ${HOSTFILE-} ]]; then
  slots=$(awk -F 'slots=' '!/^#/ && NF > 1 { sum += $2 } END { print sum + 0 }' "$HOSTFILE")
  ((slots)) || { echo "train.sh: $HOSTFILE has no line like: gpu-a slots=2" >&2; exit 2; }
  run+=("hardware.devices=$slots")
elif [[ ${DEVICES-} ]]; then
  run+=("hardware.devices=$DEVICES")
fi
run+=("$@")

settings=$(medrag config "${run[@]}") # refuses presets, tasks and keys that do not exist, and names those that do
devices=$(awk '/^hardware:/ { here = 1 } here && $1 == "devices:" { print $2; exit }' <<<"$settings")
status=0
say plan "${run[@]}" || status=$?
if ((status == 1)) && [[ ${FORCE-} == 1 ]]; then
  echo "train.sh: FORCE=1, so it is launched all the same" >&2
elif ((status)); then
  exit "$status"
fi

if [[ ${HOSTFILE-} ]]; then
  launch=(deepspeed --hostfile "$HOSTFILE" --module medrag train "${run[@]}")
elif ((devices > 1)); then
  launch=(deepspeed --num_gpus "$devices" --module medrag train "${run[@]}")
else
  launch=(medrag train "${run[@]}")
fi
printf '\n\033[1m$%s\033[0m\n' "$(printf ' %q' "${launch[@]}")"
exec "${launch[@]}"
