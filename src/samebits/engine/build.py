"""From settings to a running engine: operators, model, plan, KV pages, scheduler."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from samebits.cache.pages import PagePool
from samebits.config import EngineConfig, ModelConfig
from samebits.engine.engine import Engine
from samebits.engine.loops import LOOPS, Loop
from samebits.engine.messages import EngineFacts
from samebits.engine.parallel_runner import ParallelRunner
from samebits.engine.ranks import RankProcesses
from samebits.engine.runner import Runner
from samebits.engine.shard import Ranks, Shard, check_parallel, load_shard, make_numerics
from samebits.engine.sizes import check_sizes, log_idle_settings
from samebits.errors import ConfigError, RanksLostError
from samebits.grammar.compiler import GrammarCompiler, GrammarError, read_compiler
from samebits.grammar.matchers import GrammarMasks
from samebits.models.load import LoadedModel, ModelFiles, read_model_files
from samebits.models.shards import ModelShard
from samebits.numerics.operators import Operators
from samebits.plan import Plan
from samebits.schedule.foresight import Foresight
from samebits.schedule.scheduler import Scheduler, SchedulerLimits

STARTING_RANKS, JOINING_RANKS = "starting ranks", "joining the ranks"
Progress = Callable[[str, int, int], None]

log = logging.getLogger(__name__)


def build_engine(model: ModelConfig, engine: EngineConfig, progress: Progress) -> Engine:
    """Load the model and make the engine. Raises `ConfigError` and `ModelFileError` that say what to change."""
    default_seed = parse_default_seed(model.default_seed)
    check_sizes(engine)
    if model.tensor_parallel < 1:
        raise ConfigError(f"--tensor-parallel must be at least 1, got {model.tensor_parallel}")
    files = read_model_files(model)  # a model that cannot be served is refused before the compiler's minute
    ModelShard(0, model.tensor_parallel).check(files.spec)
    reading = _start_reading(files)
    size = model.tensor_parallel
    if size > 1 or engine.ranks_per_gpu != 1:
        check_parallel(model, engine)
    ranks = None
    if size > 1:
        progress(STARTING_RANKS, 0, size - 1)
        ranks = RankProcesses(model, engine, default_seed, size)
        progress(STARTING_RANKS, size - 1, size - 1)
    try:
        return _build(model, engine, default_seed, ranks, reading, progress)
    except BaseException as error:
        if ranks is None:
            raise
        try:
            if isinstance(error, RanksLostError):
                raise ranks.explanation(error) from error
            raise
        finally:
            ranks.close()


def _build(
    model: ModelConfig,
    engine: EngineConfig,
    default_seed: int | None,
    ranks: RankProcesses | None,
    reading: Future[GrammarCompiler],
    progress: Progress,
) -> Engine:
    met = Ranks() if ranks is None else Ranks(ranks.group, ranks.meeting)
    if ranks is not None:
        progress(JOINING_RANKS, 0, 1)
    operators, group = make_numerics(model, engine, met)
    if ranks is not None:
        progress(JOINING_RANKS, 1, 1)
        ranks.let_go = group.abandon
    if not operators.promises_bits:
        log.warning(
            "numerics profile '%s' promises nothing: bits may change with the batch", operators.profile
        )
    shard = load_shard(model, engine, default_seed, met, operators, group, progress)
    engine, pages, loaded, plan = shard.engine, shard.pages, shard.loaded, shard.plan
    on_gpu = operators.device.type == "cuda"
    runner: Runner = shard.runner
    if ranks is not None and not on_gpu:
        runner = ParallelRunner(runner, ranks)
    facts = _facts(model, engine, loaded, operators, plan, pages, default_seed)
    limits = SchedulerLimits(
        step_tokens=engine.step_tokens,
        max_running=engine.max_running,
        page_tokens=engine.page_tokens,
        pages_per_request=-(-min(facts.context_length, facts.kv_tokens) // engine.page_tokens),
    )
    _log_decisions(facts, engine, operators, pages)
    assumed = engine.assumed_answer_tokens
    scheduler = Scheduler(limits, PagePool(pages), Foresight(assumed) if assumed else None)
    loop: Loop = LOOPS[engine.loop](runner) if not on_gpu else _device_loop(shard, limits, ranks, progress)
    try:
        masks = _make_masks(reading, progress)
        built = Engine(
            facts, runner, scheduler, loop, engine.max_waiting, masks, prefix_cache=engine.prefix_cache
        )
    except BaseException:
        loop.close()
        raise
    if ranks is not None:
        built.check_ranks, built.close_ranks = ranks.check, ranks.close
    return built


def _start_reading(files: ModelFiles) -> Future[GrammarCompiler]:
    """Read the tokenizer for grammars while the weights are loaded: seconds for a large vocabulary."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="samebits-tokenizer")
    reading = thread.submit(read_compiler, files.folder, files.spec.vocabulary, files.end_tokens)
    thread.shutdown(wait=False)
    return reading


