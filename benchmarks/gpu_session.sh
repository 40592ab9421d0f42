#!/usr/bin/env bash
# Everything to do when a GPU is at hand, in one command of less than ten minutes:
#
#   benchmarks/gpu_session.sh FOLDER [PART ...]
#
# Parts, in this order and all of them if none is named: install, doctor, tests, model, sanitize, ops. Each goes on when
# another failed, and none beyond SECONDS_ALL (570) seconds of the whole. In FOLDER: summary.txt, session.log (what all
# parts printed), rows.json and ops.tar.gz (what was measured), verified_on_gpu.json (where every test passed).
# PYTHON is the interpreter to use (python3), DTYPE that of the rows (float16). Needs torch, numpy, safetensors, einops,
# tqdm, Pillow, PyYAML, pytest, pytest-benchmark, pytest-timeout and hypothesis; for install also nvcc, cmake, ninja,
# pybind11 and setuptools. Nothing is fetched. VITSPARSE_CUDA_ARCHS=90 (T4: 75, RTX 3070: 86) builds for this GPU alone.
set -u -o pipefail

[ $# -ge 1 ] || { sed -n '2,13p' "$0"; exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
shift
cd "$(dirname "$0")/.." || exit 2
parts=${*:-install doctor tests model sanitize ops}
python=${PYTHON:-python3}
dtype=${DTYPE:-float16}
all=${SECONDS_ALL:-570}
export PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1
failed=0
rows=$(mktemp -d)
# Triton compiles for most of the time that tests take: several processes, where pytest-xdist is.
workers=$("$python" -c 'import os, xdist; print("-n", max(1, min(8, os.cpu_count() // 2)))' 2> /dev/null) || workers=
: > "$out/session.log"
: > "$out/summary.txt"

# part NAME LIMIT COMMAND...: runs it for LIMIT seconds at most, or for what is left of the whole.
part() {
  local name=$1 limit=$2 start=$SECONDS left=$((all - SECONDS)) status
  shift 2
  case " $parts " in *" ${name%-*} "*) ;; *) return ;; esac
  if [ "$left" -lt 10 ]; then
    echo "$name: not run, no time left" | tee -a "$out/summary.txt"
    failed=1
    return
  fi
  [ "$limit" -lt "$left" ] || limit=$left
  printf '\n=== %s: %s\n' "$name" "$*" | tee -a "$out/session.log"
  timeout --kill-after=10 "$limit" "$@" > "$out/part.log" 2>&1
  status=$?
  cat "$out/part.log" >> "$out/session.log"
  tail -n 25 "$out/part.log"
  case $status in
    0) echo "$name: passed in $((SECONDS - start)) s" ;;
    124 | 137) echo "$name: STOPPED after $limit s" ;;
    *) echo "$name: FAILED with status $status after $((SECONDS - start)) s" ;;
  esac | tee -a "$out/summary.txt"
  [ "$status" -eq 0 ] || failed=1
}

sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)

part install 300 "$python" -m pip install --quiet --no-build-isolation --no-deps -e .
part doctor 60 "$python" -m vitsparse doctor
part tests 240 "$python" -m pytest -q -m gpu --record-gpu -p no:cacheprovider $workers
if git diff --quiet -- kernels/verified_on_gpu.json 2> /dev/null; then
  echo "verified_on_gpu.json is as it was: not every test passed, or none was new" >> "$out/session.log"
else
  cp kernels/verified_on_gpu.json "$out/"
fi
part model 300 "$python" -m benchmarks.model --device cuda --dtype "$dtype" --seconds "${SECONDS_MODEL:-150}" \
  --out "$out/rows.json"
if [ -x "$sanitizer" ]; then
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for tool in memcheck racecheck; do
    part "sanitize-$tool" 60 "$sanitizer" --tool "$tool" --error-exitcode 9 --target-processes all \
      --kernel-name kns=vitsparse "$python" -m pytest -q -m gpu -o timeout=0 -p no:cacheprovider \
      "tests/gpu/test_models.py::test_auto_takes_the_fastest_backend" \
      "tests/gpu/test_graphs.py::test_results_are_fresh_and_replays_are_not[cuda]"
  done
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
  part sanitize 10 echo "compute-sanitizer is not here; nothing was checked"
fi
for file in benchmarks/ops/test_*.py; do  # one by one: rows are only written at the end of a file
  op=$(basename "$file" .py)
  part "ops-${op#test_}" 60 "$python" -m pytest -q -o addopts=--import-mode=importlib -p no:cacheprovider "$file" \
    --benchmark-only --benchmark-json "$rows/${op#test_}.json" -k cuda
done
[ -z "$(ls "$rows")" ] || tar -czf "$out/ops.tar.gz" -C "$rows" .
rm -rf "$rows" "$out/part.log"

printf '\n=== summary, %s s in all\n' "$SECONDS"
cat "$out/summary.txt"
exit $failed
