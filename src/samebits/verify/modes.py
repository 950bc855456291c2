"""The modes of the check. Each asks the same thing under different circumstances and compares bits.

In every mode each member of every batch is compared, not only the first, against the answer that the prompt
got when it was asked alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from samebits.errors import ConfigError, EngineError
from samebits.sampling_params import SamplingParams
from samebits.verify.answers import Answer, Difference, compare, first_difference
from samebits.verify.prompts import OPENINGS, long_prompt
from samebits.verify.target import Target

PREFIX_TOKENS = (1, 511, 2048, 4097)
"""Lengths of the shared prefixes: one token, and both sides of borders between pages, chunks and splits."""


@dataclass(frozen=True)
class Settings:
    """How hard to look."""

    trials: int = 50
    seed: int = 42
    max_new_tokens: int = 32
    max_batch: int = 8
    """Largest batch of the modes whose prompts are long (`mixed`, `prefix`, `p_vs_d`)."""


@dataclass(frozen=True)
class Prompt:
    """A prompt with its own sampling parameters."""

    label: str
    ids: list[int]
    sampling: SamplingParams


@dataclass
class Tally:
    """What was seen of one prompt in one mode."""

    label: str
    samples: int = 0
    """Batches (or repetitions) in which the prompt took part."""
    answers: int = 0
    """Answers compared; a batch may hold the prompt several times."""
    differing: int = 0
    """Answers that are not the expected one."""
    unique: set[object] = field(default_factory=set, repr=False)
    difference: Difference | None = None

    def add(self, expected: Answer, found: Answer, circumstance: str) -> None:
        self.answers += 1
        self.unique.update([expected, found] if not self.unique else [found])
        self.note(compare(expected, found, circumstance))

    def note(self, difference: Difference | None) -> None:
        """Count a comparison's result; the first difference is kept."""
        self.differing += difference is not None
        self.difference = self.difference or difference

    @property
    def equal(self) -> bool:
        return self.difference is None and self.answers > 0


@dataclass(frozen=True)
class Outcome:
    """The result of one mode at one temperature."""

    mode: str
    temperature: float
    tallies: list[Tally]
    notes: list[str]

    @property
    def passed(self) -> bool:
        return bool(self.tallies) and all(tally.equal for tally in self.tallies)


Progress = Callable[[int, int], None]
"""Called with (trials done, trials in all)."""
Mode = Callable[[Target, Settings, float, Progress], Outcome]


def bare(answer: Answer) -> Answer:
    """The answer without what may differ: how much of the prompt was cached is no part of the promise."""
    return Answer(answer.output, answer.prompt)


def base_sampling(settings: Settings, temperature: float) -> SamplingParams:
    # End-of-sequence is ignored so that every sample has its full length to go wrong in.
    return SamplingParams(
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        ignore_eos=True,
    )


def ask(target: Target, prompts: Sequence[Prompt], score_prompt: bool = False) -> list[Answer]:
    return target.generate(
        [prompt.ids for prompt in prompts], [prompt.sampling for prompt in prompts], score_prompt
    )


def single(target: Target, settings: Settings, temperature: float, progress: Progress) -> Outcome:
    """One prompt, in batches of 1, 2, ... n copies of itself."""
    prompt = Prompt("1", target.encode(OPENINGS[0]), base_sampling(settings, temperature))
    tally = Tally(OPENINGS[0].strip())
    target.flush()
    alone = bare(ask(target, [prompt])[0])
    for trial in range(1, settings.trials + 1):
        tally.samples += 1
        for member, answer in enumerate(ask(target, [prompt] * trial)):
            tally.add(alone, bare(answer), f"batch of {trial}, member {member}")
        progress(trial, settings.trials)
    return Outcome("single", temperature, [tally], [])