def _make_masks(reading: Future[GrammarCompiler], progress: Progress) -> GrammarMasks:
    """The source of grammar masks. The tokenizer is waited for: what reads it keeps Python's lock, and would hold up
    every request later."""
    progress("reading the tokenizer for grammars", 0, 1)
    error = reading.exception()
    if error is not None and not isinstance(error, GrammarError):
        raise error
    progress("reading the tokenizer for grammars", 1, 1)
    return GrammarMasks(
        reading.result
    )  # an error is for requests with a grammar; others are served all the same


def _device_loop(
    shard: Shard, limits: SchedulerLimits, ranks: RankProcesses | None, progress: Progress
) -> Loop:
    """The loop of a GPU."""
    from samebits.engine.device.build import build_device_loop

    return build_device_loop(shard, limits, ranks, progress)


def parse_default_seed(text: str) -> int | None:
    """`--default-seed`: a number in 64 bits, or None for `random`."""
    if text == "random":
        return None
    try:
        seed = int(text)
    except ValueError as error:
        raise ConfigError(f"--default-seed must be a whole number or 'random', got {text!r}") from error
    if not -(1 << 63) <= seed < 1 << 64:
        raise ConfigError(f"--default-seed must fit in 64 bits, got {seed}")
    return seed


def _facts(
    model: ModelConfig,
    engine: EngineConfig,
    loaded: LoadedModel,
    operators: Operators,
    plan: Plan,
    pages: int,
    default_seed: int | None,
) -> EngineFacts:
    return EngineFacts(
        model=model.model,
        folder=str(loaded.files.folder),
        family=loaded.spec.family,
        vocabulary=loaded.spec.vocabulary,
        context_length=loaded.files.context_length,
        kv_tokens=pages * engine.page_tokens,
        eos_token_ids=list(loaded.files.end_tokens),
        sampling_defaults=loaded.files.sampling_defaults,
        default_seed=default_seed,
        profile=operators.profile,
        promises_bits=operators.promises_bits,
        fingerprint=plan.fingerprint,
        plan={**plan.parts(), **operators.description()},
    )


def _log_decisions(facts: EngineFacts, engine: EngineConfig, operators: Operators, pages: int) -> None:
    described = ", ".join(f"{name} {value}" for name, value in operators.description().items())
    log.info("model %s (%s), context %d tokens", facts.model, facts.family, facts.context_length)
    log.info("numerics %s on %s: %s", facts.profile, operators.device, described)
    kept = "" if engine.prefix_cache else ", no prefix cache"
    log.info("KV: %d pages of %d tokens%s", pages, engine.page_tokens, kept)
    if operators.device.type == "cpu":
        log_idle_settings(engine)
    log.info(
        "a step: at most %d tokens of %d requests; fingerprint %s",
        engine.step_tokens,
        engine.max_running,
        facts.fingerprint,
    )
