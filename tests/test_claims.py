"""Verdicts on claims, from rows whose differences are planted."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from rumlib.lab import claims
from rumlib.stats import equivalence, paired

NOISE = (-0.01, 0.0, 0.01, 0.005, -0.005)


def rows(difference, noise=NOISE, **more):
    """A is that much better than B, but for the noise of the seeds."""
    return pd.DataFrame([{"algorithm": name, "seed": seed, "tow": 0.5 + (name == "A") * (difference + e), **more}
                         for name in "AB" for seed, e in enumerate(noise)])


def said(found, claim="C2", **more):
    return claims.compare(found, claim, "A - B", {"algorithm": "A"}, {"algorithm": "B"}, **more)


# "C2" claims a larger value, "C5b" the same, "C6" one that is no worse; the margin is 0.02.
@pytest.mark.parametrize("claim, difference, noise, verdict", [
    ("C2", 0.1, NOISE, "holds"), ("C2", -0.1, NOISE, "opposite"), ("C2", 0.0, NOISE, "equivalent"),
    ("C2", 0.03, (-0.1, 0.1, 0.0), "inconclusive"), ("C2", 0.1, (0.0,), "inconclusive"),
    ("C2", 0.01, (-1e-4, 1e-4, 0.0), "equivalent"),          # significant, and nothing that matters
    ("C2", -0.01, (-1e-4, 1e-4, 0.0), "equivalent"),
    ("C5b", 0.0, NOISE, "holds"), ("C5b", 0.1, NOISE, "opposite"), ("C5b", -0.1, NOISE, "opposite"),
    ("C5b", 0.0, (-0.1, 0.1, 0.0), "inconclusive"), ("C5b", 0.01, (-1e-4, 1e-4, 0.0), "holds"),
    ("C6", 0.1, NOISE, "holds"), ("C6", -0.001, NOISE, "holds"), ("C6", -0.1, NOISE, "opposite"),
    ("C6", 0.03, (-0.02, 0.02, 0.0), "holds"),               # surely above -0.02
    ("C6", -0.015, (-0.1, 0.1, 0.0), "inconclusive"), ("C6", -0.01, (-1e-4, 1e-4, 0.0), "holds")])
def test_planted_differences_have_their_verdict(claim, difference, noise, verdict):
    assert said(rows(difference, noise), claim)["verdict"] == verdict


def test_a_comparison_is_the_t_test_of_the_paired_differences():
    found = said(rows(0.03))
    known = ttest_1samp([0.03 + e for e in NOISE], 0).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((known.low, known.high))
    assert found["mean"] == pytest.approx(0.03) and found["n"] == 5
    harder = ttest_1samp([0.03 + e for e in NOISE], claims.MARGIN, alternative="less").pvalue
    assert found["p"] == pytest.approx(harder)


def test_smaller_values_can_be_the_better_ones():
    found = rows(-0.1).rename(columns={"tow": "gap"})
    assert said(found, of="gap")["verdict"] == "opposite" and said(found, of="gap", sign=-1)["verdict"] == "holds"


def test_looks_and_examples_of_both_sides_stand_beside_the_verdict():
    found = rows(0.1)
    found["looks"], found["examples"] = found["algorithm"].map({"A": 6, "B": 12}), range(10)
    assert {name: value for name, value in said(found).items() if name.startswith(("looks", "examples"))} == {
        "looks_first": 6, "looks_second": 12, "examples_first": 2, "examples_second": 7}
    assert not [name for name in said(rows(0.1)) if name.startswith(("looks", "examples"))]


def test_an_unknown_claim_and_seeds_without_a_partner_are_refused():
    with pytest.raises(KeyError, match="C99"):
        said(rows(0.1), "C99")
    with pytest.raises(ValueError, match="needs the same ones"):
        said(rows(0.1).iloc[1:])


def test_every_verdict_follows_the_one_rule_of_the_differences():
    for differences in ([0.1, 0.11], [-0.1, -0.11], [0.01, 0.0101], [-0.01, -0.0101], [0.3, -0.1], [0.05, 0.05, 0.06]):
        word = equivalence(differences, claims.MARGIN)["verdict"]
        for kind, means in claims.MEANS.items():
            known = means.get(word, word)
            assert claims.verdict(kind, differences)["verdict"] in (known, "holds" if kind == "no worse" else known)


def test_the_same_models_on_both_sides_are_not_testable():
    same = rows(0.0, (0.0, 0.0)).assign(test=[0.7, 0.8, 0.7, 0.8])
    assert said(same)["verdict"] == "not testable"
    assert said(same.assign(seconds=range(4)))["verdict"] == "not testable"         # no share: what it took may differ
    assert said(same.assign(test=[0.7, 0.8, 0.7, 0.9]))["verdict"] == "equivalent"  # other models, as good
    assert claims.stated("C9", "none forgotten", [0.0, 0.0], testable=False)["verdict"] == "not testable"
    table = claims.counted([said(same), said(rows(0.1)), {**said(same), "claim": "C1"}])
    assert table["whole claim"].to_dict() == {"C2": "holds", "C1": "not testable"}
    assert claims.tally(table.loc["C2"]) == "1 of 1 hold, 1 not testable"
    assert claims.told("C1", table.loc["C1"]) == '**C1**, "ToW falls as entanglement rises": not testable (1 compared).'


@pytest.mark.parametrize("counts, word", [
    ((5, 0, 0, 4), "holds"), ((4, 4, 0, 0), "inconclusive"), ((0, 0, 3, 2), "does not hold"),
    ((1, 3, 0, 4), "inconclusive"), ((0, 3, 0, 5), "does not hold"), ((0, 1, 0, 3), "inconclusive"),
    ((0, 1, 0, 0), "does not hold"), ((0, 0, 0, 9), "inconclusive"), ((0, 0, 0, 0), "not testable")])
def test_the_word_for_a_whole_claim(counts, word):
    assert claims.whole(dict(zip(claims.VERDICTS, counts, strict=True))) == word


def test_differences_that_are_no_selection_of_rows_are_judged_alike():
    found = rows(0.1)
    differences = paired(found, {"algorithm": "A"}, {"algorithm": "B"}, "tow")
    stated, compared = claims.stated("C2", "A - B", differences), said(found)
    assert stated == {name: compared[name] for name in stated}


def test_claims_are_counted_and_hold_in_most():
    found = [said(rows(d), claim) for claim, differences in (("C2", (0.1, 0.1, -0.1)), ("C1", (0.1, -0.1)), (
        "C5b", (0.0,))) for d in differences]
    table = claims.counted(found)
    assert list(table.index) == ["C2", "C1", "C5b"]
    assert table[["holds", "opposite", "equivalent", "inconclusive"]].to_numpy().tolist() == [
        [2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert table["whole claim"].tolist() == ["holds", "inconclusive", "holds"]
    assert table.loc["C2", "text"] == claims.CLAIMS["C2"].text


def test_a_page_holds_as_many_comparisons_as_can_be_read():
    found = pd.DataFrame([{"claim": claim, "what": k, "n": 5} for claim, count in (("C1", 3), ("C2", 2), ("C4", 7))
                          for k in range(count)] + [{"claim": "C1", "what": "a single seed", "n": 1}])
    pages = claims.pages(found, ["C2", "C1", "C9", "C4"], most=5)
    assert [page["claim"].tolist() for page in pages] == [["C2"] * 2 + ["C1"] * 3, ["C4"] * 3, ["C4"] * 4]
    assert [k for page in pages for k in page["what"]] == [0, 1, 0, 1, 2, *range(7)]


def test_a_claim_is_told_as_it_was_counted():
    found = [said(rows(d), "C2") for d in (0.1, -0.1, 0.0)]
    assert claims.told("C2", claims.counted(found).loc["C2"]) == (
        '**C2**, "ToW falls as memorization rises": **does not hold** (1 of 3 hold, 1 opposite, 1 equivalent).')


def test_a_notebook_without_comparisons_leaves_the_numbers_of_the_others_numbers(tmp_path):
    study = SimpleNamespace(figures=tmp_path, profile=SimpleNamespace(name="mine", includes=lambda name: True))
    claims.save(study, [said(rows(0.1))], "one")
    claims.save(study, [], "two")
    found = claims.gathered(study, ["one", "two"])
    assert found["notebook"].tolist() == ["one"] and found["mean"].dtype == float
    with pytest.raises(FileNotFoundError, match=r"at profile 'mine' first: three \(claims_three.csv\)"):
        claims.gathered(study, ["one", "three"])


def test_every_figure_that_stands_for_one_of_a_paper_is_saved_by_the_notebook_beside_it():
    folder = Path(__file__).parents[1] / "notebooks"
    cells = json.loads((folder / "14_claims.ipynb").read_text())["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    lines = [line.split("|") for line in text.splitlines() if re.match(r"\| .*\]\(\d\d_\w+\.ipynb\).*\|$", line)]
    assert len(lines) >= 30
    for line in lines:
        sources = "".join((folder / name).read_text() for name in re.findall(r"\]\((\w+\.ipynb)\)", line[3]))
        assert not [name for name in re.findall(r"`(\w+)`", line[4]) if f'\\"{name}\\"' not in sources], line


def test_a_single_seed_says_nothing():
    found = said(rows(0.1, (0.0,)))
    assert math.isnan(found["low"]) and math.isnan(found["p"]) and found["n"] == 1
