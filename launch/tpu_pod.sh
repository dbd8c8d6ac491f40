#!/usr/bin/env bash
# Train on Cloud TPU VMs (v4 to v6e): request a queued resource, wait for it, copy the code to every worker, and run
# the same command on all of them. Run it again to go on: what exists is used. TPU7x: launch/gke/submit.sh.
#   launch/tpu_pod.sh --name NAME --zone ZONE --type v5litepod-16 --bucket BUCKET [options] -- \
#       jaxllm train CONFIG --resume
#     --name NAME      of the queued resource
#     --zone ZONE      such as us-central1-a
#     --type TYPE      accelerator type, such as v4-32, v5litepod-16, v5p-64, v6e-16
#     --bucket BUCKET  Cloud Storage bucket mounted as runs/ on every worker; run directories must be shared
#     --project P      Google Cloud project (that of gcloud's configuration)
#     --slices N       slices joined over the data-centre network (1)
#     --runtime R      VM image (by type)
#     --spot           preemptible capacity
#     --dry-run        print what would run
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=launch/common.sh
. "$here/launch/common.sh"

name="" zone="" type="" bucket="" project="" slices=1 runtime="" spot=0 dry=0
while [ $# -gt 0 ]; do
  case "$1" in
    --name) need_value "$@"; name="$2"; shift 2 ;;
    --zone) need_value "$@"; zone="$2"; shift 2 ;;
    --type) need_value "$@"; type="$2"; shift 2 ;;
    --bucket) need_value "$@"; bucket="${2#gs://}"; shift 2 ;;
    --project) need_value "$@"; project="$2"; shift 2 ;;
    --slices) need_number "$@"; slices="$2"; shift 2 ;;
    --runtime) need_value "$@"; runtime="$2"; shift 2 ;;
    --spot) spot=1; shift ;;
    --dry-run) dry=1; shift ;;
    -h|--help) show_help ;;
    --) shift; break ;;
    *) fail "unknown option $1 (try --help)" ;;
  esac
done
[ -n "$name" ] || fail "--name is missing: the queued resource to use or make"
[ -n "$zone" ] || fail "--zone is missing: such as us-central1-a"
[ -n "$type" ] || fail "--type is missing: such as v5litepod-16"
[ $# -gt 0 ] || fail "the command is missing: write it after --, such as -- jaxllm train CONFIG --resume"
if [ -z "$runtime" ]; then
  case "$type" in
    v4-*) runtime=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) fail "--type $type: no VM image known for it; add --runtime, or for TPU7x use launch/gke/submit.sh" ;;
  esac
fi
[ "$dry" = 1 ] || need_tool gcloud "install the Google Cloud CLI"

place=(--zone="$zone")
if [ -n "$project" ]; then place+=(--project="$project"); fi
resource() { local verb="$1"; shift; run gcloud compute tpus queued-resources "$verb" "$@" "${place[@]}"; }
everywhere=(--node=all --worker=all --batch-size=all)  # in smaller batches the first would wait for the rest for ever

create=(create "$name" --accelerator-type="$type" --runtime-version="$runtime")
if [ "$slices" = 1 ]; then create+=(--node-id="$name"); else create+=(--node-count="$slices" --node-prefix="$name"); fi
if [ "$spot" = 1 ]; then create+=(--spot); fi

state() { resource describe "$name" --format='value(state.state)' 2>/dev/null || echo NONE; }
if [ "$dry" = 1 ]; then
  resource describe "$name" --format='value(state.state)'
  resource "${create[@]}"
  echo "# until its state is ACTIVE"
else
  if [ "$(state)" = NONE ]; then resource "${create[@]}"; fi
  last=""
  while now="$(state)" && [ "$now" != ACTIVE ]; do
    case "$now" in
      FAILED|SUSPENDING|SUSPENDED|DELETING)
        fail "$name is $now; delete it, then run this again: gcloud compute tpus queued-resources delete $name ${place[*]} --force" ;;
    esac
    if [ "$now" != "$last" ]; then echo "$self: $name is $now; waiting for ACTIVE"; last="$now"; fi
    sleep 20
  done
fi

archive="${TMPDIR:-/tmp}/jaxllm-$name.tar.gz"
run tar -czf "$archive" -C "$here" --exclude=__pycache__ jaxllm configs launch pyproject.toml constraints.txt README.md LICENSE
resource scp "$archive" "$name:jaxllm.tar.gz" "${everywhere[@]}"

# Expanded on the workers. Their images may have an older Python only.
# shellcheck disable=SC2016
setup='set -e; mkdir -p jaxllm; tar -xzf jaxllm.tar.gz -C jaxllm; cd jaxllm; p=$(command -v python3.12 || echo python3.11)
command -v $p || sudo apt-get install -qy python3.11 python3.11-venv; PYTHON=$p launch/setup.sh --extra tpu'
if [ -n "$bucket" ]; then
  setup+="; mkdir -p runs; mountpoint -q runs || gcsfuse --implicit-dirs --rename-dir-limit=100000 $(printf %q "$bucket") runs"
fi
resource ssh "$name" "${everywhere[@]}" --command="$setup"
command="$(printf ' %q' "$@")"
status=0
resource ssh "$name" "${everywhere[@]}" --command="cd jaxllm && PATH=\"\$PWD/.venv/bin:\$PATH\"$command" || status=$?
echo "# to give the machines back: gcloud compute tpus queued-resources delete $name ${place[*]} --force"
exit "$status"
