"""The claims on kernels in width and depth turn red where their mechanism is tampered with."""

import numpy as np
import pytest

SINGULAR = "theory_checks/kernels/infinite_depth_singular_exponent"
CLASSIFIERS = "theory_checks/kernels/infinite_depth_three_classifiers"
HADAMARD = "theory_checks/kernels/ntk_layerwise_hadamard"
WIDTH = "theory_checks/kernels/ntk_width_convergence"
pytestmark = [pytest.mark.claims, pytest.mark.timeout(900)]


@pytest.mark.smoke_run_of(SINGULAR)
class TestSingularExponent:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_half_the_exponent(self, claim):
        """-2 log A' / log B', as if A' were squared already."""
        exponent = claim.main.prediction.exponent / 2
        _, red = claim.judge(role="claim", prediction={"exponent": exponent})
        assert red == {"relative error of the exponent of the NNGP, worst"}

    def test_ntk_with_the_exponent_of_the_nngp(self, claim):
        exponent = claim.main.prediction.exponent
        _, red = claim.judge(role="claim", prediction={"tangent_exponent": exponent})
        assert red == {"relative error of the exponent + 2 of the NTK, worst"}

    def test_a_tangent_kernel_that_stopped_growing(self, claim):
        layer = 0 * claim.main.result.layer
        _, red = claim.judge(role="claim", layer=layer)
        assert red == {"what a layer adds to the scaled NTK by the scaled NNGP, from 1"}


@pytest.mark.smoke_run_of(CLASSIFIERS)
class TestThreeClassifiers:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_activations_exchanged(self, claim):
        score = claim.main.result.score[:, :, [1, 0, 2]]
        _, red = claim.judge(role="claim", score=score)
        assert "error of the first's score, largest at the last depth" in red
        assert "error of the second's score, largest at the last depth" in red

    def test_shallow_weights(self, claim):
        error = claim.main.result.weight_error[:, ::-1]
        _, red = claim.judge(role="claim", weight_error=error)
        assert red == {"distance of K(1) K^-1 y from y, largest at the last depth"}

    def test_depth_of_practice_in_place_of_the_limit(self, claim):
        """At depth 100 the third is nearer to r^-3 than to r^-2."""
        deep = claim.main.result.deep_score[:, :1]
        _, red = claim.judge(role="claim", deep_score=deep)
        assert "distance of the third from r^-2 by that from r^-1 or r^-3" in red

    def test_labels_of_the_test_without_noise(self, claim):
        """Then the nearest neighbour risks η, not 2 η (1 - η)."""
        prediction = claim.main.prediction
        _, red = claim.judge(role="claim", label=prediction.nearest)
        assert "risk of the first away from the boundary, mean over seeds" in red
        assert "risk of the first less that of the third, mean over seeds" in red

    def test_a_third_that_is_the_second_all_along(self, claim):
        score = claim.main.result.score.copy()
        score[:, :, 2] = score[:, :, 1]
        _, red = claim.judge(role="claim", score=score)
        assert "distance of the third from r^-3 by that from r^-2, at the last depth" in red

    def test_deep_scores_of_the_wrong_sign(self, claim):
        _, red = claim.judge(role="claim", deep_score=-claim.main.result.deep_score)
        assert "agreement of the third at infinite depth with r^-2, mean over seeds" in red


@pytest.mark.smoke_run_of(HADAMARD)
class TestHadamard:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_one_layer_off(self, claim):
        _, red = claim.judge(role="claim", prediction={"weights": claim.main.prediction.shifted})
        assert "error of the sum over layers from J J^T" in red
        assert "error of the part of a layer's matrix, largest" in red

    def test_a_single_entry_of_a_single_layer(self, claim):
        biases = claim.main.result.biases.copy()
        biases[0, 0, 0, 1, 2, 3] *= 1 + 1e-8
        _, red = claim.judge(role="claim", biases=biases)
        assert red == {"error of the part of a layer's bias, largest"}

    def test_a_part_that_is_not_positive(self, claim):
        weights = claim.main.prediction.weights
        _, red = claim.judge(role="claim", prediction={"weights": -weights})
        assert "smallest eigenvalue of a part by its largest in size" in red

    def test_half_precision(self, claim):
        single = claim.main.result.single.astype(np.float16)
        _, red = claim.judge(role="claim", single=single)
        assert red == {"error of the library's kernel in single precision"}

    def test_operations_saved_without_end(self, claim):
        """The library's way counted as the last product alone, and the Jacobian for free."""
        flops = claim.main.result.flops
        for factors in ((1, 0.1), (0.5, 1)):
            scaled = flops * np.array(factors)[:, None, None]
            _, red = claim.judge(role="claim", flops=scaled)
            assert "factor saved by (2 N + 5) / 4 at the largest width, fewest samples" in red
            assert len(red) >= 2


@pytest.mark.smoke_run_of(WIDTH)
class TestWidth:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_another_limit(self, claim):
        """Variances an eighth too large in every layer."""
        _, red = claim.judge(role="claim", prediction={"limit": 1.6 * claim.main.prediction.limit})
        assert "mean trace by the limit's, from 1, in standard errors, largest" in red
        assert "distance of the mean by that of one draw, at the largest width" in red
        assert "exponent of the distance" in red

    def test_no_fluctuation_is_lost_with_width(self, claim):
        kernel = np.repeat(claim.main.result.kernel[:, :1], 3, axis=1)
        _, red = claim.judge(role="claim", kernel=kernel)
        assert red == {"exponent of the distance"}

    def test_movement_of_one_width_at_all(self, claim):
        movement = np.repeat(claim.main.result.movement[:, :1], 2, axis=1)
        _, red = claim.judge(role="claim", movement=movement)
        assert red == {"exponent of the movement by that predicted"}
