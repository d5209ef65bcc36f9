#!/bin/sh
# Figures of psr_nb on a CUDA GPU, in minutes and without a download:
#     tests/gpu.sh [--tiny] [PART ...]     see tests/gpu.py for the parts
# PYTHON is an interpreter that can import psr_nb, OUT the folder for the results.
here=$(dirname "$0")
exec "${PYTHON:-python3}" "$here/gpu.py" --out "${OUT:-gpu-results}" "$@"
