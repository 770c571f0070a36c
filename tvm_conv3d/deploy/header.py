"""The C header of a CPU's exported convolution: what each function takes, and calls with plain pointers.

Callers see the same functions whatever the plan: `bind`, `pack`, `convolve` and `exact`, each behind a prefix, with all
packed weights in one block of memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tvm_conv3d.compute.shared.argument import PACK, Argument, Function
from tvm_conv3d.deploy.functions import (
    CONVOLVE,
    EXACT,
    PACK_EXACT,
    PACK_MAIN,
    entry_of,
    of_exact,
    packed,
    prefix_of,
)
from tvm_conv3d.engine.artifact import MAIN
from tvm_conv3d.spec import Conv3DSpec

#: Bytes of which the place of each array in the packed weights is a multiple: a cache line.
_LINE = 64

#: Of an element type: C's type, and DLPack's code and bits.
_TYPES = {
    "float32": ("float", "kDLFloat", 32),
    "float64": ("double", "kDLFloat", 64),
    "float16": ("uint16_t", "kDLFloat", 16),
    "uint16": ("uint16_t", "kDLUInt", 16),
}

#: What compiled code calls of TVM's runtime, through pointers of these names behind two underscores.
_SERVICES = {
    "TVMBackendAllocWorkspace": "void *(*{name})(int, int, uint64_t, int, int)",
    "TVMBackendFreeWorkspace": "int (*{name})(int, int, void *)",
    "TVMBackendParallelLaunch": "int (*{name})(FTVMParallelLambda, void *, int)",
}

_MEANING = {
    PACK: "Weights as the convolution reads them.",
    CONVOLVE: "The convolution: main, and exact over the whole output where a flag is not finite.",
    MAIN: "The convolution.",
    EXACT: "The convolution by the sums of products that define it.",
    PACK_MAIN: "Weights as main reads them.",
    PACK_EXACT: "Weights as exact reads them.",
}

#: What the calls begin with where the convolution has no name.
_DEFAULT_NAME = "conv3d"

_DEFINED = "The same by the sums of products that define it: for weights whose values carry exact meaning."

#: Of `main` where it is not exact.
_FLAGGED = "The convolution, which must not be trusted where a flag is not finite."

_HEAD = """\
/* {key}
 *
 * A 3-D convolution for {target}.
 *
 * Compile with the headers of apache-tvm-ffi and apache-tvm; link with module.o, libtvm_runtime, libtvm_ffi and libm.
 * Call {name}_bind once, {name}_pack after each change of the weights, and {name}_convolve from any thread. They return
 * 0, or -1 with an error that TVMFFIErrorMoveFromRaised takes. Arrays are contiguous, the last index running fastest,
 * at any address that suits their elements; what is written overlaps nothing else.{half}
 */
#ifndef {guard}
#define {guard}

#include <stdint.h>
#include <string.h>

#include <tvm/ffi/c_api.h>
#include <tvm/runtime/c_backend_api.h>

#ifdef __cplusplus
extern "C" {{
#endif

/* What module.o calls of TVM's runtime. */
{pointers}
/* The functions of module.o, in TVM's calling convention; each argument is a DLTensor. */
{prototypes}
#ifdef __cplusplus
}}
#endif
"""

#: What the headers of all modules share.
_SHARED = """
#ifndef TVM_CONV3D_CALL_
#define TVM_CONV3D_CALL_

static inline DLTensor tvm_conv3d_tensor_(const void *data, int32_t ndim, const int64_t *shape, int code, int bits) {
  DLTensor tensor;
  memset(&tensor, 0, sizeof(tensor));
  tensor.data = (void *)data;
  tensor.device.device_type = kDLCPU;
  tensor.ndim = ndim;
  tensor.dtype.code = (uint8_t)code;
  tensor.dtype.bits = (uint8_t)bits;
  tensor.dtype.lanes = 1;
  tensor.shape = (int64_t *)shape;
  return tensor;
}

static inline int tvm_conv3d_call_(TVMFFISafeCallType function, DLTensor *tensors, TVMFFIAny *arguments,
                                   int32_t count) {
  TVMFFIAny result;
  memset(&result, 0, sizeof(result));
  memset(arguments, 0, (size_t)count * sizeof(*arguments));
  for (int32_t i = 0; i < count; ++i) {
    arguments[i].type_index = kTVMFFIDLTensorPtr;
    arguments[i].v_ptr = &tensors[i];
  }
  return function(0, arguments, count, &result);
}

#endif
"""

_CALLS = """
/* Gives module.o what it calls of TVM's runtime. */
static inline void {name}_bind(void) {{
{bindings}}}

