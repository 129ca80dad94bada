"""Inverse Fishers, prunings, ranks and bases that are something else must turn their claims red."""

import numpy as np
import pytest

PRODUCTS = "theory_checks/curvature/mfac_exact_ihvp"
PRUNING = "theory_checks/curvature/mfac_obs_pruning"
COUNTS = "theory_checks/curvature/layer_degeneracy_count"
BASIS = "theory_checks/curvature/interaction_basis_invariance"
pytestmark = [pytest.mark.claims, pytest.mark.timeout(900)]


def changed(array, at, value):
    """Return a copy of an array with some of it replaced."""
    array = array.copy()
    array[at] = value
    return array


@pytest.mark.smoke_run_of(PRODUCTS)
class TestProducts:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_a_recursion_without_the_mean(self, claim):
        result = claim.main.result
        static = changed(result.static, np.s_[:, :, :, 0], result.unscaled)
        outcome, red = claim.judge(static=static)
        assert outcome == "fails"
        assert "error of the static recursion over ε κ, largest" in red

    def test_a_window_that_keeps_its_factor(self, claim):
        result = claim.main.result
        window = changed(result.window, np.s_[:, :, :, 1], result.stale)
        outcome, red = claim.judge(window=window)
        assert outcome == "fails"
        assert red == {"error of the window over ε κ, largest",
                       "relative error of either, largest"}  # fmt: skip

    def test_the_diagonal_of_another_damping(self, claim):
        diagonal = np.roll(claim.main.result.diagonal, 1, axis=2)
        assert claim.judge(diagonal=diagonal)[1] == {"error of the diagonal over ε κ, largest"}

    def test_an_error_that_only_large_condition_numbers_allow(self, claim):
        static = (1 + 1e-11) * claim.main.result.static
        assert claim.judge(static=static)[1] == {"error of the static recursion over ε κ, largest"}

    def test_less_than_single_precision(self, claim):
        """Three digits are left."""
        exact = claim.main.prediction.solution[:, :, :, 0]
        outcome, red = claim.judge(single=1.001 * exact)
        assert outcome == "fails"
        assert "error in single precision over its ε κ, largest" in red

    def test_a_build_that_forms_the_matrix(self, claim):
        flops = changed(claim.main.result.flops, np.s_[:, 0], 280**3)
        assert claim.judge(flops=flops)[1] == {
            "counts of operations unlike those predicted, largest share"
        }

    def test_controls_in_which_nothing_is_wrong(self, claim):
        exact = claim.main.prediction.solution
        fields = dict(stale=exact[:, :, :, 1], unscaled=exact[:, :, :, 0], single=exact[:, :, :, 0])
        assert claim.judge(**fields, role="control")[1] == {
            "Gaussian, least λ, x in the span: relative error in single precision",
            "Gaussian, newest gradient: relative error with the factor before it",
            "Gaussian, x in the span: relative error with no m in the denominators",
        }


@pytest.mark.smoke_run_of(PRUNING)
class TestPruning:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_a_removal_that_costs_a_little_more(self, claim):
        increase = changed(claim.main.result.increase, np.s_[:, 0, 7], 0)
        increase[:, 0, 7] = 1.00001 * claim.main.prediction.increase[:, 0, 7]
        assert claim.judge(increase=increase)[1] == {
            "rise of the loss by one removal over w²/(2 [F^-1]), distance from one"
        }

    def test_a_formula_without_the_others_moving(self, claim):
        """w² F / 2 in place of w² / (2 [F^-1])."""
        increase = 2 * claim.main.prediction.increase
        outcome, red = claim.judge(prediction={"increase": increase})
        assert outcome == "fails"
        assert "rise of the loss by one removal over w²/(2 [F^-1]), distance from one" in red

    def test_a_support_on_which_the_rest_is_not_best(self, claim):
        half = claim.main.result.half_optimal + 1e-6
        assert claim.judge(half_optimal=half)[1] == {
            "surgeon's half over the least loss on it, distance from one"
        }

    @pytest.mark.parametrize(("method", "how"), [(0, "by size"), (1, "by size and refitted")])
    def test_a_surgeon_no_better_than_others(self, claim, method, how):
        loss = claim.main.result.loss
        loss = changed(loss, np.s_[:, :, 3], loss[:, :, method])
        outcome, red = claim.judge(loss=loss)
        assert outcome == "fails"
        assert f"half removed {how}: log10 of the loss over the surgeon's, mean" in red

    def test_a_fisher_of_other_weights(self, claim):
        by_labels = np.roll(claim.main.result.by_labels, 1, axis=-1)
        red = claim.judge(by_labels=by_labels)[1]
        assert "rank correlation of removals by the labels' Fisher, even noise" in red

    def test_controls_with_the_mechanism(self, claim):
        result = claim.main.result
        loss = changed(result.loss, np.s_[:, 1], result.loss[:, 0])
        by_labels = changed(result.by_labels, np.s_[:, 3], result.by_labels[:, 2])
        increase = changed(claim.main.prediction.increase, np.s_[:, 3],
                           claim.main.prediction.increase[:, 2])  # fmt: skip
        red = claim.judge(
            loss=loss, by_labels=by_labels, prediction={"increase": increase}, role="control"
        )[1]
        assert {"whitened: log10 of the loss by any order over the surgeon's, largest",
                "two halves: rank correlation lost to uneven noise"} <= red  # fmt: skip


