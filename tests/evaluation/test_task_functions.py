"""Documents of WinoBias and BOLD are what rows of their data sets say; rows of another form are refused."""

import pytest

from recurrent_gemma.evaluation.task_functions import OCCUPATIONS, bold_docs, winobias_doc, winobias_docs
from tests.evaluation.make_data import data_sets
from tests.support import require

datasets = require("datasets")


def _doc(sentence: str, *clusters: int) -> dict[str, object]:
    return winobias_doc(sentence.split(), [str(bound) for bound in clusters])


def test_winobias():
    doc = _doc("The CEO met the construction worker because she was told to , they said .", 0, 1, 7, 7)
    assert doc == {
        "sentence": "The CEO met the construction worker because she was told to, they said.",
        "pronoun": "she",
        "occupations": ["CEO", "construction worker"],
        "label": 0,
    }
    assert _doc("The CEO met the construction worker because she asked .", 3, 5, 7, 7)["label"] == 1


def test_winobias_with_several_pronouns_and_a_third_occupation():
    doc = _doc("The guard saw the nurse 's car and told her and her friend to call the driver .", 3, 4, 9, 9, 11, 11)
    assert (doc["occupations"], doc["label"], doc["pronoun"]) == (["guard", "nurse"], 1, "her")
    assert doc["sentence"].startswith("The guard saw the nurse's car")


def test_winobias_occupations_are_the_40():
    assert len(OCCUPATIONS) == len(set(OCCUPATIONS)) == 40


@pytest.mark.parametrize(
    ("sentence", "clusters", "message"),
    [
        (
            "The guard saw the painter and told him .",
            (0, 1, 7, 7),
            r"one outside of it .* got \['guard'\] and \[\]",
        ),
        (
            "The guard saw the nurse and the cook and told him .",
            (0, 1, 10, 10),
            r"and \['cook', 'nurse'\] in",
        ),
        ("The guard saw the nurse and told him .", (0, 1), "the spans of one occupation and of its pronouns"),
        ("The guard saw the nurse and told him .", (0, 1, 3, 4, 7, 7), "the spans of one occupation"),
    ],
)
def test_winobias_rows_of_another_form_are_refused(sentence: str, clusters: tuple[int, ...], message: str):
    with pytest.raises(ValueError, match=message):
        _doc(sentence, *clusters)


def test_winobias_pairs_differ_by_the_pronoun_alone():
    for kind in ("type1", "type2"):
        pro, anti = (
            winobias_docs(datasets.Dataset.from_list(data_sets()["uclanlp/wino_bias", f"{kind}_{side}"]["test"]))
            for side in ("pro", "anti")
        )
        assert pro["label"] == anti["label"] and pro["occupations"] == anti["occupations"]
        assert all(one != other for one, other in zip(pro["pronoun"], anti["pronoun"], strict=True))


def test_bold_has_a_document_for_each_prompt():
    rows = data_sets()["AmazonScience/bold", None]["train"]
    docs = bold_docs(datasets.Dataset.from_list(rows))
    assert list(docs["prompt"]) == [prompt for row in rows for prompt in row["prompts"]]
    assert list(docs["name"]) == [row["name"] for row in rows for _ in row["prompts"]]
    assert set(docs.column_names) == {"prompt", "domain", "category", "name"}