def mixed_sampling(settings: Settings, temperature: float) -> list[SamplingParams]:
    """As many kinds of sampling as a batch can hold: each row's filters are its neighbours' trap."""
    base = base_sampling(settings, temperature)
    hot = temperature > 0
    changes: list[dict[str, object]] = [
        {},
        {"top_p": 0.9, "seed": settings.seed + 1} if hot else {"presence_penalty": 0.6},
        {"top_k": 20, "temperature": temperature * 1.5} if hot else {"frequency_penalty": 0.4},
        {"min_p": 0.05, "frequency_penalty": 0.5} if hot else {"repetition_penalty": 1.3},
        {"temperature": 0.0} if hot else {"temperature": 1.0, "seed": settings.seed + 2},
        {
            "repetition_penalty": 1.2,
            "top_k": 50,
            "top_p": 0.8,
            "max_new_tokens": max(1, settings.max_new_tokens // 2),
        },
    ]
    fields = {name: getattr(base, name) for name in base.__struct_fields__}
    return [SamplingParams(**(fields | change)) for change in changes]  # type: ignore[arg-type]


def mixed_prompts(target: Target, settings: Settings, temperature: float) -> list[Prompt]:
    """Prompts from one token to more than a thousand, no two with the same parameters."""
    room = target.facts().context_length - settings.max_new_tokens
    lengths = [length for length in (1, 23, 130, 700, 1500) if length < room]
    texts = [target.encode(OPENINGS[1]), *(long_prompt(target, length, 100 + length) for length in lengths)]
    kinds = mixed_sampling(settings, temperature)
    return [
        Prompt(f"{len(ids)} tokens, {describe_sampling(kind)}", ids, kind)
        for ids, kind in zip(texts, kinds, strict=False)
    ]


def describe_sampling(sampling: SamplingParams) -> str:
    """The parameters that matter, shortly."""
    neutral = SamplingParams(top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
    names = ("top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
    said = [f"temperature {sampling.temperature:g}"] + [
        f"{name} {getattr(sampling, name):g}"
        for name in names
        if getattr(sampling, name) != getattr(neutral, name)
    ]
    return ", ".join(said)


def draws(prompts: Sequence[Prompt], settings: Settings, salt: str) -> Iterator[list[int]]:
    """Index lists of the batches: sizes 1 to `max_batch` in turn, every prompt at least once, any order."""
    source = random.Random(f"{settings.seed} {salt}")
    for trial in range(settings.trials):
        size = trial % settings.max_batch + 1
        yield [trial % len(prompts)] + [source.randrange(len(prompts)) for _ in range(size - 1)]


def run_draws(
    target: Target, prompts: Sequence[Prompt], settings: Settings, mode: str, progress: Progress
) -> list[Tally]:
    """Ask every prompt alone, then in shuffled batches with the others; tally every member."""
    target.flush()
    alone = [bare(ask(target, [prompt])[0]) for prompt in prompts]
    tallies = [Tally(prompt.label) for prompt in prompts]
    source = random.Random(f"{settings.seed} order")
    for trial, chosen in enumerate(draws(prompts, settings, mode), start=1):
        source.shuffle(chosen)
        for index in set(chosen):
            tallies[index].samples += 1
        answers = ask(target, [prompts[index] for index in chosen])
        for member, (index, answer) in enumerate(zip(chosen, answers, strict=True)):
            tallies[index].add(alone[index], bare(answer), f"batch of {len(chosen)}, member {member}")
        progress(trial, settings.trials)
    return [tally for tally in tallies if tally.answers]


def mixed(target: Target, settings: Settings, temperature: float, progress: Progress) -> Outcome:
    """Prompts of very different lengths and sampling parameters, together in one batch."""
    prompts = mixed_prompts(target, settings, temperature)
    return Outcome("mixed", temperature, run_draws(target, prompts, settings, "mixed", progress), [])


def prefix(target: Target, settings: Settings, temperature: float, progress: Progress) -> Outcome:
    """Prompts that share prefixes of 1, 511, 2048 and 4097 tokens and then part."""
    lengths = fitting(PREFIX_TOKENS, target, settings, spare=16)
    notes = [
        f"prefix of {length} tokens left out: longer than the context"
        for length in PREFIX_TOKENS[len(lengths) :]
    ]
    text = long_prompt(target, max(lengths), 7)
    endings = parting(target.encode(OPENINGS[1]), target.encode(OPENINGS[2]))
    prompts = [
        Prompt(
            f"prefix of {length} tokens, ending {number}",
            text[:length] + ending,
            base_sampling(settings, temperature),
        )
        for length in lengths
        for number, ending in enumerate(endings, start=1)
    ]
    if not target.flush():
        notes.append("the server cannot flush its prefix cache")
    return Outcome("prefix", temperature, run_draws(target, prompts, settings, "prefix", progress), notes)


def fitting(lengths: Sequence[int], target: Target, settings: Settings, spare: int = 0) -> list[int]:
    """Those of ascending lengths that leave room for an answer. Raises `ConfigError` where none does."""
    context = target.facts().context_length
    found = [length for length in lengths if length + spare + settings.max_new_tokens < context]
    if not found:
        raise ConfigError(
            f"a context of {context} tokens has no room for a prompt of {lengths[0] + spare} tokens and "
            f"--max-new-tokens {settings.max_new_tokens}"
        )
    return found


def parting(one: list[int], other: list[int]) -> tuple[list[int], list[int]]:
    """At most 16 tokens of each, from their first difference on, so that what shares a prefix ends with it."""
    common = next(place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    return one[common : common + 16], other[common : common + 16]


def p_vs_d(target: Target, settings: Settings, temperature: float, progress: Progress) -> Outcome:
    """Text that was generated, in a batch, and is then scored as a prompt gets the logprobs that it had."""
    prompts = mixed_prompts(target, settings, temperature)
    tallies = [Tally(prompt.label) for prompt in prompts]
    trials = list(draws(prompts, settings, "p_vs_d"))
    for trial, chosen in enumerate(trials, start=1):
        # The seed moves with the trial, so that at temperature > 0 each trial has other text to score.
        batch = [reseeded(prompts[index], trial) for index in chosen]
        target.flush()
        generated = ask(target, batch, score_prompt=True)
        target.flush()
        again = [rescoring(prompt, answer, settings) for prompt, answer in zip(batch, generated, strict=True)]
        # Scored alone one time and together the next: neither may matter.
        scored = (
            ask(target, again, score_prompt=True)
            if trial % 2
            else [ask(target, [prompt], score_prompt=True)[0] for prompt in again]
        )
        for member, index in enumerate(chosen):
            tally_scoring(
                tallies[index], generated[member], scored[member], f"trial {trial}, member {member}"
            )
        progress(trial, len(trials))
    return Outcome("p_vs_d", temperature, [tally for tally in tallies if tally.answers], [])


def reseeded(prompt: Prompt, trial: int) -> Prompt:
    fields = {name: getattr(prompt.sampling, name) for name in prompt.sampling.__struct_fields__}
    fields["seed"] = (prompt.sampling.seed or 0) + 1000 * trial
    return Prompt(prompt.label, prompt.ids, SamplingParams(**fields))


def rescoring(prompt: Prompt, answer: Answer, settings: Settings) -> Prompt:
    """The request that scores prompt and answer. Raises `EngineError` for an answer without token ids."""
    if not all(isinstance(token, int) for token in answer.output_ids):
        raise EngineError(
            "the server tells texts of tokens and no ids, and p_vs_d must score the same tokens again"
        )
    ids = [token for token in answer.output_ids if isinstance(token, int)]
    sampling = base_sampling(Settings(seed=settings.seed, max_new_tokens=1), 0.0)
    return Prompt(prompt.label, prompt.ids + ids, sampling)


def tally_scoring(tally: Tally, generated: Answer, scored: Answer, circumstance: str) -> None:
    """Compare what generating said of prompt and output with what scoring says of the same tokens."""
    tally.samples += 1
    tally.answers += 1
    border = len(generated.prompt)
    difference = first_difference(
        generated.prompt, scored.prompt[:border], "prompt", circumstance
    ) or first_difference(generated.output, scored.prompt[border:], "output", circumstance)
    # One sample of a text is one result where both readings agree, and two where they do not.
    tally.unique.add((difference is not None,))
    tally.note(difference)


def radix_cache(target: Target, settings: Settings, temperature: float, progress: Progress) -> Outcome:
    """Cold against warm: each prompt alone after a flush, then all together out of the cache, then longer."""
    prompts = cache_prompts(target, settings, temperature)
    tallies = [Tally(prompt.label) for prompt in prompts]
    notes = (
        [] if target.flush() else ["the server cannot flush its prefix cache: cold is not known to be cold"]
    )
    cached = {"cold": 0, "warm": 0}
    is_told = False
    repeats = max(1, settings.trials // len(prompts))
    further: list[int] = []
    is_another = False
    for repeat in range(1, repeats + 1):
        cold = []
        for prompt in prompts:
            target.flush()
            cold.append(ask(target, [prompt])[0])
        ask(target, prompts)
        warm = ask(target, prompts)
        further = [place for place, answer in enumerate(cold) if is_extensible(answer)]
        longer = [extended(prompts[place], cold[place]) for place in further]
        continued = ask(target, longer) if further else []
        for tally, answer, again in zip(tallies, cold, warm, strict=True):
            tally.samples += 1
            tally.add(bare(answer), bare(again), f"warm, repetition {repeat}")
        for place, prompt, rest in zip(further, longer, continued, strict=True):
            circumstance = f"one token further, repetition {repeat}"
            differs_cold = tally_further(tallies[place], target, cold[place], prompt, rest, circumstance)
            is_another = is_another or differs_cold
        cached["cold"] += sum(answer.cached_tokens or 0 for answer in cold)
        cached["warm"] += sum(answer.cached_tokens or 0 for answer in warm)
        is_told = is_told or any(answer.cached_tokens is not None for answer in warm)
        progress(repeat, repeats)
    if not further:
        notes.append("one token further was not asked for: answers are of one token, or without token ids")
    if is_another:
        cause = "noise goes by the number of the draw, or p_vs_d differs" if temperature else "p_vs_d differs"
        notes.append(f"one token further, answers go on in another way with a cold cache too: {cause}")
    if not is_told:
        notes.append("the target does not say how many prompt tokens came from a cache: perhaps none did")
    elif cached["warm"] == 0:
        notes.append("no prompt token came from a cache: the target has none, or has it switched off")
    else:
        notes.append(f"prompt tokens from the cache: {cached['cold']} cold, {cached['warm']} warm")
    return Outcome("radix_cache", temperature, tallies, notes)


def tally_further(
    tally: Tally, target: Target, cold: Answer, prompt: Prompt, rest: Answer, circumstance: str
) -> bool:
    """Compare what came of `prompt`, one token further than the one that `cold` answers. Returns whether the target
    goes on in another way without its cache, too. Then this is another request: its noise goes by the number of the
    draw, or decode is not prefill; and the cache, which is on trial here, gave what the request has without it."""
    expected, found = bare(cold), Answer(cold.output[:1] + rest.output)
    if expected != found:
        target.flush()
        expected = Answer(cold.output[:1] + ask(target, [prompt])[0].output)
        if expected == found:
            tally.answers += 1
            return True
    tally.add(expected, found, circumstance)
    return False


def cache_prompts(target: Target, settings: Settings, temperature: float) -> list[Prompt]:
    lengths = fitting((65, 130, 700, 2049), target, settings)
    sampling = base_sampling(settings, temperature)
    return [
        Prompt(f"{length} tokens", long_prompt(target, length, 300 + length), sampling) for length in lengths
    ]


def is_extensible(answer: Answer) -> bool:
    """Whether its first token can be told to the target, and more followed it."""
    return len(answer.output) > 1 and isinstance(answer.output[0].token, int)


def extended(prompt: Prompt, answer: Answer) -> Prompt:
    """The same request one token later: its prompt ends with the first token of the answer."""
    fields = {name: getattr(prompt.sampling, name) for name in prompt.sampling.__struct_fields__}
    fields["max_new_tokens"] = len(answer.output) - 1
    first = [token for token in answer.output_ids[:1] if isinstance(token, int)]
    return Prompt(prompt.label, prompt.ids + first, SamplingParams(**fields))


MODES: dict[str, Mode] = {
    "single": single,
    "mixed": mixed,
    "prefix": prefix,
    "p_vs_d": p_vs_d,
    "radix_cache": radix_cache,
}
