"""vLLM as an engine, against a double that takes the names that vLLM 0.33.0 takes and no others."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dynamic_dpo.errors import ConfigError, ModelError
from dynamic_dpo.eval.generate.engines import open_engine
from dynamic_dpo.eval.generate.settings import GenerationSettings
from dynamic_dpo.models.adapters import find_model
from tiny import tiny_llama, word_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w91 {% endif %}"
)
ASKED = [[{"role": "user", "content": "w0"}], [{"role": "user", "content": "w1"}]]

# The names of LLM(...), of SamplingParams(...), and of what the first hands on to EngineArgs, as far as it concerns
# generation; from the sources of vLLM 0.33.0.
LLM_TAKES = """
    model runner convert tokenizer tokenizer_mode skip_tokenizer_init trust_remote_code allowed_local_media_path
    allowed_media_domains tensor_parallel_size dtype quantization revision tokenizer_revision chat_template seed
    gpu_memory_utilization cpu_offload_gb offload_group_size offload_num_in_group offload_prefetch_step offload_params
    enforce_eager enable_return_routed_experts return_sampling_mask disable_custom_all_reduce hf_token hf_overrides
    mm_processor_kwargs pooler_config structured_outputs_config profiler_config attention_config kv_cache_memory_bytes
    compilation_config quantization_config logits_processors spec_method spec_model spec_tokens
    max_model_len max_num_seqs enable_lora max_lora_rank max_loras generation_config disable_log_stats
"""
SAMPLING_TAKES = """
    n presence_penalty frequency_penalty repetition_penalty temperature watermarking top_p top_k min_p seed stop
    stop_token_ids ignore_eos max_tokens min_tokens logprobs prompt_logprobs detokenize skip_special_tokens
    spaces_between_special_tokens include_stop_str_in_output output_kind
"""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
MODEL_LENGTH = 64


def taken(allowed: str, options: dict[str, Any]) -> dict[str, Any]:
    if unknown := options.keys() - set(allowed.split()):
        raise TypeError(f"unexpected keyword arguments {sorted(unknown)}")
    return options


class Double:
    """What was asked of vLLM, and the package that answers."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.prompts: list[Any] = []
        self.sampling: list[Any] = []
        self.lora: Any = None
        self.ended: list[float | None] = []
        self.fault: Exception | None = None

    def modules(self) -> dict[str, ModuleType]:
        seen = self

        class EngineCore:
            def shutdown(self, timeout: float | None = None) -> None:
                seen.ended.append(timeout)

        class LLM:
            def __init__(self, model: str, **options: Any) -> None:
                seen.options = taken(LLM_TAKES, {"model": model, **options})
                if seen.fault:
                    raise seen.fault
                length = options.get("max_model_len")
                if length != -1 and not 1 <= length <= MODEL_LENGTH:
                    raise ValueError(f"max_model_len ({length}) is greater than the derived max_model_len")
                assert options.get("max_lora_rank", 16) in LORA_RANKS
                config = SimpleNamespace(max_model_len=MODEL_LENGTH if length == -1 else length)
                self.llm_engine = SimpleNamespace(model_config=config, engine_core=EngineCore())

            def generate(
                self,
                prompts: Any,
                sampling_params: Any = None,
                *,
                use_tqdm: bool = True,
                lora_request: Any = None,
                priority: Any = None,
                tokenization_kwargs: Any = None,
                mm_processor_kwargs: Any = None,
            ) -> list[Any]:
                assert len(sampling_params) == len(prompts)
                seen.prompts, seen.sampling, seen.lora = prompts, sampling_params, lora_request
                # Every second output ends by itself, with the stop token in its ids, as vLLM gives them.
                return [
                    SimpleNamespace(
                        outputs=[
                            SimpleNamespace(
                                token_ids=[7, 8, *([2] if n % 2 else [])],
                                finish_reason="stop" if n % 2 else "length",
                            )
                        ]
                    )
                    for n in range(len(prompts))
                ]

        def sampling_params(**options: Any) -> SimpleNamespace:
            return SimpleNamespace(**taken(SAMPLING_TAKES, options))

        def lora_request(lora_name: str, lora_int_id: int, lora_path: str = "") -> tuple[str, int, str]:
            assert lora_int_id >= 1
            assert lora_path
            return lora_name, lora_int_id, lora_path

        package, request = ModuleType("vllm"), ModuleType("vllm.lora.request")
        package.LLM, package.SamplingParams = LLM, sampling_params  # type: ignore[attr-defined]
        request.LoRARequest = lora_request  # type: ignore[attr-defined]
        return {"vllm": package, "vllm.lora": ModuleType("vllm.lora"), "vllm.lora.request": request}


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Double:
    double = Double()
    for name, module in double.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("dynamic_dpo.eval.generate.vllm.pick_device", lambda name, **_: "cuda")
    return double


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(folder)
    word_tokenizer(template=TEMPLATE).save_pretrained(folder)
    return folder


