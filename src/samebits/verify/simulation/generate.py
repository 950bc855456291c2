"""From a seed to a scenario. Everything is drawn from one `random.Random`, so the seed is the whole story."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import get_args

from samebits.engine.messages import EngineRequest, LogprobOptions
from samebits.sampling_params import ResolvedSampling
from samebits.verify.simulation.scenario import (
    Abort,
    Event,
    Fault,
    Flush,
    Loop,
    Restart,
    Scenario,
    Sizes,
    Submit,
    Timed,
)


@dataclass(frozen=True)
class Recipe:
    """What scenarios for one model look like."""

    model: str
    vocabulary: int
    page_tokens: tuple[int, ...]
    longest_prompt: int
    longest_output: int
    most_groups: int
    """groups of related requests: siblings, duplicates, turns of a chat"""
    step_tokens: tuple[int, ...]
    breaking_token: int
    """a prompt that holds it raises an exception in every step that computes it"""
    unsound_token: int
    """its key is not finite"""


def generate(seed: int, recipe: Recipe) -> Scenario:
    """The scenario of a seed."""
    random = Random(seed)
    submits = _requests(random, recipe)
    horizon = random.choice((1, 8, 8, 30))
    timed = [Timed(random.randrange(horizon), submit) for submit in submits]
    # A turn arrives after the one that it follows; when that one is still running, it starts a chat of its own.
    starts = {item.event.request.rid: item.step for item in timed if isinstance(item.event, Submit)}
    timed = [
        Timed(starts[item.event.follows] + random.randrange(5, 40), item.event)
        if isinstance(item.event, Submit) and item.event.follows
        else item
        for item in timed
    ]
    timed += [
        Timed(random.randrange(horizon + 30), event)
        for event in _incidents(random, [submit.request.rid for submit in submits])
    ]
    timed.sort(key=lambda item: item.step)
    loop = random.choice(get_args(Loop))
    sizes = replace(_sizes(random, recipe, submits), assumed_tokens=_assumed(seed))
    solo_sizes = _solo_sizes(random, recipe, submits, sizes)
    if random.random() < 0.2:
        timed = [_with_deadline(random, item) for item in timed]
    return Scenario(seed, recipe.model, loop, sizes, solo_sizes, tuple(timed))


def _with_deadline(random: Random, timed: Timed) -> Timed:
    """Some requests are given a deadline, which some of them meet."""
    if not isinstance(timed.event, Submit) or random.random() < 0.5:
        return timed
    return replace(timed, event=replace(timed.event, patience=random.choice((1, 3, 10, 30, 100))))


def _requests(random: Random, recipe: Recipe) -> list[Submit]:
    stems = [
        [random.randrange(recipe.vocabulary) for _ in range(recipe.longest_prompt)]
        for _ in range(random.randint(1, 2))
    ]
    submits: list[Submit] = []
    for group in range(random.randint(1, recipe.most_groups)):
        prompt = _prompt(random, recipe, stems)
        sampling = _sampling(random, recipe)
        logprobs = _logprobs(random, recipe, len(prompt))
        priority = random.choice((0, 0, 0, 1, -1))
        use_prefix_cache = random.random() < 0.85
        grammar = str(random.choice((2, 3, 7))) if random.random() < 0.15 else ""
        kind = random.choice(("single", "single", "siblings", "duplicates", "turns"))
        members = 1 if kind == "single" else random.randint(2, 4)
        for member in range(members):
            index = member if kind == "siblings" else 0
            request = EngineRequest(
                rid=f"client{group}-{member}",
                prompt_ids=prompt,
                sampling=_with_index(sampling, index),
                logprobs=logprobs,
                priority=priority,
                use_prefix_cache=use_prefix_cache,
                grammar=grammar,
            )
            follows = f"client{group}-{member - 1}" if kind == "turns" and member else ""
            submits.append(Submit(request, follows))
            if kind == "turns":
                prompt = _prompt(random, recipe, stems)[: max(1, recipe.longest_prompt // 4)]
                logprobs = _logprobs(random, recipe, len(prompt))
    return submits


def _prompt(random: Random, recipe: Recipe, stems: list[list[int]]) -> list[int]:
    length = min(random.randint(1, recipe.longest_prompt), random.randint(1, recipe.longest_prompt))
    shared = random.choice((0, length // 2, length - 1, length))
    tail = [random.randrange(recipe.vocabulary) for _ in range(length - shared)]
    prompt = random.choice(stems)[:shared] + tail
    prompt = [_harmless(recipe, token) for token in prompt]
    if random.random() < 0.04:
        prompt[random.randrange(length)] = random.choice((recipe.breaking_token, recipe.unsound_token))
    return prompt


def _harmless(recipe: Recipe, token: int) -> int:
    return 0 if token in (recipe.breaking_token, recipe.unsound_token) else token


def _sampling(random: Random, recipe: Recipe) -> ResolvedSampling:
    def sometimes(chance: float, value: float, otherwise: float) -> float:
        return value if random.random() < chance else otherwise

    longest = random.randint(1, recipe.longest_output) if random.random() < 0.93 else 0
    some_ids = [random.randrange(recipe.vocabulary) for _ in range(random.randint(1, 8))]
    return ResolvedSampling(
        temperature=random.choice((0.0, 0.5, 1.0, 1.0, 3.0)),
        top_k=int(sometimes(0.25, random.randint(1, 20), 0)),
        top_p=sometimes(0.25, random.uniform(0.3, 1.0), 1.0),
        min_p=sometimes(0.2, random.uniform(0.0, 0.3), 0.0),
        presence_penalty=sometimes(0.2, random.uniform(-2, 2), 0.0),
        frequency_penalty=sometimes(0.2, random.uniform(-2, 2), 0.0),
        repetition_penalty=sometimes(0.25, random.uniform(0.5, 2.0), 1.0),
        logit_bias={token: random.uniform(-5, 5) for token in some_ids} if random.random() < 0.2 else {},
        max_new_tokens=longest,
        min_new_tokens=random.randint(0, longest) if random.random() < 0.3 else 0,
        stop_token_ids=some_ids if random.random() < 0.3 else [],
        ignore_eos=random.random() < 0.3,
        seed=random.getrandbits(64) if random.random() < 0.7 else 42,
    )


def _with_index(sampling: ResolvedSampling, index: int) -> ResolvedSampling:
    fields = {name: getattr(sampling, name) for name in sampling.__struct_fields__}
    return ResolvedSampling(**{**fields, "sample_index": index})


def _logprobs(random: Random, recipe: Recipe, prompt_length: int) -> LogprobOptions:
    output = random.random() < 0.5
    start = random.randint(0, prompt_length) if random.random() < 0.3 else -1
    if not output and start < 0:
        return LogprobOptions()
    ids = [random.randrange(recipe.vocabulary) for _ in range(random.randint(1, 3))]
    return LogprobOptions(
        output=output,
        prompt_start=start,
        top=random.randint(1, 4) if random.random() < 0.4 else 0,
        token_ids=ids if random.random() < 0.3 else [],
        processed=output and random.random() < 0.2,
    )


def _incidents(random: Random, rids: list[str]) -> list[Event]:
    events: list[Event] = []
    for _ in range(random.choice((0, 0, 1, 2))):
        rid = random.choice(rids)
        events.append(Abort(rid.partition("-")[0], prefix=True) if random.random() < 0.3 else Abort(rid))
    events += [Flush() for _ in range(random.choice((0, 0, 1, 2)))]
    events += [Restart()] if random.random() < 0.15 else []
    for _ in range(random.choice((0, 0, 0, 1, 2))):
        events.append(Fault(random.choice(("forward", "memory", "pages"))))
    return events


def _longest(submits: list[Submit]) -> int:
    """Tokens of the longest request, however the chats go."""
    totals: dict[str, int] = {}
    for submit in submits:
        own = len(submit.request.prompt_ids) + submit.request.sampling.max_new_tokens
        totals[submit.request.rid] = own + totals.get(submit.follows, 0)
    return max(totals.values())


def _sizes(random: Random, recipe: Recipe, submits: list[Submit]) -> Sizes:
    page_tokens = random.choice(recipe.page_tokens)
    fewest = -(-_longest(submits) // page_tokens)
    return Sizes(
        page_tokens=page_tokens,
        pages=fewest + random.choice((0, 0, fewest // 2, fewest, 4 * fewest)),
        step_tokens=random.choice(recipe.step_tokens),
        max_running=random.choice((1, 2, 3, 4, 8, 16)),
        max_waiting=random.choice((1, 3, 1000, 1000)),
    )


def _assumed(seed: int) -> int | None:
    """How memory is foretold: mostly too low or not at all, so that pages run out. Drawn apart: nothing else of a
    scenario depends on it."""
    return Random(f"admission {seed}").choice((None, None, 0, 3, 4096))


def _solo_sizes(random: Random, recipe: Recipe, submits: list[Submit], sizes: Sizes) -> Sizes:
    """Another page size and another chunk budget than `sizes` has, and room for one."""
    page_tokens = random.choice([number for number in recipe.page_tokens if number != sizes.page_tokens])
    return Sizes(
        page_tokens=page_tokens,
        pages=-(-_longest(submits) // page_tokens),
        step_tokens=random.choice(
            [number for number in recipe.step_tokens[-3:] if number != sizes.step_tokens]
        ),
        max_running=1,
        max_waiting=1,
    )
