# Sourced by the script `run` of each client. tests/clients/run sets the variables.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
: "${MAYPOLE_CLIENTS_PREFIX:?start it by tests/clients/run $(basename "$here")}"
lib=$MAYPOLE_CLIENTS_PREFIX/lib
# For clients that find libraries by LD_LIBRARY_PATH; with the folder of the simulated GPU if they
# run on that.
path=$lib${MAYPOLE_CLIENTS_GPU:+:$MAYPOLE_CLIENTS_GPU}
export MAYPOLE_DEVICE=${MAYPOLE_CLIENTS_GPU:+cuda}
: "${MAYPOLE_DEVICE:=host}"
# Another NCCL, and settings of the user, must not have an effect.
unset LD_PRELOAD LD_LIBRARY_PATH NCCL_COMM_ID NCCL_DEBUG CUDA_VISIBLE_DEVICES

skip() {
  echo "$1"
  exit 77
}

has() {
  for tool; do command -v "$tool" >/dev/null || skip "$tool is not installed"; done
}

heavy() {
  [ "${MAYPOLE_CLIENTS_HEAVY:-}" = 1 ] || skip "it loads $1; MAYPOLE_CLIENTS_HEAVY=1 runs it"
}

# packages NAME PACKAGE==VERSION...: creates a Python environment with the packages, once, and sets
# $python to its interpreter.
packages() {
  local folder=$MAYPOLE_CLIENTS_CACHE/$1
  shift
  python=$folder/bin/python
  [ "$(cat "$folder/installed" 2>/dev/null)" = "$*" ] && "$python" -c '' 2>/dev/null && return
  has python3
  rm -rf "$folder"
  python3 -m venv "$folder" >"$folder.log" 2>&1 ||
    skip "python3 cannot create a virtual environment: $(tail -n 1 "$folder.log")"
  "$python" -m pip install --quiet --disable-pip-version-check --only-binary :all: "$@" \
    >"$folder.log" 2>&1 ||
    skip "pip cannot install $*: $(grep -m 1 ERROR "$folder.log" || tail -n 1 "$folder.log")"
  echo "$*" >"$folder/installed"
}
