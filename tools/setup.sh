#!/bin/sh
# setup.sh VENV STAMP: makes the virtual environment, builds and installs Sabot in it, writes the stamp. Called by make.
set -eu

venv=$1
stamp=$2
unfinished=$venv/.sabot-unfinished

fail() {
    printf 'sabot: %s\n' "$1" >&2
    exit 1
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        new_enough "$PYTHON" || fail "PYTHON=$PYTHON does not run, or is older than Python 3.11"
        python=$PYTHON
        return
    fi
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        if new_enough "$python"; then return; fi
    done
    python=
}

# The one line that installs what is missing, all of it at once.
check_needs() {
    missing=
    if [ -z "$python" ]; then
        missing="Python 3.11 or newer"
    else
        "$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing, the venv module"
        "$python" -c 'import sysconfig, pathlib, sys
sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' ||
            missing="$missing, the Python headers"
    fi
    find_compiler || missing="$missing, a C++ compiler"
    if [ -z "$missing" ]; then return; fi

    version=3
    if [ -n "$python" ] && [ "$python" != python3 ]; then
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    fi
    if command -v apt-get >/dev/null; then
        line="sudo apt-get install -y python$version python$version-venv python$version-dev g++ make"
    elif command -v dnf >/dev/null; then
        line="sudo dnf install -y python$version python$version-devel gcc-c++ make"
    elif [ "$(uname)" = Darwin ]; then
        line="xcode-select --install; brew install python@3.13"
    else
        line="install Python 3.11+ with venv and headers, and a C++ compiler, with your system's packages"
    fi
    fail "missing: ${missing#, }. This line installs it:
    $line"
}

# The compiler that this Python was built with, or the system's own when that one is not here.
find_compiler() {
    wanted=${CXX:-$([ -z "$python" ] || "$python" -c 'import sysconfig; print(sysconfig.get_config_var("CXX") or "")')}
    if [ -n "$wanted" ] && command -v "${wanted%% *}" >/dev/null; then return 0; fi
    for compiler in c++ g++ clang++; do
        if command -v "$compiler" >/dev/null; then
            export CXX="$compiler" CC="$compiler"
            return 0
        fi
    done
    return 1
}

version_of() {
    "$1" -c 'import sys; print(sys.version_info[:2])' 2>/dev/null || true
}

# A worktree whose environment is a link to that of another checkout would install its Sabot there.
check_owner() {
    for told in "$venv"/lib*/python*/site-packages/sabot-folder.pth; do
        if ! [ -e "$told" ]; then continue; fi
        owner=$(cat "$told")
        if [ "$owner" != "$(pwd -P)" ] && [ -e "$owner/tools/setup.sh" ]; then
            fail "$venv belongs to the checkout $owner, where this build would replace Sabot. With this line make gives this checkout one of its own:
    rm -rf $venv"
        fi
    done
}

check_owner
find_python
check_needs

# An environment that we did not finish is made anew; so is one of another Python, when PYTHON was asked for.
if [ -e "$unfinished" ] || ! new_enough "$venv/bin/python" || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 ||
    { [ -n "${PYTHON:-}" ] && [ "$(version_of "$venv/bin/python")" != "$(version_of "$python")" ]; }; then
    echo "sabot: making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
    : >"$unfinished"
fi

# What an interrupted build has left may look newer than its source.
if [ -e "$venv/.sabot-building" ]; then rm -rf build sabot/_cython/*.so sabot/_cython/*/*.so; fi
: >"$venv/.sabot-building"
rm -f "$venv"/.sabot "$venv"/.sabot-with-*

# Prints what this list of pyproject.toml asks for; extras of our own are followed.
required() {
    "$venv/bin/python" - "$1" <<'EOF'
import re, sys, tomllib
with open("pyproject.toml", "rb") as file:
    told = tomllib.load(file)
extras = told["project"]["optional-dependencies"]
def each(names):
    for name in names:
        own = re.fullmatch(r"sabot\[(.*)\]", name)
        yield from each(one for extra in own[1].split(",") for one in extras[extra.strip()]) if own else [name]
lists = {"build": told["build-system"]["requires"], "test": told["project"]["dependencies"] + extras["test"]}
print(*each(lists[sys.argv[1]]), sep="\n")
EOF
}

# The build and the downloads take the two cores of a small machine together; neither goes on after this script. Modules of packages are
# compiled when they are first imported, as few of them are.
trap 'kill $installing 2>/dev/null || true' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
installing=
export PIP_DISABLE_PIP_VERSION_CHECK=1
echo "sabot: installing what it builds with"
required build >"$venv/build-requires.txt"
required test >"$venv/test-requires.txt"
pip="$venv/bin/python -m pip"
# uv takes a tenth of pip's processor time, and knows nothing of its settings: where these name an index, or uv finds no way out, pip installs.
set -- "$venv/bin/uv" pip install -q --python "$venv/bin/python"
if $pip config list | grep -q index || ! $pip install -q --no-compile uv || ! "$@" -r "$venv/build-requires.txt"; then
    set -- $pip install -q --no-compile
    "$@" -r "$venv/build-requires.txt"
fi
echo "sabot: building, and installing what it runs and is tested with (a few minutes the first time)"
"$@" -r "$venv/test-requires.txt" &
installing=$!
$pip install -q --no-build-isolation --no-deps -e .
# A finder in Python answers imports of an editable package, which mypy and pyright do not run. They read folders in .pth files.
# (setuptools writes such a file with editable_mode=compat, which it will drop.)
"$venv/bin/python" -c 'import os, pathlib, sysconfig
pathlib.Path(sysconfig.get_path("purelib"), "sabot-folder.pth").write_text(os.getcwd() + "\n")'
wait "$installing"
installing=
"$venv/bin/python" -c 'from sabot import *'

rm -f "$unfinished" "$venv/.sabot-building"
: >"$stamp"
