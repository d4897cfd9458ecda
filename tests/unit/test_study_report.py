"""What the page and the terminal say about a study, and what they say is missing."""

from __future__ import annotations

from dataclasses import replace

from fetal_core.markup import page
from fetal_core.metrics import Predictions
from fetal_core.study import (
    StudyResult,
    TrialPredictions,
    compare,
)
from fetal_core.study_config import Hypothesis, StudyConfig
from fetal_core.study_report import study_lines, study_notes, study_section, verdict_sentence
from study_samples import (
    SEARCH,
    STUDY,
    answers,
    part,
    sweep,
)


def test_an_arm_without_complete_settings_leaves_its_hypotheses_undecided() -> None:
    trials = [replace(one, status="failed") if one.number in (5, 7) else one for one in sweep()]
    result = compare(trials, SEARCH, STUDY, answers({"deep": 0.8, "wide": 0.7}))
    found = result.hypotheses[0]
    assert [arm.name for arm in result.arms] == ["deep"]
    assert (found.verdict, found.difference, found.interval) == ("undecided", None, None)
    sentence = "Undecided: no settings of wide have finished with all their seeds."
    assert verdict_sentence(result, found) == sentence
    assert sentence in study_section(result)
    empty = compare([], SEARCH, STUDY, {})
    assert empty.arms == ()
    assert "deep and wide" in empty.hypotheses[0].reason
    assert "deep and wide" in "\n".join(study_lines(empty))


def test_a_sweep_without_a_seed_parameter_has_one_trial_a_candidate() -> None:
    search = SEARCH.model_copy(update={"space": {}})
    trials = [
        replace(one, assignment={"optim.lr": one.assignment["optim.lr"]})
        for one in sweep()
        if one.number % 2 == 0
    ]
    result = compare(trials, search, STUDY, answers({"deep": 0.9, "wide": 0.6}))
    assert [arm.seeds for arm in result.arms] == [(None,), (None,)]
    assert result.arms[0].figures["accuracy"].deviation is None
    sentence = verdict_sentence(result, result.hypotheses[0])
    assert "1 seed)" in sentence
    assert "chance of the training" in sentence


def test_no_interval_from_fewer_than_five_patients() -> None:
    found = answers({"deep": 0.95, "wide": 0.5}, patients=4)
    result = compare(sweep(), SEARCH, STUDY, found)
    assert (result.hypotheses[0].verdict, result.hypotheses[0].interval) == ("undecided", None)
    sentence = verdict_sentence(result, result.hypotheses[0])
    assert sentence.startswith("Undecided: deep's validation accuracy is ")
    assert sentence.endswith("but 4 patients are too few for an interval.")


def test_notes_tell_how_settings_were_chosen() -> None:
    found = answers({"deep": 0.8, "wide": 0.7})
    notes = " ".join(study_notes(compare(sweep(), SEARCH, STUDY, found)))
    assert "chosen on the validation images that it is compared on" in notes
    assert "equally many candidates to choose from (2 each)" in notes
    assert "not with other seeds" in notes
    assert "wide: the best optim.lr = 0.1 is at the end" in notes
    trials = [replace(one, status="failed") if one.number == 4 else one for one in sweep()]
    notes = " ".join(study_notes(compare(trials, SEARCH, STUDY, found)))
    assert "did not have equally many candidates to choose from (deep 2, wide 1)" in notes
    assert "wide: 1 of 2 candidates are left out" in notes


def sample_result() -> StudyResult:
    study = StudyConfig(
        hypotheses=tuple(
            Hypothesis(claim=f"Claim <{measure}>.", arm="deep", other="wide", measure=measure)
            for measure in ("accuracy", "macro_f1", "gap")
        )
    )
    return compare(sweep(), SEARCH, study, answers({"deep": 0.9, "wide": 0.7}))


def test_sentence_gives_difference_interval_and_seeds() -> None:
    result = sample_result()
    accuracy = result.hypotheses[0]
    assert accuracy.difference is not None
    assert accuracy.interval is not None
    low, high = (f"{100 * end:.1f}" for end in accuracy.interval)
    sentence = verdict_sentence(result, accuracy).replace("\N{NO-BREAK SPACE}", " ")
    assert sentence == (
        f"Supported: deep's validation accuracy is {100 * accuracy.difference:.1f} points above "
        f"wide's (95 % interval {low} to {high} by patient, 2 seeds)."
    )


def test_section_escapes_and_holds_every_figure() -> None:
    result = sample_result()
    text = study_section(result)
    assert "Claim &lt;accuracy&gt;" in text
    assert "<accuracy>" not in text
    for arm in result.arms:
        assert f"{100 * arm.figures['accuracy'].mean:.1f}\N{NO-BREAK SPACE}%" in text
    for found in result.hypotheses:
        assert verdict_sentence(result, found).replace("'", "&#x27;") in text
    assert text in page("Sweep", "", [text])


def test_lines_hold_arms_claims_and_verdicts() -> None:
    result = sample_result()
    lines = "\n".join(study_lines(result))
    for found in result.hypotheses:
        assert found.hypothesis.claim in lines
        assert verdict_sentence(result, found) in lines
    for arm in result.arms:
        assert f"{arm.name}: accuracy" in lines


def test_a_difference_within_the_scatter_of_seeds_is_told() -> None:
    found = answers({"deep": 0.95, "wide": 0.6})
    for number, skill in ((2, 0.99), (3, 0.5), (6, 0.3), (7, 0.6)):
        found[number] = replace(found[number], val=part(skill, number))
    result = compare(sweep(), SEARCH, STUDY, found)
    assert result.hypotheses[0].verdict == "supported"
    assert "But the seeds scatter as much" in verdict_sentence(result, result.hypotheses[0])


def test_images_without_patients_are_told() -> None:
    found = {
        number: TrialPredictions(*(without_patients(p) for p in (one.val, one.train)))
        for number, one in answers({"deep": 0.9, "wide": 0.6}).items()
    }
    result = compare(sweep(), SEARCH, STUDY, found)
    assert (result.unit, result.patients) == ("image", 160)
    assert "by image" in verdict_sentence(result, result.hypotheses[0])
    assert "intervals are too narrow" in " ".join(study_notes(result))


def without_patients(predictions: Predictions) -> Predictions:
    return replace(predictions, patients=(None,) * len(predictions))
