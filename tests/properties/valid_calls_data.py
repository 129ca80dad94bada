"""One valid call of every public function of `dynamics.data`, as small as it can be."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dynamics import leaf_names
from dynamics.data import (
    algorithmic,
    attention_tokens,
    digit_regression,
    in_context,
    mixtures,
    mixup,
    opposing_signals,
    real,
    regression_grams,
    teachers,
)

KEY = jax.random.key(0)


def _images():
    train, labels = np.zeros((6, 2, 2, 1), np.float32), np.array([0, 1, 2, 0, 1, 2], np.int32)
    return real.ImageData(train, labels, train[:3], labels[:3])


CALLS = {
    leaf_names.named_leaves: lambda: dict(tree={"a": 1.0}),
    leaf_names.leaf_paths: lambda: dict(tree={"a": 1.0}),
    algorithmic.cyclic_group: lambda: dict(order=3),
    algorithmic.dihedral_group: lambda: dict(num_corners=3),
    algorithmic.symmetric_group: lambda: dict(degree=3),
    algorithmic.product_group: lambda: dict(
        left=algorithmic.cyclic_group(2), right=algorithmic.cyclic_group(3)
    ),
    algorithmic.split_table: lambda: dict(
        key=KEY, cayley_table=algorithmic.cyclic_group(3), train_fraction=0.5
    ),
    algorithmic.sparse_modular_addition: lambda: dict(
        key=KEY, modulus=3, positions=(0, 2), num_samples=2, length=4
    ),
    algorithmic.corrupt_labels: lambda: dict(
        key=KEY, labels=jnp.array([0, 1, 2]), num_classes=3, fraction=0.5
    ),
    attention_tokens.token_selection: lambda: dict(
        key=KEY, num_sequences=2, num_tokens=3, dim=2, head="random"
    ),
    attention_tokens.majority_counts: lambda: dict(
        key=KEY, num_sequences=2, num_tokens=3, num_classes=2, margin=1
    ),
    digit_regression.squared_error_on_digits: lambda: dict(
        model=nn.Dense(10), num_images=4, unit_variance=True
    ),
    in_context.linear_regression: lambda: dict(
        key=KEY,
        num_tasks=2,
        num_context=3,
        dim=2,
        inputs="gaussian",
        eigenvalues=jnp.ones(2),
        query_eigenvalues=jnp.ones(2),
        input_mean=jnp.zeros(2),
        task_mean=jnp.zeros(2),
        task_std=1.0,
        noise_std=0.5,
    ),
    in_context.linear_dynamical_system: lambda: dict(
        key=KEY, num_tasks=2, num_steps=3, dim=2, noise_std=0.1, singular_values=(0.5, 1.0)
    ),
    in_context.few_shot_classification: lambda: dict(
        key=KEY,
        images=jnp.zeros((6, 2)),
        labels=np.array([0, 1, 0, 1, 0, 1]),
        num_tasks=2,
        num_ways=2,
        num_shots=1,
        projection=jnp.ones((2, 2)),
    ),
    mixtures.gaussian_mixture: lambda: dict(key=KEY, counts=(2, 1), dim=2, separation=3.0, std=1.0),
    mixtures.corrupt_labels: lambda: dict(
        key=KEY, labels=jnp.array([0, 1, 2]), num_classes=3, fraction=0.5
    ),
    mixup.mixup: lambda: dict(
        key=KEY, inputs=jnp.ones((3, 2)), targets=jnp.eye(3), concentration=1.0
    ),
    opposing_signals.opposing_groups: lambda: dict(
        signal=jnp.ones(2), outlier_variance=8.0, label=1.0, agreement=0.5
    ),
    real.digits: lambda: dict(num_train=1000),
    real.select_classes: lambda: dict(data=_images(), classes=(0, 2)),
    regression_grams.uniform_tasks: lambda: dict(
        key=KEY, num_tasks=2, num_context=3, dim=2, shift=1
    ),
    regression_grams.query_loss: lambda: dict(
        row=jnp.ones((3, 2)), weights=jnp.ones((3, 2)), variance=0.5
    ),
    teachers.linear_teacher: lambda: dict(key=KEY, num_samples=3, dim=2, noise_std=0.5),
    teachers.quadratic_teacher: lambda: dict(key=KEY, num_samples=3, dim=2),
    teachers.two_layer_teacher: lambda: dict(key=KEY, num_samples=3, dim=2, num_hidden=2),
}
