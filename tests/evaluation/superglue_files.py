"""SuperGLUE's seven formats in small, every line made here."""

import json

LINES = {
    "BoolQ": {
        "question": "is water wet",
        "passage": "Water wets what it touches.",
        "idx": 0,
        "label": True,
    },
    "CB": {
        "premise": "He said that she left.",
        "hypothesis": "She left.",
        "label": "neutral",
        "idx": 0,
    },
    "COPA": {
        "premise": "The cup fell.",
        "choice1": "It broke.",
        "choice2": "It flew.",
        "question": "effect",
        "label": 0,
        "idx": 0,
    },
    "MultiRC": {
        "idx": 0,
        "version": 1.1,
        "passage": {
            "text": "Ann sings. Bob reads.",
            "questions": [
                {
                    "question": "Who sings?",
                    "idx": 0,
                    "answers": [
                        {"text": "Ann", "idx": 0, "label": 1},
                        {"text": "Bob", "idx": 1, "label": 0},
                    ],
                },
                {
                    "question": "Who reads?",
                    "idx": 1,
                    "answers": [{"text": "Bob", "idx": 2, "label": 1}],
                },
            ],
        },
    },
    "RTE": {
        "premise": "Ann has two cats.",
        "hypothesis": "Ann has a cat.",
        "label": "entailment",
        "idx": 0,
    },
    "WiC": {
        "word": "bank",
        "sentence1": "The bank lends.",
        "sentence2": "On a river bank",
        "idx": 0,
        "label": False,
        "start1": 4,
        "end1": 8,
        "start2": 11,
        "end2": 15,
        "version": 1.1,
    },
    "WSC": {
        "text": "Ann thanked Eve because she  had helped.",
        "target": {
            "span1_index": 2,
            "span1_text": "Eve",
            "span2_index": 4,
            "span2_text": "she",
        },
        "idx": 0,
        "label": True,
    },
}


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_learnable(folder, size=12, val_size=8):
    """CB and COPA whose answer one word gives away."""
    labels = "entailment", "contradiction", "neutral"
    words = "red", "green", "blue"
    for split, count in (("train", size), ("val", val_size)):
        cb = [
            {
                "premise": f"It is {words[i % 3]} here.",
                "hypothesis": f"Number {i}.",
                "label": labels[i % 3],
                "idx": i,
            }
            for i in range(count)
        ]
        copa = [
            {
                "premise": f"Case {i}.",
                "choice1": ("good", "bad")[i % 2],
                "choice2": ("bad", "good")[i % 2],
                "question": ("cause", "effect")[i // 2 % 2],
                "label": i % 2,
                "idx": i,
            }
            for i in range(count)
        ]
        write(folder / "CB" / f"{split}.jsonl", cb)
        write(folder / "COPA" / f"{split}.jsonl", copa)
