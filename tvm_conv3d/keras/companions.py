"""Max pools and batch norms beside convolutions, computed by fewer passes over memory than Keras's.

Batch norms are so on Keras's torch and tensorflow backends. They are made of Keras's own layers by
`acceleration.accelerate`.
"""

from __future__ import annotations

from typing import Any

import keras

from tvm_conv3d.functional.arguments import three
from tvm_conv3d.keras.backends import BACKEND
from tvm_conv3d.keras.fusion import norm_of
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST


class MaxPooling3D(keras.layers.MaxPooling3D):
    """`keras.layers.MaxPooling3D` whose windows, where they lie side by side, are this package's, with gradients."""

    def call(self, inputs: Any) -> Any:
        """The maxima of windows.

        Args:
            inputs: as Keras's layer takes them.
        """
        y = None
        if self.padding == "valid" and tuple(self.strides) == tuple(self.pool_size):
            y = BACKEND.max_pool(inputs, three(map(int, self.pool_size)), self.data_format)
        return super().call(inputs) if y is None else y


class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` of volumes by one function of the backend; statistics are Keras's."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """The normalized inputs.

        Args:
            inputs, mask: as Keras's layer takes them.
            training: whether statistics are those of the batch, and become a part of the moving ones.
        """
        last = self.axis in (-1, 4)
        plain = mask is None and not getattr(self, "renorm", False) and not self.synchronized
        if not plain or self.compute_dtype != "float32" or not (last or self.axis == 1):
            return super().call(inputs, training=training, mask=mask)
        of_batch = bool(training and self.trainable)
        found = BACKEND.batch_norm(inputs, norm_of(self), of_batch, CHANNELS_LAST if last else CHANNELS_FIRST)
        if found is None:
            return super().call(inputs, training=training, mask=mask)
        y, mean, variance = found
        if of_batch:
            for moving, now in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + now * (1.0 - self.momentum))
        return y


#: Classes of Keras's, and what takes their place on the backend of this process.
COMPANIONS: dict[type[keras.layers.Layer], type[keras.layers.Layer]] = {
    **({keras.layers.MaxPooling3D: MaxPooling3D} if BACKEND.has_pools else {}),
    **({keras.layers.BatchNormalization: BatchNormalization} if BACKEND.has_norms else {}),
}
