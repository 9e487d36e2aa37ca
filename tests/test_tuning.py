"""Tunings: what trains, what that does to the model, and what becomes of it when it is published or saved."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import pytest
import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from rl.config import LoraConfig, Shape, TinyConfig
from rl.export import export_policy
from rl.policy import lora_config
from rl.sequences import lay_out
from rl.sft_config import SftModelConfig, Tuning
from rl.tiny import build
from rl.tuning import ADAPTER, TunedPolicy
from rl.zero import PolicyStream, add_label_tokens
from rollout.chat import Example
from rollout.tokenizer import train_tokenizer
from rollout.types import Dialogue, Speaker, Turn
from tests.tiny import EXPERTS, TARGETS

M = TypeVar("M", bound=nn.Module)
SHAPES: tuple[Shape, ...] = ("gpt2", "mixtral")
DENSE_TOO: tuple[Shape, ...] = ("gpt2", "mixtral", "mistral")  # whose feed-forward has modules that ia3 scales
TUNINGS: tuple[Tuning, ...] = get_args(Tuning)
PROMPTED: tuple[Tuning, ...] = ("prefix", "prompt")
ADAPTED: tuple[Tuning, ...] = ("lora", "ia3", "ln")
EVERY = [(shape, tuning) for shape in SHAPES for tuning in TUNINGS if (shape, tuning) != ("mixtral", "bitfit")]
WORDS = Dialogue("d", tuple(Turn(Speaker.CLIENT, chr(letter)) for letter in range(97, 123)))
TOKENIZER = train_tokenizer([WORDS], 300)
END = 3
EXAMPLES = [
    Example((7, 20, 31, 44, 5, 260, 3), (False, False, False, True, True, True, True)),
    Example((9, 8, 100, 3), (False, False, True, True)),
    Example((50, 51, 52, 53, 54, 55), (False, True, True, False, False, True)),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bases() -> dict[Shape, PreTrainedModel]:
    """A model of each shape in which no weight, bias or scale is at its initial 0 or 1."""
    torch.manual_seed(0)
    made: dict[Shape, PreTrainedModel] = {}
    for shape in DENSE_TOO:
        config = TinyConfig(shape=shape, hidden=32, heads=2, layers=2, experts=4, context=64)
        made[shape] = perturbed(build(config, TOKENIZER).eval(), 0.2)
    return made


def perturbed(module: M, size: float, *, trained_only: bool = False) -> M:
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad or not trained_only:
                parameter.add_(torch.randn_like(parameter) * size)
    return module


def config_of(shape: Shape, tuning: Tuning, **others: Any) -> SftModelConfig:
    lora = LoraConfig(rank=4, targets=TARGETS[shape], target_parameters=EXPERTS if shape == "mixtral" else ())
    return SftModelConfig(tuning=tuning, dtype="float32", lora=lora, virtual_tokens=3, **others)


def tuned(bases: dict[Shape, PreTrainedModel], shape: Shape, tuning: Tuning, **others: Any) -> TunedPolicy:
    return TunedPolicy(config_of(shape, tuning, **others), lambda: copy.deepcopy(bases[shape])).eval()


def trains(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def tokens() -> Tensor:
    return lay_out(EXAMPLES, capacity=1, packed=False).tokens_RS


def loss_of(policy: TunedPolicy, *, packed: bool = False) -> Tensor:
    return policy(*lay_out(EXAMPLES, capacity=64, packed=packed))  # type: ignore[no-any-return]


EXPECTED = {
    "full": r".",
    "lora": r"\.lora_[AB]\.",
    "ia3": r"\.ia3_l\.",
    "ln": r"(\.ln_\w|norm)\.(weight|bias)$",
    "bitfit": r"\.bias$",
    "prefix": r"^prompt_encoder\.",
    "prompt": r"^prompt_encoder\.",
}
COUNTS: dict[tuple[Shape, Tuning], int] = {  # of a model of two layers
    ("gpt2", "lora"): 2 * 2,
    ("gpt2", "ia3"): 2 * 2,
    ("gpt2", "ln"): 5 * 2,
    ("gpt2", "bitfit"): 2 * 6 + 1,
    ("mixtral", "lora"): 2 * 2 * (2 + 2),  # two modules, and two stacks of experts
    ("mixtral", "ia3"): 2 * 2,
    ("mixtral", "ln"): 5,
    **{(shape, tuning): 1 for shape in SHAPES for tuning in PROMPTED},
}


@pytest.mark.parametrize(("shape", "tuning"), EVERY)
def test_only_the_tunings_own_parameters_train(bases: Any, shape: Shape, tuning: Tuning) -> None:
    """By name and number they are what the tuning is called after; gradients reach all of them and nothing else.

    One step of an optimizer that is given them changes what the model says.
    """
    policy = tuned(bases, shape, tuning)
    named = dict(policy.named_parameters())
    chosen = trains(policy)
    assert all(re.search(EXPECTED[tuning], name) for name in chosen)
    assert len(chosen) == COUNTS.get((shape, tuning), len(named))
    assert {id(p) for p in policy.trainable()["policy"]} == {id(named[name]) for name in chosen}
    optimizer = torch.optim.AdamW(policy.trainable()["policy"], lr=1e-2)
    before = loss_of(policy)
    before.backward()
    assert {name for name, parameter in named.items() if parameter.grad is not None} == chosen
    assert any(bool(gradient.any()) for name in chosen if (gradient := named[name].grad) is not None)
    held = {name: parameter.detach().clone() for name, parameter in named.items()}
    optimizer.step()
    assert float(loss_of(policy).detach()) < float(before.detach()) - 1e-4
    assert all(torch.equal(parameter, held[name]) for name, parameter in named.items() if name not in chosen)


def test_a_model_without_biases_has_no_bitfit(bases: Any) -> None:
    """Mixtral is refused with the setting, the model and another choice."""
    with pytest.raises(
        ValueError, match=r"^model\.tuning = bitfit finds nothing to train in MixtralForCausalLM .*such as"
    ):
        tuned(bases, "mixtral", "bitfit")


@pytest.mark.parametrize(("shape", "tuning"), [(s, t) for s, t in EVERY if t not in PROMPTED])
def test_an_untrained_tuning_changes_nothing(bases: Any, shape: Shape, tuning: Tuning) -> None:
    """Before its first step the model says what the pretrained one says."""
    with torch.no_grad():
        expected = bases[shape](input_ids=tokens()).logits
        logits = tuned(bases, shape, tuning).policy(input_ids=tokens()).logits
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("shape", "tuning"), EVERY)
def test_the_loss_is_the_models_own(bases: Any, shape: Shape, tuning: Tuning) -> None:
    """The sum of -log p over the trained tokens, by the logits of transformers and, of virtual tokens, of PEFT."""
    policy = perturbed(tuned(bases, shape, tuning), 0.3, trained_only=True)
    model: Any = policy._prompted[0] if policy._prompted else policy.policy
    virtual = policy.virtual_tokens if tuning == "prompt" else 0
    expected = 0.0
    for example in EXAMPLES:
        ids_S = torch.tensor(example.token_ids)
        with torch.no_grad():
            logprobs_SV = model(input_ids=ids_S[None]).logits[0, virtual:].double().log_softmax(-1)
        expected -= sum(float(logprobs_SV[k - 1, ids_S[k]]) for k in range(1, len(ids_S)) if example.mask[k])
    with torch.no_grad():
        assert float(loss_of(policy)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("shape", "tuning"), EVERY)
def test_what_trains_has_the_models_type(bases: Any, shape: Shape, tuning: Tuning) -> None:
    """A bfloat16 model has no parameter of another type, and its loss is that of float32 to bfloat16's precision."""
    policy = TunedPolicy(config_of(shape, tuning), lambda: copy.deepcopy(bases[shape]).bfloat16()).eval()
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.bfloat16}
    exact = TunedPolicy(config_of(shape, tuning), lambda: copy.deepcopy(bases[shape])).eval()
    exact.load_state_dict({name: tensor.float() for name, tensor in policy.state_dict().items()})
    with torch.no_grad():
        assert float(loss_of(policy)) == pytest.approx(float(loss_of(exact)), rel=0.03)


