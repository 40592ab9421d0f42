#!/usr/bin/env bash
# The experiments at full size on a machine with a GPU that can be had for ten minutes at a time, receives few files at once
# and keeps nothing for long. Nothing is fetched; one call ends after SECONDS_ALL (570) seconds, whatever happens:
#
#   python -m experiments.carry split PATH/*.parquet PATH/classes.json --into .carry    here, once: .carry/1, .carry/2, ...
#   experiments/gpu_session.sh FOLDER [PART ...]                                        there, beside one of them
#
# Parts, all of them in this order if none is named: install, receive, tests, journal, pack. Each call goes on where the
# last one ended: images gather until all are there, then the journal runs from its first open cell. FOLDER receives
# summary.txt, session.log.gz, results.tar.gz (unpack it in experiments/results) and the models that it did not receive
# before, in parts. On a new machine the journal goes on from the result files in the tree and from models in .carry, as
# they came: FOLDER/*.json and what they list.
#
# PYTHON is the interpreter (python3), SIZE full or small, DEVICE auto, cuda or cpu; BASE keeps what lasts between calls.
# Needs what benchmarks/gpu_session.sh needs, and pyarrow. VITSPARSE_CUDA_ARCHS=90 builds for one GPU alone.
set -u -o pipefail

[ $# -ge 1 ] || { sed -n '2,18p' "$0"; exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
shift
cd "$(dirname "$0")/.." || exit 2
parts=${*:-install receive tests journal pack}
python=${PYTHON:-python3}
size=${SIZE:-full}
all=${SECONDS_ALL:-570}
packing=${SECONDS_PACK:-40}
device=${DEVICE:-auto}
export HOME=${HOME:-$(cd ~ && pwd)}
base=${BASE:-$HOME/.vitsparse-experiments}
export PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1
failed=0
mkdir -p "$base/received" "$base/results/$size" runs
# By this name in the commands that result files keep.
ln -sfn "$base" runs/gpu || exit 2
: > "$out/session.log"
: > "$out/summary.txt"

say() { echo "$*" | tee -a "$out/summary.txt"; }

# part NAME LIMIT: runs the function NAME for LIMIT seconds at most, keeping SECONDS_PACK of the whole for the last one.
part() {
  local name=$1 limit=$2 start=$SECONDS left=$((all - SECONDS)) status
  case " $parts " in *" $name "*) ;; *) return 0 ;; esac
  [ "$name" = pack ] || left=$((left - packing))
  if [ "$left" -lt 2 ]; then
    say "$name: not run, no time left"
    failed=1
    return 1
  fi
  [ "$limit" -lt "$left" ] || limit=$left
  printf '\n=== %s\n' "$name" | tee -a "$out/session.log"
  # Into a file: what a stopped part leaves behind would keep a pipe open.
  LIMIT=$limit timeout --kill-after=5 "$limit" bash -c "$name" > "$out/part.log" 2>&1
  status=$?
  cat "$out/part.log" >> "$out/session.log"
  tail -n 40 "$out/part.log"
  case $status in
    0) say "$name: done in $((SECONDS - start)) s" ;;
    3) say "$name: waits for what has not come yet" ;;
    124 | 137) say "$name: stopped after $limit s; the next call goes on" ;;
    *) say "$name: FAILED with status $status after $((SECONDS - start)) s"; failed=1 ;;
  esac
  return "$status"
}

install() {
  local built
  built=$(find kernels csrc cmake CMakeLists.txt setup.py -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum)
  if [ "$(cat runs/gpu/built 2> /dev/null)" = "$built" ] && "$python" -c 'import vitsparse._core' 2> /dev/null; then
    echo "built already"
    return
  fi
  "$python" -m pip install --quiet --no-build-isolation --no-deps -e . && echo "$built" > runs/gpu/built
}

receive() {
  local status=0
  cp -Rn experiments/results/. runs/gpu/results/ 2> /dev/null
  if [ -d .carry/models ]; then "$python" -m experiments.carry join .carry/models --into runs/gpu/out || status=$?; fi
  [ -e runs/gpu/images/complete ] && return $status
  find .carry -mindepth 2 -type f -not -path '.carry/models/*' -exec cp {} runs/gpu/received/ \; 2> /dev/null
  [ -n "$(ls runs/gpu/received)" ] || { echo "no part of the images has come yet"; return 3; }
  "$python" -m experiments.carry join runs/gpu/received --into runs/gpu/images || return
  touch runs/gpu/images/complete
  rm -rf runs/gpu/received/*
  return $status
}

tests() {
  [ ! -e runs/gpu/tested ] || { echo "run already on this machine"; return; }
  touch runs/gpu/tested
  "$python" -m pytest -q -m gpu -p no:cacheprovider tests/training
}

journal() {
  [ -e runs/gpu/images/complete ] || return 3
  # No cell begins in the last half minute: it would be stopped before it has learnt anything.
  "$python" -m experiments --size "$size" --data runs/gpu/images --out runs/gpu/out --results runs/gpu/results \
    --device "$device" --minutes "$(awk "BEGIN { print ($LIMIT - 30) / 60 }")"
}

pack() {
  tar -czf "$out/results.tar.gz" -C runs/gpu/results . &&
    "$python" -m experiments.carry models runs/gpu/out --results "runs/gpu/results/$size" --into "$out" --mib 60
  # How fast training was, also where its cell is not done.
  find runs/gpu/out/ -name metrics.csv -printf '%T@ %p\n' 2> /dev/null | sort -n | tail -n 2 | cut -d' ' -f2 | xargs -r tail -v -n 1
}

export -f install receive tests journal pack
export out python size device
part install 300
part receive 120
part tests 180
part journal "$all"
part pack "$all"
gzip -f "$out/session.log"
rm -f "$out/part.log"

printf '\n=== summary, %s s in all\n' "$SECONDS"
timeout 15 "$python" -m experiments --size "$size" --results runs/gpu/results --status | grep -v done$ | sed 's/^/open: /;8q'
cat "$out/summary.txt"
exit $failed
