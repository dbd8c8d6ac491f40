#!/usr/bin/env bash
# Set up if needed, then run the tests.
#   launch/test.sh [--slow] [--parity] [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
setup=()
for argument in "$@"; do
  case "$argument" in
    -h|--help) sed -n '2,3p' launch/test.sh | sed 's/^# //'; exit 0 ;;
    --parity) setup=(--extra parity) ;;
  esac
done
launch/setup.sh ${setup[@]+"${setup[@]}"}
exec .venv/bin/python -m pytest "$@"
