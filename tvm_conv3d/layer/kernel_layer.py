"""A kernel and a bias, the kernel maybe adapted by LoRA: access, merging, saving."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple

import numpy as np

from tvm_conv3d.layer.base_layer import Layer
from tvm_conv3d.layer.objects import initializers
from tvm_conv3d.layer.variables import Variable
from tvm_conv3d.support.dtypes import numpy_dtype, widen


class Adapter(NamedTuple):
    """Low-rank adaptation (Hu et al., 2021): two weights and the factor of their product.

    Attributes:
        a: (depth, height, width, channels / groups, rank).
        b: (rank, filters).
        scale: factor of their product.
    """

    a: Variable
    b: Variable
    scale: float

    def merged(self, kernel: np.ndarray) -> np.ndarray:
        """`kernel` with the product added, in the wider of float32 and the kernel's dtype."""
        return widen(kernel) + np.float32(self.scale) * (self.a.value @ self.b.value)


class KernelLayer(Layer):
    """A layer with a kernel and maybe a bias, which its subclass makes.

    Attributes:
        lora_rank, lora_alpha: of the adaptation that `build` adds or `enable_lora` added; None without one.
    """

    kernel_regularizer: Any
    kernel_constraint: Any
    lora_rank: int | None
    lora_alpha: float | None
    _kernel: Variable
    _bias: Variable | None
    _lora: Adapter | None = None

    @property
    def kernel(self) -> Any:
        """The kernel variable, (depth, height, width, channels / groups, filters); with LoRA the merged array.

        Raises:
            AttributeError: the layer is not built.
        """
        if not self.built:
            raise AttributeError("You must build the layer before accessing `kernel`.")
        return self._kernel if self._lora is None else self._merged(self.compute_dtype)

    @property
    def bias(self) -> Variable | None:
        """The bias variable, None without one.

        Raises:
            AttributeError: the layer is not built.
        """
        if not self.built:
            raise AttributeError("You must build the layer before accessing `bias`.")
        return self._bias

    def _merged(self, dtype: str) -> np.ndarray:
        kernel = self._kernel.value if self._lora is None else self._lora.merged(self._kernel.value)
        return kernel.astype(numpy_dtype(dtype), copy=False)

    # LoRA

    def enable_lora(
        self,
        rank: int,
        lora_alpha: float | None = None,
        a_initializer: Any = "he_uniform",
        b_initializer: Any = "zeros",
    ) -> None:
        """Freezes the kernel and adds to it the product of two small trainable weights.

        Args:
            rank: columns of the first and rows of the second weight.
            lora_alpha: the product is scaled by `lora_alpha / rank`; None for `rank`.
            a_initializer, b_initializer: of the two weights.

        Raises:
            ValueError: the layer has a kernel constraint, is not built, or has LoRA already.
        """
        if not self.built:
            self._check_lora_allowed()
            raise ValueError("Cannot enable lora on a layer that isn't yet built.")
        self._add_lora(rank, lora_alpha, a_initializer, b_initializer)

    @property
    def lora_enabled(self) -> bool:
        """Whether the kernel is frozen and adapted."""
        return self._lora is not None

    def _check_lora_allowed(self) -> None:
        if self.kernel_constraint is not None:
            raise ValueError(
                "Lora is incompatible with kernel constraints. "
                "In order to enable lora on this layer, remove the `kernel_constraint` argument."
            )
        if self.lora_enabled:
            raise ValueError("lora is already enabled. This can only be done once per layer.")

    def _add_lora(self, rank: int, alpha: float | None, a_initializer: Any, b_initializer: Any) -> None:
        self._check_lora_allowed()
        kernel = self._kernel
        # Float32 whatever the policy: small updates would be lost in 16 bits.
        a, b = (
            self._add_weight(name, shape, initializers.get(initializer), "float32", self.kernel_regularizer)
            for name, shape, initializer in (
                ("lora_kernel_a", (*kernel.shape[:-1], rank), a_initializer),
                ("lora_kernel_b", (rank, kernel.shape[-1]), b_initializer),
            )
        )
        kernel.trainable = False
        self.lora_rank = rank
        self.lora_alpha = rank if alpha is None else alpha
        self._lora = Adapter(a, b, self.lora_alpha / rank)

    # Saving

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Writes kernel (with LoRA merged) and bias as "0" and "1", as Keras's weight files have them."""
        if not self.built:
            return
        store["0"] = self._kernel.numpy() if self._lora is None else self._merged(self.variable_dtype)
        if self._bias is not None:
            store["1"] = self._bias.numpy()

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Reads what `save_own_variables` wrote.

        Raises:
            ValueError: another number of variables than the layer has.
        """
        own = [self._kernel] if self._bias is None else [self._kernel, self._bias]
        if len(store) != len(own):
            raise ValueError(
                f"Layer '{self.name}' expected {len(own)} variables, but received {len(store)} variables "
                f"during loading. Expected: {[weight.name for weight in own]}"
            )
        for number, weight in enumerate(own):
            weight.assign(store[str(number)])
        if self._lora is not None:
            # The stored kernel holds their product already.
            for weight in (self._lora.a, self._lora.b):
                weight.assign(np.zeros(weight.shape))
