#!/usr/bin/env bash
# Makes the fixed index of answers and hands it, with all that serving opens, to the store of a serving machine.
#
#   deploy/publish.sh TARGET [SOURCE ...] [key=value ...]        METHODS="fid rag_token": trained methods to hand over besides dense
#
# TARGET is the other store: a folder, or host:folder (rsync there and here, ssh without a password). Given sources are prepared first; dense is
# trained where none was made from the newest corpus, and the index built where none was made from both (one that was added to stays); it is
# verified; what does not belong together is refused by name. Folders are copied first, their SHA-256 compared where they arrive, and the
# files CURRENT are replaced last, so that a service that is running goes over to the new index by itself. Killed at any moment, the same
# command goes on. Older versions stay in TARGET: going back is writing their names into CURRENT.
set -euo pipefail
umask 022
[[ $# -gt 0 && $1 != -* ]] || { sed -n '2,/^set/{/^#/p}' "$0" >&2; exit 2; }
target=${1%/}
shift
from=$PWD
cd "$(dirname "$0")/.."
. deploy/say.sh
cd "$from"

store=store sources=() settings=() host=""
for word; do
  if [[ $word =~ ^[a-z][a-z0-9_.]*= ]]; then settings+=("$word"); else sources+=("$word"); fi
  if [[ $word == store=* ]]; then store=${word#store=}; fi
done
read -ra methods <<<"dense ${METHODS-}"
place=$target
if [[ ${target%%/*} == *:* ]]; then host=${target%%:*} place=${target#*:}; fi

there() { # a command where the target is
  local word line="" quote="'\\''"
  for word; do line+=" '${word//"'"/$quote}'"; done
  if [[ $host ]]; then ssh -o BatchMode=yes "$host" "$line"; else "$@"; fi
}

made_from() { # whether the newest artifact of the first kind was made from the newest ones of the others
  python - "$store" "$@" <<'END'
import json, pathlib, sys
def newest(kind):
    home = pathlib.Path(sys.argv[1], kind)
    return json.loads((home / (home / "CURRENT").read_text().strip() / "MANIFEST.json").read_text("utf-8"))
try:
    sys.exit(any(newest(sys.argv[2])["parents"].get(kind, {}).get("hash") != newest(kind)["hash"] for kind in sys.argv[3:]))
except FileNotFoundError:
    sys.exit(1)
END
}

wanted() { # what the loader opens for these methods: the kind and version of each, and whether it is the newest
  python - "$store" "$@" <<'END'
import pathlib, sys
from medrag import files
from medrag.assemble import trained
store, found = pathlib.Path(sys.argv[1]), {}
def want(artifact, newest):
    found[artifact.path] = (artifact, newest or found.get(artifact.path, (artifact, False))[1])
try:
    corpus, index = files.current(store, "corpus"), files.current(store, "index")
    trained.check_corpus(index, corpus, "medrag index build")
    for each in (corpus, index):
        want(each, True)
    for name in sys.argv[2:]:
        method, opened = trained.newest(store, name)
        trained.check_corpus(method, corpus, f"medrag train task={name}")
        want(method, "@" not in name)
        if opened is not None:
            want(opened, False)
            want(opened.parent("dense"), False)
except ValueError as error:
    sys.exit(f"medrag: {error}")
for artifact, newest in found.values():
    print(artifact.kind, artifact.path.name, int(newest))
END
}

sums() { # what sha256sum checks of an artifact
  (cd "$1" && sha256sum MANIFEST.json)
  python - "$1" <<'END'
import json, pathlib, sys
for name, file in json.loads(pathlib.Path(sys.argv[1], "MANIFEST.json").read_text("utf-8"))["files"].items():
    print(file["sha256"], "", name)
END
}

whole() { # whether a folder of the target has these sums
  there env -C "$place/$1" sha256sum --check --quiet --strict <<<"$2"
}

hand_over() { # one artifact: copied beside its place, compared, then renamed
  local kind=$1 version=$2 listed
  listed=$(sums "$store/$kind/$version")
  if there test -d "$place/$kind/$version"; then
    whole "$kind/$version" "$listed" || { echo "publish.sh: $target/$kind/$version is not what it was; remove it and run this again" >&2; exit 1; }
    echo "there already: $kind/$version"
    return
  fi
  there mkdir -p "$place/$kind/.incoming-$version"
  if [[ $host ]]; then
    rsync -rts --partial --delete "$store/$kind/$version/" "$target/$kind/.incoming-$version/"
  else
    rm -rf "${place:?}/$kind/.incoming-$version"
    cp -r "$store/$kind/$version" "$place/$kind/.incoming-$version"
  fi
  whole "$kind/.incoming-$version" "$listed" || { echo "publish.sh: $kind/$version did not arrive as it was sent; run this again" >&2; exit 1; }
  there chmod -R u=rwX,go=rX "$place/$kind/.incoming-$version"
  there sync -f "$place/$kind/.incoming-$version"
  there mv -T "$place/$kind/.incoming-$version" "$place/$kind/$version"
  echo "handed over: $kind/$version"
}

if [[ ${#sources[@]} -gt 0 ]]; then say prepare "${sources[@]}" "${settings[@]}"; fi
made_from dense corpus || say train task=dense "${settings[@]}"
made_from index corpus dense || say index build "${settings[@]}"
say index verify "${settings[@]}"

handed=$(wanted "${methods[@]}")
mapfile -t rows <<<"$handed"
pointers=() last=""
for row in "${rows[@]}"; do
  read -r kind version newest <<<"$row"
  hand_over "$kind" "$version"
  if ((newest)); then
    if [[ $kind == index ]]; then last=index/$version; else pointers+=("$kind/$version"); fi
  fi
done
# all at once, the index last: whoever reads between two of them finds what does not belong together, and looks again
# shellcheck disable=SC2016
there sh -c '
  cd "$1" && shift
  for each; do printf "%s\n" "${each#*/}" >"${each%/*}/CURRENT.partial" || exit; done
  sync -f .
  for each; do mv "${each%/*}/CURRENT.partial" "${each%/*}/CURRENT" || exit; done
  sync -f .' sh "$place" "${pointers[@]}" "$last"
echo "published: $target/$last"
