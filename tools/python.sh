#!/usr/bin/env bash
# Prints the Python that the scripts beside it use: PYTHON if that is set, the
# one of the project's .venv, or else the first on the PATH.
TOOLS=$(cd "$(dirname "$0")" && pwd)
for python in "${PYTHON:-}" "$TOOLS/../.venv/bin/python" python python3; do
    if [ -n "$python" ] && command -v "$python"; then
        exit 0
    fi
done
echo "error: no Python is found; set PYTHON, or run make setup" >&2
exit 2
