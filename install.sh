#!/usr/bin/env bash
# Makes .venv and installs the tested set into it; starts at once when nothing has changed.
#
#   ./install.sh        what the trainer and the quickstart need (requirements.txt)
#   ./install.sh dev    the same, and the tools of `make test` (requirements-dev.txt; Chromium, which opens moco.report's page)
#
# FFCV is compiled on the spot and needs libraries of the system. As root, or with sudo that asks no password, they are installed
# by apt-get first. Elsewhere the missing apt line is printed and everything but FFCV is installed: the trainer then reads images
# through PIL. A later start notices when the libraries have come.
#
#   PYTHON=python3.12   the interpreter .venv is made from (default: the first of python3, python3.11 ... that is 3.11 or newer)
#   SYSTEM_PACKAGES=no  leave apt-get alone even where it could be used
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

kind=${1:-run}
case $kind in
    run) files=(requirements.txt) ;;
    dev) files=(requirements.txt requirements-dev.txt) ;;
    *) echo "usage: ./install.sh [dev]" >&2; exit 2 ;;
esac
stamp=.venv/installed-$kind
log=.venv/install.log

if [ -t 2 ]; then tag=$'\033[1m[install]\033[0m'; else tag='[install]'; fi
say() { printf '%s %s\n' "$tag" "$*" >&2; }
fail() { say "error: $*"; exit 1; }

find_python() {
    local name
    for name in ${PYTHON:-python3 python3.11 python3.12 python3.13 python3.14}; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    fail "no Python >= 3.11 found (looked for: ${PYTHON:-python3 python3.11 ... python3.14}); name one with PYTHON=/path/to/python"
}

# Debian packages that this machine lacks, on one line; $1 is the interpreter. Libraries are looked up as FFCV's build does it.
missing_packages() {
    local python=$1 packages=()
    "$python" -c 'import ensurepip, venv' 2>/dev/null || packages+=("$(debian_python "$python")-venv")
    "$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        packages+=("$(debian_python "$python")-dev")
    command -v g++ >/dev/null || packages+=(g++)
    command -v pkg-config >/dev/null || packages+=(pkg-config)
    pkg-config --exists opencv4 2>/dev/null || packages+=(libopencv-dev)
    pkg-config --exists libturbojpeg 2>/dev/null || packages+=(libturbojpeg0-dev)
    echo "${packages[*]-}"
}

# The same for programs that only `make test` uses, and can do without: $kind is dev.
missing_tools() {
    # a browser without any font draws no letters, and headless machines often have none
    [ "$kind" != dev ] || command -v chromium chromium-browser google-chrome >/dev/null || echo "chromium fonts-dejavu-core"
}

debian_python() { "$1" -c 'import sys; print("python%d.%d" % sys.version_info[:2])'; }

# How apt-get can be called here: "", "sudo -n", or not at all (status 1).
apt_prefix() {
    [ "${SYSTEM_PACKAGES:-yes}" != no ] && command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" = 0 ]; then echo "env"; return; fi
    command -v sudo >/dev/null && sudo -n true 2>/dev/null && echo "sudo -n env"
}

# The command that a person can run as root; on a system without apt-get, its own package manager's, with its names.
apt_line() {
    if command -v apt-get >/dev/null; then echo "apt-get update && apt-get install -y --no-install-recommends $*"
    elif command -v dnf >/dev/null; then echo "dnf install $(renamed fedora "$*")"
    elif command -v brew >/dev/null; then echo "brew install $(renamed brew "$*")   (not as root)"
    else echo "your package manager, for (Debian's names) $*; or take them from conda-forge: see environment.yml"
    fi
}

# Debian's names of packages in another system's words.
renamed() {
    local system=$1 name
    for name in $2; do
        case $system:$name in
            fedora:g++) echo gcc-c++ ;;
            fedora:pkg-config) echo pkgconf-pkg-config ;;
            fedora:libopencv-dev) echo opencv-devel ;;
            fedora:libturbojpeg0-dev) echo turbojpeg-devel ;;
            fedora:fonts-dejavu-core) echo dejavu-sans-fonts ;;
            fedora:python*-dev) echo "${name%-dev}-devel" ;;
            fedora:python*-venv | brew:python*-venv | brew:python*-dev) ;; # part of python
            brew:g++) ;; # Xcode's clang
            brew:pkg-config) echo pkgconf ;;
            brew:libopencv-dev) echo opencv ;;
            brew:libturbojpeg0-dev) echo jpeg-turbo ;;
            brew:fonts-dejavu-core) ;;
            *) echo "$name" ;;
        esac
    done | xargs
}

