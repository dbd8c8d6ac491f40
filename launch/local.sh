#!/usr/bin/env bash
# Run a command as several processes on this machine that work as one run, over gloo on the CPU.
#   launch/local.sh -n 4 [--devices D] [--port P] [--grace S] [--dry-run] -- jaxllm train CONFIG [...]
#     -n N          processes; process 0 coordinates
#     --devices D   simulated devices of each process (1)
#     --port P      where process 0 waits for the others (a free port)
#     --grace S     after one fails the others get SIGTERM, and S seconds later SIGKILL (30)
#     --dry-run     print what would run
# Output is prefixed with [process]. The first failure stops all; its exit code is passed on.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=launch/common.sh
. "$here/launch/common.sh"

count="" devices=1 port="" grace=30 dry=0
while [ $# -gt 0 ]; do
  case "$1" in
    -n) need_number "$@"; count="$2"; shift 2 ;;
    --devices) need_number "$@"; devices="$2"; shift 2 ;;
    --port) need_number "$@"; port="$2"; shift 2 ;;
    --grace) need_number "$@"; grace="$2"; shift 2 ;;
    --dry-run) dry=1; shift ;;
    -h|--help) show_help ;;
    --) shift; break ;;
    *) fail "unknown option $1 (try --help)" ;;
  esac
done
[ -n "$count" ] || fail "-n is missing: write the number of processes, such as -n 4"
[ $# -gt 0 ] || fail "the command is missing: launch/local.sh -n $count -- jaxllm train CONFIG"
use_venv "$here"

if [ -z "$port" ] && [ "$dry" = 0 ]; then
  need_tool python3 "set --port to a free port"
  port="$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
fi
flags="${XLA_FLAGS:-}"
if [ "$devices" != 1 ]; then flags="${flags:+$flags }--xla_force_host_platform_device_count=$devices"; fi

settings() {  # NAME=VALUE of process $1, a line each
  printf '%s\n' "JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}" JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo "XLA_FLAGS=$flags" \
    "JAXLLM_COORDINATOR=127.0.0.1:${port:-FREE_PORT}" "JAXLLM_NUM_PROCESSES=$count" "JAXLLM_PROCESS_ID=$1"
}

start() {  # process $1, the command after it; takes the place of this shell
  local line
  while IFS= read -r line; do export "${line?}"; done < <(settings "$1")
  shift
  exec "$@"
}

if [ "$dry" = 1 ]; then
  for ((i = 0; i < count; i++)); do
    words=(env)
    while IFS= read -r line; do words+=("$line"); done < <(settings "$i")
    print_command "${words[@]}" "$@"
  done
  exit 0
fi
command -v "$1" >/dev/null || fail "$1: no such command; set up with launch/setup.sh"

scratch="$(mktemp -d)"
pids=() readers=()
trap 'rm -rf "$scratch"' EXIT

# Each process leads a group of its own, so that what it starts ends with it.
set -m
for ((i = 0; i < count; i++)); do
  mkfifo "$scratch/$i"
  while IFS= read -r line || [ -n "$line" ]; do printf '[%d] %s\n' "$i" "$line"; done <"$scratch/$i" &
  readers+=($!)
  start "$i" "$@" >"$scratch/$i" 2>&1 </dev/null &
  pids+=($!)
done

tell() { for pid in "${pids[@]}"; do kill -s "$1" -- "-$pid" 2>/dev/null || true; done; }
# Passed on to all, who save and leave; the loop below then sees them go.
told=0
trap 'told=1; tell INT' INT
trap 'told=1; tell TERM' TERM

exec 3>&2 2>/dev/null  # bash's own lines on killed jobs
code=0 since="" killed=0 left=("${pids[@]}")
while [ "${#left[@]}" -gt 0 ]; do
  still=()
  for pid in "${left[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then still+=("$pid"); continue; fi
    status=0
    wait "$pid" || status=$?
    if [ "$status" != 0 ] && [ "$code" = 0 ]; then
      code="$status" since="$SECONDS"
      for ((i = 0; i < count; i++)); do
        if [ "${pids[$i]}" = "$pid" ]; then echo "local: process $i of $count exited with $status; the others end too" >&3; fi
      done
      # Those that were told already, or that save because of one that was, are let finish.
      if [ "$told" = 0 ] && [ "$status" != "$UNFINISHED" ]; then tell TERM; fi
    fi
  done
  left=(${still[@]+"${still[@]}"})
  if [ -n "$since" ] && [ "$killed" = 0 ] && [ $((SECONDS - since)) -ge "$grace" ] && [ "${#left[@]}" -gt 0 ]; then
    killed=1
    tell KILL
  fi
  sleep 0.2 || true  # a signal may end it early
done
tell KILL  # whatever they left behind would keep the pipes open
# One that was told to end before it had opened its pipe leaves a reader that waits for someone to, or, on a busy machine,
# one that is yet to begin waiting: the pipe is opened until the reader has seen its end.
for ((i = 0; i < count; i++)); do
  while kill -0 "${readers[$i]}" 2>/dev/null; do
    : <>"$scratch/$i"
    sleep 0.05 || true
  done
done
exit "$code"
