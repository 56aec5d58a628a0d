#!/usr/bin/env bash
# Makes everything ready to develop, test and run the demo: system packages, a virtual environment, this package in it.
# Safe to run again: it does nothing when nothing changed. Never asks a question.
#
#   PYTHON=/path/to/python   the interpreter to make the environment with (default: searched for, 3.12 first)
#   VENV=.venv               where the environment goes
#   CLIENTS=.venv-clients    where clients of the policy server go, which tests use
#   EXTRAS=a,b,c             optional extras of pyproject.toml (default: all that tests and demo use)
#   SKIP_SYSTEM=1            do not look at system packages
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
EXTRAS=${EXTRAS:-metaworld,libero,libero-assets,so100,so101,serve,lora,quantize,dev}
SUPPORTED="3.12 3.13"
export DEBIAN_FRONTEND=noninteractive UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300}

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

# ---- system packages -------------------------------------------------------------------------------------------

libraries=""
has_library() { # a shared library the loader knows, by the beginning of its name, e.g. libEGL.so.1
    if [ -z "$libraries" ]; then
        libraries=$(PATH="$PATH:/usr/sbin:/sbin" ldconfig -p 2>/dev/null || true)
    fi
    [[ $libraries == *$'\t'"$1"* ]]
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# Collects Debian package names into `missing` and the reason for each into `reasons`.
missing=() reasons=()
want() { # want "why" package...
    local why=$1
    shift
    missing+=("$@")
    reasons+=("$* ($why)")
}

find_missing_packages() {
    if ! command -v cc >/dev/null || ! command -v make >/dev/null; then
        want "compiles evdev and egl_probe" build-essential
    fi
    command -v cmake >/dev/null || want "compiles egl_probe" cmake
    if ! has_library libEGL.so.1 || { ! has_library libEGL_mesa.so.0 && ! has_library libEGL_nvidia.so.0; }; then
        want "simulation: rendering without a screen" libegl1 libegl-mesa0 libgl1-mesa-dri
    fi
    has_library libGL.so.1 || want "simulation: OpenGL" libgl1
    has_library libavutil.so || want "video: torchcodec decodes with FFmpeg" ffmpeg
}

check_system() {
    if [ "$(uname -s)" != Linux ]; then
        say "system packages: not checked on $(uname -s); videos need FFmpeg"
        return
    fi
    find_missing_packages
    if [ ${#missing[@]} = 0 ]; then
        return
    fi
    say "missing system packages:"
    printf 'setup:   %s\n' "${reasons[@]}"
    local install="apt-get install -y --no-install-recommends ${missing[*]}"
    if ! command -v apt-get >/dev/null; then
        say "no apt-get here: install the same with your package manager; going on without"
    elif [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null; then
        say "not root: run 'sudo apt-get update && sudo $install'; going on without (simulation and video will not work)"
    # shellcheck disable=SC2086
    elif as_root apt-get update -qq </dev/null && as_root env DEBIAN_FRONTEND=noninteractive $install </dev/null; then
        say "system packages installed"
    else
        say "installing them failed (see above); going on without (simulation and video will not work)"
    fi
}

# ---- interpreter -----------------------------------------------------------------------------------------------

version_of() { # "3.12" for a Python that really starts (a pyenv shim may exist and refuse) and can make environments
    "$1" -c 'import ensurepip, sys, venv; print("%d.%d" % sys.version_info[:2])' 2>/dev/null </dev/null || true
}

candidates() { # candidates VERSION: interpreters to try, best first, one per line
    echo "python$1"
    local pyenv_root=${PYENV_ROOT:-}
    if [ -z "$pyenv_root" ] && command -v pyenv >/dev/null; then
        pyenv_root=$(pyenv root 2>/dev/null || true)
    fi
    ls -d "${pyenv_root:-$HOME/.pyenv}"/versions/"$1".*/bin/python"$1" 2>/dev/null | sort -Vr || true
    if command -v uv >/dev/null; then
        uv python find --no-project "$1" 2>/dev/null || true
    fi
    echo python3
}

find_python() {
    local version candidate
    if [ -n "${PYTHON:-}" ]; then
        version=$(version_of "$PYTHON")
        case " $SUPPORTED " in
            *" ${version:-none} "*) echo "$PYTHON"; return ;;
        esac
        die "PYTHON=$PYTHON is ${version:-not a working Python with venv and ensurepip}; one of $SUPPORTED is needed"
    fi
    for version in $SUPPORTED; do
        while IFS= read -r candidate; do
            if [ "$(version_of "$candidate")" = "$version" ]; then
                echo "$candidate"
                return
            fi
        done < <(candidates "$version")
    done
    die "no Python 3.12 with venv and ensurepip found (tried python3.12, pyenv's, uv's, python3, then the same for 3.13).
  python3 is $(python3 --version 2>/dev/null || echo 'not there'). Install one:
      pyenv install 3.12    or    uv python install 3.12    or    apt-get install python3.12-venv python3.12-dev
  or name one: PYTHON=/path/to/python3.12 make setup"
}

# ---- environment -----------------------------------------------------------------------------------------------

stamp_now() { # changes when anything that decides what is installed changes, or the checkout or environment moves
    {
        cat pyproject.toml constraints.txt scripts/setup.sh
        printf '%s\n' "$EXTRAS" "$PWD" "$VENV"
    } | cksum
}

make_environment() {
    local version
    version=$(version_of "$VENV/bin/python")
    case " $SUPPORTED " in
        *" ${version:-none} "*) say "using $VENV (Python $version)" ;;
        *)
            local python
            python=$(find_python)
            if [ -e "$VENV" ] && [ ! -e "$VENV/pyvenv.cfg" ] && [ -n "$(ls -A "$VENV")" ]; then
                die "VENV=$VENV exists and is no virtual environment: refusing to replace it"
            fi
            say "making $VENV with $python (Python $(version_of "$python"))"
            "$python" -m venv --clear "$VENV"
            ;;
    esac
}

pip_in() { # pip of the environment, whoever made it
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || "$VENV/bin/python" -m ensurepip --upgrade >/dev/null
    "$VENV/bin/python" -m pip "$@" --disable-pip-version-check </dev/null
}

install_package() {
    local uv
    if ! uv=$(PATH="$PWD/$VENV/bin:$VENV/bin:$PATH" command -v uv); then
        pip_in install --quiet -c constraints.txt uv || say "uv is not to be had"
        uv=$(PATH="$PWD/$VENV/bin:$VENV/bin" command -v uv || true)
    fi
    say "installing -e .[$EXTRAS]"
    if [ -z "$uv" ] || ! "$uv" pip install --python "$VENV/bin/python" -c constraints.txt -e ".[$EXTRAS]" </dev/null; then
        say "going on with pip: slower, but it may be set up for a mirror or a certificate that uv does not know of"
        pip_in install -c constraints.txt -e ".[$EXTRAS]"
    fi
    keep_one_opencv
}

# opencv-python and opencv-python-headless own the same files: pip installs both for LIBERO. Keep the one LeRobot pins.
keep_one_opencv() {
    "$VENV/bin/python" -c 'from importlib.metadata import version; version("opencv-python")' 2>/dev/null || return 0
    say "keeping opencv-python-headless, removing opencv-python"
    pip_in uninstall -y opencv-python
    pip_in install --quiet -c constraints.txt --no-deps --force-reinstall opencv-python-headless
}

# LeRobot only logs a plugin that fails to import, so find out here.
check_plugin() {
    "$VENV/bin/python" - <<'PY'
from importlib.metadata import metadata

name = metadata("lerobot_policy_vla0")["Name"]
assert name == "lerobot_policy_vla0", f"the distribution is called {name!r}: LeRobot will not find the plugin"
__import__(name)
PY
}

# Without it, every command would compile LeRobot's and PyTorch's sources again wherever Python is told not to write
# bytecode (PYTHONDONTWRITEBYTECODE, common in containers): 21 s of CPU instead of 8 per command.
compile_bytecode() {
    say "compiling bytecode"
    env -u PYTHONDONTWRITEBYTECODE "$VENV/bin/python" -m compileall -q -j 0 "$VENV/lib" >/dev/null 2>&1 || true
}

# openpi's client needs NumPy 1, so the unmodified clients that the server is tested with have their own environment.
make_clients() {
    local clients=${CLIENTS:-.venv-clients}
    "$clients/bin/python" -c 'import openpi_client.websocket_client_policy, vla_eval.connection' 2>/dev/null && return 0
    say "making $clients: clients of the policy server"
    "$VENV/bin/python" -m venv --clear "$clients" &&
        "$clients/bin/python" -m pip install --quiet --disable-pip-version-check "openpi-client==0.1.2" "vla-eval==0.8.0" </dev/null ||
        say "not to be had: tests with these clients are skipped"
}

[ "${SKIP_SYSTEM:-0}" = 1 ] || check_system
stamp=$VENV/.setup-stamp
if [ -x "$VENV/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null || true)" = "$(stamp_now)" ]; then
    say "$VENV is up to date"
    exit 0
fi
rm -f "$stamp"
make_environment
install_package
make_clients
compile_bytecode
check_plugin
stamp_now >"$stamp"
say "done: $VENV/bin/python is $("$VENV/bin/python" --version)"
