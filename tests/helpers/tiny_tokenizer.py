"""A small byte-level tokenizer with a chat template, as a checkpoint folder."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] + '\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
)
CORPUS = [
    "the same request gives the same bits, whichever requests share the batch",
    "a page is storage and never a reason for a bit to change",
    "tokens are judged one by one, and text ends at the first match",
    "naïve café, 日本語のテキスト, emoji 🙂🚀, Ελληνικά, русский",
]


def make_tokenizer() -> tokenizers.Tokenizer:
    """Byte-level BPE of 400 entries and three special tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|eos|>", "<|start|>", "<|end|>"],
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer


def make_sentencepiece_tokenizer() -> tokenizers.Tokenizer:
    """A vocabulary with spaces as a sign and bytes as a fallback, as Llama 2 and Mistral have."""
    pieces = ["<unk>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    pieces += ["▁", "▁the", "▁same", "▁bits", "a", "b", "e", "s", "t", "h", "▁caf"]
    backend = tokenizers.Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


def write_tokenizer(folder: Path) -> Path:
    """Write tokenizer.json and tokenizer_config.json into `folder`."""
    make_tokenizer().save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|eos|>",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
