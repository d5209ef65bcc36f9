#!/bin/sh
# The loop on a real language model on one CUDA GPU, in less than ten minutes and without a download:
#     tests/gpu_real.sh --bring FOLDER [--seconds N] | --tiny     see tests/gpu_real.py for the protocol
# PYTHON is an interpreter that can import psr_nb, OUT the folder for the results.
# cuDNN's attention plans anew for every length that it has not seen, and a decoding step is one longer each time.
export TORCH_CUDNN_SDPA_DEPRIORITIZED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
here=$(dirname "$0")
exec "${PYTHON:-python3}" "$here/gpu_real.py" --out "${OUT:-gpu-real}" "$@"
