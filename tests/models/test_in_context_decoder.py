"""The decoder sees what it may see and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.models import in_context_decoder


@pytest.fixture(scope="module")
def decoder():
    model = in_context_decoder.InContextDecoder(width=8, num_layers=2, num_heads=2, max_examples=6)
    tokens = jax.random.normal(jax.random.key(1), (3, 6, 4))
    return model, model.init(jax.random.key(0), tokens), tokens


def test_a_prediction_depends_on_earlier_examples_and_its_own_input_only(decoder):
    model, params, tokens = decoder
    total = lambda t: model.apply(params, t)[:, 3].sum()
    gradient = np.abs(jax.grad(total)(tokens)).max(axis=0)  # (N, D + 1)
    assert (gradient[:3] > 0).all()
    assert (gradient[3, :-1] > 0).all()
    assert not gradient[3, -1:].any()  # its own target
    assert not gradient[4:].any()


def test_the_read_out_of_the_last_stream_is_the_prediction(decoder):
    model, params, tokens = decoder
    stream = in_context_decoder.residual_stream(model, params, tokens)
    assert stream.shape == (2, 3, 6, 8)
    own = params["params"]["decoder"]
    h = (stream[-1] - stream[-1].mean(-1, keepdims=True)) / jnp.sqrt(
        stream[-1].var(-1, keepdims=True) + 1e-6
    )
    h = h * own["final_norm"]["scale"] + own["final_norm"]["bias"]
    read = h @ own["read_out"]["kernel"] + own["read_out"].get("bias", 0)
    np.testing.assert_allclose(read[..., 0], model.apply(params, tokens), atol=1e-5)


def test_tokens_of_another_rank_are_refused():
    with pytest.raises(ValueError, match=r"tokens has shape \(3, 4\)"):
        in_context_decoder.interleaved(jnp.ones((3, 4)))
