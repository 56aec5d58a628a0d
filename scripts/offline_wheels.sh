#!/usr/bin/env bash
# Collects the wheels that benchmarks/gpu.py and `pytest -m gpu` need on a machine without network that has torch,
# torchvision, transformers, pytest and OpenCV, but no LeRobot (docs/gpu.md). Versions are those of constraints.txt.
#
#   scripts/offline_wheels.sh OUT_DIR [options]
#
#   --python-version 3.12     of that machine (default: of the Python used here)
#   --platform TAG            of that machine, e.g. manylinux_2_28_x86_64; may be given more than once (default: this one)
#   --train                   also what lerobot-train reads data sets with (pandas and pyarrow must be there)
#   --with NAME               one more package of constraints.txt, e.g. opencv-python-headless; may be given more than once
#   --without NAME            not this one: it is there already; may be given more than once
#   --limit-mb 60             refuse to write more than this
#   PYTHON=/path/to/python    whose pip downloads (default: .venv's, else python3)
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)

# LeRobot and what importing its policies needs; transformers in the tested version with what it checks; adapters; tests.
PACKAGES="lerobot draccus mergedeep toml typing-inspect mypy-extensions gymnasium farama-notifications cloudpickle
  termcolor deepdiff orderly-set einops pyserial requests urllib3 charset-normalizer idna certifi
  transformers tokenizers huggingface-hub hf-xet httpx httpcore h11 anyio
  peft accelerate
  pytest-timeout hypothesis sortedcontainers"
TRAIN="datasets dill multiprocess xxhash jsonlines attrs av"

say() { printf 'offline_wheels: %s\n' "$*"; }
die() { printf 'offline_wheels: error: %s\n' "$*" >&2; exit 1; }

out="" version="" limit=60 platforms=() names=" " without=" "
for name in $PACKAGES; do names+="$name "; done
while [ $# -gt 0 ]; do
    case $1 in
        --train) for name in $TRAIN; do names+="$name "; done; shift ;;
        --python-version | --platform | --with | --without | --limit-mb)
            [ $# -ge 2 ] || die "$1 needs a value"
            case $1 in
                --python-version) version=$2 ;;
                --platform) platforms+=("$2") ;;
                --with) names+="$2 " ;;
                --without) without+="$2 " ;;
                --limit-mb) limit=$2 ;;
            esac
            shift 2
            ;;
        -*) die "unknown option $1 (see the head of $0)" ;;
        *) [ -z "$out" ] || die "one OUT_DIR is expected, got $out and $1"; out=$1; shift ;;
    esac
done
[ -n "$out" ] || die "OUT_DIR is missing: scripts/offline_wheels.sh OUT_DIR"
case $limit in '' | *[!0-9]*) die "--limit-mb=$limit must be a whole number of megabytes" ;; esac
if compgen -G "$out/*.whl" >/dev/null; then
    die "$out holds wheels already, and two versions of one package cannot be installed together: name an empty folder"
fi
for name in $without; do
    case $names in *" $name "*) ;; *) die "--without $name: it would not be collected. Collected are:$names" ;; esac
done

python=${PYTHON:-}
if [ -z "$python" ]; then
    python=$repo/.venv/bin/python
    "$python" -m pip --version >/dev/null 2>&1 || python=python3
fi
"$python" -m pip --version >/dev/null 2>&1 || die "$python has no pip: name one that has with PYTHON=/path/to/python"

wanted=()
for name in $names; do
    case $without in *" $name "*) continue ;; esac
    pin=$(grep -E "^$name==" "$repo/constraints.txt") || die "$name is not in constraints.txt"
    wanted+=("$pin")
done
options=()
[ -z "$version" ] || options+=(--python-version "$version" --implementation cp)
for platform in ${platforms[@]+"${platforms[@]}"}; do options+=(--platform "$platform"); done

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    ${options[@]+"${options[@]}"} --dest "$fresh" "${wanted[@]}" </dev/null ||
    die "pip could not get every wheel (see above). For another machine name its tags: pip takes a --platform literally,
  so give several, e.g. --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64"

bytes=$(cat "$fresh"/*.whl | wc -c)
total=$(((bytes + 999999) / 1000000))
if [ "$total" -gt "$limit" ]; then
    ls -lS "$fresh" | awk 'NR > 1 && NR < 7 {printf "offline_wheels:   %5.1f MB %s\n", $5 / 1e6, $NF}' >&2
    die "${#wanted[@]} wheels take $total MB, more than --limit-mb=$limit: nothing was written. Leave some out with --without"
fi
mkdir -p "$out"
mv "$fresh"/*.whl "$out"
say "${#wanted[@]} wheels, $total MB, in $out. On the other machine:"
say "  python3 -m pip install --no-index --no-deps --target DIR $out/*.whl && export PYTHONPATH=DIR:src"
