# shellcheck shell=bash
# Sourced by the other scripts from the project's root: show a medrag command as it would be typed, and run it from the project's environment.
PATH="$PWD/.venv/bin:$PATH"

say() {
  printf '\n\033[1m$ medrag'
  printf ' %q' "$@"
  printf '\033[0m\n'
  medrag "$@"
}
