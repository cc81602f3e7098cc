"""Train the demo model and write it where the package ships it.

    python -m training.train_demo

Knows: the order of the work: vocabulary, training, judgement, export, record.
Does not know: the text, the network's arithmetic, or the file format.
"""

import argparse
import datetime
import hashlib
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from training import corpus
from training import tokenizer as vocabulary
from training.conversations import Batch, ConversationSource
from training.development_questions import DEVELOPMENT_QUESTIONS
from training.evaluation import answered_exactly, expert_shares
from training.export import ARCHITECTURE, Credits, write_gguf
from training.intents import INTENTS
from training.model import DemoModel, Shape

ROOT: Final = Path(__file__).resolve().parent.parent
FIXTURES: Final = ROOT / "tests" / "fixtures" / "demo_questions.json"
JUDGED_QUESTIONS: Final = 256
CREDITS: Final = Credits(
    description="A small Mixture-of-Experts that answers questions about moerun, and only those."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the outcome, apart from the text and the shape."""

    seed: int = 7
    steps: int = 2400
    longest_minutes: float = 100.0
    batch_tokens: int = 2048
    vocabulary_size: int = 1536
    learning_rate: float = 2e-3
    warm_up_steps: int = 80
    weight_decay: float = 0.1
    dropout: float = 0.1
    balance_weight: float = 0.02
    gradient_norm: float = 1.0
    threads: int = 1


class Log:
    """Prints lines with the seconds since the start and keeps them in a file."""

    def __init__(self, path: Path, *, is_continued: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a" if is_continued else "w", encoding="utf-8")
        self._started_s = time.monotonic()

    def line(self, text: str) -> None:
        """Write one line at once, so that an interrupted run leaves its log."""
        stamped = f"{time.monotonic() - self._started_s:8.1f} s  {text}"
        print(stamped, flush=True)
        self._file.write(stamped + "\n")
        self._file.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, judge, export and record."""
    options = _options(arguments)
    recipe = Recipe(
        seed=options.seed,
        steps=options.steps,
        longest_minutes=options.minutes,
        learning_rate=options.learning_rate,
        threads=options.threads,
    )
    log = Log(options.log, is_continued=options.resume)
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    log.line(f"recipe {json.dumps(asdict(recipe))}")

    held_out = _held_out_questions()
    saved_vocabulary = options.checkpoint.with_suffix(".tokenizer.json")
    bpe = (
        Tokenizer.from_file(str(saved_vocabulary))
        if options.resume
        else vocabulary.learn(_vocabulary_lines(recipe), vocabulary_size=recipe.vocabulary_size)
    )
    shape = Shape(vocabulary_size=bpe.get_vocab_size())
    model = DemoModel(shape, dropout=recipe.dropout)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log.line(f"shape {json.dumps(asdict(shape))}")
    log.line(f"{len(INTENTS)} intents and off-topic questions, {parameters:,} parameters")

    source = ConversationSource(bpe, seed=recipe.seed, held_out=held_out)
    if options.resume:
        model.load_state_dict(torch.load(options.checkpoint, weights_only=True))
        log.line("weights of the checkpoint taken up")
    if recipe.steps > 0:
        train(model, bpe, source, recipe, log=log, checkpoint=options.checkpoint)

    shares = expert_shares(model, bpe, _sample(source, 4 * JUDGED_QUESTIONS))
    _log_shares(log, shares)
    options.output.mkdir(parents=True, exist_ok=True)
    gguf_path = options.output / "demo.gguf"
    write_gguf(gguf_path, model, bpe, quantized=True, credits_=CREDITS)
    if options.full_precision is not None:
        write_gguf(options.full_precision, model, bpe, quantized=False, credits_=CREDITS)
    record = _record(gguf_path, shape, parameters, shares)
    (options.output / "demo.json").write_text(json.dumps(record, indent=2) + "\n")
    log.line(f"{gguf_path.name}: {record['size_bytes']:,} bytes, sha256 {record['sha256']}")


def train(
    model: DemoModel,
    bpe: Tokenizer,
    source: ConversationSource,
    recipe: Recipe,
    *,
    log: Log,
    checkpoint: Path,
) -> None:
    """Run the steps; a checkpoint is kept with every judgement."""
    judged = _sample(source, JUDGED_QUESTIONS)
    development = _development_phrasings()
    optimizer = torch.optim.AdamW(
        _parameter_groups(model, recipe), lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True
    )
    batches: Iterator[Batch] = source.batches(batch_tokens=recipe.batch_tokens)
    recent: list[tuple[float, float]] = []
    started_s = time.monotonic()
    step, done_fraction = 0, 0.0
    while done_fraction < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, done_fraction, recipe)
        losses = _take_step(model, optimizer, next(batches), recipe)
        recent = [*recent[-49:], losses]
        step += 1
        # On a busy machine the time runs out before the steps do; the rate must fall all the same.
        spent_fraction = (time.monotonic() - started_s) / (60 * recipe.longest_minutes)
        done_fraction = max(step / recipe.steps, spent_fraction)
        if step % 50 == 0:
            answer_loss, balance_loss = (
                sum(values) / len(recent) for values in zip(*recent, strict=True)
            )
            log.line(f"step {step:5d}  loss {answer_loss:.4f}  balance {balance_loss:.4f}")
        if step % 200 == 0 or done_fraction >= 1.0:
            drawn = answered_exactly(model, bpe, judged)
            own = answered_exactly(model, bpe, development)
            log.line(
                f"step {step:5d}  word for word: {sum(drawn)}/{len(drawn)} varied questions,"
                f" {sum(own)}/{len(own)} development questions"
            )
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), checkpoint)
            bpe.save(str(checkpoint.with_suffix(".tokenizer.json")))
    missed = [
        f"{phrasing.intent}: {phrasing.question}"
        for phrasing, right in zip(
            development, answered_exactly(model, bpe, development), strict=True
        )
        if not right
    ]
    log.line("development questions not answered word for word: " + "; ".join(missed))


