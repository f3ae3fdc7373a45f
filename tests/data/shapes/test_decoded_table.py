"""Forty rows as they are published, and what a model is given of each: decoded, with what is not scored in brackets.

A turn is written ``role> text /``, where ``/`` is the template's stop token; ``think``, ``call`` and ``tools`` are
how the table's template writes reasoning, calls and tools.
"""

from __future__ import annotations

from typing import Any

import pytest

from dynamic_dpo.data.preference import to_preference_pairs
from dynamic_dpo.data.shapes.options import ShapeOptions
from dynamic_dpo.data.tokenize import tokenize_pairs
from helpers_tokenizers import make_tokenizer

TEMPLATE = (
    "{% if tools %}<|im_start|>system\ntools{% for t in tools %} {{ t['function']['name'] }}{% endfor %}<|im_end|>\n"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m.get('reasoning_content') %}think {{ m['reasoning_content'] }}. {% endif %}{{ m['content'] }}"
    "{% for c in m.get('tool_calls') or [] %}call {{ c['function']['name'] }}{% endfor %}"
    "{% if m.get('tool_call_id') %} for {{ m['tool_call_id'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def tool(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": text, **more}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def ranked(*ranks: float, key: str = "rank") -> list[dict[str, Any]]:
    return [{"answer": text, key: rank} for text, rank in zip(("yes", "so so", "no"), ranks, strict=True)]


SKY, YES, NO = "blue?", "yes", "no"
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
LOOK = {"type": "function", "function": {"name": "look"}}
HH = "\n\nHuman: blue?\n\nAssistant: "
BEFORE = [user("Hi"), bot("Hello"), user(SKY)]
ASKED, ANSWERED, DENIED = "user> blue? / assistant> ", "yes /", "no /"
TALKED = "user> Hi / assistant> Hello / user> blue? / assistant> "
BRIEF = "system> short / "

