#!/usr/bin/env bash
# Set up if needed, then decode held-out puzzles with every method and save the picture.
#   launch/quickstart.sh [--count N] [--out DIR]
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in -h|--help) sed -n '2,3p' launch/quickstart.sh | sed 's/^# //'; exit 0 ;; esac
launch/setup.sh
exec .venv/bin/jaxllm quickstart "$@"