def _take_step(
    model: DemoModel, optimizer: torch.optim.Optimizer, batch: Batch, recipe: Recipe
) -> tuple[float, float]:
    hidden, routing = model(batch.tokens[:, :-1], batch.present[:, :-1])
    weights = batch.weights[:, 1:]
    losses = functional.cross_entropy(
        model.output(hidden[weights > 0]), batch.tokens[:, 1:][weights > 0], reduction="none"
    )
    loss = (losses * weights[weights > 0]).sum() / weights.sum()
    optimizer.zero_grad(set_to_none=True)
    (loss + recipe.balance_weight * routing.balance_loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_norm)
    optimizer.step()
    return loss.item(), routing.balance_loss.item()


def _learning_rate(step: int, done_fraction: float, recipe: Recipe) -> float:
    """Rise evenly, then fall along a cosine to a fiftieth."""
    warm_up = min(1.0, (step + 1) / recipe.warm_up_steps)
    fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done_fraction))
    return recipe.learning_rate * warm_up * fall


def _parameter_groups(model: DemoModel, recipe: Recipe) -> list[dict[str, object]]:
    """Let matrices decay and norms not."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    norms = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    return [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]


def _vocabulary_lines(recipe: Recipe) -> Iterator[str]:
    """Yield answers and drawn questions; ids must not depend on anything but the seed."""
    rng = random.Random(recipe.seed)
    for intent in INTENTS:
        for _ in range(40):
            yield corpus.draw(intent, rng).question.capitalize()
            yield corpus.draw(intent, rng).question
        yield from [intent.answer] * 8
    for _ in range(3000):
        yield corpus.draw_off_topic(rng).question
    yield "user\nassistant\nsystem\n"


def _held_out_questions() -> frozenset[str]:
    """Return what must not be trained on, as normalized questions."""
    fixtures = json.loads(FIXTURES.read_text(encoding="utf-8"))
    asked = [entry["question"] for entry in fixtures["paraphrases"]]
    asked += [question for question, _ in DEVELOPMENT_QUESTIONS]
    return frozenset(corpus.normalized(question) for question in asked)


def _development_phrasings() -> list[corpus.Phrasing]:
    answers = {intent.name: intent.answer for intent in INTENTS}
    answers[corpus.OFF_TOPIC] = corpus.REFUSAL
    return [
        corpus.Phrasing(intent=intent, question=question, answer=answers[intent])
        for question, intent in DEVELOPMENT_QUESTIONS
    ]


def _sample(source: ConversationSource, count: int) -> list[corpus.Phrasing]:
    return [source.phrasing() for _ in range(count)]


def _log_shares(log: Log, shares: Tensor) -> None:
    log.line("share of its layer's picks that each expert received, in percent:")
    for layer, row in enumerate(shares):
        log.line(f"  layer {layer}: " + " ".join(f"{100 * share:.1f}" for share in row.tolist()))


def _record(gguf_path: Path, shape: Shape, parameters: int, shares: Tensor) -> dict[str, object]:
    """Describe the shipped file."""
    return {
        "schema": 1,
        "name": "demo",
        "file": gguf_path.name,
        "sha256": hashlib.sha256(gguf_path.read_bytes()).hexdigest(),
        "size_bytes": gguf_path.stat().st_size,
        "architecture": ARCHITECTURE,
        "parameters": parameters,
        "layers": shape.layers,
        "experts": shape.experts,
        "experts_used": shape.experts_used,
        "trained_on": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "expert_load_percent": [
            {
                "layer": layer,
                "least": round(100 * float(row.min()), 2),
                "most": round(100 * float(row.max()), 2),
                "each": [round(100 * share, 2) for share in row.tolist()],
            }
            for layer, row in enumerate(shares)
        ],
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    defaults = Recipe()
    parser = argparse.ArgumentParser(prog="python -m training.train_demo", description=__doc__)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--minutes", type=float, default=defaults.longest_minutes)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--threads", type=int, default=defaults.threads)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "moerun" / "data" / "demo", help="folder of the GGUF"
    )
    parser.add_argument("--log", type=Path, default=ROOT / "training" / "demo-training.log")
    parser.add_argument(
        "--checkpoint", type=Path, default=ROOT / ".build" / "demo" / "checkpoint.pt"
    )
    parser.add_argument(
        "--resume", action="store_true", help="begin with the weights of the checkpoint"
    )
    parser.add_argument(
        "--full-precision", type=Path, help="also write an F32 GGUF here, for comparisons"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