def settings(**values: Any) -> GenerationSettings:
    return GenerationSettings(**{"engine": "vllm", "max_new_tokens": 6, "num_samples": 2, **values})


def adapter(folder: Path, model: Path, rank: int, **more: Any) -> Path:
    text = json.dumps({"base_model_name_or_path": str(model), "r": rank, **more})
    (folder / "adapter_config.json").write_text(text)
    return folder


def test_vllm_is_given_ids_and_a_seed_for_each_output(model: Path, double: Double) -> None:
    engine = open_engine(find_model(str(model)), settings(tensor_parallel_size=2, min_new_tokens=3))
    outputs = engine.write(ASKED)
    assert [(o.finish_reason, o.stop_token_id) for o in outputs[:2]] == [("length", None), ("stop", 2)]
    assert double.prompts[0] == {"prompt_token_ids": [4, 95]}  # w0, and w91 of the template's end
    assert [(o.sample, o.finished, o.token_ids, o.text) for o in outputs[:2]] == [
        (0, False, (7, 8), "w3 w4"),
        (1, True, (7, 8), "w3 w4"),
    ]
    assert len({params.seed for params in double.sampling}) == 4
    assert all(0 <= params.seed < 2**63 and params.max_tokens == 6 for params in double.sampling)
    assert double.sampling[0].stop_token_ids == [2]
    assert double.sampling[0].min_tokens == 3
    assert (double.options["tensor_parallel_size"], double.options["dtype"]) == (2, "bfloat16")
    assert double.options["generation_config"] == "vllm"
    assert engine.max_length == MODEL_LENGTH
    engine.close()


def test_the_most_likely_token_is_taken_without_a_seed(model: Path, double: Double) -> None:
    open_engine(find_model(str(model)), settings(temperature=0, num_samples=1)).write(ASKED[:1])
    [params] = double.sampling
    assert (params.temperature, params.seed) == (0.0, None)


def test_length_memory_and_quantisation_are_the_settings(model: Path, double: Double) -> None:
    names = ("max_model_len", "gpu_memory_utilization", "quantization", "enforce_eager")
    open_engine(find_model(str(model)), settings())
    # -1 is vLLM's word for the model's own length, or as much of it as the memory holds.
    assert [double.options[name] for name in names] == [-1, 0.9, None, False]
    chosen = {
        "max_model_len": 32,
        "gpu_memory_utilization": 0.5,
        "quantization": "fp8",
        "enforce_eager": True,
    }
    engine = open_engine(find_model(str(model)), settings(**chosen))
    assert {name: double.options[name] for name in names} == chosen
    assert engine.max_length == 32


def test_closing_ends_vllms_processes_once_and_waits(model: Path, double: Double) -> None:
    engine = open_engine(find_model(str(model)), settings())
    engine.close()
    engine.close()
    [seconds] = double.ended
    assert seconds is not None
    assert seconds >= 30


def test_what_vllm_refuses_names_the_model_and_its_reason(model: Path, double: Double) -> None:
    with pytest.raises(ModelError, match=rf"vLLM cannot load {model}: max_model_len \(65\) is greater"):
        open_engine(find_model(str(model)), settings(max_model_len=65))
    double.fault = RuntimeError("Engine core initialization failed. See root cause above.")
    with pytest.raises(ModelError, match="Engine core initialization failed"):
        open_engine(find_model(str(model)), settings())


def test_an_adapter_gets_a_rank_that_vllm_provides_for(model: Path, tmp_path: Path, double: Double) -> None:
    found = find_model(str(adapter(tmp_path, model, 12, rank_pattern={"q_proj": 20})))
    open_engine(found, settings()).write(ASKED[:1])
    assert (double.options["enable_lora"], double.options["max_lora_rank"]) == (True, 32)
    assert double.lora == (tmp_path.name, 1, str(tmp_path))


def test_vllm_that_cannot_be_used_is_a_setting_to_change(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = find_model(str(model))
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"pip install 'dynamic-dpo\[vllm\]'"):
        open_engine(files, settings(device="cpu"))
    for name, module in Double().modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(ConfigError, match="needs a CUDA device, got cpu"):
        open_engine(files, settings(device="cpu"))
    monkeypatch.setattr("dynamic_dpo.eval.generate.vllm.pick_device", lambda name, **_: name)
    with pytest.raises(
        ConfigError, match=r"device is cuda:1, but vLLM takes the first.*CUDA_VISIBLE_DEVICES"
    ):
        open_engine(files, settings(device="cuda:1"))
    with pytest.raises(ConfigError, match="has rank 1024, and vLLM takes adapters up to rank 512"):
        open_engine(find_model(str(adapter(tmp_path, model, 1024))), settings(device="cuda"))
    gguf = files._replace(base=files.base.__class__("m", str(model), "m.gguf"))
    with pytest.raises(ConfigError, match=r"is a \.gguf file"):
        open_engine(gguf, settings())
