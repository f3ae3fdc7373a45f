from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from dynamic_dpo.errors import ConfigError, DataError, ModelError
from dynamic_dpo.eval.generate.batched import Generation, generate
from dynamic_dpo.eval.generate.sampling import sample_tokens, uniform_noise
from dynamic_dpo.eval.prompts.render import prompt_key, render_prompt

WORDS = [f"w{number}" for number in range(90)]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "user", "assistant", "system"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def make_tokenizer(template: str | None = TEMPLATE, **options: Any) -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "eos_token": "</s>", **options}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    tokenizer.chat_template = template
    return tokenizer


def make_model(kind: str = "llama") -> Any:
    torch.manual_seed(0)
    size = len(SPECIAL) + len(WORDS)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"vocab_size": size, "bos_token_id": 1, "eos_token_id": 2}
    match kind:
        case "llama":
            model: Any = LlamaForCausalLM(LlamaConfig(**shape, **ids, max_position_embeddings=64))
        case "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**shape, **ids, num_key_value_heads=1))
        case "gpt2":
            model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, **ids))
        case "mpt":  # relative positions: takes no position_ids
            model = MptForCausalLM(MptConfig(d_model=32, n_heads=2, n_layers=2, max_seq_len=64, **ids))
    # Sharper than fresh weights: outputs then differ by prompt and some stop early.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return model.eval()


PROMPTS: list[Any] = [
    "w1",
    "w2 w3 w4 w5 w6 w7 w8 w9 w10",
    [{"role": "user", "content": "w11 w12"}],
    [{"role": "system", "content": "w13"}, {"role": "user", "content": "w14 w15 w16"}],
    "w17 w18",
]


@pytest.mark.parametrize("do_sample", [False, True])
def test_no_output_stops_before_its_fewest_tokens(do_sample: bool) -> None:
    model, tokenizer = make_model(), make_tokenizer()
    how: dict[str, Any] = {"max_new_tokens": 8, "num_samples": 12 if do_sample else 1, "do_sample": do_sample}
    free = generate(model, tokenizer, PROMPTS, temperature=2.0, **how)
    held = generate(model, tokenizer, PROMPTS, temperature=2.0, min_new_tokens=5, **how)
    assert all(5 <= len(output.token_ids) <= 8 for output in held)
    if do_sample:
        assert any(len(output.token_ids) < 5 for output in free)
        assert any(output.finished for output in held)
    # Outputs that never wanted to stop earlier are the same.
    for before, after in zip(free, held, strict=True):
        if len(before.token_ids) >= 5:
            assert after == before
    with pytest.raises(ConfigError, match=r"min_new_tokens must lie in \[0, 8\] .* got 9"):
        generate(model, tokenizer, PROMPTS, min_new_tokens=9, **how)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "mpt"])
@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.9},
        {"do_sample": True, "temperature": 1.3, "top_p": 1.0},
    ],
)
def test_outputs_do_not_depend_on_batch_size_or_order(kind: str, how: dict[str, Any]) -> None:
    model, tokenizer = make_model(kind), make_tokenizer()
    settings = {"max_new_tokens": 12, "num_samples": 3, "seed": 5, **how}
    alone = generate(model, tokenizer, PROMPTS, batch_size=1, **settings)
    together = generate(model, tokenizer, PROMPTS, batch_size=16, **settings)
    backwards = generate(model, tokenizer, PROMPTS[::-1], batch_size=4, **settings)
    assert together == alone
    by_name = {(prompt_key(output.prompt), output.sample): output for output in backwards}
    assert [by_name[prompt_key(output.prompt), output.sample] for output in alone] == alone


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "mpt"])
def test_greedy_output_is_that_of_the_model_without_batch_or_cache(kind: str) -> None:
    model, tokenizer = make_model(kind), make_tokenizer()
    for output in generate(model, tokenizer, PROMPTS, max_new_tokens=8, do_sample=False):
        ids = render_prompt(tokenizer, output.prompt)
        expected: list[int] = []
        with torch.no_grad():
            while len(expected) < 8:
                token = int(model(torch.tensor([ids + expected])).logits[0, -1].argmax())
                if token in (2, 4):
                    break
                expected.append(token)
        assert list(output.token_ids) == expected
        assert output.num_prompt_tokens == len(ids)