@pytest.mark.parametrize("tuning", PROMPTED)
@pytest.mark.parametrize("shape", SHAPES)
def test_virtual_tokens_are_pefts(bases: Any, shape: Shape, tuning: Tuning, tmp_path: Path) -> None:
    """With the same virtual tokens PEFT's model has the same loss on the same batch, and reads what was saved."""
    policy = perturbed(tuned(bases, shape, tuning), 0.3, trained_only=True)
    kind = PrefixTuningConfig if tuning == "prefix" else PromptTuningConfig
    reference = get_peft_model(
        copy.deepcopy(bases[shape]), kind(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
    ).eval()
    (learned,) = policy.prompt_encoder.parameters()
    policy.save_adapter(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(bases[shape]), str(tmp_path)).eval()
    rows = lay_out(EXAMPLES, capacity=1, packed=False)
    labels = rows.tokens_RS.masked_fill(~nn.functional.pad(rows.mask_RT, (1, 0)), -100)
    with torch.no_grad():
        untrained = float(reference(input_ids=rows.tokens_RS, labels=labels).loss)
        (parameter,) = reference.prompt_encoder.parameters()
        parameter.copy_(learned)
        expected = reference(input_ids=rows.tokens_RS, labels=labels)
        torch.testing.assert_close(loaded(input_ids=rows.tokens_RS).logits, expected.logits)
        ours = float(policy(*rows)) / int(rows.mask_RT.sum())
    assert ours == pytest.approx(float(expected.loss), rel=1e-5) != pytest.approx(untrained, rel=1e-3)


def stream_of(policy: TunedPolicy, *, only_trained: bool = False) -> PolicyStream:
    return PolicyStream(policy.policy, only_trained=only_trained)


def published(stream: PolicyStream) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for group in stream for name, tensor in group.tensors}


