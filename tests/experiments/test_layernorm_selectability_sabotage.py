"""Wrong formulas and norms that lose keys turn the claim on selectable keys red."""

import numpy as np
import pytest

from dynamics.theory import gaussian_polytope

pytestmark = [
    pytest.mark.claims,
    pytest.mark.timeout(900),
    pytest.mark.smoke_run_of("theory_checks/attention/layernorm_selectability"),
]
RAW = "share of unselectable keys from the formula, worst cell, standard errors"
CENTRED = "share after centring from the formula of D - 1, worst cell, standard errors"


def test_left_alone_it_holds(claim):
    assert claim.judge() == ("holds", set())


def test_centring_that_costs_no_dimension(claim):
    prediction = {"centred": claim.main.prediction.raw}
    assert claim.judge(role="claim", prediction=prediction) == ("fails", {CENTRED})


def test_hulls_of_one_dimension_more(claim):
    config = claim.main.config
    wrong = [
        [gaussian_polytope.unselectable_share(n, dim + 1) for n in config.num_keys]
        for dim in config.dims
    ]
    found = claim.judge(role="claim", prediction={"raw": np.array(wrong)})
    assert found == ("fails", {RAW})


def test_facets_counted_for_vertices(claim):
    """The same number in the plane alone."""
    config = claim.main.config
    wrong = [
        [1 - gaussian_polytope.expected_faces(n, dim, dim - 1) / n for n in config.num_keys]
        for dim in config.dims
    ]
    found = claim.judge(role="claim", prediction={"raw": np.array(wrong)})
    assert found == ("fails", {RAW})


def test_internal_angles_left_out(claim):
    """The leading term alone, with simplices counted as if each filled its whole space."""
    main = claim.main
    wrong = 1 - 2 * (1 - main.prediction.raw)
    assert claim.judge(role="claim", prediction={"raw": wrong}) == ("fails", {RAW})


@pytest.mark.parametrize(("variant", "name"), [(2, "RMSNorm"), (3, "LayerNorm")])
def test_a_norm_that_loses_a_single_key(claim, variant, name):
    share = claim.main.result.share.copy()
    config = claim.main.config
    share[2, variant, -1, 0] = 1 / (config.num_norm_draws * config.num_keys[0])
    found = claim.judge(role="claim", share=share)
    assert found == ("fails", {f"largest share of unselectable keys, {name}"})


def test_norms_that_only_centre(claim):
    share = claim.main.result.share.copy()
    share[:, 3] = share[:, 1]
    _, red = claim.judge(role="claim", share=share)
    assert red == {"largest share of unselectable keys, LayerNorm"}


def test_a_key_that_another_outshines(claim):
    own = claim.main.result.own_query.copy()
    own[0, 3, -1, -1] = 1 - 1e-4
    name = "share of keys first for a query equal to themselves, LayerNorm"
    assert claim.judge(role="claim", own_query=own) == ("fails", {name})


def test_a_hull_that_misses_vertices(claim):
    stolen = claim.main.result.stolen.copy()
    stolen[0] = 1e-4
    name = "unselectable raw keys that some random query ranks first"
    assert claim.judge(role="claim", stolen=stolen) == ("fails", {name})


def test_centring_that_already_saves_every_key(claim):
    share = claim.main.result.share.copy()
    share[:, 1, -1] = 0
    _, red = claim.judge(role="control", share=share)
    assert "share of unselectable keys after centring alone, most keys" in red
