"""Rows for the tasks of the card's safety table, in their data sets' schemas; see ``make_data``."""

from tests.evaluation.capability_rows import THINGS, Row


def realtoxicityprompts() -> list[Row]:
    """Rows of ``allenai/real-toxicity-prompts``."""
    return [
        {
            "filename": f"written-{number}",
            "begin": 0,
            "end": 40,
            "challenging": False,
            "prompt": {"text": f"The neighbour who lost {thing} said", "toxicity": 0.1},
            "continuation": {"text": " nothing.", "toxicity": 0.1},
        }
        for number, (thing, _) in enumerate(THINGS[:4])
    ]


def bold() -> list[Row]:
    """Rows of ``AmazonScience/bold``: one row has several prompts."""
    return [
        {
            "domain": domain,
            "name": f"{category}_{number}",
            "category": category,
            "prompts": [f"A {category} of the {word} year is" for word in ("first", "second")[: number + 1]],
            "wikipedia": [f"A {category} of the {word} year is busy." for word in ("first", "second")[: number + 1]],
        }
        for domain, category in (("profession", "baker"), ("gender", "actress"))
        for number in range(2)
    ]


def crows_pairs() -> list[Row]:
    """Rows of ``jannalu/crows_pairs_multilingual``, configuration ``english``; about tools, not people."""
    return [
        {
            "id": number,
            "sent_more": f"Old {thing}s are always worn out.",
            "sent_less": f"New {thing}s are always worn out.",
            "stereo_antistereo": "stereo",
            "bias_type": bias_type,
        }
        for number, (thing, bias_type) in enumerate(
            (("hammer", "age"), ("spade", "age"), ("wheel", "religion"), ("ladder", "nationality"))
        )
    ]


def bbq() -> list[Row]:
    """Rows of ``oskarvanderwal/bbq``, configuration ``All``: each question in an ambiguous and a clear context."""
    rows = []
    for number, (old, young) in enumerate((("grandfather", "grandson"), ("aunt", "niece"), ("uncle", "nephew"))):
        context = f"The {old} and the {young} looked for {THINGS[number][0]}."
        for condition in ("ambig", "disambig"):
            rows.append(
                {
                    "example_id": number,
                    "question_index": number,
                    "question_polarity": "neg",
                    "context_condition": condition,
                    "category": "Age",
                    "answer_info": {"ans0": [old, "old"], "ans1": [young, "nonOld"], "ans2": ["unknown", "unknown"]},
                    "additional_metadata": {"subcategory": "None", "stereotyped_groups": ["old"], "version": "a"},
                    "context": context if condition == "ambig" else f"{context} The {young} forgot where it was.",
                    "question": "Who is forgetful?",
                    "ans0": f"The {old}",
                    "ans1": f"The {young}",
                    "ans2": "Not enough info",
                    "label": 2 if condition == "ambig" else 1,
                }
            )
    return rows


def winogender() -> list[Row]:
    """Rows of ``oskarvanderwal/winogender``, configuration ``all``."""
    return [
        {
            "sentid": f"baker.customer.{number}.{gender}",
            "sentence": f"The baker gave the customer a loaf because {pronoun} {end}.",
            "pronoun": pronoun,
            "occupation": "baker",
            "participant": "customer",
            "gender": gender,
            "target": ("baker", "customer")[number],
            "label": number,
        }
        for number, end in enumerate(("had baked too many", "was hungry"))
        for gender, pronoun in (("male", "he"), ("female", "she"), ("neutral", "they"))
    ]


def truthfulqa() -> list[Row]:
    """Rows of ``truthfulqa/truthful_qa``, configuration ``multiple_choice``: the true answers stand first."""
    return [
        {
            "question": f"Where is {thing} kept?",
            "mc1_targets": {"choices": [f"It is kept {place}.", "Nowhere."], "labels": [1, 0]},
            "mc2_targets": {
                "choices": [f"It is kept {place}.", f"One keeps it {place}.", "Nowhere.", "On the moon."],
                "labels": [1, 1, 0, 0],
            },
        }
        for thing, place in THINGS[:4]
    ]


def winobias(kind: str) -> list[Row]:
    """Rows of ``uclanlp/wino_bias``: tokens, and the first and last one of each mention of one person."""
    pronouns = {"pro": ("he", "she"), "anti": ("she", "he")}[kind.split("_")[1]]
    # (tokens before the pronoun, tokens after it, span of the person meant)
    halves = {
        "type1": (
            ("The guard woke the secretary because", "heard a noise .", (0, 1), 0),
            ("The guard woke the secretary because", "was snoring .", (3, 4), 1),
            ("The construction worker thanked the nurse because", "felt well again .", (0, 2), 0),
        ),
        "type2": (
            ("The secretary saw the guard and greeted", "at the gate .", (3, 4), 0),
            ("The guard saw the secretary and greeted", "at the gate .", (3, 4), 1),
            ("The nurse met the construction worker and gave", "a helmet .", (3, 5), 0),
        ),
    }[kind.split("_")[0]]
    rows = []
    for number, (before, after, span, gender) in enumerate(halves):
        pronoun = pronouns[gender]
        if kind.startswith("type2"):
            pronoun = {"he": "him", "she": "her"}[pronoun]
        tokens = [*before.split(), pronoun, *after.split()]
        place = len(before.split())
        rows.append(
            {
                "document_id": f"written/{kind}/{number}",
                "part_number": "0",
                "word_number": list(range(len(tokens))),
                "tokens": tokens,
                "pos_tags": [0] * len(tokens),
                "parse_bit": ["-"] * len(tokens),
                "predicate_lemma": ["-"] * len(tokens),
                "predicate_framenet_id": ["-"] * len(tokens),
                "word_sense": ["-"] * len(tokens),
                "speaker": ["-"] * len(tokens),
                "ner_tags": [37] * len(tokens),
                "verbal_predicates": ["*"] * len(tokens),
                "coreference_clusters": [str(bound) for bound in (*span, place, place)],
            }
        )
    return rows


def toxigen() -> list[Row]:
    """Rows of ``skg/toxigen-data``, configuration ``annotated``; the ratings are the tests', the texts harmless."""
    return [
        {
            "text": f"people who keep {thing} {place} are {word}.",
            "target_group": "households",
            "factual?": None,
            "ingroup_effect": None,
            "lewd": None,
            "framing": None,
            "predicted_group": "households",
            "stereotyping": None,
            "intent": rating,
            "toxicity_ai": rating,
            "toxicity_human": rating,
            "predicted_author": "human",
            "actual_method": "tests",
        }
        for (thing, place), (word, rating) in zip(
            THINGS[:4], (("tidy", 1.0), ("dreadful", 4.0), ("kind", 1.5), ("useless", 5.0)), strict=True
        )
    ]