def merged_by_peft(
    base: PreTrainedModel, policy: TunedPolicy, shape: Shape, tuning: Tuning, folder: Path
) -> dict[str, Tensor]:
    """The checkpoint that PEFT and transformers write of a model into which what the policy learned is merged."""
    config: Any
    match tuning, shape:
        case "lora", _:
            config = lora_config(config_of(shape, tuning).lora, base)
        case "ia3", "gpt2":
            down = ["mlp.c_proj"]
            config = IA3Config(target_modules=["c_attn", *down], feedforward_modules=down, fan_in_fan_out=True)
        case "ia3", _:
            down = ["down_proj"] if shape == "mistral" else []
            config = IA3Config(target_modules=["k_proj", "v_proj", *down], feedforward_modules=down)
        case _:
            norms = (
                ["ln_1", "ln_2", "ln_f"] if shape == "gpt2" else ["input_layernorm", "post_attention_layernorm", "norm"]
            )
            config = LNTuningConfig(target_modules=norms)
    adapted = get_peft_model(copy.deepcopy(base), config, adapter_name=ADAPTER)
    learned = {f"base_model.model.{name}": p for name, p in policy.policy.named_parameters() if p.requires_grad}
    if tuning == "ln":  # PEFT trains copies of the norms
        learned = {re.sub(r"\.(\w+)$", rf".ln_tuning_layers.{ADAPTER}.\1", name): p for name, p in learned.items()}
    outcome = adapted.load_state_dict(learned, strict=False)
    assert learned and not outcome.unexpected_keys
    adapted.merge_and_unload().save_pretrained(folder)
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("tuning", ADAPTED)
@pytest.mark.parametrize("shape", DENSE_TOO)
def test_published_weights_are_pefts_merge(bases: Any, shape: Shape, tuning: Tuning, tmp_path: Path) -> None:
    """Names, shapes and values of the stream are those of PEFT's own merge, written by transformers."""
    policy = perturbed(tuned(bases, shape, tuning), 0.3, trained_only=True)
    expected = merged_by_peft(bases[shape], policy, shape, tuning, tmp_path)
    stream = stream_of(policy)
    weights = published(stream)
    tied = {"lm_head.weight"} if shape == "gpt2" else set()
    assert weights.keys() - tied == expected.keys() - tied
    assert all(torch.equal(weights["transformer.wte.weight"], weights[name]) for name in tied)
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-6, atol=1e-6, msg=name)
    assert {spec.name: spec.shape for spec in stream.specs()} == {name: tuple(t.shape) for name, t in weights.items()}
    before = published(PolicyStream(bases[shape], only_trained=False))
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("tuning", ADAPTED)
@pytest.mark.parametrize("shape", DENSE_TOO)
def test_a_publish_of_what_trained_sends_all_that_changed(bases: Any, shape: Shape, tuning: Tuning) -> None:
    """Every weight that differs from the pretrained model's is among those of the groups with adapters, with its value."""
    policy = perturbed(tuned(bases, shape, tuning), 0.3, trained_only=True)
    before = published(PolicyStream(bases[shape], only_trained=False))
    whole, part = published(stream_of(policy)), published(stream_of(policy, only_trained=True))
    changed = {name for name, tensor in whole.items() if not torch.equal(tensor, before[name])}
    assert changed and changed <= part.keys() < whole.keys()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in part.items())


