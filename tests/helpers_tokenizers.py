"""Small tokenizers of the kinds in use, trained on a few sentences in a few milliseconds."""

from __future__ import annotations

from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "\n\nHuman: What is the capital of France?\n\nAssistant: The capital of France is Paris.",
    "\n\nHuman: Tell me a story.\n\nAssistant: Once upon a time there was a small house.\n\nIt was blue.",
    "user assistant system you are a helpful assistant. Today it is a good day, isn't it? 12 345 67890",
    "It is great, it is green, the sky is blue. Don't say that! I'll answer: yes... no?",
]
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STYLES = ("gpt2", "gpt2-digits", "llama3", "qwen2", "metaspace", "unknown-pattern", "prefix-space")


def _byte_level(style: str) -> pre_tokenizers.PreTokenizer:
    pattern = {
        "llama3": LLAMA3_PATTERN,
        "qwen2": LLAMA3_PATTERN.replace("{1,3}", ""),
        "unknown-pattern": r"[a-z\n]+!|\n|[a-z]+|[^a-z]",
    }.get(style)
    if pattern:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        return pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=style == "prefix-space")
    if style == "gpt2-digits":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    return byte_level


@cache
def _trained(style: str) -> str:
    backend = Tokenizer(models.BPE(byte_fallback=False))
    if style == "metaspace":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Replace("▁", " ")
    else:
        backend.pre_tokenizer = _byte_level(style)
        backend.decoder = decoders.ByteLevel()
    if style == "qwen2":
        backend.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return str(backend.to_str())


def make_tokenizer(
    style: str = "gpt2",
    *,
    bos: bool = False,
    eos: str | None = "</s>",
    chat_template: str | None = None,
    adds_eos: bool = False,
) -> PreTrainedTokenizerFast:
    """Return a tokenizer without pad token.

    Args:
        style: One of ``STYLES``.
        bos: Put ``<s>`` before each text.
        eos: The eos token, or None.
        chat_template: Its template.
        adds_eos: Put eos behind each text, as some tokenizers do.
    """
    backend = Tokenizer.from_str(_trained(style))
    if bos or adds_eos:
        parts = [*(["<s>"] if bos else []), "$A", *(["</s>"] if adds_eos else [])]
        backend.post_processor = processors.TemplateProcessing(
            single=" ".join(parts), special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>" if bos else None, eos_token=eos
    )
    tokenizer.chat_template = chat_template
    return tokenizer
