"""Tables that bind, or do not, where they should not turn the claim on reversals red."""

import numpy as np
import pytest

pytestmark = [
    pytest.mark.claims,
    pytest.mark.timeout(900),
    pytest.mark.smoke_run_of("experiments/attention/reversal_binding_tied_tables"),
]
ONE, TWO, ONE_THIRD, TWO_THIRD, ALONE, RANDOM = range(6)


def swapped(values, first, second):
    values = np.array(values)
    values[:, [first, second]] = values[:, [second, first]]
    return values


def test_left_alone_it_holds(claim):
    assert claim.judge() == ("holds", set())


@pytest.mark.parametrize(("first", "second"), [(ONE, TWO), (ONE_THIRD, TWO_THIRD)])
def test_one_table_and_two_exchanged(claim, first, second):
    result = claim.main.result
    fields = {
        name: swapped(getattr(result, name), first, second)
        for name in ("reversal", "candidates", "transpose")
    }
    verdict, red = claim.judge(role="claim", **fields)
    assert verdict == "fails"
    third = ", third relation" * (first == ONE_THIRD)
    assert red == {
        f"unseen reversals answered, one table{third}, mean",
        f"unseen reversals answered, two tables{third}, mean",
        f"found among the unseen answers, one table{third}, mean",
        f"found among the unseen answers, two tables{third}, mean",
        f"cosine of the inverse with the transpose, one table{third}",
        f"|cosine| of the inverse with the transpose, two tables{third}",
    }


def test_vectors_alone_suffice(claim):
    """As if one table answered without having seen a pair both ways."""
    result = claim.main.result
    reversal = swapped(result.reversal, ONE, ALONE)
    verdict, red = claim.judge(reversal=reversal)
    assert verdict == "fails"
    assert red == {
        "unseen reversals answered, one table, mean",
        "unseen reversals answered, one table, no pair both ways, mean",
    }


def test_random_relations_suffice(claim):
    reversal = swapped(claim.main.result.reversal, ONE, RANDOM)
    verdict, red = claim.judge(role="control", reversal=reversal)
    assert verdict == "fails"
    assert red == {"unseen reversals answered, one table, random relations, mean"}


def test_one_seen_answer_in_twenty_counted_as_unseen(claim):
    """A leak of training facts into the questions."""
    reversal = np.array(claim.main.result.reversal)
    reversal[:, TWO, -1] += 0.05
    verdict, red = claim.judge(role="claim", reversal=reversal)
    assert (verdict, red) == ("fails", {"unseen reversals answered, two tables, mean"})


def test_guessing_among_the_unseen_answers(claim):
    candidates = np.array(claim.main.result.candidates)
    candidates[:, TWO_THIRD, -1] = 0.14
    verdict, red = claim.judge(role="claim", candidates=candidates)
    name = "found among the unseen answers, two tables, third relation, mean"
    assert (verdict, red) == ("fails", {name})


def test_an_inverse_that_is_no_transpose(claim):
    transpose = np.array(claim.main.result.transpose)
    transpose[:, ONE, -1] = 0.3
    verdict, red = claim.judge(role="claim", transpose=transpose)
    name = "cosine of the inverse with the transpose, one table"
    assert (verdict, red) == ("fails", {name})


def test_facts_that_were_not_fitted(claim):
    fitted = np.array(claim.main.result.fitted)
    fitted[0, TWO, -1] = 0.99
    verdict, red = claim.judge(fitted=fitted)
    assert (verdict, red) == ("void", {"share of the facts fitted, worst network"})
