"""What to call a leaf of a pytree: in a message, and as a path to choose it by."""

from typing import Any

import jax


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Return every leaf behind its name as code would reach it, for messages.

    Example:
        >>> named_leaves({"a": [1.0]}), named_leaves(2.0)
        ([("['a'][0]", 1.0)], [('the only leaf', 2.0)])
    """
    return [
        (jax.tree_util.keystr(path) or "the only leaf", leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def leaf_paths(tree: Any) -> list[str]:
    """Return the path of every leaf, its names joined by "/".

    Example:
        >>> leaf_paths({"layer_0": {"bias": 0.0, "kernel": 1.0}})
        ['layer_0/bias', 'layer_0/kernel']
    """
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