/* Bytes of the packed weights, which are best at a multiple of {line}. Only the functions below know what is where. */
#define {size_name} {size}
"""

_TAIL = "\n#endif\n"


def header(spec: Conv3DSpec, target: str, functions: Mapping[str, Function], assembly: str, name: str = "") -> str:
    """The text of `module.h`.

    Args:
        spec: the problem.
        target: as text.
        functions: what each function of the module takes, by its name without prefix.
        assembly: of the module.
        name: of the convolution, an identifier; "" where there is only one.
    """
    return _Header(functions, prefix_of(name), name or _DEFAULT_NAME).text(spec, target, assembly)


@dataclass(frozen=True)
class _Header:
    """One header.

    Attributes:
        functions: of the module.
        prefix: of their names in it.
        name: what the calls with plain pointers begin with.
    """

    functions: Mapping[str, Function]
    prefix: str
    name: str

    def text(self, spec: Conv3DSpec, target: str, assembly: str) -> str:
        services = {name: kind for name, kind in _SERVICES.items() if f"__{name}" in assembly}
        stored = {argument.dtype for function in self.functions.values() for argument in function.arguments}
        places, size = _places(self.functions[PACK].of("output"))
        head = _HEAD.format(
            key=spec.key(),
            target=target,
            name=self.name,
            half=f"\n * uint16_t holds the bits of {spec.dtype}." if stored & {"uint16", "float16"} else "",
            guard=f"TVM_CONV3D_{self.name.upper()}_H_",
            pointers="".join(f"extern {kind.format(name='__' + name)};\n" for name, kind in services.items()),
            prototypes="".join(self._prototype(name, function) for name, function in self.functions.items()),
        )
        calls = _CALLS.format(
            name=self.name,
            bindings="".join(f"  __{name} = {name};\n" for name in services),
            line=_LINE,
            size_name=f"{self.name.upper()}_PACKED_BYTES",
            size=size,
        )
        return head + _SHARED + calls + self._calls(places) + _TAIL

    def _symbol(self, name: str) -> str:
        return f"__tvm_ffi_{self.prefix}{name}"

    def _prototype(self, name: str, function: Function) -> str:
        meaning = _FLAGGED if function.of("flags") else _MEANING[name]
        rows = "".join(f" *   {a.name:20} {a.role:9} {a.dtype}{_extents(a)}\n" for a in function.arguments)
        signature = "(void *self, const TVMFFIAny *args, int32_t num_args, TVMFFIAny *result);"
        return f"\n/* {name}: {meaning}\n *\n{rows} */\nint {self._symbol(name)}{signature}\n"

    def _calls(self, places: Mapping[str, int]) -> str:
        """The calls with plain pointers."""
        entry = entry_of(self.functions)
        pack, convolution = self.functions[PACK], self.functions[entry]
        given = pack.of("weights", "bias")
        into = {name: f"(char *)packed + {place}" for name, place in places.items()}
        text = self._call(
            "The weights, packed.",
            "pack",
            PACK,
            [*map(_declared, given), "void *packed"],
            {**into, **{a.name: a.name for a in given}},
        )
        x, residual, out = (list(map(_declared, convolution.of(role))) for role in ("input", "residual", "output"))
        passed = [*x, "const void *packed", *residual, *out]
        values = {a.name: a.name for a in convolution.of("input", "residual", "output")}
        # of an exact plan the convolution itself
        exact = EXACT if EXACT in self.functions else entry
        for meaning, call, function, name_of in (
            ("The convolution.", "convolve", entry, packed),
            (_DEFINED, "exact", exact, packed if exact == entry else lambda name: packed(of_exact(name))),
        ):
            weights = self.functions[function].of("weights", "bias")
            of = {a.name: f"(const char *)packed + {places[name_of(a.name)]}" for a in weights}
            text += self._call(meaning, call, function, passed, {**values, **of})
        return text

    def _call(self, meaning: str, call: str, name: str, passed: Sequence[str], values: Mapping[str, str]) -> str:
        """A call that makes tensors of pointers.

        Args:
            meaning: for people.
            call: its name, without that of the convolution.
            name: of the function that is called.
            passed: parameters, declared.
            values: C's expression of each argument's pointer.
        """
        arguments, shapes, tensors = self.functions[name].arguments, "", ""
        for a in arguments:
            _, code, bits = _TYPES[a.dtype]
            shapes += f"  static const int64_t {a.name}_shape[] = {{{', '.join(map(str, a.shape))}}};\n"
            pointer = f"{values[a.name]}, {len(a.shape)}, {a.name}_shape, {code}, {bits}"
            tensors += f"      tvm_conv3d_tensor_({pointer}),\n"
        count = len(arguments)
        return (
            f"\n/* {meaning} */\nstatic inline int {self.name}_{call}({', '.join(passed)}) {{\n{shapes}"
            f"  DLTensor tensors[] = {{\n{tensors}  }};\n  TVMFFIAny arguments[{count}];\n"
            f"  return tvm_conv3d_call_({self._symbol(name)}, tensors, arguments, {count});\n}}\n"
        )


def _places(weights: Sequence[Argument]) -> tuple[dict[str, int], int]:
    """Where each array of packed weights begins, by its name, and the bytes of all."""
    found, size = {}, 0
    for argument in weights:
        found[argument.name] = size
        size += -(-argument.size_bytes // _LINE) * _LINE
    return found, size


def _declared(argument: Argument) -> str:
    constant = "" if argument.role == "output" else "const "
    return f"{constant}{_TYPES[argument.dtype][0]} *{argument.name}"


def _extents(argument: Argument) -> str:
    return "".join(f"[{extent}]" for extent in argument.shape)