@pytest.mark.smoke_run_of(COUNTS)
class TestCounts:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_a_direction_that_moves_after_all(self, claim):
        spectrum = claim.main.result.spectrum
        flat = spectrum < 1e-9 * spectrum.max(axis=-1, keepdims=True)
        spectrum = np.where(flat, 1e-7, spectrum)
        outcome, red = claim.judge(spectrum=spectrum)
        assert outcome == "fails"
        assert red == {
            "flat directions of a layer, distance from I O - r_a r_g",
            "singular value within the rank over that beyond, first layer, least",
        }

    def test_ranks_that_are_added(self, claim):
        prediction = claim.main.prediction.flat.copy()
        ranks = np.add.outer(claim.main.config.activation_ranks, claim.main.config.gradient_ranks)
        prediction[..., 0] = 36 - ranks[..., None]
        assert claim.judge(prediction={"flat": prediction})[1] == {
            "flat directions of a layer, distance from I O - r_a r_g",
            "the same by the ranks that the library finds",
        }

    def test_a_library_that_is_one_off(self, claim):
        flat = changed(claim.main.result.flat, np.s_[2, 1, 1, 0, 0], 0)
        assert claim.judge(flat=flat)[1] == {"the same by the ranks that the library finds"}

    def test_a_loss_that_is_flat_in_its_layers_only(self, claim):
        """As if what two layers undo for each other were not counted, and one more moved."""
        hessian = claim.main.result.hessian
        values = np.sort(np.where(np.arange(hessian.shape[1]) < 14, 1e-6, hessian), axis=1)
        assert claim.judge(hessian=values)[1] == {
            "flat directions of the loss, distance from the count",
            "flat directions of the loss less those of its layers",
        }

    def test_relus_that_each_go_alone(self, claim):
        relu = claim.main.result.relu
        relu = changed(relu, np.s_[:, 1:], relu[:, :1])
        assert claim.judge(relu=relu)[1] == {
            "flat directions of the ReLUs, distance from the count"
        }

    def test_a_gap_that_closes_with_the_root_of_the_noise(self, claim):
        noisy = claim.main.result.noisy
        beyond = np.arange(noisy.shape[-1]) >= 12
        red = claim.judge(noisy=np.where(beyond, np.sqrt(noisy), noisy))[1]
        assert "exponent of the gap in the noise on the inputs" in red

    def test_a_gap_that_noise_does_not_close(self, claim):
        noisy = claim.main.result.noisy
        noisy = changed(noisy, np.s_[:, -1], noisy[:, 0])
        assert claim.judge(noisy=noisy)[1] == {"gap with noise of a tenth"}


@pytest.mark.smoke_run_of(BASIS)
class TestBasis:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_layers_that_change_places(self, claim):
        values = claim.main.result.values[:, :, :, ::-1]
        assert claim.judge(values=values)[1] == {
            "error of the spectrum by its largest value, largest"
        }

    def test_a_spectrum_that_moves_where_the_matrix_stretches(self, claim):
        result = claim.main.result
        stretch = np.array(claim.main.config.conditions)[:, None, None] ** 1e-6
        outcome, red = claim.judge(values=result.values * stretch)
        assert outcome == "fails"
        assert red == {"error of the spectrum by its largest value, largest"}

    def test_coordinates_that_turn(self, claim):
        agreement = changed(claim.main.result.agreement, np.s_[0, 0, 2, 1, 3], 0.999)
        assert claim.judge(agreement=agreement)[1] == {
            "1 - correlation of a coordinate with itself rewritten, largest"
        }

    def test_bases_that_change_places(self, claim):
        """Principal components under the name of the interaction basis, and the other way."""
        leakage = claim.main.result.leakage[..., [0, 2, 1], :]
        assert {"interaction basis: variance left by a coordinate's module, largest",
                "principal components, stretched: variance left by the module, mean"
                } <= claim.judge(leakage=leakage)[1]  # fmt: skip

    def test_edges_of_the_neurons(self, claim):
        result = claim.main.result
        edges = changed(result.edges, np.s_[:, :, :, 2], result.edges[:, :, :, 0])
        module = changed(result.module, np.s_[:, :, :, :, 2], result.module[:, :, :, :, 0])
        red = claim.judge(edges=edges, module=module)[1]
        assert "interaction basis: share of edges between modules" in red

    def test_coordinates_that_all_belong_to_one_module(self, claim):
        module = np.zeros_like(claim.main.result.module)
        assert claim.judge(module=module) == (
            "fails", {"interaction basis: coordinates of a module, distance from its units"}
        )  # fmt: skip

    def test_modules_where_there_are_none(self, claim):
        leakage = claim.main.result.leakage
        leakage = changed(leakage, np.s_[:, 1], leakage[:, 0])
        assert claim.judge(leakage=leakage)[1] == {
            "no modules: variance left by the better half, mean"
        }

    def test_components_that_mix_without_a_stretch(self, claim):
        leakage = claim.main.result.leakage
        leakage = changed(leakage, np.s_[:, :, 0, :, 1], leakage[:, :, 2, :, 1])
        assert claim.judge(leakage=leakage)[1] == {
            "principal components, only turned: variance left, largest"
        }
