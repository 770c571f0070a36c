"""What the executor asks of a backend, this CPU or a GPU, and what a backend may ask of the executor."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Protocol, TypeVar

from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.runtime.interchange import Source
from tvm_conv3d.runtime.weights import Packed, Weights
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.description import Target

C_co = TypeVar("C_co", bound="PreparedCall", covariant=True)


class Convolutions(Protocol[C_co]):
    """What a call asks the executor for: packed weights, and other convolutions that its result is put together of."""

    def kept(self, call: PreparedCall, weights: Weights) -> Packed[Any] | None:
        """The weights in the call's layout, if they are kept in their version."""

    def packed(self, call: PreparedCall, weights: Weights) -> Packed[Any]:
        """The weights in the call's layout: kept ones of their version, else packed now."""

    def prepared(self, spec: Conv3DSpec, exact: bool) -> C_co:
        """The call of another convolution, by the same backend; `exact` for the products of the definition."""


class PreparedCall(Protocol):
    """A convolution with its machine code on one device: all that calls of one spec need but arrays and weights.

    Attributes:
        plan: what the machine code computes.
        layout: equal for calls that take the same packed weights: algorithm, shapes, and which weights stand where.
    """

    @property
    def plan(self) -> Plan: ...

    @property
    def layout(self) -> Hashable: ...

    def pack(self, weights: Weights) -> Packed[Any]:
        """The weights in the call's layout, on its device.

        Raises:
            MemoryError, tvm_conv3d.runtime.cuda.driver.CudaError: there is no memory for them.
        """

    def run(self, source: Source, weights: Weights, residual: Source | None, convolutions: Convolutions[Any]) -> Any:
        """The convolution of a source, in fresh memory of the source's kind: an array, or a tensor beside the source.

        Args:
            source: the input, of the spec's shape, where the call's device can read it; cast to the spec's dtype.
            weights: of the spec's shapes.
            residual: of the output's shape, from any device; cast to its type. None where the spec adds none.
            convolutions: of the executor.

        Raises:
            TypeError: the source holds no real numbers, or is of an unknown library.
            MemoryError, tvm_conv3d.runtime.cuda.driver.CudaError: there is no memory, or the GPU refuses the call.
        """


class PreparedGradient(Protocol):
    """A gradient of weights with its machine code on one device."""

    def run(self, source: Source, gradient: Source) -> tuple[Any, Any | None]:
        """The gradients of the weights and, where the spec has one, of the bias: as :meth:`PreparedCall.run`.

        Args:
            source: the input, of the spec's input shape, where the call's device can read it; cast to the spec's dtype.
            gradient: of its output shape, likewise, of the same library.

        Raises:
            As :meth:`PreparedCall.run`.
        """


class Backend(Protocol):
    """Where convolutions run; it keeps nothing."""

    def prepare(self, plan: Plan, target: Target, device: int) -> PreparedCall:
        """The plan's machine code, loaded or compiled, ready to be called.

        Args:
            plan: of a spec with elements.
            target: of the plan; code for it runs on the device.
            device: number of the GPU, where it is one.

        Raises:
            RuntimeError: the installed TVM is another version, or can't compile the plan.
        """

    def prepare_gradient(self, plan: Plan, target: Target, device: int) -> PreparedGradient:
        """The same of a gradient of weights; raises likewise."""

    def without_products(self, spec: Conv3DSpec, source: Source) -> tuple[Any, Any | None]:
        """What :meth:`PreparedGradient.run` returns where there are no positions, and all sums are empty.

        Raises:
            TypeError: as :meth:`without_elements`.
        """

    def without_elements(self, spec: Conv3DSpec, source: Source) -> Any:
        """What :meth:`PreparedCall.run` returns for a spec whose output has no element, or whose input has none.

        Raises:
            TypeError: the source holds no real numbers, or is of an unknown library.
        """
