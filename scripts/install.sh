#!/bin/sh
# Find a Python 3.11-3.13 that can create virtual environments and run install.py with it. Each candidate is actually
# started, because a name on the PATH may be an empty shim. 3.11 comes first: all measurements were made with it.
set -eu

folder=$(dirname "$0")
without_venv=""
for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
    "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 || continue
    if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        exec "$candidate" "$folder/install.py"
    fi
    without_venv=$without_venv${without_venv:+ }$candidate
done

if [ -n "$without_venv" ]; then
    first=${without_venv%% *}
    version=$("$first" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "rpo_kit: $first (Python $version) cannot create virtual environments: its ensurepip module is missing." >&2
    echo "On Debian, Ubuntu and WSL:  sudo apt install python$version-venv   - then run the same command again." >&2
else
    echo "rpo_kit needs Python 3.11, 3.12 or 3.13, but none was found under these names: ${PYTHON:-python3.11 python3.12 python3.13 python3 python}." >&2
    echo "On Debian, Ubuntu and WSL:  sudo apt install python3 python3-venv   (Debian 12, Ubuntu 24.04 or newer)." >&2
    echo "If it is installed elsewhere:  make demo PYTHON=/path/to/python3.11" >&2
fi
exit 1