pip_install() {
    if ! .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off "$@" >>"$log" 2>&1; then
        grep -v '^WARNING' "$log" | tail -n 15 >&2
        return 1
    fi
}

has_ffcv() { .venv/bin/python -c 'import ffcv.libffcv' 2>/dev/null; }

# The stamp: a hash of what was asked for, then "ffcv" or "no-ffcv", then how apt-get could be called at the time.
wanted=$(cat "${files[@]}" pyproject.toml | sha256sum | cut -d' ' -f1)
if [ -x .venv/bin/python ] && [ -f "$stamp" ]; then
    read -r done_hash done_ffcv done_apt <"$stamp" || true
    if [ "$done_hash" = "$wanted" ]; then
        [ "$done_ffcv" = ffcv ] && exit 0
        lacking=$(missing_packages .venv/bin/python)
        if [ -n "$lacking" ] && [ "$done_apt" = "$(apt_prefix || echo none)" ]; then
            say "FFCV is left out here (images are read through PIL). It needs, as root:  $(apt_line "$lacking")"
            exit 0
        fi
    fi
fi

python=$(find_python)
lacking=$(missing_packages "$python")
tools=$(missing_tools)
apt=$(apt_prefix || echo none)
if [ -n "$lacking$tools" ] && [ "$apt" != none ]; then
    say "system packages:${lacking:+ $lacking}${tools:+ $tools}"
    # shellcheck disable=SC2086  # both are lists of words
    if ! { $apt DEBIAN_FRONTEND=noninteractive apt-get -qq update &&
           $apt DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $lacking $tools; } >/dev/null; then
        say "apt-get failed (see above)"
    fi
    lacking=$(missing_packages "$python")
    tools=$(missing_tools)
fi
[ -z "$tools" ] || say "the report's page will not be tested in a browser. For that, as root:  $(apt_line "$tools")"

if [ ! -x .venv/bin/python ]; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make a virtual environment. Run, as root:  $(apt_line "$lacking")"
    say "making .venv from $python"
    "$python" -m venv .venv
fi
: >"$log"

say "installing ${files[*]} (a minute or two; log: $log)"
# torch by itself first: asked for beside packages that accept a range, the resolver may weigh other builds of it.
pip_install "$(sed -n 's/^\(torch==[^ #]*\).*/\1/p' requirements.txt)" || fail "pip could not install torch; see $log"
requirements=()
for file in "${files[@]}"; do
    sed '/^ffcv==/d' "$file" >".venv/${file%.txt}-without-ffcv.txt"
    requirements+=(-r ".venv/${file%.txt}-without-ffcv.txt")
done
pip_install "${requirements[@]}" || fail "pip could not install ${files[*]}; see $log"

ffcv=no-ffcv
if [ -n "$lacking" ]; then
    # pip may hold a build of FFCV from better days, and an older .venv an FFCV that no longer loads: neither is wanted here
    has_ffcv || .venv/bin/python -m pip uninstall -qy ffcv >>"$log" 2>&1 || true
    say "FFCV is left out: system libraries are missing, and apt-get cannot be used from here. Everything else is installed;"
    say "images will be read through PIL. To have FFCV, run as root, then start again:"
    say "    $(apt_line "$lacking")"
elif ! pip_install "$(sed -n 's/^\(ffcv==[^ #]*\).*/\1/p' requirements.txt)" "${requirements[@]}"; then
    say "FFCV did not build although its libraries are there (see $log). Everything else is installed; images will be read through PIL."
elif ! has_ffcv; then
    .venv/bin/python -m pip uninstall -qy ffcv >>"$log" 2>&1 || true
    say "FFCV was built but does not load, and was taken out again. Everything else is installed; images will be read through PIL."
fi
# this folder itself, so that its scripts and programs elsewhere can import moco
pip_install --no-deps --no-build-isolation -e . || fail "pip could not install this folder; see $log"
has_ffcv && ffcv=ffcv
echo "$wanted $ffcv $apt" >"$stamp"
# `dev` holds all of `run`, so a later `make quickstart` has nothing to do
[ "$kind" = dev ] && echo "$(cat requirements.txt pyproject.toml | sha256sum | cut -d' ' -f1) $ffcv $apt" >.venv/installed-run
say "done: $(.venv/bin/python -c 'import sys; print(sys.version.split()[0])') in .venv, $ffcv"
