#!/usr/bin/env bash
# Train on GKE: fill in a JobSet and hand it to the cluster, which starts all pods together and restarts all of them
# when one fails (not on exit code 2, a wrong setting). The cluster needs the JobSet controller.
#   launch/gke/submit.sh --name NAME --image IMAGE --claim CLAIM --tpu tpu-v5-lite-podslice --topology 4x4 [options] \
#       -- jaxllm train CONFIG --run-dir /runs/NAME --resume
#   launch/gke/submit.sh --name NAME --image IMAGE --claim CLAIM --gpu nvidia-h100-80gb --hosts 2 [options] -- ...
#     --name NAME          of the JobSet
#     --image IMAGE        built from launch/Dockerfile with EXTRAS=tpu or cuda
#     --claim CLAIM        ReadWriteMany volume claim, mounted at /runs in every pod
#     --tpu TYPE           the node pool's accelerator; --topology such as 4x4 or 2x2x4
#     --chips-per-host C   4 by default
#     --slices N           TPU slices (1)
#     --gpu TYPE           the node pool's accelerator; --hosts such as 2
#     --gpus-per-host G    8 by default
#     --restarts R         of the whole set (20)
#     --namespace NS       default by default
#     --dry-run            print the JobSet and the command
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
# shellcheck source=launch/common.sh
. "$here/launch/common.sh"

name="" image="" claim="" tpu="" topology="" chips=4 slices=1 gpu="" hosts="" gpus=8 restarts=20 namespace=default dry=0
while [ $# -gt 0 ]; do
  case "$1" in
    --name) need_value "$@"; name="$2"; shift 2 ;;
    --image) need_value "$@"; image="$2"; shift 2 ;;
    --claim) need_value "$@"; claim="$2"; shift 2 ;;
    --tpu) need_value "$@"; tpu="$2"; shift 2 ;;
    --topology) need_value "$@"; topology="$2"; shift 2 ;;
    --chips-per-host) need_number "$@"; chips="$2"; shift 2 ;;
    --slices) need_number "$@"; slices="$2"; shift 2 ;;
    --gpu) need_value "$@"; gpu="$2"; shift 2 ;;
    --hosts) need_number "$@"; hosts="$2"; shift 2 ;;
    --gpus-per-host) need_number "$@"; gpus="$2"; shift 2 ;;
    --restarts) need_number "$@"; restarts="$2"; shift 2 ;;
    --namespace) need_value "$@"; namespace="$2"; shift 2 ;;
    --dry-run) dry=1; shift ;;
    -h|--help) show_help ;;
    --) shift; break ;;
    *) fail "unknown option $1 (try --help)" ;;
  esac
done
[ -n "$name" ] || fail "--name is missing: the JobSet's name"
[[ "$name" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || fail "--name $name: at most 40 small letters, digits and dashes"
[ -n "$image" ] || fail "--image is missing: build it from launch/Dockerfile"
[ -n "$claim" ] || fail "--claim is missing: a ReadWriteMany volume claim for the run directory"
[ $# -gt 0 ] || fail "the command is missing: write it after --, such as -- jaxllm train CONFIG --run-dir /runs/$name --resume"
if [ -n "$tpu" ] && [ -z "$gpu" ]; then
  [[ "$topology" =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || fail "--topology ${topology:-is missing}: write chips by axis, such as 4x4 or 2x2x4"
  all=$((${topology//x/*}))
  [ $((all % chips)) = 0 ] || fail "--topology $topology: $all chips do not divide by --chips-per-host $chips"
  kind=tpu hosts=$((all / chips))
elif [ -n "$gpu" ] && [ -z "$tpu" ]; then
  [ -n "$hosts" ] || fail "--hosts is missing: the number of machines"
  kind=gpu
else
  fail "write either --tpu TYPE --topology T or --gpu TYPE --hosts N"
fi

quoted() {  # one YAML scalar
  case "$1" in *$'\n'*) fail "a word of the command holds a line break: $1" ;; esac
  printf "'%s'" "${1//\'/\'\'}"
}
words=""
for word in "$@"; do words+="${words:+, }$(quoted "$word")"; done

yaml="$(cat "$here/launch/gke/jobset-$kind.yaml")"
put() { yaml="${yaml//"{{$1}}"/"$2"}"; }
put NAME "$name"
put NAMESPACE "$(quoted "$namespace")"
put IMAGE "$(quoted "$image")"
put CLAIM "$(quoted "$claim")"
put RESTARTS "$restarts"
put HOSTS "$hosts"
put SLICES "$slices"
put CHIPS "$chips"
put TPU "$(quoted "$tpu")"
put TOPOLOGY "$(quoted "$topology")"
put GPU "$(quoted "$gpu")"
put GPUS "$gpus"
put COMMAND "[$words]"

if [ "$dry" = 1 ]; then
  printf '%s\n' "$yaml"
  echo "# + kubectl create -f -"
  exit 0
fi
need_tool kubectl "install it and point it at the cluster"
printf '%s\n' "$yaml" | kubectl create -f -
echo "$self: watch it with: kubectl -n $namespace logs -f -l jobset.sigs.k8s.io/jobset-name=$name --prefix --max-log-requests=$((hosts * slices))"
