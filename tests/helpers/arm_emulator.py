"""Kernels compiled for 64-bit Arm and run on an emulated processor, on the memory of this process.

Every address is the same inside and outside: a block of this process's memory is shown to the emulated processor
when it first touches it, so operators, tensors and launches need no translation. What the code calls outside
itself is run by the host, and may only copy, fill or allocate memory: nothing that computes a float.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass, field

import llvmlite.binding as llvm
import numpy as np
import unicorn
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys
from unicorn import arm64_const as arm

from samebits.numerics.cpu.environment import FPCR_DEFAULT

TRIPLE = "aarch64-unknown-linux-gnu"
BLOCK, PAGE = 1 << 20, 1 << 12
"""Bytes that are shown at once as data, and as code: no page holds both Arm code and a function of the host."""
STACK_BYTES = 4 << 20
ARGUMENT_WORDS = 64
DATA = unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE
ARGUMENT_REGISTERS = tuple(getattr(arm, f"UC_ARM64_REG_X{number}") for number in range(8))
HOST_FUNCTIONS = ("memcpy", "memmove", "memset", "NRT_MemInfo_alloc_aligned", "NRT_MemInfo_call_dtor")
"""What the host may run for the code."""
FAILURE = re.compile(r"Py|numba_|NRT_Free$")
"""Calls of numba's wrapper when a kernel raises an exception, which none does."""


@dataclass(frozen=True)
class ArmCode:
    """Machine code of one kernel at its final address; `engine` owns the memory."""

    entry: int
    assembly: str
    engine: llvm.ExecutionEngine


def compile_for_arm(module_text: str, processor: str = "generic", features: str = "+neon") -> ArmCode:
    """Optimise and link a kernel's module for an Arm processor. Raises RuntimeError for a foreign call."""
    rtsys.initialize(cpu_target.target_context)  # makes the process's and numba's functions known by name
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(TRIPLE)
    machine = target.create_target_machine(cpu=processor, features=features, opt=3, reloc="static", jit=True)
    text = re.sub(r"^target (triple|datalayout).*$", "", module_text, flags=re.MULTILINE)
    module = llvm.parse_assembly(text)
    module.triple = TRIPLE
    module.data_layout = str(machine.target_data)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    assembly = machine.emit_assembly(module)
    check_calls(assembly)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    (entry,) = [f.name for f in module.functions if f.name.startswith("cfunc.") and not f.is_declaration]
    return ArmCode(engine.get_function_address(entry), assembly, engine)


def check_calls(assembly: str) -> None:
    """Refuse code that calls anything but itself, the functions of the host, and numba's failure path."""
    defined = set(re.findall(r"^(\S+):", assembly, re.MULTILINE))
    called = set(re.findall(r"^\s+bl?\s+([^.\s]\S*)", assembly, re.MULTILINE)) - defined
    foreign = {name for name in called if name not in HOST_FUNCTIONS and not FAILURE.match(name)}
    if foreign:
        raise RuntimeError(f"the Arm code calls {sorted(foreign)}")


@dataclass
class ArmProcessor:
    """One emulated core."""

    control: int = FPCR_DEFAULT
    _core: unicorn.Uc = field(init=False)
    _shown: set[int] = field(init=False, default_factory=set)
    _stack: np.ndarray = field(init=False)
    _host: dict[int, ctypes._CFuncPtr] = field(init=False)

    def __post_init__(self) -> None:
        self._core = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        self._stack = np.zeros(STACK_BYTES, np.uint8)
        prototype = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 8)
        rtsys.initialize(cpu_target.target_context)
        addresses = [llvm.address_of_symbol(name) for name in HOST_FUNCTIONS]
        self._host = {address: prototype(address) for address in addresses}
        touched = unicorn.UC_HOOK_MEM_READ_UNMAPPED | unicorn.UC_HOOK_MEM_WRITE_UNMAPPED
        self._core.hook_add(touched, self._show_touched)

    def _show(self, address: int) -> None:
        """Let the core see the block of memory around an address, as data."""
        block = address // BLOCK * BLOCK
        if block == 0:
            raise RuntimeError(f"the Arm code touched address {address:#x}")
        if block not in self._shown:
            self._core.mem_map_ptr(block, BLOCK, DATA, ctypes.c_void_p(block))
            self._shown.add(block)

    def _show_touched(self, core, access, address, size, value, context) -> bool:
        self._show(address)
        self._show(address + size - 1)
        return True

    def call(self, entry: int, *arguments: int) -> None:
        """Run a C function of int64 arguments until it returns."""
        core, end = self._core, 0x1000
        core.reg_write(arm.UC_ARM64_REG_FPCR, self.control)
        core.reg_write(arm.UC_ARM64_REG_SP, (self._stack.ctypes.data + STACK_BYTES) // 64 * 64)
        core.reg_write(arm.UC_ARM64_REG_LR, end)
        for register, argument in zip(ARGUMENT_REGISTERS, arguments, strict=False):
            core.reg_write(register, argument)
        place = entry
        while place != end:
            try:
                core.emu_start(place, end)
                place = end
            except unicorn.UcError as error:
                place = self._leave(error)

    def _leave(self, error: unicorn.UcError) -> int:
        """After a jump to memory that is not yet code: run a host function, or show the code. -> where to go on."""
        place = self._core.reg_read(arm.UC_ARM64_REG_PC)
        if error.errno not in (unicorn.UC_ERR_FETCH_UNMAPPED, unicorn.UC_ERR_FETCH_PROT):
            raise error
        if place in self._host:
            values = [self._core.reg_read(register) for register in ARGUMENT_REGISTERS]
            signed = [value - (1 << 64) if value >> 63 else value for value in values]
            self._core.reg_write(ARGUMENT_REGISTERS[0], self._host[place](*signed) & (1 << 64) - 1)
            return self._core.reg_read(arm.UC_ARM64_REG_LR)
        self._show(place)
        self._core.mem_protect(place // PAGE * PAGE, PAGE, unicorn.UC_PROT_ALL)
        return place


@dataclass
class EmulatedPool:
    """Stands where operators expect their pool of threads: runs the tasks of a launch one by one.

    `codes` holds the Arm code by the address of the host's code. `threads` shapes how work is cut, as in a pool.
    """

    codes: dict[int, ArmCode]
    threads: int
    processor: ArmProcessor = field(default_factory=ArmProcessor)
    launched: set[int] = field(default_factory=set)

    def run(self, task: int, arguments: tuple[int, ...], tasks: int, share: bool = True) -> None:
        words = np.zeros(ARGUMENT_WORDS, np.int64)
        words[: len(arguments)] = arguments
        self.launched.add(task)
        for index in range(tasks):
            self.processor.call(self.codes[task].entry, words.ctypes.data, index)

    def close(self) -> None:
        """Nothing to end."""
