"""What of a model a supervised run trains, by name; everything else is frozen.

    full     every weight
    lora     low-rank adapters (Hu et al. 2021, arXiv:2106.09685)
    ia3      learned scales of keys, values and feed-forward (Liu et al. 2022, arXiv:2205.05638)
    ln       the layer norms (Zhao et al. 2023, arXiv:2312.11420)
    bitfit   the biases (Ben Zaken et al. 2021, arXiv:2106.10199)
    prefix   keys and values before each layer's own (Li and Liang 2021, arXiv:2101.00190)
    prompt   embeddings before the text (Lester et al. 2021, arXiv:2104.08691)

Adapters and prompts are PEFT's. `ln` trains the norms where they are: PEFT trains copies, and a copy of a parameter that ZeRO-3
has sharded is empty. Axes: B rows, S tokens, T = S - 1 positions, N trained positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import (
    IA3Config,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
    inject_adapter_in_model,
)
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rl.policy import Role, lora_config
from rl.sft_config import SftModelConfig

ADAPTER = Role.POLICY.value


class TunedPolicy(nn.Module):
    """A causal LM of which `config.tuning` trains a part. `load` gives the pretrained model.

    Raises ValueError when the model has nothing that the tuning could train.
    """

    def __init__(self, config: SftModelConfig, load: Callable[[], PreTrainedModel]) -> None:
        super().__init__()
        self.policy = load()
        self.virtual_tokens = 0 if config.merges else config.virtual_tokens
        self._prompted: list[PeftModel] = []  # in a list: its parameters are those below, registered once
        if config.tuning != "full":
            self.policy.requires_grad_(False)
        match config.tuning:
            case "lora":
                inject_adapter_in_model(lora_config(config.lora, self.policy), self.policy, ADAPTER)
            case "ia3":
                inject_adapter_in_model(_ia3_config(self.policy), self.policy, ADAPTER)
            case "ln":
                for module in self.policy.modules():
                    if "norm" in type(module).__name__.lower():
                        module.requires_grad_(True)
            case "bitfit":
                for name, parameter in self.policy.named_parameters():
                    parameter.requires_grad_(name.endswith("bias"))
            case "prefix" | "prompt":
                kind = PrefixTuningConfig if config.tuning == "prefix" else PromptTuningConfig
                peft = kind(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=config.virtual_tokens)
                self._prompted = [get_peft_model(self.policy, peft)]
                self.prompt_encoder = self._prompted[0].prompt_encoder.to(self.policy.dtype)  # PEFT's are float32
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise ValueError(
                f"model.tuning = {config.tuning} finds nothing to train in {type(self.policy).__name__} (bitfit needs biases, "
                "which the Llama family has not); choose another, such as ln"
            )
        if config.gradient_checkpointing:
            self.policy.gradient_checkpointing_enable({"use_reentrant": False})
            self.policy.enable_input_require_grads()
        self.train()  # pretrained models come in evaluation mode: no dropout, no checkpointing

    def forward(self, tokens_BS: Tensor, positions_BS: Tensor, mask_BT: Tensor) -> Tensor:
        """Sum over the mask of -log p(next token), nats, in float32."""
        hidden_ND = self._hidden(tokens_BS, positions_BS)[:, :-1][mask_BT]
        logits_NV = self.policy.get_output_embeddings()(hidden_ND).float()
        return functional.cross_entropy(logits_NV, tokens_BS[:, 1:][mask_BT], reduction="sum")

    def _hidden(self, tokens_BS: Tensor, positions_BS: Tensor) -> Tensor:
        backbone = self.policy.base_model
        if not self._prompted:
            return backbone(input_ids=tokens_BS, position_ids=positions_BS, use_cache=False).last_hidden_state
        prompt: Any = self._prompted[0].get_prompt(tokens_BS.shape[0])
        if isinstance(prompt, Tensor):
            embeddings = torch.cat([prompt, self.policy.get_input_embeddings()(tokens_BS)], dim=1)
            return backbone(inputs_embeds=embeddings, use_cache=False).last_hidden_state[:, self.virtual_tokens :]
        seen = tokens_BS.new_ones(tokens_BS.shape[0], self.virtual_tokens + tokens_BS.shape[1])
        return backbone(input_ids=tokens_BS, attention_mask=seen, past_key_values=prompt).last_hidden_state

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        temperature: float,
        end_ids: Sequence[int],
        synced: bool,
    ) -> list[list[int]]:
        """One sampled reply per prompt, by transformers. `synced`: every rank of ZeRO-3 goes on until all have ended."""
        was_training = self.training
        self.eval()
        model, inputs = self._left_padded(prompts, end_ids[0])
        written_BS = model.generate(
            **inputs, max_new_tokens=max_tokens, do_sample=True, temperature=temperature, top_k=0, top_p=1.0,
            eos_token_id=list(end_ids), pad_token_id=end_ids[0], synced_gpus=synced,
        )  # fmt: skip
        self.train(was_training)
        start = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        return [row.tolist() for row in written_BS[:, start:]]

    def _left_padded(self, prompts: Sequence[Sequence[int]], pad: int) -> tuple[Any, dict[str, Tensor]]:
        """What generates, and from what."""
        device, width = next(self.parameters()).device, max(len(ids) for ids in prompts)
        tokens_BS = torch.tensor([[pad] * (width - len(ids)) + list(ids) for ids in prompts], device=device)
        lengths_B = torch.tensor([len(ids) for ids in prompts], device=device)
        prompt: Any = self._prompted[0].get_prompt(len(prompts)) if self._prompted else None
        if not isinstance(prompt, Tensor):
            seen_BS = torch.arange(width, device=device) >= width - lengths_B[:, None]
            model = self._prompted[0] if self._prompted else self.policy
            return model, {"input_ids": tokens_BS, "attention_mask": seen_BS.long()}
        # PEFT would put the virtual tokens before the pads, where they stand too far from the text
        texts = self.policy.get_input_embeddings()(tokens_BS)
        rows = [
            torch.cat([text[: width - len(ids)], virtual, text[width - len(ids) :]])
            for ids, virtual, text in zip(prompts, prompt, texts, strict=True)
        ]
        seen_BS = torch.arange(width + self.virtual_tokens, device=device) >= width - lengths_B[:, None]
        return self.policy, {"inputs_embeds": torch.stack(rows), "attention_mask": seen_BS.long()}

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that train, as the one group of the optimizer."""
        return {"policy": [parameter for parameter in self.parameters() if parameter.requires_grad]}

    def save_adapter(self, folder: Path) -> None:
        """Write what prefix and prompt tuning learned, in PEFT's format."""
        self._prompted[0].save_pretrained(folder)


def _ia3_config(model: PreTrainedModel) -> PeftConfig:
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    if any(name.endswith("c_attn") for name in names):
        down = ["mlp.c_proj"]
        return IA3Config(target_modules=["c_attn", *down], feedforward_modules=down, fan_in_fan_out=True)
    down = (
        ["down_proj"] if any(name.endswith("down_proj") for name in names) else []
    )  # fused experts have no module for it
    return IA3Config(target_modules=["k_proj", "v_proj", *down], feedforward_modules=down)