@pytest.mark.parametrize(("shape", "tuning"), [(s, t) for s, t in EVERY if t not in PROMPTED])
def test_an_export_says_what_the_tuned_model_says(bases: Any, shape: Shape, tuning: Tuning, tmp_path: Path) -> None:
    """Loaded by transformers, the exported folder has the logits of the model that was tuned."""
    policy = perturbed(tuned(bases, shape, tuning), 0.3, trained_only=True)
    export_policy(stream_of(policy), policy.policy.config, tmp_path, write=True)
    loaded, said = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    with torch.no_grad():
        expected, before = policy.policy(input_ids=tokens()).logits, bases[shape](input_ids=tokens()).logits
        torch.testing.assert_close(loaded.eval()(input_ids=tokens()).logits, expected, rtol=1e-4, atol=1e-4)
    assert float((expected - before).abs().max()) > 0.1


def greedy(policy: TunedPolicy, prompt: tuple[int, ...], count: int) -> list[int]:
    """The likeliest tokens one by one, from the hidden states that training sees; with the end token, if it comes."""
    written = list(prompt)
    while len(written) < len(prompt) + count and written[-1] != END:
        with torch.no_grad():
            hidden_BSD = policy._hidden(torch.tensor([written]), torch.arange(len(written))[None])
            written.append(int(policy.policy.get_output_embeddings()(hidden_BSD[:, -1]).argmax()))
    return written[len(prompt) :]


def until_end(row: list[int]) -> list[int]:
    return row[: row.index(END) + 1] if END in row else row


