"""Threads that share the tasks of one kernel launch. Which thread runs a task never matters to its result.

A kernel is a C function `void task(int64 arguments, int64 index)`, where `arguments` is the address of a block
of int64. A launch publishes a ticket (generation and tasks left); threads, the caller among them, take tasks
by compare-and-swap until none is left. Workers that find nothing to do for a while leave the compiled loop and
sleep on a lock; a launch wakes them, and never waits for a worker that holds no task.
"""

from __future__ import annotations

import os
import struct
import threading
import time
import weakref

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import signature
from numba.extending import intrinsic

from samebits.numerics.cpu.environment import declare, default_control, machine, read_control, write_control
from samebits.numerics.cpu.kernel import compiled, inlined
from samebits.numerics.cpu.lanes import I32, I64

# Places in the control block, in int64; each contended one has its own pair of cache lines.
TICKET, DONE, SLEEPERS, STOP, TASK, ARGUMENTS, TOTAL = 0, 16, 32, 48, 64, 65, 66
CONTROL_WORDS = 80
LEFT_BITS = 32
LEFT_MASK = (1 << LEFT_BITS) - 1
IDLE_SPINS = 4000
WAIT_SPINS = 20000
ARGUMENT_WORDS = 48


def _word(builder: ir.IRBuilder, args: list[ir.Value]) -> ir.Value:
    offset = builder.mul(args[1], ir.Constant(I64, 8))
    return builder.inttoptr(builder.add(args[0], offset), I64.as_pointer())


@intrinsic
def atomic_load(typingctx, address, word):
    def codegen(context, builder, sig, args):
        return builder.load_atomic(_word(builder, args), "seq_cst", 8)

    return signature(types.int64, types.int64, types.int64), codegen


@intrinsic
def atomic_store(typingctx, address, word, value):
    def codegen(context, builder, sig, args):
        builder.store_atomic(args[2], _word(builder, args), "seq_cst", 8)
        return context.get_dummy_value()

    return signature(types.void, types.int64, types.int64, types.int64), codegen


