"""Text for the bundled model: the Python documentation and standard library.

Reads Debian source-text packages that were fetched with ``apt-get download`` and
writes three JSON Lines files and a manifest with versions, sizes and digests:

* ``docs.jsonl``: every page of the documentation, reStructuredText roles simplified;
* ``code.jsonl``: every ``.py`` file of the standard library and of its test suite;
* ``doc_chat.jsonl``: short questions about Python, answered in the documentation's words.

A file is held out when a hash of its path says so, so the split never moves.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGES = (
    "python3.11-doc",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libpython3.11-testsuite",
)
HELD_OUT_PERCENT = 4
# Copies of the documentation, and tables that are no text worth learning.
SKIP_CODE = re.compile(r"pydoc_data/|/encodings/|/bad[_a-z0-9]*\.py$|/keywordlist|_sysconfigdata")


def held_out(key: str, percent: int = HELD_OUT_PERCENT) -> bool:
    """Whether the document with this key belongs to the held-out split."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100 < percent


def clean_rst(text: str) -> str:
    """Turn reStructuredText roles into backquoted names and drop index and label directives."""
    text = re.sub(r":(?:[a-zA-Z+]+:)?[a-zA-Z+-]+:`!?~?([^`<]*?)\s*(?:<[^`]*>)?`", _role, text)
    text = re.sub(r"(?m)^( *)\.\. index::.*\n(?:\1 +.*\n)*", "", text)
    text = re.sub(r"(?m)^ *\.\. (?:_[^\n]*:|sectionauthor::.*|moduleauthor::.*) *\n", "", text)
    text = re.sub(r"``([^`\n]+)``", r"`\1`", text)
    return re.sub(r"\n{4,}", "\n\n\n", text).strip() + "\n"


def _role(match: re.Match[str]) -> str:
    return f"`{match.group(1).strip()}`"


def unpack(debs: Path, into: Path) -> dict[str, dict[str, Any]]:
    """Unpack each package below ``into`` and return its version, size and digest."""
    facts: dict[str, dict[str, Any]] = {}
    for package in PACKAGES:
        (deb,) = debs.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", str(deb), str(into / package)], check=True)
        facts[package] = {
            "version": deb.name.split("_")[1].replace("%2b", "+"),
            "bytes": deb.stat().st_size,
            "sha256": hashlib.sha256(deb.read_bytes()).hexdigest(),
        }
    return facts


def read_docs(root: Path) -> Iterator[dict[str, str]]:
    """Yield every documentation page, cleaned."""
    base = root / "python3.11-doc/usr/share/doc/python3.11/html/_sources"
    for path in sorted(base.rglob("*.rst.txt")):
        name = path.relative_to(base).as_posix()
        text = clean_rst(path.read_text(encoding="utf-8"))
        if len(text) >= 200:
            yield {"path": name, "text": text, "split": "test" if held_out(name) else "train"}


def read_code(root: Path) -> Iterator[dict[str, str]]:
    """Yield every Python file of the library and its tests."""
    for package in PACKAGES[1:]:
        base = root / package / "usr/lib/python3.11"
        for path in sorted(base.rglob("*.py")):
            name = path.relative_to(base).as_posix()
            if path.is_symlink() or SKIP_CODE.search(path.as_posix()):
                continue
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            if len(text) >= 200 and max(map(len, text.splitlines())) < 1000:
                yield {"path": name, "text": text, "split": "test" if held_out(name) else "train"}


def first_sentences(block: str, limit: int = 320) -> str:
    """The first paragraph of an indented block, cut at a sentence end within ``limit``."""
    paragraph = re.split(r"\n\s*\n", block.strip())[0]
    paragraph = re.sub(r"\s+", " ", paragraph).strip()
    if paragraph.startswith("..") or not re.match(r"[A-Z`*]", paragraph):
        return ""
    while len(paragraph) > limit:
        shorter = re.match(r"(.*[.!?])\s+\S.*?$", paragraph)
        if shorter is None:
            return ""
        paragraph = shorter.group(1)
    return paragraph.rstrip(":") if paragraph.endswith((".", "!")) else ""


