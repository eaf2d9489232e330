"""DeepSeek-VL2 assembled from parts of transformers: tower, projector, layout, decoder.

The decoder is transformers' DeepSeek-V2, or V3 where the router is its; without latent attention
its attention is Llama's.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.llama.modeling_llama import LlamaAttention


class PlainAttention(nn.Module):
    """Llama's attention in the place of a latent one: angles come as complex numbers."""

    def __init__(self, config: DeepseekV2Config, layer: int) -> None:
        super().__init__()
        sizes = {
            name: getattr(config, name)
            for name in ("hidden_size", "num_attention_heads", "num_key_value_heads")
        }
        plain = LlamaConfig(**sizes, attn_implementation="eager")
        self.inner = LlamaAttention(plain, layer)

    def forward(self, hidden_states, attention_mask=None, position_embeddings=None, **_):
        turn = torch.cat([position_embeddings, position_embeddings], dim=-1)  # [B, N, C] complex
        return self.inner(
            hidden_states,
            position_embeddings=(turn.real, turn.imag),
            attention_mask=attention_mask,
        )


class Reference:
    """A checkpoint directory of ours, computed by transformers."""

    def __init__(self, path: Path) -> None:
        self.config = json.loads((path / "config.json").read_text())
        self.tensors = load_file(path / "model.safetensors")
        self.tower, self.decoder = self._build_tower(), self._build_decoder()

    def _build_tower(self) -> SiglipVisionModel:
        sizes = self.config["vision_config"]
        width = sizes["width"]
        model = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=width,
                intermediate_size=int(width * sizes["mlp_ratio"]),
                num_hidden_layers=sizes["layers"],
                num_attention_heads=sizes["heads"],
                image_size=sizes["image_size"],
                patch_size=sizes["patch_size"],
                hidden_act="gelu_pytorch_tanh",
                vision_use_head=False,
                attn_implementation="eager",
            )
        )
        names = {
            "patch_embed.proj": "embeddings.patch_embedding",
            "pos_embed": "embeddings.position_embedding.weight",
            "blocks": "encoder.layers",
            "norm1": "layer_norm1",
            "norm2": "layer_norm2",
            "attn.proj": "self_attn.out_proj",
            "norm.": "post_layernorm.",
        }
        state = {}
        for name, tensor in self.tensors.items():
            if not name.startswith("vision."):
                continue
            name = name.removeprefix("vision.")
            if ".attn.qkv." in name:
                for part, letter in zip(tensor.chunk(3), "qkv", strict=True):
                    found = name.replace("blocks", "encoder.layers")
                    state[found.replace("attn.qkv", f"self_attn.{letter}_proj")] = part
                continue
            for ours, theirs in names.items():
                if ours != "norm." or name.startswith("norm."):
                    name = name.replace(ours, theirs)
            state[name] = tensor[0] if name.endswith("position_embedding.weight") else tensor
        prefix = "vision_model." if hasattr(model, "vision_model") else ""
        model.load_state_dict({f"{prefix}{name}": tensor for name, tensor in state.items()})
        return model.eval()

    def _build_decoder(self) -> DeepseekV2ForCausalLM | DeepseekV3ForCausalLM:
        sizes = dict(self.config["language_config"])
        latent = sizes.pop("use_mla")
        sizes.pop("model_type")
        if not latent:
            # what the rotary embedding is made for, and small latent parts that are replaced below
            turned = sizes["hidden_size"] // sizes["num_attention_heads"]
            sizes |= {"qk_rope_head_dim": turned, "qk_nope_head_dim": 1, "v_head_dim": 1}
            sizes |= {"kv_lora_rank": 1}
        rope = {"rope_type": "default", "rope_theta": 10000.0}
        kind, causal = DeepseekV2Config, DeepseekV2ForCausalLM
        if sizes["topk_method"] == "noaux_tc":
            kind, causal = DeepseekV3Config, DeepseekV3ForCausalLM
        config = kind(**sizes, rope_parameters=rope, attn_implementation="eager")
        model = causal(config)
        if not latent:
            for index, layer in enumerate(model.model.layers):
                layer.self_attn = PlainAttention(config, index)
        state, experts = {}, {}
        for name, tensor in self.tensors.items():
            if not name.startswith("language."):
                continue
            name = name.removeprefix("language.")
            if not latent:
                name = name.replace("self_attn.", "self_attn.inner.")
            if ".experts." in name:
                front, back = name.split(".experts.")
                number, part, _ = back.split(".")
                experts.setdefault(front, {})[part, int(number)] = tensor
            else:
                state[name] = tensor
        for front, parts in experts.items():
            count = config.n_routed_experts
            gate, up, down = (
                torch.stack([parts[part, number] for number in range(count)])
                for part in ("gate_proj", "up_proj", "down_proj")
            )
            state[f"{front}.experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
            state[f"{front}.experts.down_proj"] = down
        model.load_state_dict(state)
        return model.eval()

    def embed_image(self, tiles: torch.Tensor, columns: int, rows: int) -> torch.Tensor:
        """Return the tokens [v, D] of the whole and the tiles [1 + columns * rows, 3, H, W]."""
        patches = self.tower(pixel_values=tiles).last_hidden_state  # [t, P, E]
        side = int(patches.shape[1] ** 0.5)
        square = patches.reshape(len(tiles), side, side, -1).permute(0, 3, 1, 2)
        square = nn.functional.pad(square, (0, side % 2, 0, side % 2))
        joined = nn.functional.unfold(square, 2, stride=2).transpose(1, 2)  # channel outermost
        first, second = (self._layer(f"projector.layers.{number}", joined) for number in (0, 2))
        cells = second(nn.functional.gelu(first(joined)))
        count = (side + 1) // 2
        cells = cells.reshape(len(tiles), count, count, -1)
        newline = self.tensors["image_newline"][None]
        whole = [torch.cat([cells[0, row], newline]) for row in range(count)]
        mosaic = []
        for row in range(rows * count):
            first = 1 + row // count * columns
            across = [cells[first + column, row % count] for column in range(columns)]
            mosaic.append(torch.cat([*across, newline]))
        return torch.cat([*whole, self.tensors["view_seperator"][None], *mosaic])

    def _layer(self, name: str, _: torch.Tensor):
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return lambda x: nn.functional.linear(x, weight, bias)

    @torch.no_grad()
    def embed(self, ids: list[int], images: list) -> torch.Tensor:
        """Return the embedded prompt [1, n, D]; images are (tiles, columns, rows)."""
        tokens = torch.tensor(ids)
        hidden = self.decoder.model.embed_tokens(tokens)
        if images:
            visual = torch.cat([self.embed_image(*image) for image in images])
            hidden[tokens == self.config["image_token_id"]] = visual
        return hidden[None]

    @torch.no_grad()
    def answer(self, ids: list[int], images: list, count: int) -> tuple[np.ndarray, list[int]]:
        """Return the logits behind the prompt and the tokens that greedy decoding begins with."""
        hidden, tokens, logits = self.embed(ids, images), [], []
        for _ in range(count):
            out = self.decoder(inputs_embeds=hidden, use_cache=False).logits[0, -1]
            logits.append(out.numpy())
            tokens.append(int(out.argmax()))
            new = self.decoder.model.embed_tokens(torch.tensor([[tokens[-1]]]))
            hidden = torch.cat([hidden, new], dim=1)
        return logits[0], tokens
