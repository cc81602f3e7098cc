"""Compare the network in PyTorch with the exported file in llama.cpp, logit by logit.

    python -m training.check_export CHECKPOINT F32.gguf TOKENIZER.json [QUANTIZED.gguf]

Knows: how to compute logits on both sides, and how far they may differ.
Does not know: training; whether answers are right (the tests judge the shipped file).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import llama_cpp
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from training.development_questions import DEVELOPMENT_QUESTIONS
from training.model import DemoModel, Shape
from training.tokenizer import prompt_text

TOLERANCE: Final = 1e-3  # F32 on both sides; only the order of sums differs


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the differences; exit with 1 when ids differ or F32 logits are too far apart."""
    parser = argparse.ArgumentParser(prog="python -m training.check_export")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("full_precision", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("quantized", type=Path, nargs="?")
    options = parser.parse_args(arguments)

    bpe = Tokenizer.from_file(str(options.tokenizer))
    model = DemoModel(Shape(vocabulary_size=bpe.get_vocab_size())).eval()
    model.load_state_dict(torch.load(options.checkpoint, weights_only=True))
    files = [path for path in (options.full_precision, options.quantized) if path is not None]
    for path in files:
        # With keys and values in F16, the default, a token between two experts may be sent to the
        # other one; that is no error of the export, so F32 is compared with F32.
        engine = llama_cpp.Llama(
            str(path),
            n_gpu_layers=0,
            n_ctx=512,
            n_threads=1,
            logits_all=True,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            flash_attn=False,
            verbose=False,
        )
        largest, agreeing, positions = 0.0, 0, 0
        for question, _ in DEVELOPMENT_QUESTIONS:
            text = prompt_text([("user", question)])
            ids = bpe.encode(text).ids
            engine_ids = engine.tokenize(text.encode(), add_bos=False, special=True)
            if ids != engine_ids:
                raise SystemExit(f"ids differ for {question!r}: {ids} and {engine_ids}")
            ours, theirs = _logits(model, ids), _engine_logits(engine, ids)
            largest = max(largest, float(np.abs(ours - theirs).max()))
            agreeing += int((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum())
            positions += len(ids)
        print(
            f"{path.name}: {len(DEVELOPMENT_QUESTIONS)} prompts with equal ids, largest difference "
            f"of logits {largest:.2e}, same best token at {agreeing} of {positions} positions"
        )
        if path == options.full_precision and largest > TOLERANCE:
            raise SystemExit(f"more than {TOLERANCE} apart")


@torch.no_grad()
def _logits(model: DemoModel, ids: list[int]) -> NDArray[np.float32]:
    tokens = torch.tensor([ids])
    hidden, _ = model(tokens, torch.ones_like(tokens, dtype=torch.bool))
    return model.output(hidden)[0].numpy()


def _engine_logits(engine: llama_cpp.Llama, ids: list[int]) -> NDArray[np.float32]:
    engine.reset()
    engine.eval(ids)
    return np.array(engine.scores[: len(ids)])


if __name__ == "__main__":
    main()