@intrinsic
def atomic_add(typingctx, address, word, value):
    def codegen(context, builder, sig, args):
        pointer = _word(builder, args)
        return builder.atomic_rmw("add", pointer, args[2], "seq_cst")

    return signature(types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def compare_and_swap(typingctx, address, word, expected, value):
    def codegen(context, builder, sig, args):
        pointer = _word(builder, args)
        pair = builder.cmpxchg(pointer, args[2], args[3], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return signature(types.boolean, types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def call_task(typingctx, task, arguments, index):
    """Call the C function at address `task`."""

    def codegen(context, builder, sig, args):
        function_type = ir.FunctionType(ir.VoidType(), [I64, I64])
        pointer = builder.inttoptr(args[0], function_type.as_pointer())
        builder.call(pointer, [args[1], args[2]])
        return context.get_dummy_value()

    return signature(types.void, types.int64, types.int64, types.int64), codegen


@intrinsic
def pause(typingctx):
    """Tell the processor that this is a spin loop."""

    def codegen(context, builder, sig, args):
        if machine() == "aarch64":
            hint = declare(builder, "llvm.aarch64.hint", ir.VoidType(), [I32])
            builder.call(hint, [ir.Constant(I32, 1)])
        elif machine() == "x86_64":
            builder.call(declare(builder, "llvm.x86.sse2.pause", ir.VoidType(), []), [])
        return context.get_dummy_value()

    return signature(types.void), codegen


@inlined
def take_task(control):
    """Run one task if any is left; returns whether one was run."""
    ticket = atomic_load(control, TICKET)
    left = ticket & LEFT_MASK
    if left == 0:
        return 0
    if compare_and_swap(control, TICKET, ticket, ticket - 1):
        # While this task is not done, the launch cannot end, so these three belong to the ticket.
        total = atomic_load(control, TOTAL)
        call_task(atomic_load(control, TASK), atomic_load(control, ARGUMENTS), total - left)
        atomic_add(control, DONE, 1)
    return 1


@compiled
def work(control):
    """A worker's compiled loop: returns 1 after a long idle spell (and is counted as a sleeper), 0 at the end."""
    write_control(default_control())
    idle = 0
    while idle < IDLE_SPINS:
        if take_task(control) != 0:
            idle = 0
            continue
        if atomic_load(control, STOP) != 0:
            return 0
        pause()
        idle += 1
    atomic_add(control, SLEEPERS, 1)
    return 1


@compiled
def launch(control, task, arguments, tasks, shared):
    """Run all tasks of a kernel; returns 1 when they are done, 0 when the caller should yield and `finish`."""
    saved = read_control()
    write_control(default_control())
    done = 1
    if shared == 0:
        for index in range(tasks):
            call_task(task, arguments, index)
    else:
        atomic_store(control, TASK, task)
        atomic_store(control, ARGUMENTS, arguments)
        atomic_store(control, TOTAL, tasks)
        atomic_store(control, DONE, 0)
        generation = (atomic_load(control, TICKET) >> LEFT_BITS) + 1
        atomic_store(control, TICKET, ((generation & 0x3FFFFFFF) << LEFT_BITS) | tasks)
        while take_task(control) != 0:
            pass
        done = finish(control, tasks)
    write_control(saved)
    return done


@compiled
def finish(control, tasks):
    """Wait a while for the tasks that workers hold; returns whether all are done."""
    for _ in range(WAIT_SPINS):
        if atomic_load(control, DONE) == tasks:
            return 1
        pause()
    return 0


def _worker(control: np.ndarray, wake: threading.Lock) -> None:
    address = control.ctypes.data
    while work(address):
        wake.acquire()
        add_sleepers(address, -1)


@compiled
def add_sleepers(control, count):
    return atomic_add(control, SLEEPERS, count)


def _stop(control: np.ndarray, wakes: list[threading.Lock], owner: int) -> None:
    if os.getpid() != owner:
        return
    control[STOP] = 1
    for wake in wakes:
        if wake.locked():
            wake.release()


class Pool:
    """A caller and `threads - 1` workers. Safe to use from any thread; launches take turns."""

    def __init__(self, threads: int) -> None:
        self.threads = max(1, threads)
        self._arguments = np.zeros(ARGUMENT_WORDS, np.int64)
        self._argument_view = self._arguments.data
        self._start()

    def _start(self) -> None:
        """Start the workers of this process (a forked child inherits none)."""
        self._owner = os.getpid()
        self._turn = threading.Lock()
        self._control = np.zeros(CONTROL_WORDS, np.int64)
        self._address = self._control.ctypes.data
        self._argument_address = self._arguments.ctypes.data
        self._sleepers = self._control[SLEEPERS : SLEEPERS + 1]
        self._wakes = []
        for number in range(self.threads - 1):
            wake = threading.Lock()
            wake.acquire()
            self._wakes.append(wake)
            name = f"samebits-numerics-{number + 1}"
            threading.Thread(target=_worker, args=(self._control, wake), name=name, daemon=True).start()
        self._finalizer = weakref.finalize(self, _stop, self._control, self._wakes, self._owner)

    def close(self) -> None:
        """End the workers. The pool then runs everything in the calling thread."""
        self._finalizer()
        self.threads = 1

    def run(self, task: int, arguments: tuple[int, ...], tasks: int, share: bool = True) -> None:
        """Run `tasks` tasks of the C function at address `task` and return when all are done.

        With `share` false, the calling thread runs them all: for work that is not worth another thread.
        """
        if self._owner != os.getpid():
            self._start()
        with self._turn:
            struct.pack_into(f"{len(arguments)}q", self._argument_view, 0, *arguments)
            shared = share and tasks > 1 and self.threads > 1
            if shared and self._sleepers[0]:
                for wake in self._wakes:
                    if wake.locked():
                        wake.release()
            self._launch(task, tasks, shared)

    def _launch(self, task: int, tasks: int, shared: bool) -> None:
        """Launch and wait. Even an interrupt does not return before the workers have let go of the buffers."""
        launched = False
        try:
            launched = shared
            done = launch(self._address, task, self._argument_address, tasks, int(shared))
            while not done:
                time.sleep(0)
                done = finish(self._address, tasks)
        finally:
            while launched and not finish(self._address, tasks):
                pass


def prepare_launcher() -> None:
    """Compile or load what every launch needs."""
    for function, arguments in ((launch, 5), (finish, 2), (work, 1), (add_sleepers, 2)):
        function.compile((types.int64,) * arguments)
