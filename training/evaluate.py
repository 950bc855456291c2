"""Measure exported checkpoints with transformers: losses, accuracy on unseen problems, recall.

Weights are the exported bfloat16 values; arithmetic is float32, so that a CPU gives the same
figures up to rounding.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.arithmetic import final_number, problems
from training.prepare import recall_chats
from training.tokenizer import IM_END, read, write_json


class Subject:
    """A checkpoint under test."""

    def __init__(self, folder: Path, device: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
        self.device = device

    @torch.inference_mode()
    def logits(self, tokens: Tensor) -> Tensor:
        """Logits of every position."""
        return self.model(tokens.to(self.device)).logits.float()

    @torch.inference_mode()
    def answer(self, chats: list[list[dict[str, str]]], batch: int, new: int) -> list[list[int]]:
        """Greedy answers, as token ids up to and with the end of turn."""
        end = self.tokenizer.convert_tokens_to_ids(IM_END)
        answers: list[list[int]] = []
        for begin in range(0, len(chats), batch):
            texts = [
                self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
                for chat in chats[begin : begin + batch]
            ]
            inputs = self.tokenizer(texts, return_tensors="pt", padding=True).to(self.device)
            out = self.model.generate(
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                max_new_tokens=new,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
            )
            for row in out[:, inputs.input_ids.shape[1] :].tolist():
                answers.append(row[: row.index(end) + 1] if end in row else row)
        return answers


def held_out_loss(subject: Subject, data: Path, limit: int, sources: list[str]) -> dict[str, Any]:
    """Mean loss a token of each source's held-out text, with windows of 1,024 and 8,192 tokens."""
    figures: dict[str, Any] = {}
    for source in sources:
        arrays = np.load(data / f"{source}.test.npz")
        tokens = torch.from_numpy(arrays["tokens"][:limit].astype(np.int64))
        said = torch.from_numpy(arrays["weights"][:limit] > 1)
        losses = window_losses(subject, tokens, 1024)
        kept = said[: losses.numel() + 1][1:]
        figures[source] = {"nats_a_token": round(losses[kept].mean().item(), 4), "tokens": int(kept.sum())}
        if source in ("docs", "code"):
            size = len(subject.tokenizer.decode(tokens[1 : losses.numel() + 1]).encode())
            bits = losses.sum().item() / math.log(2) / size
            figures[source]["bits_a_byte"] = round(bits, 4)
            count = (len(tokens) - 1) // 8192 * 8192
            if count:
                long = window_losses(subject, tokens[: count + 1], 8192).view(-1, 8192)
                spans = ((0, 1024), (1024, 4096), (4096, 8192))
                figures[source]["nats_at_position_of_8192"] = {
                    f"{a}-{b}": round(long[:, a:b].mean().item(), 4) for a, b in spans
                }
    return figures


def window_losses(subject: Subject, tokens: Tensor, window: int) -> Tensor:
    """Loss of every token but the first, each window read afresh."""
    parts = []
    for begin in range(0, len(tokens) - 1, window):
        piece = tokens[begin : begin + window + 1]
        logits = subject.logits(piece[None, :-1])[0]
        parts.append(F.cross_entropy(logits, piece[1:].to(logits.device), reduction="none").cpu())
    return torch.cat(parts)


def accuracy(subject: Subject, count: int, seed: int) -> tuple[dict[str, Any], list[list[int]]]:
    """Share of unseen problems answered rightly by greedy decoding, in all and by steps."""
    asked = list(itertools.islice(problems(seed, held_out=True), count))
    chats = [[{"role": "user", "content": p.question}] for p in asked]
    answers = subject.answer(chats, 250, 400)
    texts = [subject.tokenizer.decode(ids) for ids in answers]
    right: Counter[int] = Counter()
    for problem, text in zip(asked, texts, strict=True):
        right[problem.steps] += final_number(text.replace(IM_END, "")) == problem.result
    steps = Counter(p.steps for p in asked)
    figures = {
        "problems": count,
        "accuracy": round(sum(right.values()) / count, 4),
        "by_steps": {str(k): [right[k], steps[k]] for k in sorted(steps)},
        "ended_the_turn": round(sum(t.endswith(IM_END) for t in texts) / count, 4),
        "samples": [
            {"question": p.question, "answer": t, "wanted": p.result}
            for p, t in list(zip(asked, texts, strict=True))[:5]
        ],
    }
    return figures, answers