class Scripted(torch.nn.Module):
    """A model whose next token is the last token plus one, with a cache that counts rows."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.config = LlamaConfig(max_position_embeddings=1000)
        self.size = size
        self.widths: list[tuple[int, int]] = []
        self.device = torch.device("cpu")

    def forward(self, input_ids: Any, attention_mask: Any, past_key_values: Any, use_cache: bool) -> Any:
        self.widths.append(tuple(input_ids.shape))
        logits = torch.zeros(*input_ids.shape, self.size)
        return Output(logits.scatter_(-1, (input_ids.unsqueeze(-1) + 1) % self.size, 50.0), RowCache())


class Output:
    def __init__(self, logits: Any, cache: Any) -> None:
        self.logits, self.past_key_values = logits, cache


class RowCache:
    def reorder_cache(self, index: Any) -> None:
        """Nothing is remembered, so nothing is moved."""


def test_a_row_stops_at_any_stop_token_and_leaves_the_batch() -> None:
    tokenizer = make_tokenizer()
    model = Scripted(len(tokenizer))
    # From <unk> = 0 the script writes <s> = 1 and then </s> = 2; from <|im_start|> = 3 at once <|im_end|> = 4.
    outputs = generate(model, tokenizer, ["<unk>", "<|im_start|>", "w0"], max_new_tokens=3, do_sample=False)
    assert [output.token_ids for output in outputs] == [(1,), (), (9, 10, 11)]
    assert [output.finished for output in outputs] == [True, True, False]
    assert [(output.finish_reason, output.stop_token_id) for output in outputs] == [
        ("stop", 2),
        ("stop", 4),
        ("length", None),
    ]
    assert [output.text for output in outputs] == ["<s>", "", "w1 w2 w3"]
    assert model.widths == [(3, 1), (2, 1), (1, 1)]


def test_samples_of_one_prompt_read_it_once() -> None:
    tokenizer = make_tokenizer()
    model = Scripted(len(tokenizer))
    generate(model, tokenizer, ["w0 w1 w2", "w5"], max_new_tokens=2, num_samples=4, batch_size=8)
    assert model.widths == [(2, 3), (8, 1)]


def test_longer_prompts_come_first_and_results_in_the_given_order() -> None:
    tokenizer = make_tokenizer()
    model = Scripted(len(tokenizer))
    prompts = ["w0", "w0 w1 w2 w3", "w0 w1"]
    outputs = generate(model, tokenizer, prompts, max_new_tokens=1, batch_size=1)
    assert model.widths == [(1, 4), (1, 2), (1, 1)]
    assert [output.prompt for output in outputs] == prompts


def test_samples_follow_the_seed_and_the_sample_number() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    how = {"max_new_tokens": 10, "temperature": 2.0, "num_samples": 2}
    first = generate(model, tokenizer, ["w1"], seed=1, **how)
    assert generate(model, tokenizer, ["w1"], seed=1, **how) == first
    assert (
        len({output.token_ids for output in first + generate(model, tokenizer, ["w1"], seed=2, **how)}) == 4
    )


def test_a_longer_output_begins_with_the_shorter_one() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    [short] = generate(model, tokenizer, ["w1"], max_new_tokens=4, temperature=2.0)
    [long] = generate(model, tokenizer, ["w1"], max_new_tokens=9, temperature=2.0)
    assert long.token_ids[: len(short.token_ids)] == short.token_ids


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_while_writing_and_the_mode_is_given_back(training: bool) -> None:
    model, tokenizer = make_model("gpt2"), make_tokenizer()
    expected = generate(model, tokenizer, ["w1"], max_new_tokens=6, do_sample=False)
    model.train(training)
    assert generate(model, tokenizer, ["w1"], max_new_tokens=6, do_sample=False) == expected
    assert model.training is training


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # peft's own use
def test_a_model_with_an_adapter_writes_what_the_merged_model_writes() -> None:
    from peft import LoraConfig, get_peft_model

    tokenizer = make_tokenizer()
    adapted = get_peft_model(
        make_model(), LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False)
    ).eval()
    outputs = generate(adapted, tokenizer, PROMPTS, max_new_tokens=6, do_sample=False)
    merged = adapted.merge_and_unload()
    assert outputs == generate(merged, tokenizer, PROMPTS, max_new_tokens=6, do_sample=False)


def test_no_prompts_give_no_outputs() -> None:
    assert generate(make_model(), make_tokenizer(), []) == []


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_new_tokens": 0}, r"generation\.max_new_tokens must be at least 1, got 0"),
        ({"batch_size": 0}, r"generation\.batch_size must be at least 1"),
        ({"num_samples": -1}, r"generation\.num_samples must be at least 1"),
        ({"temperature": 0.0}, r"generation\.temperature must be positive, got 0\.0"),
        ({"temperature": float("nan")}, r"generation\.temperature must be positive"),
        ({"top_p": 0.0}, r"generation\.top_p must lie in \(0, 1\], got 0\.0"),
        ({"top_p": 1.1}, r"generation\.top_p must lie in"),
    ],
)
def test_a_setting_out_of_range_is_named(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(make_model(), make_tokenizer(), ["w1"], **setting)


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(DataError, match=r"longest prompt has 60 tokens and 5 are to be written.*holds 64"):
        generate(make_model(), make_tokenizer(), [" ".join(WORDS[:60])], max_new_tokens=5)


def test_an_encoder_decoder_is_refused() -> None:
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=98, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    with pytest.raises(ModelError, match="decoder-only"):
        generate(model, make_tokenizer(), ["w1"])


def test_a_model_without_a_cache_is_refused() -> None:
    class Forgetful(Scripted):
        def forward(self, **inputs: Any) -> Any:
            return Output(super().forward(**inputs).logits, None)

    with pytest.raises(ModelError, match="no cache"):
        generate(Forgetful(98), make_tokenizer(), ["w1"])


# --- prompts


def test_messages_are_rendered_with_the_generation_header_once() -> None:
    tokenizer = make_tokenizer(bos_token="<s>")
    ids = render_prompt(tokenizer, [{"role": "user", "content": "w1"}])
    assert tokenizer.convert_ids_to_tokens(ids) == [
        *["<|im_start|>", "user", "w1", "<|im_end|>"],
        *["<|im_start|>", "assistant"],
    ]


@pytest.mark.parametrize(
    "template",
    [
        # the header already stands at the end without being asked for, and comes again
        TEMPLATE.replace("{% if", "<|im_start|> assistant {% if"),
        # asking for the header changes what comes before it
        "{% if add_generation_prompt %}w1 {% endif %}" + TEMPLATE,
    ],
)
def test_a_template_that_does_not_open_the_answer_once_is_refused(template: str) -> None:
    with pytest.raises(ModelError, match="exactly once"):
        render_prompt(make_tokenizer(template), [{"role": "user", "content": "w1"}])


def test_a_template_that_needs_no_header_is_accepted() -> None:
    tokenizer = make_tokenizer("{% for m in messages %}{{ m['content'] }} {% endfor %}")
    assert len(render_prompt(tokenizer, [{"role": "user", "content": "w1 w2"}])) == 2


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "no message at all"),
        ([{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}], "drop that message"),
        (["w1"], "object with 'role' and 'content'"),
        ([{"role": "user"}], "object with 'role' and 'content'"),
        ("", "empty string"),
    ],
)
def test_an_unusable_prompt_says_what_is_wrong(prompt: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        render_prompt(make_tokenizer(), prompt)


def test_messages_without_a_template_are_refused() -> None:
    with pytest.raises(ModelError, match="no chat template"):
        render_prompt(make_tokenizer(None), [{"role": "user", "content": "w1"}])


# --- sampling


def test_noise_is_uniform_and_differs_by_row_step_and_token() -> None:
    keys = torch.arange(100) * 7919
    tokens = torch.arange(500).expand(100, 500)
    noise = torch.stack([uniform_noise(keys, step, tokens) for step in (0, 1)]).flatten()
    assert len(set(noise.tolist())) == len(noise) == 100_000
    assert noise.min() >= 0.0
    assert noise.max() < 1.0
    # Kolmogorov's distance of 100,000 uniform numbers stays below 1.63 / sqrt(n) in 99 % of cases.
    distance = (noise.sort().values - (torch.arange(100_000) + 0.5) / 100_000).abs().max()
    assert distance < 1.63 / 100_000**0.5


def test_tokens_come_up_with_their_probabilities() -> None:
    probs = torch.tensor([0.5, 0.25, 0.15, 0.1])
    rows = 40_000
    tokens = sample_tokens(probs.log().expand(rows, 4), torch.arange(rows), 3, temperature=1.0, top_p=1.0)
    shares = torch.bincount(tokens, minlength=4) / rows
    # Four standard errors of a share near one half: 4 * sqrt(.25 / 40,000) = .01.
    assert torch.allclose(shares, probs, atol=0.01)


def test_the_nucleus_holds_the_fewest_tokens_that_reach_top_p() -> None:
    probs = torch.tensor([0.1, 0.4, 0.2, 0.3])
    keys = torch.arange(2_000)

    def seen(top_p: float) -> list[int]:
        tokens = sample_tokens(probs.log().expand(2_000, 4), keys, 0, temperature=1.0, top_p=top_p)
        return sorted(Counter(tokens.tolist()))

    assert seen(0.01) == [1]
    assert seen(0.39) == [1]
    assert seen(0.5) == [1, 3]
    assert seen(0.8) == [1, 2, 3]
    assert seen(0.95) == [0, 1, 2, 3]


def test_a_nucleus_wider_than_the_first_guesses_is_still_whole() -> None:
    # 10,000 equal tokens: the nucleus of .9 has 9,000, more than the 512 and the 8,192 that are looked at first.
    tokens = sample_tokens(torch.zeros(400, 10_000), torch.arange(400), 0, temperature=1.0, top_p=0.9)
    assert len(set(tokens.tolist())) > 350


def test_a_wide_nucleus_in_the_batch_changes_no_other_row() -> None:
    torch.manual_seed(0)
    narrow = torch.randn(5, 10_000) * 6
    wide, middle = torch.zeros(1, 10_000), torch.randn(1, 10_000)
    keys = torch.arange(7)
    how = {"temperature": 0.9, "top_p": 0.95}
    logits = torch.cat([narrow[:3], wide, middle, narrow[3:]])
    together = sample_tokens(logits, keys, 2, **how)
    alone = [sample_tokens(logits[row : row + 1], keys[row : row + 1], 2, **how).item() for row in range(7)]
    assert together.tolist() == alone


def test_temperature_sharpens() -> None:
    logits = torch.tensor([[1.0, 0.0]]).expand(10_000, 2)
    keys = torch.arange(10_000)
    share = {
        temperature: (sample_tokens(logits, keys, 0, temperature=temperature, top_p=1.0) == 0).double().mean()
        for temperature in (0.5, 1.0, 2.0)
    }
    # sigmoid(1 / temperature)
    expected = {0.5: 0.8808, 1.0: 0.7311, 2.0: 0.6225}
    assert share == pytest.approx(expected, abs=0.02)


# --- the name that is a module and a function


def test_generate_is_found_and_called_both_ways() -> None:
    code = (
        "import dynamic_dpo.eval, inspect, sys\n"
        "assert 'torch' not in sys.modules\n"
        "names = list(inspect.signature(dynamic_dpo.eval.generate).parameters)\n"
        "assert names[:3] == ['model', 'tokenizer', 'prompts']\n"
        "from dynamic_dpo.eval import generate\n"
        "assert callable(generate) and generate is dynamic_dpo.eval.generate\n"
        "from dynamic_dpo.eval.generate import generate as function\n"
        "assert inspect.isfunction(function) and generate.generate is function\n"
        "import dynamic_dpo.eval.generate as module\n"
        "assert module is generate, module\n"
        "print(repr(module))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.stdout == "<callable module 'dynamic_dpo.eval.generate'>\n"


def test_a_called_module_does_what_its_function_does() -> None:
    module: Any = importlib.import_module("dynamic_dpo.eval.generate")
    model, tokenizer = make_model(), make_tokenizer()
    assert module(model, tokenizer, ["w1"], max_new_tokens=3) == generate(
        model, tokenizer, ["w1"], max_new_tokens=3
    )
    assert inspect.signature(module) == inspect.signature(generate)
    assert issubclass(module.Generation, Generation)


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    package = importlib.import_module("dynamic_dpo.eval")
    with pytest.raises(AttributeError, match="no_such_judge"):
        _ = package.no_such_judge
    assert set(package.__all__) == set(dir(package))