@pytest.mark.parametrize("tuning", ["full", "lora", "prefix", "prompt"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_reply_does_not_depend_on_the_prompts_beside_it(bases: Any, shape: Shape, tuning: Tuning) -> None:
    """Prompts of several lengths together, near temperature 0: each continues as in training, alone and unpadded."""
    policy = perturbed(tuned(bases, shape, tuning), 0.5, trained_only=True)
    prompts = [tuple(range(10 + size, 10 + 2 * size)) for size in (9, 1, 4, 6)]
    policy.train()
    together = policy.sample(prompts, max_tokens=6, temperature=1e-4, end_ids=(END,), synced=False)
    assert policy.training
    policy.eval()
    assert [until_end(row) for row in together] == [greedy(policy, prompt, 6) for prompt in prompts]
    assert len({tuple(row) for row in together}) > 1


def test_samples_follow_the_generator(bases: Any) -> None:
    """The same seed samples the same replies, another seed others; nothing is longer than asked for."""
    policy = tuned(bases, "gpt2", "full")

    def sample(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return policy.sample([(5, 6)] * 4, max_tokens=7, temperature=2.0, end_ids=(END,), synced=False)

    assert sample(1) == sample(1) != sample(2)
    assert all(len(row) <= 7 for row in sample(1))


@pytest.mark.parametrize(("shape", "tuning"), [(s, t) for s, t in EVERY if t != "prefix"])
def test_checkpointed_gradients_are_the_same(bases: Any, shape: Shape, tuning: Tuning) -> None:
    """Layers computed again in the backward pass give the gradients that kept activations give."""
    plain, checkpointed = tuned(bases, shape, tuning), tuned(bases, shape, tuning, gradient_checkpointing=True)
    checkpointed.load_state_dict(plain.state_dict())
    for policy in (plain, checkpointed):
        loss_of(policy.train()).backward()
    expected = dict(plain.named_parameters())
    for name, parameter in checkpointed.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-5, msg=name)


def test_prefix_tuning_refuses_checkpointing(bases: Any) -> None:
    """Recomputed layers would not see the prefix: the combination is an error that names both settings."""
    with pytest.raises(
        ValueError, match=r"model\.gradient_checkpointing must be false with model\.tuning = prefix, is true"
    ):
        tuned(bases, "gpt2", "prefix", gradient_checkpointing=True)


@pytest.mark.parametrize(("shape", "tuning"), [(s, t) for s, t in EVERY if t not in PROMPTED])
def test_every_tuning_that_packs_packs_without_a_trace(bases: Any, shape: Shape, tuning: Tuning) -> None:
    """Packed in one row, the batch has the loss of its sequences in rows of their own."""
    policy = perturbed(tuned(bases, shape, tuning), 0.3, trained_only=True)
    with torch.no_grad():
        assert float(loss_of(policy, packed=True)) == pytest.approx(float(loss_of(policy)), rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_label_token_begins_as_the_mean_of_its_words(bases: Any, shape: Shape) -> None:
    """In both embeddings, tied or not; every other token keeps its row, and the model reads the larger vocabulary."""
    model, tokenizer = copy.deepcopy(bases[shape]), copy.deepcopy(TOKENIZER)
    added = {"<|emotion:ab|>": "a b", "<|emotion:cd|>": "c"}
    tokenizer.add_special_tokens({"additional_special_tokens": [*added]}, replace_extra_special_tokens=False)
    words = {tokenizer.convert_tokens_to_ids(token): text for token, text in added.items()}
    add_label_tokens(model, tokenizer, words)
    pairs = [
        (model.get_input_embeddings().weight, bases[shape].get_input_embeddings().weight),
        (model.get_output_embeddings().weight, bases[shape].get_output_embeddings().weight),
    ]
    for new, old in pairs:
        assert new.shape[0] == len(tokenizer) == len(old) + 2 == model.config.vocab_size
        assert torch.equal(new[: len(old)], old)
        for token, text in words.items():
            ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
            torch.testing.assert_close(new[token], torch.stack([old[i] for i in ids]).mean(0))


def test_a_fresh_policy_trains(bases: Any) -> None:
    """Pretrained models come in evaluation mode: dropout and checkpointing would be off until the first validation."""
    policy = TunedPolicy(config_of("gpt2", "full"), lambda: copy.deepcopy(bases["gpt2"]).eval())
    assert all(module.training for module in policy.modules())