def recall(subject: Subject, corpus: Path, count: int) -> dict[str, Any]:
    """Share of codes found again in held-out texts, by the prompt's length in tokens."""
    texts = [str(row["text"]) for row in read(corpus / "docs.jsonl", "test")]
    bands = ((256, 1024), (1024, 4096), (4096, 8000))
    found = {band: [0, 0] for band in bands}
    for chat in itertools.islice(recall_chats(texts, 900), count * 30):
        prompt, wanted = chat[:1], chat[1]["content"]
        size = len(subject.tokenizer(prompt[0]["content"]).input_ids)
        band = next((b for b in bands if b[0] <= size < b[1]), None)
        if band is None or found[band][1] == count:
            continue
        answer = subject.tokenizer.decode(subject.answer([prompt], 1, 40)[0])
        found[band][0] += answer.replace(IM_END, "").strip() == wanted
        found[band][1] += 1
    return {f"{a}-{b}": counts for (a, b), counts in found.items()}


def agreement(target: Subject, draft: Subject, data: Path, count: int, seed: int) -> dict[str, float]:
    """How often the draft's most likely token is the target's, along the target's greedy answers
    to unseen problems and along held-out text."""
    figures = {}
    asked = itertools.islice(problems(seed, held_out=True), count)
    chats = [[{"role": "user", "content": p.question}] for p in asked]
    equal, total = 0, 0
    for chat, answer in zip(chats, target.answer(chats, 250, 400), strict=True):
        text = target.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        prompt = target.tokenizer(text).input_ids
        likely = draft.logits(torch.tensor([prompt + answer]))[0].argmax(-1)[len(prompt) - 1 : -1]
        equal += int((likely.cpu() == torch.tensor(answer)).sum())
        total += len(answer)
    figures["problems"] = round(equal / total, 4)
    for source in ("docs", "code"):
        tokens = np.load(data / f"{source}.test.npz")["tokens"][: 1024 * 32].astype(np.int64)
        rows = torch.from_numpy(tokens).view(-1, 1024)
        same = [target.logits(r[None]).argmax(-1) == draft.logits(r[None]).argmax(-1) for r in rows]
        figures[source] = round(torch.cat(same).float().mean().item(), 4)
    return figures


def main() -> None:
    """Evaluate a target, and a draft against it, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--recall", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=400_000, help="held-out tokens a source at most")
    parser.add_argument("--sources", nargs="+", default=["docs", "code", "problems", "doc_chat"])
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "arguments": {k: str(v) for k, v in vars(args).items() if not isinstance(v, Path)},
    }
    subjects = {"target": Subject(args.target, device)}
    if args.draft:
        subjects["draft"] = Subject(args.draft, device)
    for name, subject in subjects.items():
        begun = time.monotonic()
        figures, _ = accuracy(subject, args.problems, args.seed)
        report[name] = {
            "held_out_loss": held_out_loss(subject, args.data, args.tokens, args.sources),
            "unseen_problems": figures,
        }
        report[name]["recall_by_prompt_tokens"] = recall(subject, args.corpus, args.recall)
        report[name]["seconds"] = round(time.monotonic() - begun, 1)
        write_json(args.out, report)
        print(json.dumps(report[name], indent=1), flush=True)
    if args.draft:
        report["agreement"] = agreement(
            subjects["target"], subjects["draft"], args.data, min(args.problems, 300), args.seed
        )
        print(report["agreement"])
    write_json(args.out, report)


if __name__ == "__main__":
    main()
