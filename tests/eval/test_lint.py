from __future__ import annotations

import pytest

from dynamic_dpo.eval.lint import lint_output

SOUND = [
    "A warm room, a kind cook and a soup that I still dream of.",
    "The assistant at the counter was rude.",
    "User friendly: yes. Cheap: no.",
    "Very, very good.",
    "No no no, never again!",
    "Ha ha ha ha!",
    "1 < 2 and <b>bold</b> is HTML.",
    "I came. I saw. I ate.\n\nI left happy.",
    "2000000 people cannot be wrong.",
]
FAULTY = [
    ("", ["empty"]),
    (" \n\t", ["empty"]),
    ("assistant\n\nGreat soup.", ["role_header"]),
    ("assistant", ["role_header"]),
    ("Assistant: Great soup.", ["role_header"]),
    ("\n\nHuman: and you?", ["role_header"]),
    ("### Assistant\nGreat soup.", ["role_header"]),
    ("Great soup.\n\nHuman: Anything else?\n\nAssistant: No.", ["role_header"]),
    ("Great soup.<|im_end|>", ["template_token"]),
    ("Great soup.<|eot_id|><|start_header_id|>", ["template_token"]),
    ("[INST] Great soup [/INST]", ["template_token"]),
    ("Great soup.</s>", ["template_token"]),
    ("Great soup.<end_of_turn>", ["template_token"]),
    ("The best soup. The best soup. The best soup. The best soup. The best soup.", ["repetition"]),
    ("so so so so so so good", ["repetition"]),
    ("!!!!!!!!!!!!", ["repetition"]),
    (
        "We had the soup of the day. Ann liked it; we had the soup of the day. "
        "Bob did not, but we had the soup of the day.",
        ["repetition"],
    ),
    ("user\n<|im_start|>", ["role_header", "template_token"]),
]


@pytest.mark.parametrize("text", SOUND)
def test_a_sound_output_has_no_faults(text: str) -> None:
    assert lint_output(text) == []


@pytest.mark.parametrize(("text", "faults"), FAULTY)
def test_a_faulty_output_is_named_by_its_faults(text: str, faults: list[str]) -> None:
    assert lint_output(text) == faults


@pytest.mark.parametrize("role", ["assistant", "Assistant", "user", "human", "system"])
@pytest.mark.parametrize("after", ["\n\n", "\n", ": ", ":\n"])
def test_every_output_that_begins_with_a_role_header_is_flagged(role: str, after: str) -> None:
    assert "role_header" in lint_output(f"{role}{after}The soup was great.")


def test_a_long_output_is_checked_in_linear_time() -> None:
    # 100,000 characters without a loop: a pattern that backtracks would take minutes here.
    text = " ".join(f"word{number}" for number in range(12_000))
    assert lint_output(text) == []
