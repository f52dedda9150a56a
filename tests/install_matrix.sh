#!/usr/bin/env bash
# Installs smartcs in every way the README promises, each in a virtual environment of its own, and checks what came of
# it. Slow (torch is installed several times) and needs a package index: run it with `make install-check`. Arguments
# name the cases to run; without any, all of them.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=" $* "
root=$PWD
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_CONSTRAINT=$root/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=1
unset PYTHONPATH SMARTCS_BACKEND SMARTCS_REQUIRE_EXT SMARTCS_ISA

# Runs a step, shows its output only if it fails.
quietly() {
  "$@" >"$work/log" 2>&1 || { cat "$work/log"; echo "FAILED: $*"; exit 1; }
}

# A copy, so that no case finds what another one built, nor what is in the checkout.
copy() {
  mkdir "$work/$1"
  git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
    if [ -e "$file" ]; then printf '%s\0' "$file"; fi
  done | tar --null --files-from - --create | tar --extract --directory "$work/$1"
}

environment() {
  "$python" -m venv "$work/$1-venv"
  if [ "${2:-}" = torch ]; then quietly "$work/$1-venv/bin/pip" install torch numpy; fi
}

# From outside of the checkout: the extension is loaded (or not), and the folder kernels/ is smartcs.kernels only.
verify() {
  cd "$work"
  "$work/$1-venv/bin/python" - "$2" <<'PYTHON'
import importlib.util, sys, warnings
import torch, smartcs, smartcs.kernels
from smartcs._extension import build_facts, extension_status
loaded, reason = extension_status()
assert loaded == (sys.argv[1] == "loaded"), reason
assert importlib.util.find_spec("kernels") is None
if loaded:
    assert build_facts()["torch"].split("+")[0] == torch.__version__.split("+")[0], build_facts()
x = torch.randn(3, 8)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        smartcs.ops.bias_gelu(x, torch.zeros(8))
assert len(caught) == (0 if loaded else 1), [str(w.message) for w in caught]
PYTHON
  "$work/$1-venv/bin/python" -m smartcs.info >/dev/null
  cd "$root"
}

case_() {
  local name=$1 start=$SECONDS
  if [ "$wanted" != "  " ] && [[ $wanted != *" $name "* ]]; then return; fi
  shift
  "$@" "$name"
  printf '%-28s passed in %3d s\n' "$name" $((SECONDS - start))
  rm -rf "${work:?}/$name" "$work/$name-venv"
}

same_torch() {
  before=$(cat "$work/$1-torch")
  after=$("$work/$1-venv/bin/python" -c 'import torch, os; print(torch.__version__, os.stat(torch.__file__).st_mtime_ns)')
  [ "$before" = "$after" ] || { echo "FAILED: $1 replaced torch: $before -> $after"; exit 1; }
  # pip -v names everything it fetches, for the build environment too.
  ! grep -E '(Collecting|Downloading|Processing) .*torch[-=]' "$work/log" || { echo "FAILED: $1 fetched a torch"; exit 1; }
}

with_torch() { # pip's arguments..., name
  local name=${*: -1}
  set -- "${@:1:$#-1}"
  copy "$name"
  environment "$name" torch
  "$work/$name-venv/bin/python" -c 'import torch, os; print(torch.__version__, os.stat(torch.__file__).st_mtime_ns)' >"$work/$name-torch"
  (cd "$work/$name" && quietly "$work/$name-venv/bin/pip" install -v "$@")
  same_torch "$name"
  verify "$name" loaded
}

not_isolated() {
  copy "$1"
  environment "$1" torch
  quietly "$work/$1-venv/bin/pip" install setuptools pybind11 ninja cmake
  quietly "$work/$1-venv/bin/pip" install --no-build-isolation -e "$work/$1"
  verify "$1" loaded
}

without_torch() {
  copy "$1"
  environment "$1"
  quietly "$work/$1-venv/bin/pip" install -e "$work/$1"
  verify "$1" loaded
}

# Built from an sdist, so that the archive is known to hold all a build needs; installed elsewhere, source gone.
wheel() {
  copy "$1"
  environment "$1" torch
  (cd "$work/$1" && quietly "$work/$1-venv/bin/pip" install setuptools &&
    quietly "$work/$1-venv/bin/python" -c \
      'from setuptools import build_meta; build_meta.build_sdist("dist")')
  quietly "$work/$1-venv/bin/pip" wheel --no-deps -w "$work/wheels" "$work/$1"/dist/*.tar.gz
  rm -rf "${work:?}/$1"
  mkdir "$work/$1"
  "$python" -m venv --clear "$work/$1-venv"
  quietly "$work/$1-venv/bin/pip" install "$work"/wheels/*.whl
  verify "$1" loaded
}

# A PATH without any compiler; the sources are the same.
no_compiler() {
  copy "$1"
  environment "$1" torch
  mkdir "$work/bin"
  for tool in git uname; do
    if command -v $tool >/dev/null; then ln -sf "$(command -v $tool)" "$work/bin/$tool"; fi
  done
  (
    export PATH=$work/bin
    unset CXX
    if SMARTCS_REQUIRE_EXT=1 "$work/$1-venv/bin/pip" install -e "$work/$1" >"$work/log" 2>&1; then
      echo "FAILED: SMARTCS_REQUIRE_EXT=1 without a compiler installed"
      exit 1
    fi
  )
  grep -q 'no C++ compiler found' "$work/log" || { cat "$work/log"; echo "FAILED: no message about the compiler"; exit 1; }
  (export PATH=$work/bin && unset CXX && quietly "$work/$1-venv/bin/pip" install -e "$work/$1")
  verify "$1" reference
  if (cd "$work" && SMARTCS_REQUIRE_EXT=1 "$work/$1-venv/bin/python" -c 'import smartcs' 2>/dev/null); then
    echo "FAILED: SMARTCS_REQUIRE_EXT=1 without the extension imported"
    exit 1
  fi
}

# A compiler that is there and fails must stop the installation.
broken_compiler() {
  copy "$1"
  environment "$1" torch
  echo '#error "broken on purpose"' >>"$work/$1/csrc/module.cpp"
  if "$work/$1-venv/bin/pip" install -e "$work/$1" >"$work/log" 2>&1; then
    echo "FAILED: an extension that does not compile was installed"
    exit 1
  fi
  grep -q 'broken on purpose' "$work/log" || { cat "$work/log"; echo "FAILED: the compiler's message is hidden"; exit 1; }
}

case_ editable-with-torch with_torch -e .
case_ install-with-torch with_torch .
case_ no-build-isolation not_isolated
case_ editable-without-torch without_torch
case_ wheel-from-sdist wheel
case_ no-compiler no_compiler
case_ broken-compiler broken_compiler
echo "done"
