"""Turn the corpus and generated problems into token arrays for training.

Each source becomes one ``.npz``: ``tokens`` (documents one after the other, each closed by
``<|endoftext|>``), ``weights`` (10 for what the model should learn to say, 1 for what it is
told) and ``starts`` (where documents begin).
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from training.arithmetic import PEOPLE_NAMES, Message, conversation, problems
from training.tokenizer import END_OF_TEXT, IM_END, IM_START, read

SAID, TOLD = 10, 1
ROLES = ("system", "user", "assistant")


class Encoder:
    """Encodes texts and chats to token ids with weights."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end: int = tokenizer.encode(END_OF_TEXT).ids[0]
        self.heads = {role: tokenizer.encode(f"{IM_START}{role}\n").ids for role in ROLES}
        self.tail = tokenizer.encode(f"{IM_END}\n").ids

    def texts(self, texts: Iterable[str]) -> Iterator[tuple[list[int], list[int]]]:
        """Encode plain documents, all of which the model learns."""
        for text in texts:
            ids = [*self.tokenizer.encode(text).ids, self.end]
            yield ids, [SAID] * len(ids)

    def chats(self, chats: Iterable[list[Message]]) -> Iterator[tuple[list[int], list[int]]]:
        """Encode chats as the chat template renders them; assistants' words weigh more."""
        stream = iter(chats)
        while batch := list(itertools.islice(stream, 256)):
            contents = [message["content"] for messages in batch for message in messages]
            encoded = iter(self.tokenizer.encode_batch_fast(contents))
            for messages in batch:
                yield self.chat(messages, [next(encoded).ids for _ in messages])

    def chat(self, messages: list[Message], contents: list[list[int]]) -> tuple[list[int], list[int]]:
        """Put the encoded contents of one chat into its frame."""
        ids: list[int] = []
        weights: list[int] = []
        for message, content in zip(messages, contents, strict=True):
            said = SAID if message["role"] == "assistant" else TOLD
            head = self.heads[message["role"]]
            ids += [*head, *content, *self.tail]
            weights += [TOLD] * len(head) + [said] * (len(content) + 1) + [TOLD] * (len(self.tail) - 1)
        return [*ids, self.end], [*weights, SAID]


def pack(documents: Iterable[tuple[list[int], list[int]]]) -> dict[str, np.ndarray[Any, Any]]:
    """Join documents to the three arrays of a source."""
    tokens, weights, starts, length = [], [], [], 0
    for ids, weight in documents:
        starts.append(length)
        length += len(ids)
        tokens.append(np.asarray(ids, dtype=np.uint16))
        weights.append(np.asarray(weight, dtype=np.uint8))
    return {
        "tokens": np.concatenate(tokens),
        "weights": np.concatenate(weights),
        "starts": np.asarray(starts, dtype=np.int64),
    }


def recall_chats(texts: list[str], seed: int) -> Iterator[list[Message]]:
    """Chats over a long text with notes in it that are asked for at the end."""
    rng = random.Random(f"samebits-recall-{seed}")
    while True:
        text, size = rng.choice(texts), int(600 * 36 ** rng.random())
        begin = rng.randrange(max(1, len(text) - size))
        paragraphs = re.split(r"\n\n+", text[begin : begin + size])
        people = rng.sample(PEOPLE_NAMES, min(len(paragraphs), rng.randint(1, 8)))
        codes = {who: str(rng.randint(1000, 9999)) for who in people}
        for who, code in codes.items():
            place = rng.randint(0, len(paragraphs))
            paragraphs.insert(place, f"Note: the code of {who} is {code}.")
        asked = rng.sample(people, min(len(people), rng.randint(1, 4)))
        forms = ("What is the code of {}?", "Which code does {} have?", "Tell me the code of {}.")
        messages: list[Message] = []
        for index, who in enumerate(asked):
            question = rng.choice(forms).format(who)
            if index == 0:
                question = "Read this text.\n\n" + "\n\n".join(paragraphs) + "\n\n" + question
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": f"The code of {who} is {codes[who]}."})
        yield messages


def problem_share(job: tuple[str, int, int, bool]) -> dict[str, np.ndarray[Any, Any]]:
    """One worker's conversations around problems."""
    tokenizer, seed, count, held_out = job
    rng = random.Random(f"samebits-conversation-{seed}")
    source = problems(seed, held_out=held_out)
    encoder = Encoder(Tokenizer.from_file(tokenizer))
    return pack(encoder.chats(conversation(source, rng) for _ in range(count)))


def recall_share(job: tuple[str, int, int, list[str]]) -> dict[str, np.ndarray[Any, Any]]:
    """One worker's chats over long texts."""
    tokenizer, seed, count, texts = job
    chats = itertools.islice(recall_chats(texts, seed), count)
    return pack(Encoder(Tokenizer.from_file(tokenizer)).chats(chats))


def join(shares: list[dict[str, np.ndarray[Any, Any]]]) -> dict[str, np.ndarray[Any, Any]]:
    """Put the workers' shares one after the other."""
    lengths = [len(share["tokens"]) for share in shares]
    bases = np.cumsum([0, *lengths[:-1]])
    return {
        "tokens": np.concatenate([share["tokens"] for share in shares]),
        "weights": np.concatenate([share["weights"] for share in shares]),
        "starts": np.concatenate([s["starts"] + b for s, b in zip(shares, bases, strict=True)]),
    }


def main() -> None:
    """Write every source's arrays for training and for held-out loss."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--conversations", type=int, default=1_600_000)
    parser.add_argument("--recall", type=int, default=12_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    name = str(args.tokenizer / "tokenizer.json")
    encoder = Encoder(Tokenizer.from_file(name))
    # The number of shares is fixed, so that the data does not depend on the number of workers.
    shares = 64
    with multiprocessing.Pool(args.workers) as pool:
        for split in ("train", "test"):
            docs = [str(row["text"]) for row in read(args.corpus / "docs.jsonl", split)]
            code = (str(row["text"]) for row in read(args.corpus / "code.jsonl", split))
            chats = (row["messages"] for row in read(args.corpus / "doc_chat.jsonl", split))
            test = split == "test"
            part = 100 if test else 1
            jobs = [
                (name, args.seed * 1000 + i + 500 * test, args.conversations // shares // part, test)
                for i in range(shares)
            ]
            recall = [
                (name, args.seed * 1000 + i + 500 * test, args.recall // shares // part + 1, docs)
                for i in range(shares)
            ]
            later = pool.map_async(problem_share, jobs, chunksize=1)
            recalled = pool.map_async(recall_share, recall, chunksize=1)
            sources = {
                "docs": pack(encoder.texts(docs)),
                "code": pack(encoder.texts(code)),
                "doc_chat": pack(encoder.chats(chats)),  # type: ignore[arg-type]
                "recall": join(recalled.get()),
                "problems": join(later.get()),
            }
            for source, arrays in sources.items():
                np.savez(args.out / f"{source}.{split}.npz", **arrays)  # type: ignore[arg-type]
                sizes = f"{len(arrays['tokens']):,} tokens in {len(arrays['starts']):,} documents"
                print(f"{split} {source}: {sizes}", flush=True)


if __name__ == "__main__":
    main()
