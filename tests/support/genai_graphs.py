"""Decoders as onnxruntime-genai's builder writes them, without anything of ours inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.affine import pack_bits
from halfbyte.ir.model import Model
from halfbyte.ir.roles import Role, WeightKey

MS = "com.microsoft"


class GenaiGraph:
    """One file under construction; options give its variants and its defects."""

    def __init__(self, model: Model, packed: bool = False, **settings: Any) -> None:
        self.weights = {key: tensor.numpy() for key, tensor in model.by_key().items()}
        self.config, self.packed, self.settings = model.config, packed, settings
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, name: str, array: np.ndarray) -> str:
        self.constants[name] = np.ascontiguousarray(array)
        return name

    def node(self, op: str, inputs: list[str], output: str, domain: str = "", **kw: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], domain=domain, **kw))
        return output

    def product(self, x: str, weight: np.ndarray, name: str) -> str:
        """Add a product, with a weight in blocks of 16 codes if `blocks` is set."""
        if not self.settings.get("blocks"):
            return self.node(
                "MatMul", [x, self.constant(f"{name}.weight", weight.T)], f"{name}/out"
            )
        rows, columns = weight.shape
        encoding = encoding_from_name("int4-g16-asym-f32")
        parts = encoding.encode(np.ascontiguousarray(weight, np.float32))
        zeros = pack_bits(np.asarray(parts["zero_points"]), 4)
        inputs = [
            x,
            self.constant(f"{name}.weight", parts["codes"].reshape(rows, columns // 16, 8)),
            self.constant(f"{name}.scales", parts["scales"]),
            self.constant(f"{name}.zeros", zeros),
        ]
        sizes = {"K": columns, "N": rows, "bits": 4, "block_size": 16}
        return self.node("MatMulNBits", inputs, f"{name}/out", domain=MS, **sizes)

    def linear(self, x: str, key: WeightKey, name: str) -> str:
        out = self.product(x, self.weights[key], name)
        bias = self.weights.get(key._replace(kind="bias"))
        if bias is None:
            return out
        return self.node("Add", [out, self.constant(f"{name}.bias", bias)], f"{name}/biased")

    def layer(self, x: str, skip: str, index: int) -> tuple[str, str]:
        """Add a layer; return its result, not yet added, and the residual."""
        name, epsilon = f"layers.{index}", self.config["rms_norm_eps"]
        scale = self.constant(f"{name}.n1", self.weights[WeightKey(Role.ATTENTION_NORM, index)])
        if skip:
            normed, x = self.skip_norm(skip, x, scale, f"{name}/n1")
        else:
            normed = self.node(
                "SimplifiedLayerNormalization", [x, scale], f"{name}/n1/out",
                axis=-1, epsilon=epsilon, stash_type=1,
            )  # fmt: skip
        out = self.linear(
            self.attention(normed, index), WeightKey(Role.ATTENTION_OUTPUT, index), f"{name}.o"
        )
        scale = self.constant(f"{name}.n2", self.weights[WeightKey(Role.FEED_FORWARD_NORM, index)])
        normed, total = self.skip_norm(x, out, scale, f"{name}/n2")
        gate = self.linear(normed, WeightKey(Role.FEED_FORWARD_GATE, index), f"{name}.gate")
        up = self.linear(normed, WeightKey(Role.FEED_FORWARD_UP, index), f"{name}.up")
        op = self.settings.get("activation", "Sigmoid")
        active = self.node("Mul", [gate, self.node(op, [gate], f"{name}/act")], f"{name}/silu")
        product = self.node("Mul", [active, up], f"{name}/product")
        down = self.linear(product, WeightKey(Role.FEED_FORWARD_DOWN, index), f"{name}.down")
        return down, total

    def skip_norm(self, x: str, skip: str, scale: str, name: str) -> tuple[str, str]:
        outputs = [f"{name}/out", "", "", f"{name}/sum"]
        epsilon = self.config["rms_norm_eps"]
        self.nodes.append(
            helper.make_node(
                "SkipSimplifiedLayerNormalization", [x, skip, scale], outputs,
                domain=MS, epsilon=epsilon,
            )
        )  # fmt: skip
        return outputs[0], outputs[3]

    def attention(self, x: str, index: int) -> str:
        roles = (Role.ATTENTION_QUERY, Role.ATTENTION_KEY, Role.ATTENTION_VALUE)
        keys = [WeightKey(role, index) for role in roles]
        name = f"layers.{index}"
        if self.packed:
            whole = np.concatenate([self.weights[key] for key in keys])
            weight = self.constant(f"{name}.qkv", whole.T)
            inputs = [self.node("MatMul", [x, weight], f"{name}/qkv"), "", ""]
        else:
            inputs = [
                self.head_norm(self.linear(x, key, f"{name}.{key.role}"), key, index)
                for key in keys
            ]
        past = [f"past_key_values.{index}.{kind}" for kind in ("key", "value")]
        size = self.config["head_dim"]
        settings = {
            "num_heads": self.config["num_attention_heads"],
            "kv_num_heads": self.config["num_key_value_heads"],
            "scale": size**-0.5,
            "local_window_size": -1,
            "do_rotary": 1,
            "rotary_interleaved": 0,
            "softcap": 0.0,
            **self.settings.get("attention", {}),
        }
        present = [f"present.{index}.{kind}" for kind in ("key", "value")]
        self.nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [*inputs, *past, "seqlens_k", "total", "cos_cache", "sin_cache"],
                [f"{name}/attn", *present],
                domain=MS,
                **settings,
            )
        )
        return f"{name}/attn"

    def head_norm(self, x: str, key: WeightKey, index: int) -> str:
        role = {
            Role.ATTENTION_QUERY: Role.ATTENTION_QUERY_NORM,
            Role.ATTENTION_KEY: Role.ATTENTION_KEY_NORM,
        }.get(key.role)
        scale = self.weights.get(WeightKey(role, index)) if role else None
        if scale is None:
            return x
        size, name = self.config["head_dim"], f"layers.{index}.{key.role}"
        split = self.constant(f"{name}.split", np.asarray([0, -1, size], np.int64))
        joined = self.constant(f"{name}.join", np.asarray([0, -1, len(self.weights[key])]))
        heads = self.node("Reshape", [x, split], f"{name}/heads")
        normed = self.node(
            "SimplifiedLayerNormalization", [heads, self.constant(f"{name}.n", scale)],
            f"{name}/normed", axis=-1, epsilon=self.config["rms_norm_eps"],
        )  # fmt: skip
        return self.node("Reshape", [normed, joined], f"{name}/joined")

    def tables(self) -> None:
        half = self.config["head_dim"] // 2
        inverse = self.config["rope_theta"] ** (-np.arange(half) / half)
        angles = np.arange(self.config["max_position_embeddings"])[:, None] * inverse
        angles = angles * self.settings.get("stretch", 1.0)
        self.constant("cos_cache", np.cos(angles).astype(np.float32))
        self.constant("sin_cache", np.sin(angles).astype(np.float32))

    def lengths(self) -> None:
        one = self.constant("one", np.asarray([1], np.int64))
        tokens = self.node("ReduceSum", ["attention_mask", one], "tokens", keepdims=0)
        self.node("Cast", [self.node("Sub", [tokens, one], "last")], "seqlens_k", to=6)
        shape = self.node("Shape", ["attention_mask"], "mask_shape")
        length = self.node("Gather", [shape, self.constant("axis", np.asarray(1))], "length")
        self.node("Cast", [length], "total", to=6)

    def save(self, path: Path) -> Path:
        """Write the file."""
        self.lengths()
        self.tables()
        embedding = self.weights[WeightKey(Role.TOKEN_EMBEDDING)]
        tied = WeightKey(Role.OUTPUT_HEAD) not in self.weights
        if tied:
            self.weights[WeightKey(Role.OUTPUT_HEAD)] = embedding
            x = self.tied_lookup(embedding)
        else:
            x = self.node("Gather", [self.constant("table", embedding), "input_ids"], "embedded")
        skip = ""
        for index in range(self.config["num_hidden_layers"]):
            x, skip = self.layer(x, skip, index)
        scale = self.constant("norm", self.weights[WeightKey(Role.OUTPUT_NORM)])
        normed, _ = self.skip_norm(skip, x, scale, "norm")
        self.linear(normed, WeightKey(Role.OUTPUT_HEAD), "head")
        self.node("Identity", ["head/out"], "logits")
        onnx.save(self.proto(), path)
        return path

    def tied_lookup(self, embedding: np.ndarray) -> str:
        """Look up rows of the head's weight."""
        if not self.settings.get("blocks"):
            turned = self.node("Transpose", ["head.weight"], "table", perm=[1, 0])
            return self.node("Gather", [turned, "input_ids"], "embedded")
        rows, columns = embedding.shape
        shape = self.constant("table_shape", np.asarray([rows, columns // 2], np.int64))
        table = self.node("Reshape", ["head.weight", shape], "table")
        return self.node(
            "GatherBlockQuantized", [table, "input_ids", "head.scales", "head.zeros"], "embedded",
            domain=MS, bits=4, block_size=16, gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def proto(self) -> Any:
        kind, config = onnx.TensorProto, self.config
        cache = ["b", config["num_key_value_heads"], "past", config["head_dim"]]
        layers = range(config["num_hidden_layers"])
        names = [f"{i}.{part}" for i in layers for part in ("key", "value")]
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "decoder",
            [
                info("input_ids", kind.INT64, ["b", "s"]),
                info("attention_mask", kind.INT64, ["b", "t"]),
                *(info(f"past_key_values.{name}", kind.FLOAT, cache) for name in names),
            ],
            [
                info("logits", kind.FLOAT, ["b", "s", config["vocab_size"]]),
                *(info(f"present.{name}", kind.FLOAT, cache) for name in names),
            ],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)