def doc_questions(page: dict[str, str], rng: random.Random) -> Iterator[list[dict[str, str]]]:
    """Build chats from one page: modules, functions, classes, exceptions, glossary terms."""
    text = page["text"]
    for match in re.finditer(r"(?m)^\.\. module:: (\S+)\n +:synopsis: (.+)$", text):
        module, synopsis = match.groups()
        opening = re.search(rf"(?m)^((?:The|This) [^\n]*(?:`{re.escape(module)}`|module)(?:.+\n)+)", text)
        answer = f"`{module}`: {synopsis.strip().rstrip('.')}."
        if opening and (extra := first_sentences(opening.group(1))):
            answer += " " + extra
        for form in ("What does the module {} do?", "What is the `{}` module for?", "What is {} in Python?"):
            yield chat(form.format(module), answer)
    pattern = r"(?m)^\.\. (function|class|exception):: *([\w.]+)(\(.*\))?\n((?:(?: +.*)?\n)+)"
    for match in re.finditer(pattern, text):
        kind, name, signature, body = match.groups()
        modules = re.findall(r"(?m)^\.\. (?:current)?module:: (\S+)", text[: match.start()])
        prefix = modules[-1] + "." if modules and modules[-1] != "builtins" else ""
        body = re.sub(r"^(?: +:\w+:.*\n| +[\w.]+\(.*\)\n)*", "", body)
        summary = first_sentences(body)
        if not summary:
            continue
        full = name if name.startswith(prefix) else prefix + name
        shape = f"{full}{signature}" if signature and not signature.endswith("\\") else full
        forms = {
            "function": ("What does {} do?", "What does the function `{}` do?", "Explain {}."),
            "class": ("What is the class {}?", "What is `{}`?", "Explain {}."),
            "exception": ("What is {}?", "When is `{}` raised?", "Explain {}."),
        }[kind]
        for form in rng.sample(forms, 2):
            yield chat(form.format(full), f"`{shape}`: {summary}")
    if page["path"].startswith("glossary"):
        for term, body in re.findall(r"(?m)^   (\S.*)\n((?:      .*\n|\n)+)", text):
            if summary := first_sentences(body):
                article = "an" if term[0].lower() in "aeiou" else "a"
                for form in ("What is {1} {0} in Python?", "What does {0} mean in Python?", "Define {0}."):
                    yield chat(form.format(term.strip("`"), article), summary)


def chat(question: str, answer: str) -> list[dict[str, str]]:
    """One question and its answer as chat messages."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Write rows and return the file's figures."""
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(data)
    counts = {s: sum(row["split"] == s for row in rows) for s in ("train", "test")}
    return {"documents": counts, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def main() -> None:
    """Write the corpus and its manifest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--debs", type=Path, required=True, help="folder with the .deb files")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(11)
    with tempfile.TemporaryDirectory() as scratch:
        manifest: dict[str, Any] = {"packages": unpack(args.debs, Path(scratch))}
        docs = list(read_docs(Path(scratch)))
        code = list(read_code(Path(scratch)))
    chats = [
        {"messages": messages, "split": "test" if held_out(messages[1]["content"], 2) else "train"}
        for page in docs
        if page["split"] == "train"
        for messages in doc_questions(page, rng)
    ]
    manifest["files"] = {
        "docs.jsonl": write_jsonl(args.out / "docs.jsonl", docs),
        "code.jsonl": write_jsonl(args.out / "code.jsonl", code),
        "doc_chat.jsonl": write_jsonl(args.out / "doc_chat.jsonl", chats),
    }
    text = json.dumps(manifest, indent=2) + "\n"
    (args.out / "manifest.json").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
