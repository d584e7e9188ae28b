"""Trainings of a real decoder by SFT, LoRA, DPO and GRPO, to test what papers read from weights.

The base is that of the pretrained lab after BASE_STEPS steps of training, rounded to BF16. Every
run starts there in float32, with AdamW at a constant rate. The matrices of its layers are kept when
their relative norm passes each of MARKS, and every KEPT_EVERY steps. Supervised runs see questions
and answers of WordNet; the others see the questions, and a program checks the form of what the
model answers, or grades it by the words of the gloss. `masked` trains a fixed fifth of the entries,
drawn at random.

    python benchmarks/mechanisms.py OUT [RUN ...]

A run that was cut off goes on from its last kept step. benchmarks/mechanism_figures.py takes the
figures of what was kept.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent / "evidence"))
from lora import add_factors, merged
from pretrained import (
    HELD_OUT,
    ROW,
    WEIGHTS,
    Budget,
    Tokens,
    fetch_ingredients,
    train_base,
)
from shadow.lab.training import load
from texts import QUESTIONS

# more mend the quantisation first, for which two shared cores had no time
BASE_STEPS = 0
THREADS = 1
MARKS = (3e-4, 1e-3, 3e-3, 1e-2)
WARM_UP, KEPT_EVERY = 5, 10  # steps
PROMPTS, ANSWERS, NEW_TOKENS = 4, 8, 24  # of a step of GRPO
TOKENS = 256  # of a step of SFT
MOST_ASKED = 24  # tokens of a question
PROMPTS_FROM = 400 * ROW  # tokens of the text whose questions are asked
FORM_DRAWS = 4  # steps' worth of answers that the form is chosen by
DPO_BETA = 0.1

Tokenizer = transformers.PreTrainedTokenizerBase


@dataclass(frozen=True)
class Run:
    """One training."""

    kind: str  # sft, dpo or grpo
    seed: int
    rate: float
    steps: int
    rank: int = 0  # of LoRA factors; 0 trains all matrices
    share: float = 1.0  # of the entries that are trained
    graded: bool = False  # reward the words of the gloss, not the form


RUNS = {
    "sft-slow-0": Run("sft", 0, 1e-5, 40),
    "masked-0": Run("sft", 0, 5e-5, 40, share=0.2),
    "grpo-0": Run("grpo", 0, 3e-5, 40),
    "sft-fast-0": Run("sft", 0, 5e-5, 40),
    "lora8-0": Run("sft", 0, 3e-4, 40, rank=8),
    "sft-slow-1": Run("sft", 1, 1e-5, 40),
    "dpo-0": Run("dpo", 0, 3e-5, 40),
    "grpo-1": Run("grpo", 1, 3e-5, 40),
    "lora64-0": Run("sft", 0, 3e-4, 40, rank=64),
    "grpo-slow-0": Run("grpo", 0, 1e-5, 40),
    "grpo-slow-1": Run("grpo", 1, 1e-5, 40),
    "grpo-graded-0": Run("grpo", 0, 3e-5, 40, graded=True),
    "grpo-graded-1": Run("grpo", 1, 3e-5, 40, graded=True),
    "sft-large-0": Run("sft", 0, 3e-4, 50),
    "lora8-large-0": Run("sft", 0, 3e-3, 40, rank=8),
    "sft-large-1": Run("sft", 1, 3e-4, 50),
    "lora8-large-1": Run("sft", 1, 3e-3, 40, rank=8),
}

# what may be asked of an answer's first line: the one whose rate lies nearest .4 is the reward
FORMS: dict[str, Callable[[str], bool]] = {
    "at most 6 words": lambda line: 0 < len(line.split()) <= 6,
    "at most 10 words": lambda line: 0 < len(line.split()) <= 10,
    "at most 15 words": lambda line: 0 < len(line.split()) <= 15,
    "a semicolon": lambda line: ";" in line,
    "a comma": lambda line: "," in line,
    "begins with an article": lambda line: re.match(r"\s*(a|an|the)\b", line) is not None,
    "an `or`": lambda line: " or " in line,
    "a bracket": lambda line: "(" in line,
}


@dataclass(frozen=True)
class Material:
    """What runs are trained on."""

    tokenizer: Tokenizer
    tokens: Tokens
    """Questions and answers."""
    prompts: dict[int, list[list[int]]]
    """Questions alone, by their number of tokens."""
    glosses: dict[tuple[int, ...], frozenset[str]]
    """The words of the first answer to each question, less its own and those of examples."""
    ends: torch.Tensor
    """(tokens known,): whether a token ends a line."""
    form: str = ""
    """The form of an answer that is rewarded: a key of FORMS."""

    def first_line(self, row: torch.Tensor) -> tuple[str, int]:
        """The first line of an answer, and how many tokens it has with the one that ends it."""
        written = row[-NEW_TOKENS:]
        ended = self.ends[written].nonzero()
        count = int(ended[0]) + 1 if len(ended) else NEW_TOKENS
        text = self.tokenizer.decode(written[:count].tolist(), skip_special_tokens=True)
        return text.split("\n")[0], count

    def overlap(self, question: Sequence[int], line: str) -> float:
        """F1 of the words of a line and of the gloss, less those of the question: 0 to 1."""
        gloss = self.glosses[tuple(question)]
        said = words_of(line) - words_of(self.tokenizer.decode(list(question)))
        return 2 * len(gloss & said) / max(1, len(gloss) + len(said))


def words_of(text: str) -> frozenset[str]:
    return frozenset(re.findall("[a-z]+", text.lower()))


def material_of(tokenizer: Tokenizer, tokens: Tokens, known: int) -> Material:
    """Questions of at most MOST_ASKED tokens are asked. known: tokens of the model."""
    prompts: dict[int, list[list[int]]] = {}
    glosses: dict[tuple[int, ...], frozenset[str]] = {}
    for question, answer in re.findall(
        r"(Question: [^\n]+\nAnswer:)([^\n]*)", tokenizer.decode(tokens[:PROMPTS_FROM])
    ):
        row = tokenizer(question)["input_ids"]
        if len(row) <= MOST_ASKED:
            prompts.setdefault(len(row), []).append(row)
            gloss = words_of(answer.split('"')[0]) - words_of(question)
            glosses.setdefault(tuple(row), gloss)
    enough = {length: rows for length, rows in prompts.items() if len(rows) >= 4 * PROMPTS}
    texts = [tokenizer.decode([number], skip_special_tokens=True) for number in range(known)]
    ends = torch.tensor([not text or "\n" in text for text in texts])
    return Material(tokenizer, tokens, enough, glosses, ends)


def main(out: Path, names: list[str]) -> None:
    ingredients = fetch_ingredients(out / "ingredients")
    train_base(out, ingredients, Budget(base_most=BASE_STEPS))
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        out / "ingredients" / "model", gguf_file=WEIGHTS
    )
    torch.set_num_threads(THREADS)
    material = material_of(tokenizer, ingredients.tokens[QUESTIONS], len(tokenizer))
    material = replace(material, form=_form(out, material))
    for name in names or RUNS:
        if not (out / "runs" / name / "done.json").exists():
            perform(out, name, RUNS[name], material)


def _start(out: Path) -> transformers.LlamaForCausalLM:
    model = load(out / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return model


def _drawn(prompts: dict[int, list[list[int]]], rng: np.random.Generator) -> list[list[int]]:
    """PROMPTS questions of one length, each as likely as any other to be the first."""
    lengths = list(prompts)
    counts = np.array([len(prompts[length]) for length in lengths])
    own = prompts[lengths[int(rng.choice(len(lengths), p=counts / counts.sum()))]]
    return [own[int(number)] for number in rng.choice(len(own), PROMPTS, replace=False)]


def _form(out: Path, material: Material) -> str:
    """The name of the form that is rewarded: chosen once, by how often the base answers so."""
    file = out / "form.json"
    if not file.exists():
        generator, rng = torch.Generator().manual_seed(17), np.random.default_rng(17)
        model = _start(out)
        lines, grades = [], []
        for _ in range(FORM_DRAWS):
            asked = _drawn(material.prompts, rng)
            for number, row in enumerate(_answers(model, asked, material.ends, generator)):
                lines.append(material.first_line(row)[0])
                grades.append(material.overlap(asked[number // ANSWERS], lines[-1]))
        rates = {name: sum(map(check, lines)) / len(lines) for name, check in FORMS.items()}
        best = min(rates, key=lambda name: abs(rates[name] - 0.4))
        found = {
            "form": best, "rates": rates, "examples": lines[:12],
            "graded": {"above_0": float(np.mean(np.array(grades) > 0)), "mean": np.mean(grades)},
        }  # fmt: skip
        file.write_text(json.dumps(found))
    form: str = json.loads(file.read_text())["form"]
    return form


@torch.no_grad()
def _answers(
    model: nn.Module, prompts: Sequence[list[int]], ends: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Prompts of one length, each followed by ANSWERS answers in turn, drawn at temperature 1.

    Once every answer has ended its first line, the rest is filled with the last token.
    """
    model.train(False)
    rows = torch.tensor(prompts).repeat_interleave(ANSWERS, 0)
    ended = torch.zeros(len(rows), dtype=torch.bool)
    cache, given = None, rows
    for _ in range(NEW_TOKENS):
        if not ended.all():
            seen = model(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = seen.past_key_values
            odds = torch.softmax(seen.logits[:, -1].double(), -1)
            given = torch.multinomial(odds, 1, generator=generator)
            ended |= ends[given[:, 0]]
        rows = torch.cat([rows, given], 1)
    return rows


def _log_odds(model: nn.Module, rows: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Of each answer, (rows): of its first line alone, as only that is rewarded."""
    longest = int(counted.sum(1).max())
    rows, counted = rows[:, : rows.shape[1] - NEW_TOKENS + longest], counted[:, :longest]
    logits = model(input_ids=rows, logits_to_keep=longest + 1).logits[:, :-1]
    odds = torch.log_softmax(logits, -1).gather(2, rows[:, -longest:, None])[..., 0]
    return (odds * counted).sum(1)


Step = Callable[[nn.Module, int], tuple[torch.Tensor | None, float]]


def _step(run: Run, out: Path, material: Material) -> Step:
    """(model, number of the step) -> what is minimised, None for nothing; and what is told of it:
    the loss, or the rate of reward. Steps are seeded by number, so that a run that goes on sees
    what it would have seen.
    """
    reference = _start(out) if run.kind == "dpo" else None

    def sft(model: nn.Module, step: int) -> tuple[torch.Tensor, float]:
        rng = np.random.default_rng([run.seed, step])
        at = int(rng.integers(len(material.tokens) - (HELD_OUT + 1) * ROW))
        row = torch.from_numpy(material.tokens[at : at + TOKENS])[None]
        loss: torch.Tensor = model(input_ids=row, labels=row).loss
        return loss, loss.item()

    def answered(model: nn.Module, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Answers to the questions of a step; which of their tokens count; rewards, a row each."""
        generator = torch.Generator().manual_seed(run.seed * 100_000 + step)
        asked = _drawn(material.prompts, np.random.default_rng([run.seed, step]))
        rows = _answers(model, asked, material.ends, generator)
        counted, rewards = torch.zeros(len(rows), NEW_TOKENS), torch.zeros(len(rows))
        for number, row in enumerate(rows):
            line, length = material.first_line(row)
            counted[number, :length] = 1.0
            question = asked[number // ANSWERS]
            rewards[number] = (
                material.overlap(question, line) if run.graded else FORMS[material.form](line)
            )
        return rows, counted, rewards.view(PROMPTS, ANSWERS)

    def grpo(model: nn.Module, step: int) -> tuple[torch.Tensor | None, float]:
        """Advantages are normalised within a question; one update a draw, no penalty."""
        rows, counted, rewards = answered(model, step)
        spread = rewards.std(1, keepdim=True)
        gain = ((rewards - rewards.mean(1, keepdim=True)) / (spread + 1e-4)).view(-1)
        told = gain != 0
        if not told.any():
            return None, float(rewards.mean())
        model.train(True)
        odds = _log_odds(model, rows[told], counted[told])
        return -(gain[told] * odds / counted[told].sum(1)).mean(), float(rewards.mean())

    def dpo(model: nn.Module, step: int) -> tuple[torch.Tensor | None, float]:
        """Of the answers of the base to each question, one of the form over one that is not."""
        assert reference is not None
        rows, counted, rewards = answered(reference, step)
        told = rewards.amin(1) != rewards.amax(1)
        if not told.any():
            return None, float(rewards.mean())
        first = torch.arange(PROMPTS)[told] * ANSWERS
        pairs = torch.cat([first + rewards.argmax(1)[told], first + rewards.argmin(1)[told]])
        with torch.no_grad():
            before = _log_odds(reference, rows[pairs], counted[pairs])
        model.train(True)
        good, bad = (_log_odds(model, rows[pairs], counted[pairs]) - before).chunk(2)
        loss = -nn.functional.logsigmoid(DPO_BETA * (good - bad)).mean()
        return loss, loss.item()

    steps: dict[str, Step] = {"sft": sft, "grpo": grpo, "dpo": dpo}
    return steps[run.kind]


def perform(out: Path, name: str, run: Run, material: Material) -> None:
    """Train one run on, from its last kept step if it was cut off, and keep its states."""
    folder = out / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(run.seed)  # of LoRA's factors
    model = _start(out)
    before = {key: value.clone() for key, value in _matrices(model).items()}
    if run.rank:
        add_factors(model, run.rank)
    trained = [one for one in model.parameters() if one.requires_grad]
    masks = None
    if run.share < 1:
        generator = torch.Generator().manual_seed(run.seed)
        masks = [torch.rand(one.shape, generator=generator) < run.share for one in trained]
    optimizer = torch.optim.AdamW(trained, lr=run.rate, betas=(0.9, 0.95), weight_decay=0.0)
    done, log, unfinished = 0, [], folder / ".state.pt"
    if unfinished.exists():
        state = torch.load(unfinished, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done, log = state["done"], state["log"]
    minimised = _step(run, out, material)
    for step in range(done, run.steps):
        begun = time.monotonic()
        optimizer.param_groups[0]["lr"] = run.rate * min(1.0, (step + 1) / WARM_UP)
        model.train(True)
        loss, told = minimised(model, step)
        model.zero_grad()
        if loss is not None:
            torch.autograd.backward(loss)
            for one, mask in zip(trained, masks or trained, strict=True):
                if masks and one.grad is not None:
                    one.grad.mul_(mask)
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
        norm = _relative_norm(model, before)
        last = log[-1]["norm"] if log else 0.0
        log.append({"step": step, "told": told, "norm": norm, "seconds": time.monotonic() - begun})
        print(name, json.dumps(log[-1]), flush=True)
        for mark in MARKS:
            if last < mark <= norm and not (folder / f"norm-{mark:g}.safetensors").exists():
                _keep(model, folder / f"norm-{mark:g}.safetensors")
        if (step + 1) % KEPT_EVERY == 0:
            _keep(model, folder / f"step-{step + 1}.safetensors")
            state = {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                "done": step + 1, "log": log,
            }  # fmt: skip
            torch.save(state, unfinished.with_suffix(".new"))
            unfinished.with_suffix(".new").replace(unfinished)
    (folder / "done.json").write_text(json.dumps({"form": material.form, "log": log}))
    unfinished.unlink(missing_ok=True)


@torch.no_grad()
def _matrices(model: transformers.LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """Those of the layers."""
    state = merged(model).state_dict()
    return {k: v for k, v in state.items() if v.ndim == 2 and ".layers." in k}


@torch.no_grad()
def _relative_norm(model: transformers.LlamaForCausalLM, before: dict[str, torch.Tensor]) -> float:
    """Of the matrices of the layers together."""
    now = _matrices(model)
    moved = sum(float((now[key] - base).square().sum()) for key, base in before.items())
    return (moved / sum(float(base.square().sum()) for base in before.values())) ** 0.5


def _keep(model: transformers.LlamaForCausalLM, path: Path) -> None:
    save_file({k: v.contiguous() for k, v in _matrices(model).items()}, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