TABLE: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("trl text", {"prompt": SKY, "chosen": YES, "rejected": NO}, ASKED, ANSWERED, DENIED),
    ("trl messages", {"prompt": [user(SKY)], "chosen": [bot(YES)], "rejected": [bot(NO)]}, ASKED, ANSWERED, DENIED),
    ("implicit prompt", {"chosen": [user(SKY), bot(YES)], "rejected": [user(SKY), bot(NO)]}, ASKED, ANSWERED, DENIED),
    ("hh", {"chosen": HH + YES, "rejected": HH + NO}, ASKED, ANSWERED, DENIED),
    ("orca", {"system": "short", "question": SKY, "chosen": YES, "rejected": NO}, BRIEF + ASKED, ANSWERED, DENIED),
    ("orca without system", {"system": "", "question": SKY, "chosen": YES, "rejected": NO}, ASKED, ANSWERED, DENIED),
    ("orca, blank system", {"system": "\u200b", "question": SKY, "chosen": YES, "rejected": NO},
     ASKED, ANSWERED, DENIED),
    ("system beside hh", {"system": "short", "chosen": HH + YES, "rejected": HH + NO},
     BRIEF + ASKED, ANSWERED, DENIED),
    ("system_prompt", {"system_prompt": "short", "prompt": [user(SKY)], "chosen": [bot(YES)], "rejected": [bot(NO)]},
     BRIEF + ASKED, ANSWERED, DENIED),
    ("system twice", {"system": "short", "prompt": [system("short"), user(SKY)], "chosen": YES, "rejected": NO},
     BRIEF + ASKED, ANSWERED, DENIED),
    ("argilla", {"input": SKY, "generations": [NO, YES], "rating": [2, 9]}, ASKED, ANSWERED, DENIED),
    ("argilla with a pair", {"input": SKY, "chosen": YES, "rejected": NO, "rating": [9, 2]}, ASKED, ANSWERED, DENIED),
    ("instruction and input", {"instruction": "say", "input": SKY, "chosen": YES, "rejected": NO},
     "user> say\nblue? / assistant> ", ANSWERED, DENIED),
    ("ultrafeedback binarized", {"prompt": SKY, "chosen": [user(SKY), bot(YES)], "rejected": [user(SKY), bot(NO)],
                                 "score_chosen": 8.0, "score_rejected": 1.0}, ASKED, ANSWERED, DENIED),
    ("ultrafeedback", {"instruction": SKY, "completions": [{"response": NO, "overall_score": 1.5},
                                                           {"response": YES, "overall_score": 8.0}]},
     ASKED, ANSWERED, DENIED),
    ("helpsteer2, first better", {"prompt": SKY, "response_1": YES, "response_2": NO, "preference_strength": -3},
     ASKED, ANSWERED, DENIED),
    ("helpsteer2, second better", {"prompt": SKY, "response_1": NO, "response_2": YES, "preference_strength": 2},
     ASKED, ANSWERED, DENIED),
    ("helpsteer3", {"context": BEFORE, "response1": NO, "response2": YES, "overall_preference": 1},
     TALKED, ANSWERED, DENIED),
    ("sharegpt", {"conversations": [{"from": "human", "value": SKY}], "chosen": {"from": "gpt", "value": YES},
                  "rejected": {"from": "gpt", "value": NO}}, ASKED, ANSWERED, DENIED),
    ("sharegpt, system", {"conversations": [{"from": "system", "value": "short"}, {"from": "human", "value": SKY}],
                              "chosen": {"from": "gpt", "value": YES}, "rejected": {"from": "gpt", "value": NO}},
     BRIEF + ASKED, ANSWERED, DENIED),
    ("nectar", {"prompt": HH, "answers": ranked(1, 2, 3)}, ASKED, ANSWERED, DENIED),
    ("nectar turned round", {"prompt": HH, "answers": ranked(3, 2, 1)}, ASKED, DENIED, ANSWERED),
    ("nectar, three-way tie below", {"prompt": HH, "answers": ranked(1, 2, 2)}, ASKED, ANSWERED, DENIED),
    ("scored answers", {"prompt": SKY, "answers": ranked(9, 5, 1, key="score")}, ASKED, ANSWERED, DENIED),
    ("arena, a", {"conversation_a": [*BEFORE, bot(YES)], "conversation_b": [*BEFORE, bot(NO)], "winner": "model_a"},
     TALKED, ANSWERED, DENIED),
    ("arena, b", {"conversation_a": [*BEFORE, bot(NO)], "conversation_b": [*BEFORE, bot(YES)], "winner": "model_b"},
     TALKED, ANSWERED, DENIED),
    ("arena, two turns", {"conversation_a": [user("Hi"), bot("Hello"), user(SKY), bot(YES)],
                          "conversation_b": [user("Hi"), bot("What?"), user(SKY), bot(NO)], "winner": "model_a"},
     "user> Hi / assistant> ", "Hello /[ user> blue? / assistant> ]yes /", "What? /[ user> blue? / assistant> ]no /"),
    ("rollout", {"prompt_messages": [user(SKY)], "chosen": YES, "rejected": NO, "metadata": {"gap": 1}},
     ASKED, ANSWERED, DENIED),
    ("a user's turn behind", {"chosen": [user(SKY), bot(YES), user("thanks")],
                              "rejected": [user(SKY), bot(NO), user("thanks")]}, ASKED, ANSWERED, DENIED),
    ("a tool's turn behind", {"prompt": [user(SKY)], "chosen": [bot(YES), tool("ok")], "rejected": [bot(NO)]},
     ASKED, ANSWERED, DENIED),
    ("a user's turn within", {"prompt": [user(SKY)], "chosen": [bot("well"), user("so?"), bot(YES)],
                              "rejected": [bot(NO)]}, ASKED, "well /[ user> so? / assistant> ]yes /", DENIED),
    ("a system turn within", {"prompt": [user(SKY)], "chosen": [bot(YES)],
                              "rejected": [bot("well"), system("short"), bot(NO)]},
     ASKED, ANSWERED, "well /[ system> short / assistant> ]no /"),
    ("tools", {"prompt": [user(SKY)], "tools": [LOOK], "chosen": [bot(YES)], "rejected": [bot(NO)]},
     "system> tools look / " + ASKED, ANSWERED, DENIED),
    ("tools as JSON", {"prompt": [user(SKY)], "tools": '[{"function": {"name": "look"}}]', "chosen": [bot(YES)],
                       "rejected": [bot(NO)]}, "system> tools look / " + ASKED, ANSWERED, DENIED),
    ("a call alone", {"prompt": [user(SKY)], "chosen": [bot(None, tool_calls=[CALL])], "rejected": [bot(NO)]},
     ASKED, "call look /", DENIED),
    ("a call and its result", {"prompt": [user(SKY)], "rejected": [bot(NO)],
                               "chosen": [bot("", tool_calls=[CALL]), tool("it is", tool_call_id="c1"), bot(YES)]},
     ASKED, "call look /[ tool> it is for c1 / assistant> ]yes /", DENIED),
    ("a call in the prompt", {"prompt": [user(SKY), bot("", tool_calls=[CALL]), tool("it is")], "chosen": [bot(YES)],
                              "rejected": [bot(NO)]},
     "user> blue? / assistant> call look / tool> it is / assistant> ", ANSWERED, DENIED),
    ("reasoning", {"prompt": [user(SKY)], "chosen": [bot(YES, reasoning_content="look up")], "rejected": [bot(NO)]},
     ASKED, "think look up. yes /", DENIED),
    ("reasoning and a call", {"prompt": [user(SKY)], "chosen": [bot("", reasoning_content="hm", tool_calls=[CALL])],
                              "rejected": [bot(NO)]}, ASKED, "think hm. call look /", DENIED),
    ("named columns", {"ask": SKY, "good": YES, "bad": NO, "rules": "short"}, BRIEF + ASKED, ANSWERED, DENIED),
]  # fmt: skip
NAMED = ShapeOptions({"prompt": "ask", "chosen": "good", "rejected": "bad", "system": "rules"})


