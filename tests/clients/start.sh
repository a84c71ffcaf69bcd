# What the clients' scripts begin with. Sourced by each; tests/clients/run sets the variables.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
: "${MAYPOLE_CLIENTS_PREFIX:?start it by tests/clients/run $(basename "$here")}"
lib=$MAYPOLE_CLIENTS_PREFIX/lib
# For clients that find libraries by LD_LIBRARY_PATH; with the simulated GPU's folder where they are to run on that.
path=$lib${MAYPOLE_CLIENTS_GPU:+:$MAYPOLE_CLIENTS_GPU}
export MAYPOLE_DEVICE=${MAYPOLE_CLIENTS_GPU:+cuda}
: "${MAYPOLE_DEVICE:=host}"
# A GPU's NCCL, or settings of the one who runs this, must not get in the way.
unset LD_PRELOAD LD_LIBRARY_PATH NCCL_COMM_ID NCCL_DEBUG CUDA_VISIBLE_DEVICES

skip() {
  echo "$1"
  exit 77
}

has() {
  for tool; do command -v "$tool" >/dev/null || skip "$tool is not installed"; done
}

heavy() {
  [ "${MAYPOLE_CLIENTS_HEAVY:-}" = 1 ] || skip "loads $1; MAYPOLE_CLIENTS_HEAVY=1 runs it"
}

# packages NAME PACKAGE==VERSION...: makes a Python environment with them, once, and names its interpreter $python.
packages() {
  local place=$MAYPOLE_CLIENTS_CACHE/$1
  shift
  python=$place/bin/python
  [ "$(cat "$place/installed" 2>/dev/null)" = "$*" ] && "$python" -c '' 2>/dev/null && return
  has python3
  rm -rf "$place"
  python3 -m venv "$place" >"$place.log" 2>&1 || skip "python3 makes no virtual environment: $(tail -n 1 "$place.log")"
  "$python" -m pip install --quiet --disable-pip-version-check --only-binary :all: "$@" >"$place.log" 2>&1 ||
    skip "pip does not install $*: $(grep -m 1 ERROR "$place.log" || tail -n 1 "$place.log")"
  echo "$*" >"$place/installed"
}
