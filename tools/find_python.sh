#!/usr/bin/env bash
# Print the first Python on the PATH that the project supports (3.10 to 3.13).
for name in python3 python python3.13 python3.12 python3.11 python3.10; do
    if "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
        command -v "$name"
        exit 0
    fi
done
echo "no Python 3.10 to 3.13 found: install one, or name it: make PYTHON=/path/to/python ..." >&2
exit 1