def shown(tokenizer: Any, ids: list[int], mask: list[int] | None) -> str:
    parts, last = [], 1
    for token, scored in zip(ids, mask or [1] * len(ids), strict=True):
        if scored != last:
            parts.append("[" if last else "]")
            last = scored
        parts.append(tokenizer.convert_ids_to_tokens(token))
    text = tokenizer.backend_tokenizer.decoder.decode(parts) + ("" if last else "]")
    return text.replace("<|im_end|>", " /").replace("\n<|im_start|>", " ").replace("<|im_start|>", "")


def readable(text: str) -> str:
    for role in ("user", "assistant", "system", "tool"):
        text = text.replace(f"{role}\n", f"{role}> ")
    return text


def test_the_table_has_forty_rows() -> None:
    assert len(TABLE) == len({name for name, *_ in TABLE}) == 40


@pytest.mark.parametrize(
    ("row", "prompt", "chosen", "rejected"), [case[1:] for case in TABLE], ids=[case[0] for case in TABLE]
)
def test_a_row_is_given_to_the_model_as_the_table_says(
    row: dict[str, Any], prompt: str, chosen: str, rejected: str
) -> None:
    tokenizer = make_tokenizer(chat_template=TEMPLATE)
    options = NAMED if "ask" in row else ShapeOptions()
    pairs, quarantine = to_preference_pairs([row], chat_template=True, options=options)
    [found] = tokenize_pairs(pairs, tokenizer, quarantine=quarantine).dataset
    assert readable(shown(tokenizer, found["prompt_ids"], None)) == prompt
    assert readable(shown(tokenizer, found["chosen_ids"], found.get("chosen_mask"))) == chosen
    assert readable(shown(tokenizer, found["rejected_ids"], found.get("rejected_mask"))) == rejected
