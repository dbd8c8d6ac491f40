# What the launch scripts share; sourced, not run.
# shellcheck shell=bash

self="$(basename "$0")"
self="${self%.*}"

# Exit code of a run that saved and wants to be started again.
# shellcheck disable=SC2034
UNFINISHED=75

fail() { echo "$self: $*" >&2; exit 2; }

# The comment block at the top of the script.
show_help() { sed -n '2,/^[^#]/{/^#/!q;s/^# \{0,1\}//;p;}' "$0"; exit 0; }

need_value() { if [ $# -lt 2 ] || [ -z "$2" ]; then fail "$1 needs a value"; fi; }
need_number() {
  need_value "$@"
  case "$2" in *[!0-9]* | 0) fail "$1 $2: write a whole number of at least 1" ;; esac
}

need_tool() { command -v "$1" >/dev/null || fail "$1 is not installed: $2"; }

# The command as one line that a shell reads back, marked with +.
print_command() { printf '+'; printf ' %q' "$@"; printf '\n'; }

# Print a command if $dry is 1, else run it.
# shellcheck disable=SC2154
run() { if [ "$dry" = 1 ]; then print_command "$@"; else "$@"; fi; }

# jaxllm of the repository's .venv, where there is one and no environment is active.
use_venv() { if [ -z "${VIRTUAL_ENV:-}" ] && [ -x "$1/.venv/bin/jaxllm" ]; then PATH="$1/.venv/bin:$PATH"; export PATH; fi; }
