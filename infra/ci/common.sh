# Sourced by the scripts here.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

say() { echo "$(basename "$0"): $*"; }
die() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

# need NAME...: variables that must be set.
need() {
  local name
  for name in "$@"; do [[ -n ${!name:-} ]] || die "set $name"; done
}

# What this commit is called, in images, in the chart and on the workers.
version() {
  local number
  number=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' app/__init__.py)
  [[ -n $number ]] || die "app/__init__.py names no version"
  echo "$number-$(git rev-parse --short=7 HEAD)"
}

VERSION=${VERSION:-$(version)}
REGISTRY=${REGISTRY:-docker.io/darkroom}
# shellcheck disable=SC2034 # of those who source this
IMAGES=(web worker)

# policies NAME WHAT...: what checkov has against it, but for what config/checkov/NAME.yaml leaves out with a reason.
policies() {
  local checkov=var/tools/checkov/bin/checkov
  [[ -x $checkov ]] || checkov=$(command -v checkov) || die "checkov is missing: script/tools checkov"
  LOG_LEVEL=ERROR "$checkov" --config-file "config/checkov/$1.yaml" --skip-download --quiet --compact "${@:2}"
}
