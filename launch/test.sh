#!/usr/bin/env bash
# Set up if needed, then run the tests.
#   launch/test.sh [--slow] [--parity] [pytest arguments]      JAXLLM_TEST_WORKERS=4: other than 2 processes
set -euo pipefail
cd "$(dirname "$0")/.."
setup=()
for argument in "$@"; do
  case "$argument" in
    -h|--help) sed -n '2,3p' launch/test.sh | sed 's/^# //'; exit 0 ;;
    --parity) setup+=(--extra parity) ;;
    --slow) setup+=(--browser) ;;
  esac
done
launch/setup.sh ${setup[@]+"${setup[@]}"}
# Most of the time goes into compiling, which takes one core: a worker each, a module's tests on one of them.
exec .venv/bin/python -m pytest -n "${JAXLLM_TEST_WORKERS:-2}" --dist loadfile "$@"
